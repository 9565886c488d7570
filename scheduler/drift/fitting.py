"""A refit: from the rows of finished requests to a model that scores new ones. Runs off the engine's path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quietcore.scheduler.drift import boost, ridge
from quietcore.scheduler.drift.forest import BitmaskForest, Forest, ObliviousForest, join

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HALF_LIFE = 2000.0  # requests; streams without a change gain nothing from a shorter one
_LONGEST = 1 << 20  # tokens; no estimate is longer


@dataclass(frozen=True, slots=True)
class Rows:
    """Finished requests, oldest first.

    Attributes:
        features: (n, width), as known at admission, without the words' score.
        words: buckets of each.
        length: output tokens; of a censored one what it is expected to have become.
        weight: in 0 .. 1, what a row's length is worth.
        base: log tokens that words and prior are relative to (the mean of the request's group).
        fold: see `ridge.fit`.
    """

    features: NDArray[np.float64]
    words: list[NDArray[np.int64]]
    length: NDArray[np.float64]
    weight: NDArray[np.float64]
    base: NDArray[np.float64]
    fold: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted model; nothing in it changes.

    Attributes:
        ridge: what words add to the mean of the request's group.
        forest: outputs the square root of the mean length, and its log.
        rows: how many it was fitted on.
    """

    ridge: ridge.Ridge
    forest: Forest
    rows: int

    def score(self, row: NDArray[np.float64], words: NDArray[np.int64], base: float) -> tuple[float, float]:
        """A middling and a mean length in tokens, not calibrated; fills the last two places of the row."""
        row[-2] = by_words = ridge.score(self.ridge.table, words)
        row[-1] = by_words + base
        root, log = self.forest.score(row)
        square = min(max(root, 1.0) ** 2, _LONGEST)
        middle = math.exp(min(max(log, 0.0), math.log(_LONGEST)))
        return math.sqrt(square * middle), square


FitForest = Callable[["NDArray[np.float64]", "NDArray[np.float64]", "NDArray[np.float64]", int], Forest]


def fit(rows: Rows, previous: Fitted | None, seed: int, fit_forest: FitForest) -> Fitted:
    """Fits words first; then trees over all features and the words' score, where unseen rows are scored."""
    import numpy as np

    count = len(rows.length)
    weight = rows.weight * 0.5 ** ((count - 1 - np.arange(count)) / _HALF_LIFE)
    target = np.log(np.maximum(rows.length, 1.0)) - rows.base
    target = target - np.average(target, weights=weight)
    of_words, unseen = ridge.fit(
        rows.words, target, weight, rows.fold, None if previous is None else previous.ridge
    )
    table = np.column_stack((rows.features, unseen, unseen + rows.base))
    return Fitted(of_words, fit_forest(table, rows.length, weight, seed), count)


def fit_oblivious(
    table: NDArray[np.float64], length: NDArray[np.float64], weight: NDArray[np.float64], seed: int
) -> ObliviousForest:
    """With numpy alone, on the last 4,096 rows."""
    import numpy as np

    table, length, weight = table[-4096:], np.maximum(length[-4096:], 1.0), weight[-4096:]
    return join(
        [
            boost.fit(table, np.sqrt(length), weight, seed=2 * seed),
            boost.fit(table, np.log(length), weight, seed=2 * seed + 1),
        ]
    )


def fit_lightgbm(
    table: NDArray[np.float64], length: NDArray[np.float64], weight: NDArray[np.float64], seed: int
) -> BitmaskForest:
    """With LightGBM.

    Raises:
        ImportError: it is not installed.
    """
    from quietcore.scheduler.drift import lightgbm_trees

    return lightgbm_trees.fit(table, length, weight, seed)
