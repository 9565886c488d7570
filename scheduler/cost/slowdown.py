"""The seam through which a measured disturbance of the host or the GPU reaches the cost model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

NEGLIGIBLE = 0.02
LEAST, MOST = 0.1, 100.0


class Slowdown(NamedTuple):
    """How many times as long the two parts of a step take now as they do undisturbed.

    ``host``: the work of the engine's CPU threads (scheduling, preparing inputs, launching kernels), so 1.25
    where they lose a fifth of their time to others. ``device``: the GPU's work, so 1.2 where its clocks are
    down by a sixth. Whoever measures it hands a callable that returns the current value to
    :class:`~quietcore.scheduler.cost.CostModel`, and the same value to
    :meth:`~quietcore.scheduler.cost.StepTimeModel.observe` with the steps that ran under it.
    """

    host: float = 1.0
    device: float = 1.0

    @property
    def negligible(self) -> bool:
        """Whether steps count as undisturbed, within the accuracy of such measurements."""
        return abs(self.host - 1.0) <= NEGLIGIBLE and abs(self.device - 1.0) <= NEGLIGIBLE


NEUTRAL = Slowdown()


def bounded(slowdown: Slowdown) -> Slowdown:
    """What a model may multiply by: from 0.1 to 100, and neutral in place of what is no number."""
    host, device = slowdown
    if LEAST <= host <= MOST and LEAST <= device <= MOST:
        return slowdown
    return Slowdown(_bounded(host), _bounded(device))


def _bounded(factor: float) -> float:
    return min(max(factor, LEAST), MOST) if factor == factor else 1.0


def read(source: Callable[[], Slowdown]) -> Slowdown:
    """The current value; neutral if the source fails, as the engine must go on."""
    try:
        return bounded(source())
    except Exception:
        return NEUTRAL
