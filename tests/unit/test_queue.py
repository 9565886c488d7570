"""The queue: its order, its timers, what it remembers, and a model that it must agree with."""

from __future__ import annotations

import math
import random

import pytest

from quietcore.scheduler.policy import Job, Patience, Policy, build
from quietcore.scheduler.queue import MAX_RESTS, REST_STEPS, TRIES, Entry, JobQueue

Queue = JobQueue[str]


def make_queue(name: str = "drift", *, patience: Patience | None = None, fair: bool = False) -> Queue:
    return JobQueue(build(name, patience=patience, fair=fair))


def push(
    queue: Queue, key: str, *, cost: float = 1.0, arrival: float | None = None, **fields: object
) -> Entry[str]:
    when = queue.now if arrival is None else arrival
    job = Job(**{"key": key, "arrival": when, "cost": cost, "service": cost, **fields})  # type: ignore[arg-type]
    return queue.push(job, key.upper())


def drain(queue: Queue) -> str:
    return "".join(queue.pop().job.key for _ in range(len(queue)))


def test_pop_follows_the_policy_and_iteration_shows_it_before() -> None:
    queue = make_queue()
    for key, cost in zip("cabd", (3.0, 1.0, 2.0, 4.0), strict=True):
        push(queue, key, cost=cost)
    assert "".join(entry.job.key for entry in queue) == "abcd"
    assert queue.peek().item == "A"
    assert drain(queue) == "abcd"
    assert not queue


def test_an_empty_queue_says_so() -> None:
    queue = make_queue()
    for take in (queue.peek, queue.pop):
        with pytest.raises(IndexError, match="empty queue"):
            take()
    assert queue.remove("nobody") is None


def test_equal_keys_go_by_entry_also_after_being_put_back() -> None:
    queue = make_queue("fifo")
    for key in "abc":
        push(queue, key, arrival=1.0)
    first = queue.pop()
    queue.put_back(first)
    assert drain(queue) == "abc"


def test_what_is_removed_does_not_come_up() -> None:
    queue = make_queue()
    for number in range(300):
        push(queue, str(number), cost=float(number))
    for number in range(0, 300, 2):
        queue.remove(str(number))
    assert [queue.pop().job.key for _ in range(len(queue))] == [str(n) for n in range(1, 300, 2)]


def test_a_key_pushed_twice_waits_once() -> None:
    queue = make_queue()
    push(queue, "a", cost=5.0)
    push(queue, "a", cost=1.0)
    assert len(queue) == 1
    assert queue.backlog == pytest.approx(1.0)


def test_what_is_put_back_may_have_less_left() -> None:
    queue = make_queue()
    push(queue, "a", cost=1.0)
    push(queue, "b", cost=2.0)
    push(queue, "c", cost=3.0)
    entries = [queue.pop(), queue.pop(), queue.pop()]
    queue.put_back(entries[0])
    queue.put_back(entries[2], Job("c", 0.0, cost=0.5, service=0.5))
    assert drain(queue) == "ca"


def test_once_a_request_has_waited_its_bound_no_younger_one_of_its_tier_goes_before_it() -> None:
    queue = make_queue(patience=Patience(stretch=1.0, usual=0.0, floor=10.0))
    push(queue, "long", cost=100.0)
    queue.settle(9.9)
    push(queue, "short", cost=0.1)
    assert queue.peek().job.key == "short"
    queue.settle(10.0)
    assert queue.peek().job.key == "long"
    assert queue.overdue == 1


def test_the_overdue_of_a_tier_go_by_arrival_whatever_their_bounds() -> None:
    queue = make_queue(patience=Patience(stretch=2.0, usual=0.0, floor=0.0))
    push(queue, "old", cost=10.0)  # due at 10
    queue.settle(1.0)
    queue.remove("old")
    push(queue, "a", cost=30.0, arrival=1.0)  # due at 31
    push(queue, "b", cost=1.0, arrival=2.0)
    entry = queue.get("b")
    assert entry is not None
    entry.due = 5.0
    queue.settle(50.0)
    assert [each.job.key for each in queue] == ["a", "b"]


def test_the_bound_is_fixed_at_arrival_by_what_waits_then() -> None:
    queue = make_queue(patience=Patience(stretch=2.0, usual=0.0))
    assert push(queue, "a", cost=3.0).due == pytest.approx(2 * 3 - 3)
    assert push(queue, "b", cost=1.0).due == pytest.approx(2 * (3 + 1) - 1)
    queue.settle(2.0)
    assert push(queue, "c", cost=1.0).due == pytest.approx(2.0 + 2 * (4 + 1) - 1)


