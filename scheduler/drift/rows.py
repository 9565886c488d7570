"""Finished requests kept for the next refit, in a ring of arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quietcore.scheduler.drift.fitting import Rows
from quietcore.scheduler.drift.ridge import FOLDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows from number ``first`` on.

    Attributes:
        numbers: (n, 3) length, weight and base of each; see `Rows`.
    """

    first: int
    features: NDArray[np.float32]
    words: list[NDArray[np.int64]]
    numbers: NDArray[np.float64]


class RowStore:
    """The last ``most`` rows."""

    def __init__(self, width: int, most: int = 8192) -> None:
        import numpy as np

        self._np = np
        self._most = most
        self.total = 0
        self._features = np.zeros((most, width), np.float32)
        self._numbers = np.zeros((most, 3))
        self._words: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * most

    def __len__(self) -> int:
        return min(self.total, self._most)

    def add(
        self,
        features: NDArray[np.float64],
        words: NDArray[np.int64],
        length: float,
        weight: float,
        base: float,
    ) -> None:
        place = self.total % self._most
        self._features[place] = features
        self._numbers[place] = length, weight, base
        self._words[place] = words
        self.total += 1

    def since(self, first: int) -> Batch:
        """The rows from number ``first`` on, as far as they are still kept."""
        first = max(first, self.total - len(self))
        place = self._np.arange(first, self.total) % self._most
        words = [self._words[each] for each in place]
        return Batch(first, self._features[place], words, self._numbers[place])

    def merge(self, batch: Batch) -> None:
        """Takes over what `since` gave, in order."""
        self.total = batch.first
        for features, words, numbers in zip(batch.features, batch.words, batch.numbers, strict=True):
            place = self.total % self._most
            self._features[place], self._words[place], self._numbers[place] = features, words, numbers
            self.total += 1

    def rows(self) -> Rows:
        np = self._np
        number = np.arange(self.total - len(self), self.total)
        place = number % self._most
        length, weight, base = self._numbers[place].T
        # a row's fold must not change while it is kept: a hash of its number
        fold = (number * 2654435761 >> 7) % FOLDS
        words = [self._words[each] for each in place]
        return Rows(self._features[place].astype(np.float64), words, length, weight, base, fold)
