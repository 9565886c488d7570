"""vLLM's schedulers with our queue in them.

Only entry points are overridden, and each calls vLLM's own with whatever arguments came, so that one class
fits vLLM 0.24 to 0.33. What is ours runs before or after it, and nothing of it may fail a request: an
exception is logged once, and from then on the engine serves in vLLM's order.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from quietcore.scheduler import config
from quietcore.scheduler.config import Settings
from quietcore.scheduler.cost import CostModel, MeasuredSlowdown, Slowdown, StepTimeModel, neutral
from quietcore.scheduler.cost.model import STATIC_LESSONS
from quietcore.scheduler.estimate import Estimator, RequestFacts
from quietcore.scheduler.page import FeedbackReader
from quietcore.scheduler.vllm.control import Control
from quietcore.scheduler.vllm.facts import FactsReader
from quietcore.scheduler.vllm.prefix import PrefixCache
from quietcore.scheduler.vllm.queue import DriftQueue
from quietcore.scheduler.vllm.state import StateFile

logger = logging.getLogger("vllm.quietcore")


class _Drift:
    """Mixed into a scheduler of vLLM, before it. The methods with one underscore are seams for benchmarks.

    ``_control`` is None where the plug-in is off, or has failed; ``_built`` is there until the engine stops.
    """

    _control: Control | None = None
    _built: Control | None = None
    _estimator: Estimator | None = None
    _state: StateFile | None = None
    _slowdown: Callable[[], Slowdown] | None = None
    _queues: tuple[DriftQueue, ...] = ()
    _has_failed = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        engine: Any = self
        settings = config.load(engine.vllm_config.additional_config, os.environ)
        for problem in settings.problems:
            logger.warning("quietcore: setting ignored: %s", problem)
        if not settings.active:
            return
        try:
            self._control = self._start(engine, settings)
        except Exception as error:
            self._fail(error)

    def _start(self, engine: Any, settings: Settings) -> Control:
        model = engine.vllm_config.model_config
        self._facts_reader = FactsReader(settings, model, self._now, logger.warning)
        state = StateFile(settings, engine.vllm_config.parallel_config, logger.warning)
        estimator = self._estimator = self._make_estimator(settings)
        state.restore(estimator)
        self._state = state
        control = self._built = Control(
            settings,
            estimator,
            self._make_cost(settings),
            self._facts,
            self._now,
            logger.warning,
            slots=engine.scheduler_config.max_num_seqs,
            # vLLM's own promise with --scheduling-policy priority.
            strict=engine.scheduler_config.policy == "priority",
            cached=PrefixCache(engine).tokens,
        )
        for name in ("waiting", "skipped_waiting"):
            if hasattr(engine, name):
                queue = control.make_queue(self._fail)
                setattr(engine, name, queue)
                self._queues += (queue,)
        if engine.scheduler_config.async_scheduling and not isinstance(self, AsyncScheduler):
            logger.warning(
                "quietcore: this scheduler class is for engines without async scheduling; "
                "name quietcore.scheduler.vllm.DriftScheduler instead"
            )
        logger.info("quietcore: %s with the estimator %s", settings.policy, estimator.name)
        return control

    # --- seams ---

    def _make_estimator(self, settings: Settings) -> Estimator:
        from quietcore.scheduler import drift

        return drift.build(settings.estimator, seed=settings.seed)

    def _make_cost(self, settings: Settings) -> CostModel:
        engine: Any = self
        overlap = bool(engine.scheduler_config.async_scheduling)
        slots = engine.scheduler_config.max_num_seqs
        step_time = StepTimeModel(overlap=overlap, lessons=0 if settings.correct_time else STATIC_LESSONS)
        self._slowdown = self._make_slowdown(settings)
        return CostModel(slots, step_time, self._slowdown)

    def _make_slowdown(self, settings: Settings) -> Callable[[], Slowdown]:
        path = settings.feedback_path
        return neutral if path is None else MeasuredSlowdown(FeedbackReader(path))

    def _facts(self, request: Any) -> RequestFacts:
        return self._facts_reader.read(request)

    def _now(self) -> float:
        return time.monotonic()

    # --- vLLM's entry points ---

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        self._try(Control.before_schedule, self)
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        for queue in self._queues:
            queue.release()
        throttled = bool(args[0] if args else kwargs.get("throttle_prefills", False))
        self._try(Control.after_schedule, self, output, throttled)
        return output

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self._try(Control.before_update)
        outputs = super().update_from_output(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        self._try(Control.after_update, self, scheduler_output)
        self._try(self._remember)
        if self._control is None and self._built is not None:
            self._built.after_failure(self)
        return outputs

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self._try(Control.ended, request)
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]

    def shutdown(self, *args: Any, **kwargs: Any) -> Any:
        self._stop()
        return super().shutdown(*args, **kwargs)  # type: ignore[misc]

    # --- ours ---

    def _try(self, act: Callable[..., Any], *args: Any) -> None:
        control = self._control
        if control is None:
            return
        try:
            act(control, *args)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Serves in vLLM's order from now on."""
        self._control = None
        if self._has_failed:
            return
        self._has_failed = True
        logger.warning(
            "quietcore: %s: %s. Requests are served in vLLM's own order until the engine is restarted",
            type(error).__name__,
            error,
            exc_info=logger.isEnabledFor(logging.DEBUG),
        )
        if self._built is not None:
            self._built.abandon(self, error)

    def _remember(self, control: Control) -> None:
        if self._state is not None:
            busy = self.running or any(self._queues)  # type: ignore[attr-defined]
            self._state.save_at_times(control.estimator, idle=not busy)

    def _stop(self) -> None:
        """Saves what was learned and leaves nothing behind, whatever has failed before."""
        built, self._built = self._built, None
        estimator, self._estimator = self._estimator, None
        suspect = built is not None and built.ledger.estimator_failed
        if self._state is not None:
            self._state.save(None if suspect else estimator)
        for stop in (getattr(each, "close", None) for each in (built, estimator, self._slowdown)):
            try:
                if stop is not None:
                    stop()
            except Exception as error:  # vLLM has more to stop
                logger.warning("quietcore: at the engine's end: %s: %s", type(error).__name__, error)


class DriftScheduler(_Drift, AsyncScheduler):  # type: ignore[misc]
    """For ``--scheduler-cls``; right for engines with async scheduling and without."""


class SyncDriftScheduler(_Drift, Scheduler):  # type: ignore[misc]
    """The same over vLLM's plain scheduler, for engines that never schedule ahead."""
