"""Estimates under a cap of tokens."""

from __future__ import annotations

import math

import pytest

from quietcore.scheduler import drift
from quietcore.scheduler.drift.spread import Spread
from quietcore.scheduler.estimate import RequestFacts


def test_no_cap_is_an_infinite_cap() -> None:
    spread = Spread()
    assert spread.mean_below(math.inf) == pytest.approx(spread.mean_below(1e9))
    assert spread.mean_below(0.5) < 0.5


@pytest.mark.parametrize("name", ["drift", "drift-light"])
def test_a_wide_cap_leaves_the_mean_and_a_tight_one_cuts_it(name: str) -> None:
    pytest.importorskip("numpy", reason="needs numpy, of the [scheduler] extra")
    estimator = drift.build(name, background=False)

    def mean(max_tokens: int) -> float:
        facts = RequestFacts("a", 0.0, 30, "Explain in detail why the moon is round", max_tokens=max_tokens)
        return estimator.estimate(facts).mean

    assert mean(100_000) == pytest.approx(mean(0), rel=0.01)
    assert 8 < mean(16) <= 16
