"""The cost model: what a request costs, in seconds of engine time.

A step of the engine has a host part and a device part; how long each takes is learned from the steps
themselves (:class:`StepTimeModel`). A request costs its prefill and its share of the steps that it stays
for (:class:`CostModel`). A measured :class:`Slowdown` scales what is passing, never what was learned; the
agent tells it by the feedback page (:class:`MeasuredSlowdown`).
"""

from quietcore.scheduler.cost.feedback import MeasuredSlowdown
from quietcore.scheduler.cost.model import CostModel, neutral
from quietcore.scheduler.cost.slowdown import NEUTRAL, Slowdown
from quietcore.scheduler.cost.steps import StepModelState, StepShape, StepTimeModel

__all__ = [
    "NEUTRAL",
    "CostModel",
    "MeasuredSlowdown",
    "Slowdown",
    "StepModelState",
    "StepShape",
    "StepTimeModel",
    "neutral",
]
