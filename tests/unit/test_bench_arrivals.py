"""Arrival times scaled to a load, and what saturates an engine."""

from __future__ import annotations

import itertools
import statistics

import pytest

from quietcore.scheduler.bench import InputError
from quietcore.scheduler.bench.arrivals import BURSTY_CV, Arrivals, order, saturated_rate, unit_rate
from quietcore.scheduler.bench.streams import RecordedRequest, Stream
from quietcore.scheduler.bench.virtual import StepTime
from quietcore.scheduler.estimate import RequestFacts


def make_stream(count: int, **arrivals: tuple[float, ...]) -> Stream:
    requests = tuple(RecordedRequest(RequestFacts(str(i), 0.0, 100), 10 + i % 7) for i in range(count))
    return Stream("s", requests, arrivals)


def test_recorded_times_are_moved_to_zero_and_to_one_a_second() -> None:
    stream = make_stream(5, poisson=(1.0, 3.0, 4.0, 8.0, 12.0))
    assert unit_rate("poisson", stream, 2, 0) == pytest.approx([0.0, 1.0, 2.0])


@pytest.mark.parametrize(("kind", "variation"), [("poisson", 1.0), ("bursty", BURSTY_CV)])
def test_other_seeds_draw_times_of_the_same_kind(kind: Arrivals, variation: float) -> None:
    stream = make_stream(20_000)
    times = unit_rate(kind, stream, 0, 1)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.fmean(gaps) == pytest.approx(1.0)
    assert statistics.pstdev(gaps) == pytest.approx(variation, rel=0.15)
    assert times == unit_rate(kind, stream, 0, 1)
    assert times != unit_rate(kind, stream, 0, 2)


def test_a_burst_comes_at_once_and_its_seeds_differ_in_order() -> None:
    stream = make_stream(50)
    assert unit_rate("burst", stream, 10, 3) == [0.0] * 40
    assert order("burst", 40, 0) == list(range(40))
    assert sorted(order("burst", 40, 1)) == list(range(40))
    assert order("burst", 40, 1) != order("burst", 40, 2)
    assert order("bursty", 40, 1) == list(range(40))


def test_times_that_are_not_recorded_are_named() -> None:
    with pytest.raises(InputError, match=r"s has no trace arrivals \(it has poisson, burst\)"):
        unit_rate("trace", make_stream(3, poisson=(0.0, 1.0, 2.0)), 0, 0)


def test_times_that_go_back_are_named_and_no_burst() -> None:
    with pytest.raises(InputError, match="s has trace arrivals that are not in order"):
        unit_rate("trace", make_stream(3, trace=(5.0, 6.0, 0.0)), 0, 0)


def test_saturated_rate_by_hand() -> None:
    facts = RequestFacts("k", 0.0, prompt_tokens=1000)
    requests = [RecordedRequest(facts, 100), RecordedRequest(facts, 300)]
    # 0.08 ms a token of prompt, and for each token of output a 32nd of 12 ms + 32 x 0.1 ms
    seconds = 2 * 1000 * 0.08e-3 + 400 * 15.2e-3 / 32
    assert saturated_rate(requests, 32, StepTime()) == pytest.approx(2 / seconds)
