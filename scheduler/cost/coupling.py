"""How much of a measured slowdown a step of the engine feels."""

from __future__ import annotations

LEAST = 0.05  # excess of a slowdown over 1 below which steps tell nothing of its effect
MOST = 5.0
OPEN = 1.0  # variance before anything was seen
FORGETTING = 1e-5  # variance gained a lesson: some hundred disturbed steps are remembered


class Coupling:
    """``value`` times the excess of a slowdown over 1 is the excess of the step's time over the undisturbed.

    0 where the slowdown hits nothing that the step waits for, 1 where all of it is hit, and more where
    one thread of several holds all others up, as those measured are a mean. Nobody can tell beforehand which
    of it holds: how much of a step is host work, whether it hides behind the device, and whether a device
    with lower clocks was waiting for its memory anyway. Disturbed steps tell it: this is the Kalman filter of
    that one ratio.
    """

    __slots__ = ("_variance", "value")

    def __init__(self, value: float) -> None:
        self.value = value
        self._variance = OPEN

    def observe(self, slowdown: float, excess: float, noise: float) -> None:
        """A step took ``1 + excess`` times its undisturbed time under ``slowdown``, give or take ``noise``.

        ``noise`` is the variance of such ratios (> 0).
        """
        cause = slowdown - 1.0
        if cause < LEAST or excess != excess:
            return
        excess = min(max(excess, -MOST * cause), MOST * cause)
        gain = self._variance * cause / (self._variance * cause**2 + noise)
        self.value = min(max(self.value + gain * (excess - self.value * cause), 0.0), MOST)
        self._variance = min(self._variance * (1.0 - gain * cause) + FORGETTING, OPEN)
