"""Who is served how much: shares of tenants, and of tiers once their bounds are reached."""

from __future__ import annotations

from tests.unit.test_queue import drain, make_queue, push


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
    assert len(queue._served._served) < 5_000
