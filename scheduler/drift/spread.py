"""How far lengths come out from what was predicted, and what that says of a request under way."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from statistics import NormalDist

_SIZE = 600
_STALE = 25  # ratios between two rebuilds of the table
_SIGMA = 0.75  # of the log ratio before anything is known; DRIFT data: median |log ratio| 0.4 .. 0.6
ASSUMED = [math.exp(_SIGMA * NormalDist().inv_cdf((i + 0.5) / 40)) for i in range(40)]
_TAIL = 0.5  # mean excess beyond all that was seen, per unit already passed: a Pareto tail of index 3


class Spread:
    """Distribution of actual / predicted over the last 600 requests.

    A censored length says only that the ratio is at least what was seen: its weight moves to all
    larger ratios, as Efron's "redistribute to the right" does, which gives the Kaplan-Meier curve.
    Forty ratios of a wide log-normal stand in for what has not been seen yet.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, bool]] = deque(maxlen=_SIZE)
        self._new = 0
        self._build()

    def add(self, ratio: float, whole: bool) -> None:
        self._seen.append((ratio, whole))
        self._new += 1
        if self._new >= _STALE or len(self._seen) < _STALE:
            self._build()

    def keep(self, last: int) -> None:
        """Forgets all but the last few."""
        while len(self._seen) > last:
            self._seen.popleft()
        self._build()

    def seen(self) -> list[tuple[float, bool]]:
        return list(self._seen)

    def _build(self) -> None:
        self._new = 0
        points = sorted([*self._seen, *[(ratio, True) for ratio in ASSUMED]], key=lambda p: (p[0], not p[1]))
        ratios: list[float] = []
        weights: list[float] = []
        left, each = len(points), 1.0 / len(points)
        for ratio, whole in points:
            left -= 1
            if whole or not left:
                ratios.append(ratio)
                weights.append(each)
            else:
                each += each / left
        # sums from the right: share of requests, and of tokens, in all ratios from here on
        shares, tokens = [0.0], [0.0]
        for ratio, weight in zip(reversed(ratios), reversed(weights), strict=True):
            shares.append(shares[-1] + weight)
            tokens.append(tokens[-1] + weight * ratio)
        self._ratios, self._shares, self._tokens = ratios, shares[::-1], tokens[::-1]
        self.p50, self.p90 = self.beyond(0.0, 0.5), self.beyond(0.0, 0.9)

    def beyond(self, passed: float, share: float) -> float:
        """The ratio that ``share`` of the requests do not exceed, of those that exceed ``passed``."""
        first = bisect_right(self._ratios, passed)
        if first >= len(self._ratios) - 1:
            return passed * (1 + _TAIL * (1 if share <= 0.5 else 2.5))
        target = self._shares[first] * (1 - share)
        low, high = first, len(self._ratios) - 1
        while low < high:
            middle = (low + high) // 2
            if self._shares[middle + 1] <= target + 1e-12:
                high = middle
            else:
                low = middle + 1
        return self._ratios[low]

    def mean_beyond(self, passed: float) -> float:
        """Mean ratio of those that exceed ``passed``."""
        first = bisect_right(self._ratios, passed)
        if first >= len(self._ratios) - 1:
            return passed * (1 + _TAIL)
        return self._tokens[first] / self._shares[first]

    def mean_below(self, cap: float) -> float:
        """Mean of the ratio, each taken as ``cap`` at most."""
        first = bisect_right(self._ratios, cap)
        if first == len(self._ratios):
            return self._tokens[0]  # also for an infinite cap
        return self._tokens[0] - self._tokens[first] + cap * self._shares[first]

    def share_passed(self, ratio: float) -> float:
        """The share of requests that end before ``ratio``."""
        return 1.0 - self._shares[bisect_right(self._ratios, ratio)]
