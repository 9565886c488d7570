"""The orders, and that none of them depends on the time."""

from __future__ import annotations

import inspect
import math

import pytest

from quietcore.scheduler import policy
from quietcore.scheduler.policy import NAMES, Job, Patience, build


def make_job(key: str = "a", **fields: object) -> Job:
    return Job(**{"key": key, "arrival": 0.0, "cost": 1.0, "service": 1.0, **fields})  # type: ignore[arg-type]


def order(name: str, jobs: list[Job], **options: float) -> str:
    key = build(name, **options).key  # type: ignore[arg-type]
    return "".join(job.key for job in sorted(jobs, key=key))


def test_every_name_builds_a_policy_of_that_name() -> None:
    assert [build(name).name for name in NAMES] == list(NAMES)


def test_an_unknown_name_is_refused_with_those_known() -> None:
    with pytest.raises(ValueError, match=r"unknown policy 'lifo': choose one of fifo, priority"):
        build("lifo")


@pytest.mark.parametrize("name", NAMES)
def test_a_key_depends_on_the_job_alone(name: str) -> None:
    key = build(name, aging_weight=0.1).key
    assert list(inspect.signature(key).parameters) == ["job"]
    assert key(make_job(arrival=3.0)) == key(make_job(arrival=3.0))


@pytest.mark.parametrize("name", NAMES)
def test_jobs_alike_go_by_arrival(name: str) -> None:
    jobs = [make_job(str(n), arrival=float(n)) for n in (2, 0, 1)]
    assert order(name, jobs) == "012"


def test_fifo_minds_nothing_but_arrival() -> None:
    jobs = [
        make_job("b", arrival=2.0, cost=0.1, tier="premium", priority=-9),
        make_job("a", arrival=1.0, cost=9.0),
    ]
    assert order("fifo", jobs) == "ab"


def test_priority_is_strict_then_by_tier_then_by_arrival() -> None:
    jobs = [
        make_job("d", arrival=0.0, priority=1, tier="premium"),
        make_job("c", arrival=1.0, tier="batch"),
        make_job("b", arrival=2.0),
        make_job("a", arrival=3.0, tier="premium"),
    ]
    assert order("priority", jobs) == "abcd"


def test_weighted_gives_each_tier_its_weight_as_a_head_start() -> None:
    def first(premium_arrival: float) -> str:
        jobs = [make_job("p", arrival=premium_arrival, tier="premium"), make_job("s", arrival=0.0)]
        return order("weighted", jobs)[0]

    assert (first(19.9), first(20.1)) == ("p", "s")
    late = make_job("p", arrival=29.9, tier="premium")
    assert order("weighted", [make_job("b", arrival=0.0, tier="batch"), late]) == "pb"


def test_sjf_goes_by_cost() -> None:
    assert order("sjf", [make_job("b", cost=2.0), make_job("a", cost=1.0, arrival=9.0)]) == "ab"


def test_aging_makes_good_its_weight_per_second_waited() -> None:
    long, short = make_job("l", cost=1.0, arrival=0.0), make_job("s", cost=0.5, arrival=4.9)
    assert order("aging", [long, short], aging_weight=0.1) == "sl"
    assert order("aging", [long, short], aging_weight=0.11) == "ls"


def test_drift_divides_cost_by_the_tier_weight() -> None:
    standard = make_job("s", cost=1.0)
    assert order("drift", [standard, make_job("p", cost=1.6, tier="premium")]) == "ps"
    assert order("drift", [standard, make_job("p", cost=1.7, tier="premium")]) == "sp"
    assert order("drift", [standard, make_job("b", cost=0.7, tier="batch")]) == "sb"


def test_an_unknown_tier_counts_as_standard() -> None:
    for name in NAMES:
        key = build(name).key
        assert key(make_job(tier="gold")) == key(make_job(tier="standard"))
    assert build("drift").weight("gold") == build("drift").weight("standard") == 30.0


def test_linear_aging_orders_as_cost_less_age_does_at_any_time() -> None:
    jobs = [
        make_job(str(n), cost=c, arrival=a) for n, (c, a) in enumerate([(3, 0), (1, 5), (2, 2), (0.1, 9)])
    ]
    for now in (10.0, 1000.0):
        by_age = sorted(jobs, key=lambda job: job.cost - 0.3 * (now - job.arrival))
        assert order("drift", jobs, aging_weight=0.3) == "".join(job.key for job in by_age)


def test_the_published_policies_take_no_timers() -> None:
    timed = {name for name in NAMES if build(name, patience=Patience()).patience or build(name).deadlines}
    assert timed == {"drift"}


def test_patience_stretches_the_fair_latency() -> None:
    assert Patience(stretch=1.1).bound(service=10.0, fair_wait=20.0) == pytest.approx(1.1 * 30 - 10)


def test_patience_lets_everybody_wait_as_long_as_is_usual() -> None:
    assert Patience(stretch=1.1).bound(2.0, 0.0, usual_wait=30.0) == pytest.approx(30.0)


def test_patience_has_a_floor_and_a_ceiling() -> None:
    assert Patience(floor=5.0).bound(1.0, 0.0) == 5.0
    assert Patience(ceiling=60.0).bound(1.0, 1e6) == 60.0


def test_no_bound_is_infinite_by_default_settings() -> None:
    assert math.isfinite(Patience().bound(1.0, 100.0))
    assert policy.build("drift").patience is None
