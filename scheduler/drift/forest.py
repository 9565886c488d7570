"""Boosted trees in flat arrays, made to score one row in microseconds without leaving numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Forest(Protocol):
    """Trees of one or more outputs: the first block of trees adds up to the first output, and so on."""

    ARRAYS: ClassVar[tuple[str, ...]]

    @property
    def base(self) -> NDArray[np.float64]:
        """(outputs,) what the trees' values are added to."""

    def score(self, row: NDArray[np.float64]) -> list[float]:
        """The outputs of one row of features."""


@dataclass(frozen=True, slots=True)
class ObliviousForest:
    """Trees that ask the same question in all nodes of a level, as those of CatBoost do.

    Attributes:
        base: (outputs,).
        feature, threshold: (trees, depth); the answer is 1 where the feature exceeds the threshold.
        value: (trees, 2 ** depth), by the answers read as a binary number, first level highest.
    """

    base: NDArray[np.float64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    value: NDArray[np.float64]
    _starts: NDArray[np.int64] = field(init=False, repr=False, compare=False)

    ARRAYS: ClassVar[tuple[str, ...]] = ("base", "feature", "threshold", "value")

    def __post_init__(self) -> None:
        import numpy as np

        trees, depth = self.feature.shape
        object.__setattr__(self, "_starts", np.arange(trees) << depth)

    def score(self, row: NDArray[np.float64]) -> list[float]:
        import numpy as np

        answers = np.packbits(row[self.feature] > self.threshold, axis=1)[:, 0]
        leaf = (answers >> 8 - self.feature.shape[1]) + self._starts
        values = self.value.ravel()[leaf].reshape(len(self.base), -1)
        outputs: list[float] = (self.base + values.sum(1)).tolist()
        return outputs


@dataclass(frozen=True, slots=True)
class BitmaskForest:
    """Trees of any shape with at most 16 leaves, scored all nodes at once (QuickScorer, SIGIR 2015).

    A node whose answer is "greater" rules out the leaves of its left branch: a mask with those bits
    cleared. The lowest bit that all masks of a tree leave set is the leaf.

    Attributes:
        base: (outputs,).
        feature, threshold, mask: (trees, 15); unused nodes have an infinite threshold.
        value: (trees, 16), leaves from left to right.
    """

    base: NDArray[np.float64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    mask: NDArray[np.uint16]
    value: NDArray[np.float64]
    _starts: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    _lowest: NDArray[np.int64] = field(init=False, repr=False, compare=False)

    ARRAYS: ClassVar[tuple[str, ...]] = ("base", "feature", "threshold", "mask", "value")
    LEAVES: ClassVar[int] = 16

    def __post_init__(self) -> None:
        import numpy as np

        lowest = np.zeros(1 << self.LEAVES, np.int64)
        for bit in range(self.LEAVES):
            lowest[1 << bit :: 1 << (bit + 1)] = bit
        object.__setattr__(self, "_lowest", lowest)
        object.__setattr__(self, "_starts", np.arange(len(self.value)) * self.LEAVES)

    def score(self, row: NDArray[np.float64]) -> list[float]:
        import numpy as np

        passed = row[self.feature] <= self.threshold
        # an all-ones mask where the answer is "not greater": -True is 0xFFFF in 16 bits
        left = np.bitwise_and.reduce(self.mask | -passed.astype(np.uint16), axis=1)
        values = self.value.ravel()[self._lowest[left] + self._starts].reshape(len(self.base), -1)
        outputs: list[float] = (self.base + values.sum(1)).tolist()
        return outputs


_Kind = TypeVar("_Kind", ObliviousForest, BitmaskForest)


def join(forests: Sequence[_Kind]) -> _Kind:
    """One forest with the outputs of all, which must have the same number of trees."""
    import numpy as np

    kind = type(forests[0])
    return kind(*[np.concatenate([getattr(each, name) for each in forests]) for name in kind.ARRAYS])
