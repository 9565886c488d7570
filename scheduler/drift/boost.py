"""Gradient boosting of oblivious trees in numpy: squared error on histograms of the features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quietcore.scheduler.drift.forest import ObliviousForest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BINS = 32


@dataclass(frozen=True, slots=True)
class Settings:
    """How trees are grown.

    Attributes:
        trees, depth: their number and levels.
        rate: share of a leaf's mean that a tree adds.
        features, rows: share of each that a tree sees.
        shrink: weight of the zero that a leaf's mean is drawn to.
        least: the least weight of rows on either side of a split.
    """

    trees: int = 100
    depth: int = 4
    rate: float = 0.08
    features: float = 0.35
    rows: float = 0.7
    shrink: float = 3.0
    least: float = 8.0


def fit(
    rows: NDArray[np.float64],
    target: NDArray[np.float64],
    weight: NDArray[np.float64],
    *,
    seed: int = 0,
    settings: Settings | None = None,
) -> ObliviousForest:
    """Fits trees to (n, features) rows without NaN; all constant features are left out."""
    import numpy as np

    chosen = settings or Settings()
    random = np.random.default_rng(seed)
    count = len(rows)
    cuts, codes = _bin(rows)
    useful = np.flatnonzero([len(cut) > 0 for cut in cuts])
    base = float(np.average(target, weights=weight))
    trees = chosen.trees if len(useful) else 0
    feature = np.zeros((trees, chosen.depth), np.int64)
    threshold = np.zeros((trees, chosen.depth))
    value = np.zeros((trees, 1 << chosen.depth))
    residual = target - base
    few = max(1, round(chosen.features * len(useful)))
    for tree in range(trees):
        columns = random.choice(useful, few, replace=False)
        sample = np.flatnonzero(random.random(count) < chosen.rows)
        grown = _grow(codes, columns, sample, residual, weight, cuts, chosen)
        feature[tree], threshold[tree], leaf = grown
        heavy = np.bincount(leaf[sample], weight[sample], 1 << chosen.depth)
        total = np.bincount(leaf[sample], (weight * residual)[sample], 1 << chosen.depth)
        value[tree] = chosen.rate * total / (heavy + chosen.shrink)
        residual = residual - value[tree][leaf]
    return ObliviousForest(np.array([base]), feature, threshold, value)


def _bin(rows: NDArray[np.float64]) -> tuple[list[NDArray[np.float64]], NDArray[np.int64]]:
    """Quantile cuts of each feature, and (features, n) the number of cuts below each value."""
    import numpy as np

    cuts = []
    codes = np.empty(rows.shape[::-1], np.int64)
    shares = np.linspace(0, 1, _BINS + 1)[1:-1]
    for index, column in enumerate(rows.T):
        cut = np.unique(np.quantile(column, shares))
        cut = cut[cut < column.max()]
        cuts.append(cut)
        codes[index] = np.searchsorted(cut, column, side="left")
    return cuts, codes


def _grow(
    codes: NDArray[np.int64],
    columns: NDArray[np.int64],
    sample: NDArray[np.int64],
    residual: NDArray[np.float64],
    weight: NDArray[np.float64],
    cuts: list[NDArray[np.float64]],
    settings: Settings,
) -> tuple[list[int], list[float], NDArray[np.int64]]:
    """One tree: the feature and threshold of each level, and the leaf of every row."""
    import numpy as np

    few = len(columns)
    span = few * _BINS
    place = codes[np.ix_(columns, sample)] + (np.arange(few) * _BINS)[:, None]
    heavy = np.broadcast_to(weight[sample], place.shape).ravel()
    pull = np.broadcast_to((weight * residual)[sample], place.shape).ravel()
    leaf = np.zeros(codes.shape[1], np.int64)
    features: list[int] = []
    thresholds: list[float] = []
    for level in range(settings.depth):
        key = (place + leaf[sample] * span).ravel()
        shape = (1 << level, few, _BINS)
        below = np.bincount(key, heavy, span << level).reshape(shape).cumsum(2)
        pulled = np.bincount(key, pull, span << level).reshape(shape).cumsum(2)
        all_weight, all_pull = below[:, :, -1:], pulled[:, :, -1:]
        above = all_weight - below
        gain = pulled**2 / (below + settings.shrink) + (all_pull - pulled) ** 2 / (above + settings.shrink)
        unsplit = all_pull**2 / (all_weight + settings.shrink)
        allowed = (below >= settings.least) & (above >= settings.least)
        best = int(np.where(allowed, gain, unsplit).sum(0).argmax())
        column, cut = int(columns[best // _BINS]), best % _BINS
        cut = min(cut, len(cuts[column]) - 1)
        features.append(column)
        thresholds.append(float(cuts[column][cut]))
        leaf = leaf * 2 + (codes[column] > cut)
    return features, thresholds, leaf
