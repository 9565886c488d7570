"""Boosted trees in flat arrays, made to score one row in microseconds without leaving numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ObliviousForest:
    """Trees that ask the same question in all nodes of a level, as those of CatBoost do.

    Attributes:
        base: what the trees' values are added to.
        feature, threshold: (trees, depth); the answer is 1 where the feature exceeds the threshold.
        value: (trees, 2 ** depth), by the answers read as a binary number, first level highest.
    """

    base: float
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    value: NDArray[np.float64]
    _places: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    _starts: NDArray[np.int64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        import numpy as np

        trees, depth = self.feature.shape
        object.__setattr__(self, "_places", 1 << np.arange(depth)[::-1])
        object.__setattr__(self, "_starts", np.arange(trees) << depth)

    def score(self, row: NDArray[np.float64]) -> float:
        leaf = (row[self.feature] > self.threshold) @ self._places + self._starts
        return self.base + float(self.value.ravel()[leaf].sum())

    def score_all(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        import numpy as np

        total = np.full(len(rows), self.base)
        for feature, threshold, value in zip(self.feature, self.threshold, self.value, strict=True):
            total += value[(rows[:, feature] > threshold) @ self._places]
        return total


@dataclass(frozen=True, slots=True)
class BitmaskForest:
    """Trees of any shape with at most 16 leaves, scored all nodes at once (QuickScorer, SIGIR 2015).

    A node whose answer is "greater" rules out the leaves of its left branch: a mask with those bits
    cleared. The lowest bit that all masks of a tree leave set is the leaf.

    Attributes:
        base: what the trees' values are added to.
        feature, threshold, mask: (trees, 15); unused nodes have an infinite threshold.
        value: (trees, 16), leaves from left to right.
    """

    base: float
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    mask: NDArray[np.uint16]
    value: NDArray[np.float64]
    _starts: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    _lowest: NDArray[np.int64] = field(init=False, repr=False, compare=False)

    LEAVES = 16

    def __post_init__(self) -> None:
        import numpy as np

        lowest = np.zeros(1 << self.LEAVES, np.int64)
        for bit in reversed(range(self.LEAVES)):
            lowest[1 << bit :: 1 << (bit + 1)] = bit
        object.__setattr__(self, "_lowest", lowest)
        object.__setattr__(self, "_starts", np.arange(len(self.value)) * self.LEAVES)

    def score(self, row: NDArray[np.float64]) -> float:
        import numpy as np

        greater = row[self.feature] > self.threshold
        left = np.bitwise_and.reduce(np.where(greater, self.mask, 0xFFFF), axis=1)
        return self.base + float(self.value.ravel()[self._lowest[left] + self._starts].sum())

    def score_all(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        import numpy as np

        return np.array([self.score(row) for row in rows])
