"""Who is served how much: shares of tenants, and of tiers once their bounds are reached."""

from __future__ import annotations

import random
from time import perf_counter

import pytest
from tests.unit.test_queue import drain, make_queue, push

from quietcore.scheduler.lanes import Flow, ShareCounters
from quietcore.scheduler.policy import Patience
from quietcore.scheduler.queue import MAX_TENANTS


def test_tenants_take_turns_by_what_they_were_served() -> None:
    queue = make_queue(fair=True)
    for number in range(6):
        push(queue, f"a{number}", cost=1.0, tenant="a")
    for number in range(3):
        push(queue, f"b{number}", cost=2.0, tenant="b")
    served = {"a": 0.0, "b": 0.0}
    for _ in range(6):
        entry = queue.pop()
        served[entry.job.tenant] += entry.job.cost
        assert abs(served["a"] - served["b"]) <= 2.0
    assert served == {"a": 4.0, "b": 4.0}


def test_a_tenant_saves_up_nothing_by_staying_away() -> None:
    queue = make_queue(fair=True)
    push(queue, "b0", tenant="b")
    queue.pop()
    for number in range(20):
        push(queue, f"a{number}", tenant="a")
    for _ in range(10):
        queue.pop()
    for number in range(10):
        push(queue, f"b{number}", tenant="b")
    turns = [queue.pop().job.tenant for _ in range(10)]
    assert 4 <= turns.count("b") <= 6


def test_what_a_job_really_cost_is_charged_in_the_end() -> None:
    queue = make_queue(fair=True)
    for number in range(8):
        push(queue, f"a{number}", tenant="a")
        push(queue, f"b{number}", tenant="b")
    first = queue.pop()
    queue.account(first, first.job.cost + 3.0)
    other = "b" if first.job.tenant == "a" else "a"
    assert [queue.pop().job.tenant for _ in range(4)] == [other] * 4


def test_a_job_put_back_is_not_charged_twice() -> None:
    queue = make_queue(fair=True)
    push(queue, "a", tenant="a")
    push(queue, "b", tenant="b")
    for _ in range(5):
        queue.put_back(queue.pop())
    assert {queue.pop().job.tenant, queue.pop().job.tenant} == {"a", "b"}


def test_inside_a_tenant_the_policy_orders() -> None:
    queue = make_queue(fair=True)
    push(queue, "x", cost=3.0, tenant="a")
    push(queue, "y", cost=1.0, tenant="a")
    assert drain(queue) == "yx"


def test_a_flood_of_tenant_names_is_forgotten() -> None:
    queue = make_queue(fair=True)
    for number in range(10_000):
        push(queue, str(number), tenant=str(number))
        queue.pop()
    assert len(queue._tenants._served) < 5_000


def test_a_deadline_with_everything_gives_no_more_than_a_fair_share() -> None:
    queue = make_queue(fair=True)
    for number in range(40):
        push(queue, f"a{number}", tenant="a", deadline=2.0 + number / 100)
        push(queue, f"b{number}", tenant="b")
    queue.settle(0.9)  # all of a's press
    turns = [queue.pop().job.tenant for _ in range(40)]
    assert turns.count("a") == 20


def test_a_deadline_goes_before_the_same_tenants_others() -> None:
    queue = make_queue(fair=True)
    push(queue, "cheap", cost=0.1, tenant="a")
    push(queue, "later", cost=2.0, tenant="a", deadline=12.5)
    push(queue, "due", cost=2.0, tenant="a", deadline=12.0)
    push(queue, "lost", cost=0.2, tenant="a", deadline=0.1)
    queue.settle(6.0)
    assert drain(queue) == "duelatercheaplost"


def test_who_has_waited_his_bound_goes_before_younger_ones_of_other_tenants() -> None:
    queue = make_queue(fair=True, patience=Patience(stretch=1.0, usual=0.0, floor=10.0))
    push(queue, "first", tenant="a")
    first = queue.pop()
    push(queue, "old", tenant="a", cost=5.0)
    queue.settle(5.0)
    push(queue, "young", tenant="b", cost=0.1)
    queue.account(first, 100.0)
    assert queue.peek().job.key == "young"
    queue.settle(10.0)
    assert queue.peek().job.key == "old"
    queue.settle(20.0)
    assert drain(queue) == "oldyoung"


def test_the_bound_of_a_tenant_is_that_of_the_tier() -> None:
    queue = make_queue(fair=True, patience=Patience(stretch=2.0, usual=0.0))
    push(queue, "a", tenant="a", cost=3.0)
    assert push(queue, "b", tenant="b", cost=1.0).due == pytest.approx(2 * (3 + 1) - 1)


def test_names_beyond_the_cap_share_one_flow() -> None:
    queue = make_queue(fair=True)
    push(queue, "known", tenant="known")
    for number in range(2 * MAX_TENANTS):
        push(queue, f"{number:05}", tenant=str(number))
    assert len(queue._tenants.waiting) == MAX_TENANTS + 1
    again = push(queue, "again", tenant="known")
    assert again.flow == ("standard", "known")
    assert push(queue, "new", tenant="new").flow == push(queue, "newer", tenant="newer").flow
    popped = [queue.pop().job.key for _ in range(len(queue))]
    assert len(set(popped)) == 2 * MAX_TENANTS + 4
    # A share each, and one for all the others.
    assert popped.index("again") < MAX_TENANTS + 3
    assert push(queue, "late", tenant="late").flow == ("standard", "late")


def test_ten_thousand_tenants_cost_little_more_than_ten() -> None:
    def seconds(tenants: int) -> float:
        queue = make_queue(fair=True, patience=Patience())
        for number in range(10_000):
            push(queue, f"r{number}", tenant=str(number % tenants))
        begun = perf_counter()
        for number in range(2_000):
            queue.pop()
            push(queue, f"n{number}", tenant=f"n{number % tenants}")
        return perf_counter() - begun

    assert min(seconds(10_000) for _ in range(3)) < 10 * min(seconds(10) for _ in range(3))


@pytest.mark.parametrize("seed", range(5))
def test_a_flow_wakes_at_the_lowest_of_the_backlogged(seed: int) -> None:
    """Against the definition: the lowest is looked for among all."""
    rng = random.Random(seed)
    counters = ShareCounters()
    flows: list[Flow] = [("standard", str(number)) for number in range(30)]
    for _ in range(3000):
        flow = rng.choice(flows)
        action = rng.random()
        if action < 0.4:
            others = [counters[each] for each in counters.waiting]
            before, woken = counters[flow], flow not in counters.waiting
            counters.enter(flow)
            if woken and others:
                assert counters[flow] in (before, min(others))
                assert counters[flow] >= min(others)
            else:
                assert counters[flow] == before
        elif action < 0.75 and flow in counters.waiting:
            counters.leave(flow)
        else:
            counters.charge(flow, rng.uniform(-1.0, 2.0))
