"""Work that may take a share of the engine's time, in slices between its steps."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

_MOST_DEBT = 10.0


class TimeShare:
    """``share`` of the time that passes, saved up to ``most_s`` seconds, which is also the most at a time.

    A slice that takes longer than what is left is a debt that later ones wait for; the debt of one that
    stalls is limited, so that it does not hold up the next ones for long.
    """

    def __init__(self, share: float, most_s: float) -> None:
        self._share = share
        self._most_s = most_s
        self._left_s = most_s
        self._last = perf_counter()

    def spend(self, work: Callable[[], bool]) -> None:
        """Call ``work`` until it says that nothing is left to do, or the time is spent."""
        begun = ended = perf_counter()
        self._left_s = min(self._left_s + self._share * max(begun - self._last, 0.0), self._most_s)
        while ended - begun < self._left_s:
            more = work()
            ended = perf_counter()
            if not more:
                break
        self._last = ended
        self._left_s = max(self._left_s - (ended - begun), -_MOST_DEBT * self._most_s)
