"""The plug-in's real class in virtual time: its clock, estimator, facts and cost are put in by its seams."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from quietcore.scheduler.bench import BenchError, modelless
from quietcore.scheduler.bench.virtual import Clock, StepTime
from quietcore.scheduler.config import PREFIX, SECTION
from quietcore.scheduler.estimate import End, Estimate, Estimator, RequestFacts


@dataclass(frozen=True, slots=True)
class PolicySetup:
    """A way to order the queue.

    Attributes:
        settings: of the plug-in; None: vLLM's own class, first come, first served.
        ranks_by_cost: whether its order depends on estimates.
    """

    settings: Mapping[str, Any] | None
    ranks_by_cost: bool = False


PURE = {"policy": "drift", "aging": 0.0, "bounded": False}
BASELINE, ORACLE = "fcfs", "oracle"
SETUPS = {
    BASELINE: PolicySetup(None),
    "fifo": PolicySetup({"policy": "fifo"}),
    "priority": PolicySetup({"policy": "priority"}),
    "weighted": PolicySetup({"policy": "weighted"}),
    "sjf": PolicySetup({"policy": "sjf"}, True),
    "aging": PolicySetup({"policy": "aging"}, True),
    "drift-pure": PolicySetup(PURE, True),
    "drift": PolicySetup({"policy": "drift"}, True),
    ORACLE: PolicySetup(PURE, True),
}
"""``fcfs`` is vLLM itself, ``fifo`` the same order by the plug-in, ``drift`` the plug-in's default,
``drift-pure`` it without aging and bound, ``oracle`` the latter with the true lengths."""


@dataclass
class RecordedEstimator:
    """Answers what was estimated before, by the request's key; learns nothing."""

    estimates: Mapping[str, Estimate] = field(repr=False)
    name: str = "recorded"

    def estimate(self, facts: RequestFacts) -> Estimate:
        return self.estimates[facts.key]

    def remaining(self, facts: RequestFacts, first: Estimate, produced: int) -> Estimate:
        return Estimate(*(max(1.0, value - produced) for value in (first.mean, first.p50, first.p90)))

    def observe(self, facts: RequestFacts, first: Estimate, produced: int, end: End) -> None:
        return None


def build_scheduler(
    setup: PolicySetup,
    shape: modelless.EngineShape,
    step_time: StepTime,
    clock: Clock,
    estimator: Estimator,
    facts: Mapping[str, RequestFacts],
) -> Any:
    """A scheduler for `virtual.VirtualEngine`.

    Args:
        facts: by the key of the request, with its arrival by ``clock``.
    """
    stock = modelless.stock_class()
    if setup.settings is None:
        return modelless.build_scheduler(stock, shape)
    from quietcore.scheduler.cost import CostModel
    from quietcore.scheduler.vllm import DriftScheduler

    class VirtualDriftScheduler(DriftScheduler):  # type: ignore[misc]
        def _make_estimator(self, settings: Any) -> Estimator:
            return estimator

        def _make_cost(self, settings: Any) -> CostModel:
            per_second = (step_time.base_ns, step_time.sequence_ns, step_time.prefill_token_ns)
            return CostModel.fixed(shape.slots, *(ns / 1e9 for ns in per_second))

        def _facts(self, request: Any) -> RequestFacts:
            return facts[request.request_id]

        def _now(self) -> float:
            return clock.seconds()

    logging.getLogger("vllm.quietcore").setLevel(logging.WARNING)
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]  # a setting of the user's server is not the benchmark's
    section = {"page_dir": "off", **setup.settings}
    scheduler = modelless.build_scheduler(
        VirtualDriftScheduler, replace(shape, additional_config={SECTION: section})
    )
    check(scheduler)
    return scheduler


def check(scheduler: Any) -> None:
    """Raises BenchError if the plug-in has given up and serves in vLLM's order."""
    if getattr(scheduler, "_has_failed", False):
        raise BenchError("the plug-in failed in virtual time", "see the line of vllm.quietcore above")