def test_the_bound_of_a_tier_is_taken_from_its_share_of_the_engine() -> None:
    queue = make_queue(patience=Patience(stretch=1.0, usual=0.0))
    for number in range(10):
        push(queue, f"b{number}", tier="batch", cost=7.0)
    assert push(queue, "p0", tier="premium", cost=5.0).due == 0.0
    # Five seconds of premium's own, during which batch gets 20/50 of them.
    assert push(queue, "p1", tier="premium", cost=5.0).due == pytest.approx(5.0 * (1 + 20 / 50))
    # Batch's own seventy, and all of premium's, which is through long before.
    assert push(queue, "late", tier="batch", cost=1.0).due == pytest.approx(70.0 + 10.0)


def test_a_premium_trickle_is_not_held_up_by_an_overdue_batch_flood() -> None:
    queue = make_queue(patience=Patience(stretch=1.1, usual=0.0))
    for number in range(100):
        push(queue, f"b{number:02}", tier="batch")
    queue.settle(1000.0)
    for key in ("p0", "p1"):
        push(queue, key, tier="premium")
    queue.settle(1010.0)
    assert queue.overdue == 102
    order = [queue.pop().job.key for _ in range(len(queue))]
    assert order.index("p1") < 5
    assert [key for key in order if key.startswith("b")] == [f"b{number:02}" for number in range(100)]


def test_an_overdue_batch_request_gets_its_share_beside_a_premium_flood() -> None:
    queue = make_queue(patience=Patience(stretch=1.0, usual=0.0))
    for number in range(70):
        push(queue, f"b{number:02}", tier="batch")
        push(queue, f"p{number:02}", tier="premium")
    queue.settle(1000.0)
    first = [queue.pop().job.tier for _ in range(70)]
    assert first.count("batch") == pytest.approx(20, abs=1)


def test_the_usual_wait_is_learnt() -> None:
    queue = make_queue(patience=Patience(stretch=1.0, usual=0.95))
    for number in range(200):
        push(queue, str(number), cost=1.0)
    while queue:
        queue.pop()
    entry = push(queue, "calm", cost=1.0)
    assert entry.due == pytest.approx(0.95 * 200, abs=3.0)


def test_without_patience_nothing_is_ever_overdue() -> None:
    queue = make_queue()
    assert push(queue, "a").due == math.inf
    queue.settle(1e12)
    assert queue.overdue == 0


def test_a_deadline_presses_after_half_of_its_slack_and_lapses_when_it_cannot_be_met() -> None:
    queue = make_queue()
    push(queue, "cheap", cost=0.1)
    push(queue, "due", cost=2.0, deadline=12.0)  # latest start 10, presses from 5
    firsts = {}
    for now in (4.9, 5.0, 10.0, 10.1):
        queue.settle(now)
        firsts[now] = queue.peek().job.key
    assert firsts == {4.9: "cheap", 5.0: "due", 10.0: "due", 10.1: "cheap"}


def test_pressing_deadlines_go_by_least_slack() -> None:
    queue = make_queue()
    push(queue, "a", cost=1.0, deadline=20.0)
    push(queue, "b", cost=6.0, deadline=22.0)
    push(queue, "c", cost=1.0, deadline=21.0)
    queue.settle(15.0)
    assert drain(queue) == "bac"


def test_a_deadline_that_was_never_feasible_changes_nothing() -> None:
    queue = make_queue()
    push(queue, "cheap", cost=0.1)
    push(queue, "lost", cost=5.0, deadline=1.0)
    assert drain(queue) == "cheaplost"


def test_the_overdue_go_before_pressing_deadlines() -> None:
    queue = make_queue(patience=Patience(stretch=1.0, usual=0.0, floor=5.0))
    push(queue, "old", cost=9.0)
    queue.settle(4.0)
    push(queue, "due", cost=1.0, deadline=7.0)
    queue.settle(5.5)
    assert drain(queue) == "olddue"


def test_strict_priorities_come_before_bounds_and_deadlines() -> None:
    queue: Queue = JobQueue(build("drift", patience=Patience(stretch=1.0, usual=0.0), strict=True))
    push(queue, "overdue", cost=1.0, priority=1)
    push(queue, "due", cost=1.0, priority=1, deadline=12.0)
    push(queue, "urgent", cost=9.0, priority=0)
    push(queue, "first", cost=1.0, priority=0)
    queue.settle(10.0)
    order = [entry.job.key for entry in queue]
    assert order == ["urgent", "first", "overdue", "due"]
    assert [queue.pop().job.key for _ in range(4)] == order


def test_published_policies_ignore_deadlines() -> None:
    queue = make_queue("sjf")
    push(queue, "cheap", cost=0.1)
    push(queue, "due", cost=1.0, deadline=1.5)
    queue.settle(0.4)
    assert queue.peek().job.key == "cheap"


def test_between_two_settlements_the_order_is_frozen() -> None:
    queue = make_queue(patience=Patience(stretch=1.0, usual=0.0, floor=1.0))
    push(queue, "a", cost=5.0)
    push(queue, "b", cost=1.0)
    queue.settle(0.5)
    head = queue.peek()
    queue.now = 100.0
    assert queue.pop() is head


