"""What the last steps say about the pace of the engine, beside what its coefficients explain."""

from __future__ import annotations

import math
from collections import deque

WINDOW = 16  # steps within which another one must confirm an outlier
FAST = 0.15  # weight of one step: a change is met within some ten
SLOW = 1 / 64  # the same for the test on a lasting change
LEAST_NOISE = 0.1**2
CHANGE = 0.2  # mean log error that is a change, not noise
LAG_S = 0.5  # engine time that a disturbance may go unnoticed before somebody measures it
LEAST, MOST = 0.01, 100.0


class Pace:
    """Actual over predicted step time, followed fast; one value for undisturbed steps, one beside the other.

    A ratio counts only as far as another one among the last 16 went: a single stall (a garbage collection, a
    page fault) is no change of pace, stalls that recur are.

    A disturbance is known later than it begins. So when one is announced, the pace of undisturbed steps
    goes back towards what it was half a second of engine time before, no further than the announcement can
    account for; and what the announcement fails to explain is followed apart. When the disturbance is over,
    the old pace holds at once. Where undisturbed times are shorter than that (bursts that are over when
    they are announced), announcements say nothing of what was seen before them, and nothing is taken back.
    """

    __slots__ = (
        "_drift",
        "_older",
        "_phase_s",
        "_recent",
        "_seconds",
        "_window",
        "clean",
        "disturbed",
        "error",
        "in_clean",
    )

    def __init__(self) -> None:
        self.clean = 1.0
        self.disturbed = 1.0  # on top of `clean`
        self.error = 0.0  # mean of |log(actual / predicted)|, with the pace applied
        self.in_clean = True
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._drift = 0.0
        self._phase_s = 0.0
        self._seconds = 0.0
        self._older = self._recent = 1.0

    @property
    def settled(self) -> bool:
        """Whether it has been disturbed, or undisturbed, for longer than announcements lag behind."""
        return self._phase_s >= LAG_S

    def now(self, clean: bool) -> float:
        return self.clean if clean else self.clean * self.disturbed

    def announced(self, explained: float, most: float) -> tuple[float, float]:
        """What `clean` and `disturbed` become when undisturbed steps end.

        ``explained``: how many times as long the model takes steps to be now. ``most``: how many times as
        long they may be, where the model has not learned yet how much of the disturbance a step feels; as far
        as `clean` has risen by the disturbance, that goes on to be believed.
        """
        low, high = sorted((self.clean, self.clean / most))
        clean = min(max(self._older, low), high) if self.settled else self.clean
        return clean, max(self.clean / (clean * explained), 1.0) if explained >= 1.0 else 1.0

    @property
    def noise(self) -> float:
        """Variance of one step's ratio, the misfit of the coefficients included."""
        return max(2.0 * self.error**2, LEAST_NOISE)

    def changed(self) -> bool:
        """Whether undisturbed steps have been off for so long that it is a change.

        A geometric moving average test on the log error.
        """
        return abs(self._drift) > CHANGE

    def fold(self) -> float:
        """The level of late, handed over to the coefficients: from now on the pace counts without it."""
        level = sorted(self._window)[len(self._window) // 2]
        self.clean /= level
        self._older = self._recent = self.clean
        self._drift = 0.0
        self._window.clear()
        return level

    def switch(self, clean: bool, explained: float = 1.0, most: float = 1.0) -> None:
        """Undisturbed steps begin, or they end: see `announced`."""
        self.clean, self.disturbed = (self.clean, 1.0) if clean else self.announced(explained, most)
        self.in_clean = clean
        self._window.clear()
        self._drift = 0.0
        self._phase_s = self._seconds = 0.0
        self._recent = self._older = self.clean

    def hand_over(self, factor: float) -> None:
        """The model explains disturbed steps better by ``factor`` now: that much less is unexplained."""
        if LEAST <= factor <= MOST:
            self.disturbed = min(max(self.disturbed / factor, LEAST), MOST)

    def observe(self, ratio: float, elapsed: float) -> float:
        """Take in actual over predicted (without pace); the ratio as far as it was confirmed.

        ``elapsed``: seconds of engine time since the last one.
        """
        clean, window = self.in_clean, self._window
        self._phase_s += elapsed
        window.append(ratio)
        if len(window) > 2:
            ordered = sorted(window)
            ratio = min(max(ratio, ordered[1]), ordered[-2])
        ratio = min(max(ratio, LEAST), MOST)
        error = ratio / (self.clean if clean else self.clean * self.disturbed)
        self.error += 0.02 * (abs(math.log(error)) - self.error)
        if clean:
            self.clean *= 1.0 + FAST * (error - 1.0)
            self._drift += SLOW * (math.log(ratio) - self._drift)
            self._seconds += elapsed
            if self._seconds > LAG_S:
                self._seconds = 0.0
                self._older, self._recent = self._recent, self.clean
        else:
            self.disturbed = min(max(self.disturbed * (1.0 + FAST * (error - 1.0)), LEAST), MOST)
        return ratio
