"""The median of what came over what was predicted, among requests that are alike."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("numpy", reason="needs numpy, of the [scheduler] extra")

from quietcore.scheduler.drift.local import LocalMedian


def fill(local: LocalMedian, predicted: float, ratio: float, group: str, count: int = 200) -> None:
    rng = random.Random(1)
    for _ in range(count):
        local.add(predicted * rng.uniform(0.8, 1.25), ratio * rng.uniform(0.9, 1.1), group)


def test_nothing_seen_leaves_a_prediction_as_it_is() -> None:
    assert LocalMedian().factor(100.0, "a") == pytest.approx(1.0, abs=0.05)


def test_short_and_long_answers_have_factors_of_their_own() -> None:
    local = LocalMedian()
    fill(local, 20.0, 1.5, "a")
    fill(local, 2000.0, 0.5, "a")
    assert local.factor(20.0, "a") == pytest.approx(1.5, rel=0.1)
    assert local.factor(2000.0, "a") == pytest.approx(0.5, rel=0.1)


def test_a_group_goes_by_its_own_and_a_new_one_by_all() -> None:
    local = LocalMedian()
    fill(local, 100.0, 2.0, "a", 100)
    fill(local, 100.0, 0.5, "b", 200)
    assert local.factor(100.0, "a") == pytest.approx(2.0, rel=0.1)
    assert local.factor(100.0, "b") == pytest.approx(0.5, rel=0.1)
    assert local.factor(100.0, "c") == pytest.approx(0.5, rel=0.15)


def test_far_from_all_that_was_seen_it_goes_by_all_of_it() -> None:
    local = LocalMedian()
    fill(local, 50.0, 1.5, "a", 600)
    for predicted in (0.0, 1e9):
        assert 1.0 < local.factor(predicted, "a") <= 1.6


def test_after_a_change_little_is_kept() -> None:
    local = LocalMedian()
    fill(local, 100.0, 3.0, "a")
    local.keep(15)
    assert len(local.seen()) == 15
    fill(local, 100.0, 0.5, "a", 40)
    assert local.factor(100.0, "a") < 0.7


def test_what_was_seen_can_be_taken_up_again() -> None:
    local, other = LocalMedian(), LocalMedian()
    fill(local, 100.0, 3.0, "a")
    other.restore(local.seen())
    assert other.factor(90.0, "a") == local.factor(90.0, "a") > 2.5
