"""Figures of a virtual run."""

from __future__ import annotations

import math

import pytest

from quietcore.scheduler.bench.latency import ALL, Finished, fairness, mean_report, report
from quietcore.scheduler.bench.policy import NO_GAIN, Result, Row, averages, plan_rows
from quietcore.scheduler.bench.virtual import Timeline

S = 1_000_000_000


def finished(
    arrival: float,
    admitted: float,
    first: float,
    end: float,
    *,
    tokens: int = 11,
    tier: str = "standard",
    tenant: str = "a",
    cost: float = 1.0,
    deadline: float = math.inf,
) -> Finished:
    times = (round(each * S) for each in (arrival, admitted, first, end))
    return Finished(Timeline("k", *times), tokens, cost, tier, tenant, deadline)


def test_measures_by_hand() -> None:
    found = report([finished(1, 2, 3, 8), finished(0, 0, 1, 3, tokens=1)])
    latency, ttft, tpot = (found.tiers[ALL][name] for name in ("latency", "ttft", "tpot"))
    assert (latency["mean"], latency["p50"], latency["p99"]) == (5, 5, 7)
    assert ttft["mean"] == 1.5
    assert tpot["mean"] == 0.5  # one token has no time a token
    assert list(found.tiers) == [ALL]
    assert (found.deadlines_met, found.fairness) == (None, None)


def test_tiers_and_deadlines() -> None:
    found = report(
        [
            finished(0, 0, 1, 4, tier="premium", deadline=5),
            finished(0, 0, 1, 6, tier="premium", deadline=5),
            finished(0, 0, 1, 9, tier="batch"),
        ]
    )
    assert found.tiers["premium"]["latency"]["mean"] == 5
    assert found.tiers["batch"]["latency"]["mean"] == 9
    assert found.deadlines_met == 0.5


def test_mean_of_runs() -> None:
    mean = mean_report([report([finished(0, 0, 1, 4)]), report([finished(0, 0, 1, 8)])])
    assert mean.tiers[ALL]["latency"]["p99"] == 6
    assert mean.fairness is None


def test_equal_shares_are_fair_and_one_tenant_alone_is_not_judged() -> None:
    queue = [finished(0, 100, 100, 101, tenant=tenant) for tenant in "ab"]
    served = [finished(0, 10, 11, 20, tenant=tenant, cost=3) for tenant in "ab"]
    assert fairness(queue + served) == pytest.approx(1.0)
    assert fairness([finished(0, 100, 100, 101), finished(0, 10, 11, 20)]) is None


def test_one_of_two_that_gets_all_is_half_fair() -> None:
    queue = [finished(0, 30, 31, 40, tenant=tenant) for tenant in "ab"]
    served = [finished(0, 0, 1, 30, tenant="a", cost=3)]
    assert fairness(queue + served) == pytest.approx(0.5)


def test_who_does_not_queue_is_not_compared() -> None:
    assert fairness([finished(0, 50, 50, 60, tenant="a"), finished(0, 0, 1, 50, tenant="b")]) is None


def test_rows_always_hold_both_ends() -> None:
    rows = plan_rows(["fifo", "sjf", "drift"], ["median", "drift"])
    assert list(map(str, rows)) == [
        *("fcfs", "fifo", "sjf (median)", "sjf (drift)", "drift (median)", "drift (drift)", "oracle"),
    ]


def test_a_fraction_of_nothing_is_left_out_of_the_mean() -> None:
    def result(stream: str, fraction: float | None) -> Result:
        return Result(
            stream, "burst", Row("sjf", "drift"), report([finished(0, 0, 1, 2)]), -0.2, 0.1, fraction
        )

    (mean,) = averages([result("a", 0.6), result("b", 0.8), result("c", None)])
    assert mean.fraction == pytest.approx(0.7)
    assert mean.streams == 3
    assert mean.gain == pytest.approx(-0.2)
    assert 0 < NO_GAIN < 0.05
