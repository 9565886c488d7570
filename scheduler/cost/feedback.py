"""What the agent measures, as a source of slowdowns for the cost model."""

from __future__ import annotations

import math
from typing import Protocol

from quietcore.scheduler.cost.slowdown import NEUTRAL, Slowdown
from quietcore.scheduler.page.feedback import Feedback

BEGINS, ENDS = 0.05, 0.025  # less than a twentieth is the murmur of a host, until it has begun
JUMP = 0.15  # log change between two windows that is a change of the disturbance, not scatter
SMOOTHING = 0.3  # weight of one window otherwise


class Reader(Protocol):
    """A `FeedbackReader`, or what stands in for one: the same object until something new is told."""

    def read(self) -> Feedback | None: ...

    def close(self) -> None: ...


class MeasuredSlowdown:
    """The slowdown that the feedback page tells of, called for its present value.

    A window of a tenth of a second scatters. So small changes are smoothed, while beginning, end and large
    changes hold at once.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._last: Feedback | None = None
        self._slowdown = NEUTRAL

    def __call__(self) -> Slowdown:
        found = self._reader.read()
        if found is not self._last:
            self._last = found
            old = self._slowdown
            self._slowdown = (
                NEUTRAL
                if found is None
                else Slowdown(
                    _follow(old.host, found.host_slowdown), _follow(old.device, found.device_slowdown)
                )
            )
        return self._slowdown

    def close(self) -> None:
        """Let go of the page."""
        self._reader.close()


def _follow(old: float, new: float) -> float:
    disturbed = old > 1.0
    if new <= 1.0 + (ENDS if disturbed else BEGINS):
        return 1.0
    if not disturbed or abs(math.log(new / old)) > JUMP:
        return new
    return old + SMOOTHING * (new - old)
