"""The experiment, smaller, on a live OpenAI server: the same requests and phases, whatever orders its queue.

One run measures one server. What an order is worth comes from two runs on servers that differ in nothing
else, by :func:`compare`. The estimates stay inside the engine; its page (`quietcore.scheduler.page`) sums
their errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

from quietcore.scheduler.bench import InputError
from quietcore.scheduler.bench.client import Client, Query
from quietcore.scheduler.bench.driftsched.workload import WorkRequest, make
from quietcore.scheduler.bench.serve import OnProgress, drive
from quietcore.scheduler.bench.serve_report import ServeResult, summary

SCHEMA = "quietcore.bench.driftsched-live/1"
REQUESTS = 300
PAUSE_S = 2.0


@dataclass(frozen=True)
class LiveOptions:
    """What is sent where.

    Attributes:
        url: of the server, without ``/v1``; ``model`` is by default the first that it lists.
        requests: of both phases, a third of them in the learning phase.
        token_scale: budgets (64/256/384/512 tokens) are multiplied by it, for a slow server.
        gap_scale: published gaps (50 to 150 and 5 to 30 ms) are multiplied by it.
        hints: whether ``qos`` and ``tenant`` are sent; the tenants are named like the tiers.
        timeout_s: of one request.
    """

    url: str
    model: str = ""
    requests: int = REQUESTS
    token_scale: float = 1.0
    gap_scale: float = 1.0
    hints: bool = True
    seed: int = 0
    timeout_s: float = 600.0
    api_key: str = ""


@dataclass(frozen=True)
class LiveExperiment:
    """One run: what each phase found, and which job each request of it was."""

    phases: Mapping[str, ServeResult]
    job_types: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """A document of base units (seconds), by phase, tier and job type."""
        return {
            "schema": SCHEMA,
            "phases": {
                phase: {**result.to_json(), "job_types": self._by_job(result)}
                for phase, result in self.phases.items()
            },
        }

    def _by_job(self, result: ServeResult) -> dict[str, Any]:
        pairs = sorted(
            zip(result.queries, result.answers, strict=True), key=lambda pair: self.job_types[pair[0].key]
        )
        grouped = groupby(pairs, key=lambda pair: self.job_types[pair[0].key])
        return {job: summary(*zip(*group, strict=True)) for job, group in grouped}


def model_of(options: LiveOptions) -> str:
    """The model that a run would ask. Raises BenchError if the server does not answer."""

    async def ask() -> str:
        async with Client(options.url, options.timeout_s, options.api_key) as client:
            return await client.first_model()

    return options.model or asyncio.run(ask())


def run_live(options: LiveOptions, progress: OnProgress | None = None) -> LiveExperiment:
    """Send the learning phase, wait until it is answered, pause, send the stress phase.

    Every answer fills its ``max_tokens``, as published (``ignore_eos``, which vLLM understands).

    Raises:
        InputError: options that mean nothing.
        BenchError: the server does not answer, or aiohttp is missing.
    """
    if options.requests < 3 or not (options.token_scale > 0 and options.gap_scale >= 0):
        raise InputError("the experiment needs three requests at least and positive scales")
    return asyncio.run(_run(options, progress or (lambda _: None)))


async def _run(options: LiveOptions, progress: OnProgress) -> LiveExperiment:
    requests = make(options.seed, "pinned", options.requests)
    phases: dict[str, ServeResult] = {}
    async with Client(options.url, options.timeout_s, options.api_key) as client:
        model = options.model or await client.first_model()
        for phase, group in groupby(requests, key=lambda request: request.phase):
            if phases:
                await asyncio.sleep(PAUSE_S)
            queries = _queries(options, list(group))
            answers = await drive(client, model, queries, phase, progress)
            span = queries[-1].time - queries[0].time
            rate = (len(queries) - 1) / span if span else 0.0
            phases[phase] = ServeResult("driftsched", model, rate, 0.0, tuple(queries), tuple(answers))
    return LiveExperiment(phases, {request.facts.key: request.job_type for request in requests})


def _queries(options: LiveOptions, requests: Sequence[WorkRequest]) -> list[Query]:
    times = accumulate(request.gap_s * options.gap_scale for request in requests)
    return [_query(options, request, time) for request, time in zip(requests, times, strict=True)]


def _query(options: LiveOptions, request: WorkRequest, time: float) -> Query:
    facts = request.facts
    body: dict[str, Any] = {
        "prompt": facts.prompt,
        "max_tokens": max(1, round(facts.max_tokens * options.token_scale)),
        "temperature": 0.0,
        "ignore_eos": True,
    }
    if options.hints:
        body["vllm_xargs"] = {"tenant": facts.tenant, "qos": facts.tenant}
    return Query(facts.key, time, body, facts.tenant)


def compare(before: LiveExperiment, after: LiveExperiment) -> dict[str, dict[str, float]]:
    """Change of latency by phase, as a ratio: -0.42 is 42 % less. Of requests that failed in neither run."""
    found: dict[str, dict[str, float]] = {}
    for phase in before.phases:
        pairs = [
            (a, b)
            for a, b in zip(before.phases[phase].answers, after.phases[phase].answers, strict=True)
            if not a.error and not b.error
        ]
        if not pairs:
            continue
        old, new = (sorted(side) for side in zip(*((a.latency, b.latency) for a, b in pairs), strict=True))
        count = len(old)
        found[phase] = {
            "mean": sum(new) / sum(old) - 1,
            "median": new[count // 2] / old[count // 2] - 1,
            "p99": new[int(0.99 * (count - 1))] / old[int(0.99 * (count - 1))] - 1,
        }
    return found
