"""The published estimators, by hand computation."""

from __future__ import annotations

import pytest

from quietcore.scheduler import drift
from quietcore.scheduler.drift.baselines import Groups, Window, classify
from quietcore.scheduler.estimate import End, Estimate, RequestFacts


def facts(prompt: str = "", **fields: object) -> RequestFacts:
    return RequestFacts("key", 0.0, **{"prompt_tokens": 100, "prompt": prompt, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "job_type"),
    [
        ("How are you?", "short_qa"),
        ("Summarize this", "summary"),
        ("A detailed, comprehensive report with a summary", "report"),
        ("Review the code and the architecture of it", "technical"),
        ("summary code", "summary"),
    ],
)
def test_keywords_decide(prompt: str, job_type: str) -> None:
    assert classify(prompt) == job_type


def test_static_budgets() -> None:
    static = drift.build("static")
    budgets = [static.estimate(facts(prompt)).mean for prompt in ("", "summary", "technical", "report")]
    assert budgets == [64, 256, 384, 512]


def test_the_moving_average_follows_the_published_rule() -> None:
    ema = drift.build("ema-keyword")
    assert ema.estimate(facts("summary")).mean == int(256 * 1.1)
    ema.observe(facts("summary"), Estimate(1, 1, 1), 512, End.STOPPED)  # bias .9 + .1 * 2
    assert ema.estimate(facts("summary")).mean == int(256 * 1.1 * 1.1)
    ema.observe(facts("summary"), Estimate(1, 1, 1), 100_000, End.STOPPED)  # clamped to 3
    assert ema.estimate(facts("summary", tenant="premium")).mean == int(256 * (0.9 * 1.1 + 0.3) * 1.2 * 1.1)
    assert ema.estimate(facts("", prompt_tokens=9000)).mean == int(64 * 1.5)


def test_given_categories_learn_apart() -> None:
    ema = drift.build("ema-category")
    for _ in range(200):
        ema.observe(facts(category="long"), Estimate(1, 1, 1), 512, End.STOPPED)
        ema.observe(facts(category="short"), Estimate(1, 1, 1), 128, End.STOPPED)
    assert ema.estimate(facts(category="long")).mean == pytest.approx(512 * 1.1, abs=1)
    assert ema.estimate(facts(category="short")).mean == pytest.approx(128 * 1.1, abs=1)


def test_the_running_median_is_that_of_category_and_tenant() -> None:
    median = drift.build("median")
    for length in range(1, 12):
        median.observe(facts(tenant="a"), Estimate(1, 1, 1), length, End.STOPPED)
        median.observe(facts(tenant="a"), Estimate(1, 1, 1), 9999, End.ABORTED)
        median.observe(facts(tenant="b"), Estimate(1, 1, 1), 100 * length, End.STOPPED)
    assert median.estimate(facts(tenant="a")) == Estimate(6, 6, 10)
    assert median.estimate(facts(tenant="b")).p50 == 600


def test_a_window_forgets_the_oldest() -> None:
    window = Window(3)
    for value in (9, 1, 5, 7):
        window.add(value)
    assert (len(window), window.quantile(0.5), window.latest(2)) == (3, 5, [5, 7])


def test_groups_forget_the_longest_unused() -> None:
    groups: Groups[list[int]] = Groups(list, most=2)
    groups.touch("a")
    groups.touch("b")
    groups.touch("a").append(1)
    groups.touch("c")
    assert [key for key, _ in groups.items()] == ["a", "c"]


def test_what_is_left_of_a_budget_is_at_least_one() -> None:
    static = drift.build("static")
    first = static.estimate(facts())
    assert static.remaining(facts(), first, 60).mean == 4
    assert static.remaining(facts(), first, 600) == Estimate(1, 1, 1)


@pytest.mark.parametrize("name", drift.NAMES)
def test_what_never_ran_teaches_nothing(name: str) -> None:
    if name.startswith("drift"):
        pytest.importorskip("numpy", reason="needs numpy, of the [scheduler] extra")
    estimator = drift.build(name, background=False)
    before = estimator.estimate(facts())
    for _ in range(20):
        estimator.observe(facts(), before, 0, End.ABORTED)
    assert estimator.estimate(facts()) == before
