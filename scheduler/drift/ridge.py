"""Ridge regression on hashed words: TF-IDF rows of length one, solved by conjugate gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quietcore.scheduler.drift.text import BUCKETS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FOLDS = 4
_STRENGTH = 4.0  # of the penalty, in rows of length one


@dataclass(frozen=True, slots=True)
class Ridge:
    """Fitted weights: the mean of one model a fold, each fitted without that fold's rows.

    Attributes:
        folds: (`FOLDS`, `BUCKETS`) weights of the TF-IDF rows; a later fit starts from them.
        table: (`BUCKETS`, 2): weight x idf, and idf squared. A row's score is sum / sqrt(sum).
    """

    folds: NDArray[np.float32]
    table: NDArray[np.float32]

    def score(self, words: NDArray[np.int64]) -> float:
        return score(self.table, words)


def score(table: NDArray[np.float32], words: NDArray[np.int64]) -> float:
    """Score of one prompt by a `Ridge.table`; 0 where it knows no word."""
    if not len(words):
        return 0.0
    total, square = table[words].sum(0).tolist()
    return float(total / square**0.5) if square > 0 else 0.0


class Rows:
    """Rows of a sparse matrix, each scaled to length one."""

    def __init__(self, words: Sequence[NDArray[np.int64]], idf: NDArray[np.float64]) -> None:
        import numpy as np

        self._np = np
        sizes = np.array([len(row) for row in words], dtype=np.int64)
        self.count = len(sizes)
        self.row = np.repeat(np.arange(self.count), sizes)
        self.column = np.concatenate([*words, np.empty(0, np.int64)])
        values = idf[self.column]
        known = values > 0
        self.row, self.column, values = self.row[known], self.column[known], values[known]
        length = np.sqrt(np.bincount(self.row, values**2, self.count))
        self.value = values / length[self.row]

    def times(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        products: NDArray[np.float64] = self._np.bincount(
            self.row, self.value * weights[self.column], self.count
        ).astype(float)
        return products

    def transposed_times(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        sums: NDArray[np.float64] = self._np.bincount(
            self.column, self.value * rows[self.row], BUCKETS
        ).astype(float)
        return sums


def find_idf(words: Sequence[NDArray[np.int64]], least: int = 2) -> NDArray[np.float64]:
    """Log of rows / rows with the bucket; 0 for what fewer than ``least`` rows have."""
    import numpy as np

    found = np.zeros(BUCKETS)
    for row in words:
        found[row] += 1.0
    idf = np.log((len(words) + 1.0) / (found + 1.0))
    idf[found < least] = 0.0
    return np.maximum(idf, 0.0)


def solve(
    rows: Rows,
    target: NDArray[np.float64],
    weight: NDArray[np.float64],
    *,
    start: NDArray[np.float64],
    strength: float = _STRENGTH,
    steps: int = 25,
) -> NDArray[np.float64]:
    """Minimises sum weight (row . b - target)^2 + strength |b|^2 from ``start``; few steps shrink further."""
    solution: NDArray[np.float64] = start.copy()
    residual = rows.transposed_times(weight * (target - rows.times(solution))) - strength * solution
    direction, square = residual.copy(), float(residual @ residual)
    for _ in range(steps):
        if square < 1e-8:
            break
        image = rows.transposed_times(weight * rows.times(direction)) + strength * direction
        step = square / float(direction @ image)
        solution += step * direction
        residual -= step * image
        square, before = float(residual @ residual), square
        direction = residual + square / before * direction
    return solution


def fit(
    words: Sequence[NDArray[np.int64]],
    target: NDArray[np.float64],
    weight: NDArray[np.float64],
    fold: NDArray[np.int64],
    previous: Ridge | None = None,
) -> tuple[Ridge, NDArray[np.float64]]:
    """Fits one model a fold.

    Args:
        words: buckets of each row.
        target: what to predict, of mean zero.
        weight: of each row.
        fold: 0 .. `FOLDS` - 1 for each row, the same in every later fit: a warm start
            then knows nothing of the rows that it is to score.
        previous: the fit to start from.

    Returns:
        The fit, and for each row the score of the model that has not seen it.
    """
    import numpy as np

    idf = find_idf(words)
    rows = Rows(words, idf)
    unseen = np.zeros(rows.count)
    folds = np.zeros((FOLDS, BUCKETS))
    for index in range(FOLDS):
        start = np.zeros(BUCKETS) if previous is None else previous.folds[index].astype(np.float64)
        start[idf == 0] = 0.0
        steps = 25 if previous is None else 8
        folds[index] = solve(rows, target, np.where(fold == index, 0.0, weight), start=start, steps=steps)
        unseen[fold == index] = rows.times(folds[index])[fold == index]
    table = np.stack((folds.mean(0) * idf, idf**2), axis=1)
    return Ridge(folds.astype(np.float32), table.astype(np.float32)), unseen
