"""What is known of each request of the engine, from its admission to its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from quietcore.scheduler.cost import CostModel
from quietcore.scheduler.estimate import End, Estimate, Estimator, RequestFacts
from quietcore.scheduler.policy import Job
from quietcore.scheduler.queue import Entry
from quietcore.scheduler.vllm.hints import Hints

_Answer = TypeVar("_Answer")

# Looked at in a step, of the running requests: whether they are past what was predicted.
_CHECKS = 2
# A corrected estimate is not corrected again before the request has grown by this share.
_PATIENCE = 0.1

# `vllm.v1.request.RequestStatus` by name: its numbers differ between versions.
_ENDS = {
    "FINISHED_STOPPED": End.STOPPED,
    "FINISHED_REPETITION": End.STOPPED,
    "FINISHED_LENGTH_CAPPED": End.LENGTH,
    "FINISHED_ABORTED": End.ABORTED,
}


class Record:
    """One request.

    Attributes:
        first: the estimate at its admission.
        cached: tokens of its prompt that need no computing: a look at the prefix cache while it waits, then
            what the engine found there.
        horizon: output tokens it is expected to have in the end, as far as is known now.
        cost: shared cost that was expected at its admission, seconds.
        entry: its place in the queue, also while it runs.
        preemptions: how often it was preempted, as far as the queue has heard.
        lost_slots: how often for a slot.
        stamp: the state of the estimator that ``first`` is from.
    """

    __slots__ = (
        "cached",
        "cost",
        "entry",
        "facts",
        "first",
        "hints",
        "horizon",
        "lost_slots",
        "preemptions",
        "stamp",
    )

    def __init__(self, facts: RequestFacts, hints: Hints, first: Estimate, stamp: int) -> None:
        self.facts = facts
        self.hints = hints
        self.first = first
        self.cached = 0
        self.horizon = first.mean
        self.cost = 0.0
        self.entry: Entry[Any] | None = None
        self.preemptions = 0
        self.lost_slots = 0
        self.stamp = stamp


class Closed(NamedTuple):
    """A request that has ended: how (``None``: by an error), and what shared cost it had, seconds."""

    record: Record
    end: End | None
    cost: float


class Ledger:
    """Opens a record when a request arrives, keeps its estimate, and lets the estimator learn from its end.

    ``facts`` and ``hints`` read a request of the engine, ``cached`` tells how many of its first tokens need
    no computing; nothing else here depends on which engine it is, but for the names of some attributes of its
    requests.

    Attributes:
        estimator_failed: whether it raised or gave nonsense, so that what it has learned is suspect.
    """

    def __init__(
        self,
        estimator: Estimator,
        cost: CostModel,
        facts: Callable[[Any], RequestFacts],
        hints: Callable[[Any], Hints],
        cached: Callable[[Any], int] = lambda request: 0,
    ) -> None:
        self.estimator = estimator
        self.cost = cost
        self._read_facts = facts
        self._read_hints = hints
        self._read_cached = cached
        self._records: dict[str, Record] = {}
        self._to_check: Iterator[Any] = iter(())
        self.estimator_failed = False
        self.ignored_hints = 0
        self.re_estimates = 0
        self.preemptions = 0

    def __len__(self) -> int:
        return len(self._records)

    def get(self, request_id: str) -> Record | None:
        return self._records.get(request_id)

    # --- admission and queue ---

    def open(self, request: Any, stamp: int) -> tuple[Record, Job]:
        """A request has arrived: its record, and its job for the queue.

        ``stamp`` says which state of the estimator it was estimated with.
        """
        hints = self._read_hints(request)
        self.ignored_hints += hints.ignored
        facts = self._read_facts(request)
        record = Record(facts, hints, self._estimate(request, facts), stamp)
        self._records[request.request_id] = record
        job = self._job(request, record, record.first, facts.arrival)
        record.cost = job.cost
        return record, job

    def job(self, request: Any, record: Record, *, stamp: int | None = None) -> Job:
        """What is left of a request that was preempted, or what a waiting one is expected to cost now.

        With ``stamp``, one estimated with another state of the estimator is estimated anew.
        """
        produced = request.num_output_tokens
        if stamp is not None and stamp != record.stamp and not produced:
            record.first = self._estimate(request, record.facts)
            record.horizon = record.first.mean
            record.stamp = stamp
            self.re_estimates += 1
        left = record.first
        if produced and _generates(request):
            left = self._remaining(record, produced)
            record.horizon = produced + left.mean
        return self._job(request, record, left, record.facts.arrival)

    def _estimate(self, request: Any, facts: RequestFacts) -> Estimate:
        if not _generates(request):
            return Estimate(1.0, 1.0, 1.0)
        if facts.fixed:
            return Estimate(*[float(facts.max_tokens)] * 3)
        estimate = self._ask(self.estimator.estimate, facts).at_least(facts.least)
        if not (math.isfinite(estimate.mean) and math.isfinite(estimate.p90)):
            self.estimator_failed = True
            raise ValueError(f"the estimator {self.estimator.name!r} gave {estimate}")
        return estimate

    def _remaining(self, record: Record, produced: int) -> Estimate:
        facts = record.facts
        if facts.fixed:
            return Estimate(*[float(max(facts.max_tokens - produced, 1))] * 3)
        left = self._ask(self.estimator.remaining, facts, record.first, produced)
        return left.at_least(facts.least - produced)

    def _ask(self, method: Callable[..., _Answer], *arguments: Any) -> _Answer:
        try:
            return method(*arguments)
        except Exception:
            self.estimator_failed = True
            raise

    def _job(self, request: Any, record: Record, left: Estimate, arrival: float) -> Job:
        hints = record.hints
        cap = record.facts.max_tokens
        most = max(cap - request.num_output_tokens, 1) if cap > 0 else math.inf
        record.cached = self._read_cached(request)
        prompt = request.num_tokens - record.cached
        tokens = min(max(left.mean, 1.0), most)
        deadline = arrival + hints.deadline_s
        # A deadline is kept by those that turn out long, too.
        own = tokens if deadline == math.inf else min(max(left.p90, 1.0), most)
        return Job(
            key=request.request_id,
            arrival=arrival,
            cost=self.cost.shared(prompt, tokens),
            service=self.cost.service(prompt, own),
            tier=hints.tier,
            priority=hints.priority,
            deadline=deadline,
            tenant=hints.tenant,
        )

    # --- running and end ---

    def started(self, request_id: str, cached: int) -> None:
        """The engine has begun with a request, and found so many of its tokens in its cache."""
        record = self._records.get(request_id)
        if record is not None:
            record.cached = max(cached, 0)

    def check(self, running: list[Any]) -> Iterator[tuple[Any, Record]]:
        """Estimates anew what runs past its prediction, and names it.

        Looks at some of ``running`` a call, in turn.
        """
        for _ in range(_CHECKS):
            request = next(self._to_check, None)
            if request is None:
                self._to_check = iter(tuple(running))
                return
            record = self._records.get(request.request_id)
            if record is None:
                continue
            produced = request.num_output_tokens
            if produced <= record.horizon or not _generates(request):
                continue
            left = self._remaining(record, produced).mean
            record.horizon = produced + max(left, _PATIENCE * produced)
            self.re_estimates += 1
            yield request, record

    def close(self, request: Any) -> Closed | None:
        """A request has ended, in whatever way; ``None`` if it has no record.

        A cap and an abort say only that the length is at least what was seen. Of an aborted request with stop
        strings it is taken as the length: vLLM's front end finds the string and aborts what the engine would
        go on with, and clients that disconnect are rarer than that.
        """
        record = self._records.pop(request.request_id, None)
        if record is None:
            return None
        produced = request.num_output_tokens
        end = _ENDS.get(request.status.name)
        # one that has not run has found no string
        if end is End.ABORTED and produced and _generates(request) and request.sampling_params.stop:
            end = End.STOPPED
        if _generates(request) and not record.facts.fixed:
            # of one that broke off by an error nothing is learned
            learned = produced if end is not None else 0
            self._ask(self.estimator.observe, record.facts, record.first, learned, end or End.ABORTED)
        cost = self.whole_cost(request, record, produced) if produced else 0.0
        return Closed(record, end, cost)

    def whole_cost(self, request: Any, record: Record, tokens: float) -> float:
        """Shared cost, in seconds, of a request that has ``tokens`` output tokens in the end."""
        return self.cost.shared(request.num_prompt_tokens - record.cached, tokens)


def _generates(request: Any) -> bool:
    return request.sampling_params is not None
