"""Where the median lies, between what was predicted and what came, among requests that are alike."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from typing import NamedTuple

from quietcore.scheduler.drift.spread import ASSUMED

_SIZE = 600
_STALE = 25  # ratios between two rebuilds of the table
_NEAR = 0.6  # standard deviation of the kernel, in logs of the predicted length
_OTHERS = 0.2  # what another group's ratio is worth
_KNOT = 0.2  # logs of the predicted length are rounded to this
_FIRST, _KNOTS = math.log(2.0), 56  # 2 tokens to over 100,000


class Seen(NamedTuple):
    """A request that ended: log tokens predicted, actual over predicted, and its group."""

    log: float
    ratio: float
    group: Hashable


class LocalMedian:
    """Weighted median of actual / predicted over the last 600 requests, those alike weighing most.

    Alike are requests of a similar predicted length (a Gaussian kernel, as in local quantile regression: Yu
    and Jones, JASA 1998) and of the same category and tenant: one factor for all leaves long answers
    too short, and short ones too long. Ratios of a wide log-normal stand in for what has not been seen.
    """

    def __init__(self) -> None:
        import numpy as np

        self._np = np
        self._seen: deque[Seen] = deque(maxlen=_SIZE)
        self._new = 0
        self._build()

    def add(self, predicted: float, ratio: float, group: Hashable) -> None:
        """``predicted``: tokens."""
        self._seen.append(Seen(math.log(max(predicted, 1.0)), ratio, group))
        self._new += 1
        if self._new >= _STALE:
            self._build()

    def factor(self, predicted: float, group: Hashable) -> float:
        """By which a prediction in tokens is multiplied to be a median."""
        knot = min(max(round((math.log(max(predicted, 1.0)) - _FIRST) / _KNOT), 0), _KNOTS - 1)
        known = self._factors.get((knot, group))
        if known is None:
            known = self._factors[knot, group] = self._median(knot, group)
        return known

    def _median(self, knot: int, group: Hashable) -> float:
        np = self._np
        near = np.exp(-0.5 * ((self._logs - (_FIRST + _KNOT * knot)) / _NEAR) ** 2)
        # far from all that was seen every ratio counts, a little
        weights = np.where(self._assumed, _OTHERS / 2, near + 1e-3)
        number = self._numbers.get(group)
        if number is not None:
            weights *= np.where(self._groups == number, 1.0, _OTHERS)
        sums = weights.cumsum()
        return float(self._ratios[sums.searchsorted(sums[-1] / 2)])

    def keep(self, last: int) -> None:
        """Forgets all but the last few."""
        while len(self._seen) > last:
            self._seen.popleft()
        self._build()

    def seen(self) -> list[Seen]:
        return list(self._seen)

    def restore(self, seen: list[Seen]) -> None:
        """Takes up what `seen` gave."""
        self._seen.clear()
        self._seen.extend(seen)
        self._build()

    def _build(self) -> None:
        np = self._np
        self._new = 0
        self._factors: dict[tuple[int, Hashable], float] = {}
        logs, ratios, groups = zip(*self._seen, strict=True) if self._seen else ((), (), ())
        self._numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
        numbers = [self._numbers[group] for group in groups]
        ratios = np.array([*ratios, *ASSUMED])
        order = ratios.argsort(kind="stable")
        self._ratios = ratios[order]
        self._logs = np.array([*logs, *[0.0] * len(ASSUMED)])[order]
        self._groups = np.array([*numbers, *[-1] * len(ASSUMED)])[order]
        self._assumed = self._groups < 0
