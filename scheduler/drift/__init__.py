"""Estimators of output length, built by name."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from quietcore.scheduler.drift.baselines import EmaBudgets, RunningMedian, StaticBudgets, classify
from quietcore.scheduler.estimate import Estimator

if TYPE_CHECKING:
    from quietcore.scheduler.drift.prior import Prior

_log = logging.getLogger(__name__)

NAMES = ("static", "ema-keyword", "ema-category", "median", "drift-light", "drift")

__all__ = ["NAMES", "build"]


def build(
    name: str = "drift", *, prior: Path | Literal[False] | None = None, seed: int = 0, background: bool = True
) -> Estimator:
    """An estimator by its name, one of `NAMES`.

    Args:
        name: ``drift`` uses LightGBM where it is installed and is ``drift-light`` elsewhere.
        prior: file of ``scripts/train_prior``; the one that is shipped if None; False: none at all.
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
    if name == "median":
        return RunningMedian()
    if name in ("drift", "drift-light"):
        from quietcore.scheduler.drift.estimator import DriftEstimator

        trees = "lightgbm" if name == "drift" and find_spec("lightgbm") else "oblivious"
        return DriftEstimator(name, _load_prior(prior), trees=trees, seed=seed, background=background)
    raise ValueError(f"no estimator is named {name!r}: choose one of {', '.join(NAMES)}")


def _load_prior(path: Path | Literal[False] | None) -> Prior:
    """A prior that cannot be read is done without: requests are served all the same."""
    from quietcore.scheduler.drift import prior, sealed

    if path is False:
        return prior.neutral()
    try:
        return prior.load(prior.SHIPPED if path is None else path)
    except (OSError, sealed.DamagedError) as error:
        _log.warning("quietcore: no prior for the drift model: %s", error)
        return prior.neutral()