@pytest.mark.parametrize("jump", [-1e9, 1e9, math.inf])
def test_a_clock_that_jumps_loses_nobody(jump: float) -> None:
    queue = make_queue(patience=Patience())
    for number in range(50):
        push(queue, str(number), cost=float(50 - number), arrival=float(number))
        queue.settle(float(number))
    queue.settle(jump)
    popped = [queue.pop().job.key for _ in range(len(queue))]
    assert sorted(popped, key=int) == [str(n) for n in range(50)]
    if jump > 0:
        assert popped == [str(n) for n in range(50)]


def test_a_head_that_does_not_fit_is_set_aside_for_a_while() -> None:
    queue = make_queue()
    push(queue, "big", cost=1.0)
    push(queue, "small", cost=2.0)
    assert [queue.stall() for _ in range(TRIES)] == [False] * (TRIES - 1) + [True]
    assert queue.peek().job.key == "small"
    for _ in range(REST_STEPS):
        queue.settle(0.0)
    assert queue.peek().job.key == "big"


def test_set_aside_only_for_failures_in_a_row() -> None:
    queue = make_queue()
    push(queue, "big", cost=1.0)
    push(queue, "small", cost=2.0)
    for _ in range(TRIES - 1):
        queue.stall()
    push(queue, "tiny", cost=0.1)
    assert not queue.stall()
    queue.pop()
    assert not queue.stall()
    assert queue.peek().job.key == "big"


def test_alone_it_is_never_set_aside_and_the_last_wakes_at_once() -> None:
    queue = make_queue()
    push(queue, "big", cost=1.0)
    assert not any(queue.stall() for _ in range(3 * TRIES))
    push(queue, "small", cost=2.0)
    while not queue.stall():
        pass
    assert queue.pop().job.key == "small"
    assert queue.peek().job.key == "big"
    queue.settle(0.0)
    push(queue, "other", cost=3.0)
    assert queue.peek().job.key == "big"


def test_it_is_set_aside_so_often_and_no_more() -> None:
    queue = make_queue()
    push(queue, "big", cost=1.0)
    push(queue, "small", cost=2.0)
    rests = 0
    for _ in range(100 * REST_STEPS):
        rests += queue.peek().job.key == "big" and queue.stall()
        queue.settle(0.0)
    assert rests == MAX_RESTS


def test_the_bound_ends_a_rest() -> None:
    queue = make_queue(patience=Patience(stretch=1.0, usual=0.0, floor=5.0))
    push(queue, "big", cost=1.0)
    push(queue, "small", cost=2.0)
    while not queue.stall():
        pass
    queue.settle(5.0)
    assert queue.peek().job.key == "big"
    assert not any(queue.stall() for _ in range(3 * TRIES))


class Model:
    """The same rules by brute force: every entry's lane is worked out anew each time."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.entries: dict[str, Entry[str]] = {}

    def first(self, now: float) -> str:
        def lane(entry: Entry[str]) -> tuple[float, ...]:
            job = entry.job
            latest = job.deadline - job.service
            if now >= entry.due:
                return (0, job.arrival, entry.sequence)
            if latest - 0.5 * max(latest - job.arrival, 0.0) <= now <= latest:
                return (1, latest, job.arrival, entry.sequence)
            return (2, *self.policy.key(job), entry.sequence)

        return min(self.entries.values(), key=lane).job.key


@pytest.mark.parametrize("seed", range(20))
def test_the_queue_agrees_with_a_brute_force_model(seed: int) -> None:
    rng = random.Random(seed)
    patience = Patience(stretch=rng.choice([1.0, 1.5, 3.0]), floor=rng.choice([0.0, 3.0]))
    queue = make_queue(patience=patience)
    model = Model(queue.policy)
    now, held = 0.0, None
    for number in range(600):
        action = rng.random()
        if action < 0.45:
            deadline = now + rng.uniform(0.5, 30.0) if rng.random() < 0.3 else math.inf
            entry = push(queue, str(number), cost=rng.expovariate(1.0), arrival=now, deadline=deadline)
            model.entries[str(number)] = entry
        elif action < 0.55 and model.entries:
            key = rng.choice(list(model.entries))
            assert queue.remove(key) is model.entries.pop(key)
        elif action < 0.7:
            now += rng.expovariate(0.5)
            queue.settle(now)
        elif action < 0.75 and held is not None:
            queue.put_back(held)
            model.entries[held.job.key], held = held, None
        elif model.entries:
            expected = model.first(now)
            assert queue.peek().job.key == expected
            held = queue.pop()
            del model.entries[expected]
        assert len(queue) == len(model.entries)
        assert queue.backlog == pytest.approx(sum(e.job.cost for e in model.entries.values()), abs=1e-9)
    assert sorted(entry.job.key for entry in queue) == sorted(model.entries)
