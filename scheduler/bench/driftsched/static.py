"""Static micro-batches as published: up to 32 requests go in together and come back with the longest."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from quietcore.scheduler.bench.driftsched.workload import PAUSE_S, WorkRequest
from quietcore.scheduler.bench.virtual import StepTime
from quietcore.scheduler.estimate import End, Estimate, Estimator

BATCH = 32
_FILL_S, _POLL_S, _IDLE_S = (
    0.01,
    0.005,
    1.0,
)  # how long a batch is filled, and how often the queue is looked at

Order = Callable[[WorkRequest, float, Estimate], Any]
"""The sort key of a request that came at a time (seconds) with an estimate."""


@dataclass(slots=True)
class _Waiting:
    request: WorkRequest
    arrival: float
    estimate: Estimate


class _Queue:
    """Requests that have come, in the order of a scheduler; estimated at their arrival."""

    def __init__(
        self, coming: Sequence[tuple[float, WorkRequest]], order: Order, estimator: Estimator
    ) -> None:
        self._coming = list(reversed(coming))
        self._order = order
        self._estimator = estimator
        self._heap: list[tuple[Any, int, _Waiting]] = []
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._coming or self._heap)

    def pop(self, now: float) -> _Waiting | None:
        while self._coming and self._coming[-1][0] <= now:
            arrival, request = self._coming.pop()
            estimate = self._estimator.estimate(replace(request.facts, arrival=arrival))
            self._count += 1
            entry = (
                self._order(request, arrival, estimate),
                self._count,
                _Waiting(request, arrival, estimate),
            )
            heapq.heappush(self._heap, entry)
        return heapq.heappop(self._heap)[-1] if self._heap else None


def serve(
    requests: Sequence[WorkRequest], order: Order, estimator: Estimator, step_time: StepTime
) -> dict[str, float]:
    """Serve both phases, the second when the first has drained; seconds from arrival to answer, by key."""
    now = 0.0
    latency: dict[str, float] = {}
    for _, phase in groupby(requests, key=lambda request: request.phase):
        coming: list[tuple[float, WorkRequest]] = []
        arrival = now
        for request in phase:
            arrival += request.gap_s
            coming.append((arrival, request))
        queue = _Queue(coming, order, estimator)
        while queue:
            batch, now = _fill(queue, now)
            now += batch_seconds([waiting.request for waiting in batch], step_time)
            for waiting in batch:
                facts = replace(waiting.request.facts, arrival=waiting.arrival)
                estimator.observe(facts, waiting.estimate, waiting.request.output_tokens, End.STOPPED)
                latency[facts.key] = now - waiting.arrival
        now += PAUSE_S
    return latency


def _fill(queue: _Queue, now: float) -> tuple[list[_Waiting], float]:
    while (first := queue.pop(now)) is None:
        now += _IDLE_S
    batch, begin = [first], now
    while len(batch) < BATCH:
        following = queue.pop(now)
        if following is not None:
            batch.append(following)
        elif now - begin >= _FILL_S:
            break
        else:
            now += _POLL_S
    return batch, now


def batch_seconds(batch: Sequence[WorkRequest], step_time: StepTime) -> float:
    """Until the longest of a batch has ended; shorter ones leave their places empty."""
    longest = max(request.output_tokens for request in batch)
    tokens = sum(request.output_tokens for request in batch)
    prompt = sum(request.facts.prompt_tokens for request in batch)
    ns = longest * step_time.base_ns + tokens * step_time.sequence_ns + prompt * step_time.prefill_token_ns
    return ns / 1e9
