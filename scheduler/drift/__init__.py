"""Estimators of output length, built by name."""

from __future__ import annotations

from pathlib import Path

from quietcore.scheduler.drift.baselines import EmaBudgets, RunningMedian, StaticBudgets, classify
from quietcore.scheduler.estimate import Estimator

NAMES = ("static", "ema-keyword", "ema-category", "median", "drift-light", "drift")

__all__ = ["NAMES", "build"]


def build(
    name: str = "drift", *, prior: Path | None = None, seed: int = 0, background: bool = True
) -> Estimator:
    """An estimator by its name, one of `NAMES`.

    Args:
        name: ``drift`` uses LightGBM where it is installed and is ``drift-light`` elsewhere.
        prior: file of ``scripts/train_prior``; the one that is shipped if None.
        seed: of what little chance there is in a fit.
        background: refit in a thread of its own. False: refit inside ``observe`` at the same cadence,
            which makes runs repeatable.

    Raises:
        ValueError: no estimator has that name.
    """
    if name == "static":
        return StaticBudgets()
    if name == "ema-keyword":
        return EmaBudgets(name, lambda facts: classify(facts.prompt))
    if name == "ema-category":
        return EmaBudgets(name, lambda facts: facts.category)
    if name in ("median", "drift-light", "drift"):
        return RunningMedian()
    raise ValueError(f"no estimator is named {name!r}: choose one of {', '.join(NAMES)}")
