"""The parts of the drift model, each against an independent computation."""

from __future__ import annotations

import math
import random

import pytest

from quietcore.scheduler.drift.calibration import Calibration, Trust
from quietcore.scheduler.drift.change import ChangeDetector
from quietcore.scheduler.drift.spread import Spread
from quietcore.scheduler.drift.text import BUCKETS, HEAD, NAMES, TAIL, Reader
from quietcore.scheduler.estimate import RequestFacts

np = pytest.importorskip("numpy", reason="needs numpy, of the [scheduler] extra")

from quietcore.scheduler.drift import boost, ridge  # noqa: E402
from quietcore.scheduler.drift.forest import ObliviousForest, join  # noqa: E402


def read(prompt: str) -> RequestFacts:
    return RequestFacts("key", 0.0, len(prompt) // 4, prompt)


def test_spread_finds_quantiles_and_means_of_what_came() -> None:
    draw = random.Random(0)
    ratios = sorted(draw.lognormvariate(0.3, 0.5) for _ in range(600))
    spread = Spread()
    for ratio in draw.sample(ratios, 600):
        spread.add(ratio, whole=True)
    assert spread.p50 == pytest.approx(ratios[300], rel=0.05)
    assert spread.p90 == pytest.approx(ratios[540], rel=0.08)
    beyond = [ratio for ratio in ratios if ratio > 2]
    assert spread.mean_beyond(2.0) == pytest.approx(sum(beyond) / len(beyond), rel=0.1)
    assert spread.share_passed(2.0) == pytest.approx(1 - len(beyond) / 600, abs=0.02)
    capped = sum(min(ratio, 1.5) for ratio in ratios) / 600
    assert spread.mean_below(1.5) == pytest.approx(capped, rel=0.03)


def test_spread_sees_through_censoring() -> None:
    """Lengths cut at random, independent of themselves: Kaplan-Meier finds the uncut quantiles."""
    draw = random.Random(1)
    ratios = [draw.lognormvariate(0.0, 0.5) for _ in range(600)]
    spread, naive = Spread(), Spread()
    for ratio in ratios:
        limit = draw.lognormvariate(0.2, 0.5)
        spread.add(min(ratio, limit), whole=ratio <= limit)
        naive.add(min(ratio, limit), whole=True)
    assert spread.p50 == pytest.approx(sorted(ratios)[300], rel=0.1)
    assert spread.p90 == pytest.approx(sorted(ratios)[540], rel=0.2)
    assert naive.p90 < 0.8 * spread.p90


def test_boosting_fits_a_step_and_an_interaction() -> None:
    random_ = np.random.default_rng(0)
    rows = random_.normal(size=(800, 6))
    target = np.where(rows[:, 1] > 0, 3.0, 0.0) + np.where((rows[:, 2] > 0) & (rows[:, 4] > 0), 4.0, 0.0)
    forest = boost.fit(rows[:600], target[:600], np.ones(600), settings=boost.Settings(features=1.0))
    scores = np.array([forest.score(row)[0] for row in rows[600:]])
    assert np.mean((scores - target[600:]) ** 2) < 0.1 * target.var()


def test_boosting_heeds_weights() -> None:
    rows = np.zeros((100, 2))
    rows[50:, 0] = 1.0
    target = np.array([0.0, 10.0] * 50)
    weight = np.array([1.0, 0.0] * 50)
    assert boost.fit(rows, target, weight).score(rows[0])[0] == pytest.approx(0.0, abs=1e-9)


def test_a_joined_forest_scores_as_its_parts_do() -> None:
    random_ = np.random.default_rng(1)
    rows = random_.normal(size=(200, 4))
    parts = [boost.fit(rows, rows[:, column], np.ones(200), seed=column) for column in (0, 3)]
    whole = join(parts)
    for row in rows[:20]:
        assert whole.score(row) == pytest.approx([part.score(row)[0] for part in parts])
        assert parts[0].score(row)[0] == pytest.approx(walk(parts[0], row))


def walk(forest: ObliviousForest, row: list[float]) -> float:
    """The score by walking each tree, question by question."""
    total = float(forest.base[0])
    for feature, threshold, value in zip(forest.feature, forest.threshold, forest.value, strict=True):
        leaf = 0
        for column, limit in zip(feature, threshold, strict=True):
            leaf = 2 * leaf + int(row[column] > limit)
        total += float(value[leaf])
    return total


def test_lightgbm_trees_in_flat_arrays_score_as_lightgbm_does() -> None:
    lightgbm = pytest.importorskip("lightgbm", reason="needs the [scheduler] extra")
    from quietcore.scheduler.drift import lightgbm_trees

    random_ = np.random.default_rng(2)
    rows = random_.normal(size=(500, 8))
    target = rows[:, 0] * rows[:, 1] + np.abs(rows[:, 2])
    data = lightgbm.Dataset(rows, target, params={"verbose": -1})
    booster = lightgbm.train({"num_leaves": 15, "verbose": -1, "num_threads": 1}, data, 40)
    forest = lightgbm_trees.flatten(booster.dump_model()["tree_info"])
    scores = [forest.score(row)[0] for row in rows]
    assert scores == pytest.approx(booster.predict(rows).tolist(), abs=1e-9)


def test_ridge_solves_the_normal_equations() -> None:
    random_ = np.random.default_rng(3)
    words = [random_.choice(40, 6, replace=False) for _ in range(120)]
    target, weight = random_.normal(size=120), random_.uniform(0.2, 1.0, 120)
    rows = ridge.Rows(words, ridge.find_idf(words))
    solution = ridge.solve(rows, target, weight, start=np.zeros(BUCKETS), strength=2.0, steps=200)
    dense = np.zeros((120, 40))
    dense[rows.row, rows.column] = rows.value
    normal = dense.T @ (weight[:, None] * dense) + 2.0 * np.eye(40)
    assert solution[:40] == pytest.approx(np.linalg.solve(normal, dense.T @ (weight * target)), abs=1e-4)
    assert np.linalg.norm(dense, axis=1) == pytest.approx(np.ones(120))


def test_ridge_scores_rows_it_has_not_seen() -> None:
    """Lengths that no word tells: a model that has seen its rows would seem to predict them."""
    random_ = np.random.default_rng(4)
    words = [random_.choice(BUCKETS, 8) for _ in range(300)]
    words += words  # each row twice, so that every word is known
    target = random_.normal(size=600)
    target[300:] = random_.normal(size=300)
    fold = np.concatenate((np.arange(300) % 4, np.arange(300) % 4))
    first, unseen = ridge.fit(words, target, np.ones(600), fold)
    _, again = ridge.fit(words, target, np.ones(600), fold, previous=first)
    for scores in (unseen, again):
        assert abs(np.corrcoef(scores, target)[0, 1]) < 0.1
    seen = [ridge.score(first.table, row) for row in words]
    assert np.corrcoef(seen, target)[0, 1] > 0.3


def test_change_is_told_soon_and_seldom_wrongly() -> None:
    draw = random.Random(5)
    detector = ChangeDetector()
    assert not any(detector.add(draw.gauss(0.1, 0.5)) for _ in range(5000))
    assert next(number for number in range(200) if detector.add(draw.gauss(0.9, 0.5))) < 40


def test_trust_goes_to_who_errs_less() -> None:
    trust, draw = Trust(), random.Random(6)
    for _ in range(300):
        trust.add(known=100.0, model=100 * draw.lognormvariate(0, 1), came=100 * draw.lognormvariate(0, 0.1))
    assert trust.share == 0.0
    for _ in range(3000):
        came = 100 * draw.lognormvariate(0, 1)
        trust.add(known=100.0, model=came * draw.lognormvariate(0, 0.1), came=came)
    assert trust.share == 1.0


def test_scale_makes_up_for_bias_and_forgets() -> None:
    scale = Calibration().scale
    for _ in range(2000):
        scale.add(predicted=100.0, came=150.0, weight=1.0)
    assert scale.value == pytest.approx(1.33, abs=0.1)
    scale.keep(10.0)
    for _ in range(2000):
        scale.add(predicted=100.0, came=100.0, weight=1.0)
    assert scale.value == pytest.approx(1.0, abs=0.01)


def test_reading_is_bounded_and_the_same_in_every_run() -> None:
    middle = "hidden " * 10_000
    head, tail = "a" * HEAD, "b" * TAIL
    reading, other = (Reader().read(read(head + text + tail)) for text in (middle, middle.replace("h", "H")))
    assert reading.words.tolist() == other.words.tolist()
    assert reading.whole == other.whole
    assert len(reading.counts) == len(NAMES)
    assert Reader().read(read("glass")).words.tolist() == [0x18CBBF5F % BUCKETS]  # its crc32


def test_prefix_and_suffix_keys_are_those_of_the_shared_text() -> None:
    system = "You are a patient teacher of physics and answer at length."
    one, two = (Reader().read(read(system + tail)) for tail in ("What is heat?", "Why is the sky blue?"))
    shared = [a == b for a, b in zip(one.prefixes, two.prefixes, strict=True)]
    assert shared[:2] == [True, True]
    assert one.whole != two.whole
    assert Reader().read(read("")).whole == 0


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("Write a story of 500 words", 650),
        ("in 3 paragraphs", 330),
        ("give 5 examples", 200),
        ("5 apples", 0),
    ],
)
def test_asked_lengths_are_read(prompt: str, tokens: float) -> None:
    counts = Reader().read(read(prompt)).counts
    assert counts[NAMES.index("asked tokens")] == pytest.approx(math.log1p(tokens), abs=0.01)
