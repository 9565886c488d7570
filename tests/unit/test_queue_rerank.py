"""Ranking anew: what changes when estimates do, and in which order those that wait are asked for."""

from __future__ import annotations

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
    assert "".join(asked) == "34567" + "0189x"


def test_a_rerank_does_not_end_a_rest() -> None:
    queue = make_queue()
    push(queue, "big", cost=1.0)
    push(queue, "small", cost=2.0)
    while not queue.stall():
        pass
    queue.start_rerank()
    queue.rerank(lambda entry: Job(entry.job.key, 0.0, cost=0.1), 10)
    assert queue.peek().job.key == "small"
