"""Ranking anew: what changes when estimates do, and in which order those that wait are asked for."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import pytest
from tests.unit.test_queue import make_queue, push

from quietcore.scheduler.policy import Job, Patience
from quietcore.scheduler.queue import Entry


def test_a_rerank_goes_through_all_in_slices_and_keeps_bounds() -> None:
    queue = make_queue(patience=Patience())
    for number in range(10):
        push(queue, str(number), cost=1.0 + number)
    dues = {entry.job.key: entry.due for entry in queue}
    queue.remove("3")
    queue.start_rerank()

    def revise(entry: Entry[str]) -> Job:
        return Job(entry.job.key, entry.job.arrival, cost=11.0 - entry.job.cost, service=1.0)

    assert [queue.rerank(revise, 4) for _ in range(4)] == [4, 4, 1, 0]
    assert [entry.job.key for entry in queue] == ["9", "8", "7", "6", "5", "4", "2", "1", "0"]
    assert {entry.job.key: entry.due for entry in queue} == {k: v for k, v in dues.items() if k != "3"}
    assert queue.backlog == pytest.approx(sum(entry.job.cost for entry in queue))


def test_a_rerank_goes_on_where_the_last_one_stopped() -> None:
    queue = make_queue()
    for number in range(10):
        push(queue, str(number))
    asked: list[str] = []

    def revise(entry: Entry[str]) -> Job:
        asked.append(entry.job.key)
        return entry.job

    for _ in range(3):
        queue.start_rerank()
        queue.rerank(revise, 4)
    assert "".join(asked) == "012345678901"
    queue.remove("2")
    push(queue, "x")
    queue.start_rerank()
    assert queue.to_rerank == 10
    asked.clear()
    assert queue.rerank(revise, 100) == 10
    assert "".join(asked) == "3456789" + "01x"


def test_what_comes_and_goes_during_a_rerank_is_counted_right() -> None:
    rng = random.Random(1)
    queue = make_queue()
    waiting: set[str] = set()
    stale: set[str] = set()
    out: list[Entry[str]] = []

    def revise(entry: Entry[str]) -> Job:
        stale.remove(entry.job.key)  # never asked twice for one change
        return entry.job

    for number in range(3000):
        action = rng.random()
        if action < 0.4:
            push(queue, str(number))
            waiting.add(str(number))
        elif action < 0.5 and waiting:
            out.append(queue.pop())
            waiting.discard(out[-1].job.key)
        elif action < 0.55 and out:
            entry = out.pop()
            queue.put_back(entry)
            waiting.add(entry.job.key)
        elif action < 0.75 and waiting:
            key = rng.choice(sorted(waiting))
            queue.remove(key)
            waiting.discard(key)
            stale.discard(key)
        elif action < 0.8:
            queue.start_rerank()
            stale = {*waiting, *(entry.job.key for entry in out)}
        else:
            queue.rerank(revise, rng.randint(1, 20))
        assert queue.to_rerank == len(stale & waiting)
    queue.rerank(revise, len(queue))
    assert not stale & waiting


def test_a_change_is_taken_note_of_at_once_however_many_wait() -> None:
    def seconds(waiting: int) -> float:
        queue = make_queue()
        for number in range(waiting):
            push(queue, str(number))
        queue.start_rerank()
        queue.rerank(lambda entry: entry.job, 4)
        begun = perf_counter()
        for _ in range(200):
            queue.start_rerank()
            queue.rerank(lambda entry: entry.job, 4)
        return perf_counter() - begun

    assert min(seconds(10_000) for _ in range(3)) < 10 * min(seconds(100) for _ in range(3))


def slower(factor: float) -> Callable[[Entry[str]], Job]:
    """The same, as an engine that needs so many times as long would see it."""

    def revise(entry: Entry[str]) -> Job:
        job = entry.job
        return replace(job, cost=job.cost * factor, service=job.service * factor)

    return revise


def test_a_deadline_presses_earlier_where_the_engine_has_become_slower() -> None:
    queue = make_queue()
    push(queue, "short", cost=1.0)
    push(queue, "timed", cost=10.0, deadline=40.0)  # presses from 15 on, at double cost from 10 on
    queue.settle(9.0)
    queue.start_rerank()
    queue.rerank(slower(2.0), 10)
    queue.settle(9.9)
    assert queue.peek().job.key == "short"
    queue.settle(10.0)
    assert queue.peek().job.key == "timed"
    queue.settle(20.5)  # it can't be met any more
    assert queue.peek().job.key == "short"


def test_a_service_alone_that_changes_moves_a_deadline() -> None:
    """Of a batch that shares its steps among more, the cost of each may stay while its service grows."""
    queue = make_queue()
    push(queue, "short", cost=1.0)
    push(queue, "timed", cost=10.0, deadline=40.0)
    queue.settle(9.0)
    queue.start_rerank()
    queue.rerank(lambda entry: replace(entry.job, service=2.0 * entry.job.service), 10)
    queue.settle(10.0)
    assert queue.peek().job.key == "timed"


def test_who_has_a_deadline_is_asked_first_and_the_others_are_not_forgotten() -> None:
    queue = make_queue()
    for number in range(40):
        push(queue, str(number), deadline=1e6 if number % 2 else math.inf)
    asked: list[str] = []

    def revise(entry: Entry[str]) -> Job:
        asked.append(entry.job.key)
        return entry.job

    queue.start_rerank()
    assert queue.rerank(revise, 8) == 8
    assert sum(int(key) % 2 for key in asked) == 6
    for _ in range(4):
        queue.rerank(revise, 8)
    assert sorted(asked, key=int) == [str(number) for number in range(40)]
    assert queue.to_rerank == queue.rerank(revise, 8) == 0


def test_a_deadline_that_comes_with_a_new_estimate_is_kept() -> None:
    queue = make_queue()
    for key in "ab":
        push(queue, key, cost=10.0)
    queue.start_rerank()
    queue.rerank(lambda entry: replace(entry.job, deadline=30.0), 10)
    queue.start_rerank()
    assert queue.to_rerank == 2
    queue.settle(15.0)
    assert queue.rerank(lambda entry: replace(entry.job, deadline=math.inf), 1) == 1
    assert queue.to_rerank == 1
    queue.remove("a")
    queue.remove("b")
    assert queue.to_rerank == 0


def test_a_rerank_does_not_end_a_rest() -> None:
    queue = make_queue()
    push(queue, "big", cost=1.0)
    push(queue, "small", cost=2.0)
    while not queue.stall():
        pass
    queue.start_rerank()
    queue.rerank(lambda entry: Job(entry.job.key, 0.0, cost=0.1), 10)
    assert queue.peek().job.key == "small"
