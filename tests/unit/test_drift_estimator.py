"""The drift model as the engine and the benchmarks see it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.drift_traffic import make_traffic, mean_error, play

from quietcore.scheduler import drift
from quietcore.scheduler.drift import estimator as estimator_module
from quietcore.scheduler.drift.rows import RowStore
from quietcore.scheduler.estimate import End, Estimate, Estimator, RequestFacts

pytest.importorskip("numpy", reason="needs numpy, of the [scheduler] extra")

LEARNING = ("drift-light", "drift")


def build(name: str = "drift-light", **options: Any) -> Estimator:
    return drift.build(name, background=False, **options)


@pytest.mark.parametrize("name", LEARNING)
def test_it_learns_what_texts_tell_of_lengths(name: str) -> None:
    traffic = make_traffic(400)
    drifting, median = play(build(name), traffic), play(drift.build("median"), traffic)
    assert mean_error(drifting[200:], traffic[200:]) < 0.5 * mean_error(median[200:], traffic[200:])


@pytest.mark.parametrize("name", drift.NAMES)
def test_no_prediction_knows_a_length_that_is_still_to_come(name: str) -> None:
    traffic = make_traffic(240)
    changed = [
        (facts, length if number < 150 else 4096 - length) for number, (facts, length) in enumerate(traffic)
    ]
    estimates, others = play(build(name), traffic), play(build(name), changed)
    assert estimates[:170] == others[:170]  # the length of request 150 is told before estimate 170
    if name != "static":
        assert estimates != others


@pytest.mark.parametrize("name", LEARNING)
def test_the_same_traffic_gives_the_same_estimates(name: str) -> None:
    traffic = make_traffic(150)
    assert play(build(name, seed=3), traffic) == play(build(name, seed=3), traffic)


def test_quantiles_are_in_order_and_hold_what_they_say() -> None:
    traffic = make_traffic(600)
    estimates = play(build(), traffic)
    assert all(1 <= estimate.p50 <= estimate.p90 for estimate in estimates)
    late = list(zip(estimates[300:], traffic[300:], strict=True))
    assert 0.4 < sum(length <= estimate.p50 for estimate, (_, length) in late) / 300 < 0.62
    assert 0.82 < sum(length <= estimate.p90 for estimate, (_, length) in late) / 300 < 0.97


def test_it_finds_its_feet_after_the_model_is_swapped() -> None:
    traffic = make_traffic(400, seed=1) + make_traffic(400, seed=2, factor=4.0)
    estimates = play(build(), traffic)
    before = mean_error(estimates[300:400], traffic[300:400])
    at_once = mean_error(estimates[400:420], traffic[400:420])
    after = mean_error(estimates[600:], traffic[600:])
    assert at_once > 4 * before  # or there is nothing to recover from
    assert after < 1.5 * 4 * before  # errors grow with lengths


def test_tenants_are_told_apart_by_their_system_prompts() -> None:
    """The same questions, no tenant named: one system prompt goes with answers eight times as long."""
    traffic = []
    for number, (facts, length) in enumerate(make_traffic(500)):
        system = ("You are a patient teacher of physics.", "Be terse; answer in one line only.")[number % 2]
        traffic.append(
            (replace(facts, prompt=f"{system}\n{facts.prompt}"), length * (8 if number % 2 == 0 else 1))
        )
    estimates = play(build(prior=False), traffic)
    taught = [
        estimate.mean
        for estimate, (facts, _) in zip(estimates[300:], traffic[300:], strict=True)
        if "teacher" in facts.prompt
    ]
    terse = [
        estimate.mean
        for estimate, (facts, _) in zip(estimates[300:], traffic[300:], strict=True)
        if "terse" in facts.prompt
    ]
    assert sum(taught) / len(taught) > 4 * sum(terse) / len(terse)


def test_where_nothing_can_be_told_it_is_as_good_as_the_running_median() -> None:
    traffic = [
        (RequestFacts(str(number), float(number), 100 + 37 * number % 900), length)
        for number, (_, length) in enumerate(make_traffic(900))
    ]
    ours, median = play(build(), traffic), play(drift.build("median"), traffic)
    assert mean_error(ours[300:], traffic[300:]) < 1.05 * mean_error(median[300:], traffic[300:])


def test_token_ids_serve_where_there_is_no_text() -> None:
    traffic = [
        (replace(facts, prompt="", prompt_ids=[hash_of(word) for word in facts.prompt.split()]), length)
        for facts, length in make_traffic(400)
    ]
    median = play(drift.build("median"), traffic)
    assert mean_error(play(build(), traffic)[200:], traffic[200:]) < 0.5 * mean_error(
        median[200:], traffic[200:]
    )


def hash_of(word: str) -> int:
    return sum((7 + place) ** 3 * ord(letter) for place, letter in enumerate(word)) % 128_000


def test_a_cut_length_is_not_taken_for_a_length() -> None:
    """All requests are aborted at a third of their length, or at their full length where that is short."""
    traffic = make_traffic(600)
    cut = [(facts, length if length < 100 else length // 3) for facts, length in traffic]

    def mean_of_long(end: End) -> float:
        estimates = play(build(), cut, end=lambda number: end if traffic[number][1] >= 100 else End.STOPPED)
        long = [
            estimate.mean
            for estimate, (_, length) in zip(estimates[400:], traffic[400:], strict=True)
            if length >= 100
        ]
        return sum(long) / len(long)

    assert mean_of_long(End.LENGTH) > 1.3 * mean_of_long(End.STOPPED)


def test_a_request_aborted_at_once_teaches_nothing() -> None:
    estimator = build()
    play(estimator, make_traffic(200))
    probe = RequestFacts("probe", 0.0, 12, "Write an essay about salt and glass.")
    before = estimator.estimate(probe)
    for number in range(20):
        facts = replace(probe, key=f"aborted {number}")
        estimator.observe(facts, estimator.estimate(facts), 0, End.ABORTED)
    assert estimator.estimate(probe).mean == pytest.approx(before.mean, rel=0.1)


def test_an_abort_with_stop_strings_is_a_whole_length() -> None:
    estimator, plain = build(), build()
    for number in range(30):
        facts = RequestFacts(str(number), 0.0, 12, "Say yes", sampling={"stop": ["\n"]})
        estimator.observe(facts, estimator.estimate(facts), 2, End.ABORTED)
        plain.observe(facts := replace(facts, sampling={}), plain.estimate(facts), 2, End.ABORTED)
    probe = RequestFacts("probe", 0.0, 12, "Say yes")
    assert estimator.estimate(probe).p50 < 10 < plain.estimate(probe).p50


def test_what_is_left_is_never_almost_nothing() -> None:
    estimator = build()
    play(estimator, make_traffic(300))
    facts = RequestFacts("long", 0.0, 12, "Explain briefly clocks and maps.")
    first = estimator.estimate(facts)
    left = [estimator.remaining(facts, first, produced) for produced in (0, 30, 60, 200, 2000, 20_000)]
    assert all(1 <= estimate.p50 <= estimate.p90 for estimate in left)
    assert left[0].mean > left[1].mean  # it gets on
    assert left[-1].mean > left[-2].mean > left[-3].mean > 20  # beyond all that was seen: ever more to come
    assert left[-1].mean > 2000


def test_what_is_left_ends_with_the_cap() -> None:
    estimator = build()
    facts = RequestFacts("capped", 0.0, 12, "Write an essay", max_tokens=100)
    first = estimator.estimate(facts)
    left = estimator.remaining(facts, first, 95)
    assert max(left.mean, left.p50, left.p90) <= 5
    assert estimator.remaining(facts, first, 200) == Estimate(1.0, 1.0, 1.0)


STRANGE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "None as text": {"prompt": "None", "tenant": "None", "category": "null"},
    "no number as temperature": {"sampling": {"temperature": math.nan, "top_p": math.inf, "n": "two"}},
    "text as number": {"sampling": {"temperature": "hot", "top_p": None, "stop": 7}},
    "huge": {"prompt": "word " * 400_000, "prompt_tokens": 10**12},
    "surrogates": {"prompt": "\ud800\udfff" * 50},
    "zeros": {"prompt": "\0" * 2000},
    "one line": {"prompt": "x" * 5000},
    "Chinese": {"prompt": "写一首关于河流的诗。" * 60},
    "negative": {"prompt_tokens": -5, "max_tokens": -1},
    "long names": {"tenant": "t" * 100_000, "session": "s" * 100_000},
    "odd ids": {"prompt_ids": [-1, 2**62, 0]},
    "ids out of range": {"prompt_ids": [2**80]},
    "None as tokens": {"prompt_tokens": None},
    "lists as names": {"tenant": [], "category": {}},
}


@pytest.mark.parametrize("name", LEARNING)
def test_strange_requests_raise_nothing_and_spoil_nothing(name: str) -> None:
    estimator = build(name)
    traffic = make_traffic(120)
    play(estimator, traffic[:60])
    for label, fields in STRANGE.items():
        facts = RequestFacts(**{"key": label, "arrival": math.nan, "prompt_tokens": 3, **fields})
        first = estimator.estimate(facts)
        for estimate in (first, estimator.remaining(facts, first, 10)):
            assert all(1 <= value < 1e9 for value in (estimate.mean, estimate.p50, estimate.p90)), label
            assert estimate.p50 <= estimate.p90
        estimator.observe(facts, first, 0, End.STOPPED)
        estimator.observe(facts, first, 10**9, End.ABORTED)
    assert all(math.isfinite(estimate.mean) for estimate in play(estimator, traffic[60:]))


def test_the_prior_ranks_before_anything_has_finished() -> None:
    estimator = build()
    short = estimator.estimate(
        RequestFacts("a", 0.0, 20, "Answer only with true or false: is glass a liquid?")
    )
    long = estimator.estimate(
        RequestFacts("b", 0.0, 20, "Write a Python script that parses a log and plots it.")
    )
    assert long.mean > 1.5 * short.mean


def test_a_name_that_no_estimator_has_is_said() -> None:
    with pytest.raises(ValueError, match="drift-light"):
        drift.build("oracle")


class CountedRefits:
    """Takes every n-th request for a refit, and does none."""

    def __init__(self, taken: int) -> None:
        self.every, self.asked = taken, 0
        self.at: list[int] = []

    def request(self, store: Any, seed: int) -> bool:
        self.asked += 1
        if self.asked % self.every:
            return False
        self.at.append(store.total)
        return True

    def take(self) -> None:
        return None

    def close(self) -> None:
        return None


def with_counted_refits(taken: int) -> tuple[Any, CountedRefits]:
    estimator: Any = build()
    estimator._refitter = refits = CountedRefits(taken)
    return estimator, refits


def test_it_is_fitted_as_often_after_a_million_requests() -> None:
    estimator, refits = with_counted_refits(1)
    estimator._memory.store = RowStore(len(estimator_module.FEATURES), most=64)
    estimator._memory.store.total = estimator._next_fit = 1_000_000
    play(estimator, make_traffic(400))
    assert len(refits.at) >= 5


def test_a_refit_that_was_not_taken_up_is_asked_for_again() -> None:
    estimator, refits = with_counted_refits(10)
    play(estimator, make_traffic(100))
    assert refits.at
    assert refits.at[0] < 60


def test_what_never_ran_leaves_nothing_behind() -> None:
    estimator: Any = build()
    for facts, _ in make_traffic(30):
        estimator.observe(facts, estimator.estimate(facts), 0, End.ABORTED)
    assert len(estimator._admitted) == 0
    assert estimator._memory.store.total == 0
