"""What is ours around one scheduler of vLLM: called before and after each of its entry points."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from quietcore.scheduler.config import Settings
from quietcore.scheduler.cost import CostModel
from quietcore.scheduler.estimate import Estimator, RequestFacts
from quietcore.scheduler.policy import STANDARD, Job
from quietcore.scheduler.queue import Entry, JobQueue
from quietcore.scheduler.vllm import hints
from quietcore.scheduler.vllm.budget import TimeShare
from quietcore.scheduler.vllm.ledger import Ledger, Record
from quietcore.scheduler.vllm.queue import DriftQueue
from quietcore.scheduler.vllm.steps import StepClock
from quietcore.scheduler.vllm.telemetry import Telemetry
from quietcore.scheduler.vllm.victims import free_slot, order_victims

# Ranking anew: requests between two looks at the clock, the share of the engine's time that it may take,
# and the most seconds in one step.
_RERANK_SLICE = 4
_RERANK_SHARE = 0.01
_RERANK_MOST_S = 0.0005


class Control:
    """Owns queue, ledger, clock of steps and telemetry; every method may raise, which its caller turns into
    vLLM's own order.
    """

    def __init__(
        self,
        settings: Settings,
        estimator: Estimator,
        cost: CostModel,
        facts: Callable[[Any], RequestFacts],
        now: Callable[[], float],
        warn: Callable[[str], None],
        *,
        slots: int,
        strict: bool,
        cached: Callable[[Any], int] = lambda request: 0,
    ) -> None:
        self.settings = settings
        self.policy = settings.build_policy(strict=strict)
        self.estimator = estimator
        self.cost = cost
        self.ledger = Ledger(estimator, cost, facts, self._hints, cached)
        self.clock = StepClock()
        self.queues: list[DriftQueue] = []
        self._now = now
        self._state = self._model_state()
        self._slowdown = cost.slowdown
        self._rerank_time = TimeShare(_RERANK_SHARE, _RERANK_MOST_S)
        # Last, as it makes a file, which nobody would remove if something here failed after it.
        self.telemetry = Telemetry(settings.page_dir, slots, warn)

    def make_queue(self, failed: Callable[[Exception], None]) -> DriftQueue:
        main = self.queues[0] if self.queues else None
        queue = DriftQueue(JobQueue(self.policy, self._now()), self.ledger, failed, main)
        self.queues.append(queue)
        return queue

    def _hints(self, request: Any) -> hints.Hints:
        extra = getattr(request.sampling_params, "extra_args", None)
        return hints.parse(request.priority, extra, self.policy.weights)

    # --- schedule ---

    def before_schedule(self, scheduler: Any) -> None:
        """Moves what time has moved, ranks some anew, and puts the right victims in place."""
        self.clock.begin()
        now = self._now()
        for queue in self.queues:
            jobs = queue.jobs
            if jobs is not None:
                jobs.settle(now)
                queue.taken = 0
        self._rerank()
        order_victims(scheduler, self.ledger, self.policy)
        if self.settings.preempt_slots and self.queues[0]:
            self._free_slot(scheduler)
        for queue in self.queues:
            queue.shown = None

    def _free_slot(self, scheduler: Any) -> None:
        queue = self.queues[0]
        head = queue.peek_request()
        queue.hold()
        victim = None
        try:
            victim = free_slot(scheduler, head, self.ledger, self.policy)
        finally:
            if victim is None:
                queue.release()
        if victim is None:
            return
        self.telemetry.preempted_voluntary += 1
        record = self.ledger.get(victim.request_id)
        if record is not None:
            record.lost_slots += 1

    def after_schedule(self, scheduler: Any, output: Any, throttled: bool) -> None:
        """Takes note of what was scheduled, and of a first request that could have been and was not.

        vLLM asks for it only where a slot and tokens are free, and neither in a step that preempts nor while
        it is paused: in all other steps nothing is known of the request.
        """
        waiting = self.queues[0]
        admitted = sum(queue.taken for queue in self.queues)
        self.telemetry.admitted += max(admitted, 0)
        if waiting.jobs and waiting.shown is not None and admitted <= 0 and not throttled:
            waiting.jobs.stall()
        for new in output.scheduled_new_reqs:
            self.ledger.started(new.req_id, new.num_computed_tokens)
        self.clock.scheduled(output, scheduler.running)

    def _rerank(self) -> None:
        """After a change of the estimator or of the cost of a token: those that wait are ranked by it, in
        slices. Costs look at what the agent measures now, however long no step has taught anything.
        """
        self.cost.refresh()
        state = self._model_state()
        if state != self._state:
            if self.cost.slowdown != self._slowdown:
                self._slowdown = self.cost.slowdown
                self.telemetry.hurry()
            self._state = state
            for queue in self.queues:
                queue.stamp = state[0]
                if queue.jobs is not None:
                    queue.jobs.start_rerank()
        for queue in self.queues:
            if queue.jobs is not None and queue.jobs.to_rerank:
                self._rerank_time.spend(partial(self._rerank_slice, queue.jobs))

    def _rerank_slice(self, jobs: JobQueue[Any]) -> bool:
        jobs.rerank(self._revise, _RERANK_SLICE)
        return jobs.to_rerank > 0

    def _revise(self, entry: Entry[Any]) -> Job:
        record = self.ledger.get(entry.job.key)
        return entry.job if record is None else self.ledger.job(entry.item, record, stamp=self._state[0])

    def _model_state(self) -> tuple[int, int]:
        return getattr(self.estimator, "revision", 0), self.cost.revision

    # --- update ---

    def before_update(self) -> None:
        self.clock.returned()

    def after_update(self, scheduler: Any, output: Any) -> None:
        """Learns from the step, looks after running requests, and writes the page when it is time."""
        running = scheduler.running
        step = self.clock.updated(output, bool(running or self.queues[0]))
        if step is not None:
            self.cost.learn(*step)
        for request, record in self.ledger.check(running):
            # Tiers can wait for its end: they take turns only among what has waited its bound.
            if self.policy.fair:
                self._account(record, self.ledger.whole_cost(request, record, record.horizon))
        if self.telemetry.due():
            self.publish(scheduler, degraded=False)

    def ended(self, request: Any) -> None:
        """A request is about to be freed, in whatever way it ended."""
        self.clock.finished(request.num_computed_tokens)
        closed = self.ledger.close(request)
        if closed is None:
            return
        record, end, cost = closed
        entry = record.entry
        self._account(record, cost)
        produced = request.num_output_tokens
        self.telemetry.ended(end, (record.first.mean, produced), (record.cost, cost))
        if entry is not None and entry.job.deadline < math.inf:
            self.telemetry.deadline(end, self._now() <= entry.job.deadline)

    def _account(self, record: Record, cost: float) -> None:
        """What a request that runs or has run is known to cost: its tenant's turn comes by that."""
        jobs = self.queues[0].jobs
        if record.entry is not None and jobs is not None:
            jobs.account(record.entry, cost)

    def publish(self, scheduler: Any, *, degraded: bool) -> None:
        """Writes the engine page."""
        waiting: dict[str, int] = {}
        promoted = 0
        for queue in self.queues:
            if queue.jobs is not None:
                promoted += queue.jobs.promoted
            # In vLLM's order there are no tiers.
            depths = {STANDARD: len(queue)} if queue.jobs is None else queue.jobs.count_by_tier()
            for tier, count in depths.items():
                waiting[tier] = waiting.get(tier, 0) + count
        self.telemetry.promoted = max(promoted, self.telemetry.promoted)
        self.telemetry.preempted_forced = max(self.ledger.preemptions - self.telemetry.preempted_voluntary, 0)
        self.telemetry.publish(
            waiting,
            len(scheduler.running),
            self.cost,
            re_estimates=self.ledger.re_estimates,
            ignored_hints=self.ledger.ignored_hints,
            degraded=degraded,
        )

    def abandon(self, scheduler: Any, error: Exception) -> None:
        """Something has failed: the queues go over to vLLM's order, and the page says so. Never raises."""
        for queue in self.queues:
            queue.fail(error)
        with contextlib.suppress(Exception):
            self.publish(scheduler, degraded=True)

    def after_failure(self, scheduler: Any) -> None:
        """After each step from then on: the page stays fresh, so that nobody takes the engine for gone. Never
        raises.
        """
        with contextlib.suppress(Exception):
            if self.telemetry.due():
                self.publish(scheduler, degraded=True)

    def close(self) -> None:
        """The engine stops."""
        self.telemetry.close()
