"""The same requests with continuous batching, by vLLM's scheduler with the plug-in in virtual time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from quietcore.scheduler.bench.driftsched.workload import PAUSE_S, WorkRequest
from quietcore.scheduler.bench.modelless import EngineShape
from quietcore.scheduler.bench.plugin import PolicySetup, build_scheduler, check
from quietcore.scheduler.bench.virtual import Clock, StepTime, VirtualEngine, VirtualRequest
from quietcore.scheduler.estimate import Estimator, RequestFacts


class _Facts(Mapping[str, RequestFacts]):
    """A request's facts with its arrival, which is known when it comes."""

    def __init__(self, requests: Mapping[str, WorkRequest], clock: Clock) -> None:
        self._requests = requests
        self._clock = clock

    def __getitem__(self, key: str) -> RequestFacts:
        return replace(self._requests[key].facts, arrival=self._clock.seconds())

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._requests)

    def __len__(self) -> int:
        return len(self._requests)


def serve(
    requests: Sequence[WorkRequest],
    setup: PolicySetup,
    estimator: Estimator,
    step_time: StepTime,
    slots: int,
    *,
    skip: bool = True,
) -> dict[str, float]:
    """Serve both phases, the second when the first has ended; seconds from arrival to the last token, by key.

    ``skip``: see `VirtualEngine`; not for estimators that have waiting requests ranked anew.
    """
    clock = Clock()
    facts = _Facts({request.facts.key: request for request in requests}, clock)
    scheduler = build_scheduler(setup, EngineShape(slots), step_time, clock, estimator, facts)
    engine = VirtualEngine(scheduler, clock, step_time, skip=skip)
    latency: dict[str, float] = {}
    for _, phase in groupby(requests, key=lambda request: request.phase):
        arrival_ns, coming = clock.now_ns, []
        for request in phase:
            arrival_ns += round(request.gap_s * 1e9)
            coming.append(_virtual(request, arrival_ns))
        for timeline in engine.run(coming):
            latency[timeline.key] = (timeline.finished_ns - timeline.arrival_ns) / 1e9
        clock.now_ns += round(PAUSE_S * 1e9)
    check(scheduler)
    return latency


def _virtual(request: WorkRequest, arrival_ns: int) -> VirtualRequest:
    facts = request.facts
    hints: dict[str, str | int | float] = {"tenant": facts.tenant, "qos": facts.tenant}
    return VirtualRequest(facts.key, arrival_ns, facts.prompt_tokens, request.output_tokens, hints=hints)
