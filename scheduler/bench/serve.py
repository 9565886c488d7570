"""``bench serve``: a recorded stream sent to a live OpenAI server, open loop, with quietcore's hints.

vLLM's own ``vllm bench serve`` sends one set of hints with all requests and knows no tiers and no deadlines,
hence this one. It uses aiohttp, as that does: its parser of streamed answers is native code, and a client
that shares the host with the engine must not become the noise that it measures.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from quietcore.scheduler.bench import BenchError, InputError
from quietcore.scheduler.bench.client import Answer, Client, Query
from quietcore.scheduler.bench.serve_report import ServeResult
from quietcore.scheduler.bench.streams import RecordedRequest, Stream, read

Arrivals = Literal["poisson", "bursty", "burst", "trace"]
HINTS = ("tenant", "category", "qos", "priority", "deadline", "request")
PRIORITIES = {"premium": -1, "standard": 0, "batch": 1}  # as the plug-in reads a priority without a tier
SATURATED_SHARE = 0.7  # of a calibrating burst's requests: until so many have finished all slots are full


@dataclass(frozen=True)
class ServeOptions:
    """What is sent where.

    Attributes:
        url: of the server, without ``/v1``.
        stream: a file of recorded requests with prompts.
        model: as the server names it; by default the first one it lists.
        requests: how many of the stream are sent, 0 for all; ``skip`` leaves out so many before them.
        arrivals: the stream's own, scaled (``burst``: all at once).
        load: offered load as a ratio of ``capacity``, the requests a second that the server answers
            when it is saturated; measured with a burst of ``calibrate`` requests if it is 0.
        rate: requests a second, instead of load and capacity.
        max_tokens: cap on each answer, the same for all.
        prompt_chars: prompts are cut there; 0 leaves them whole.
        hints: which of ``HINTS`` are sent, none if empty; ``request`` names each by its number in the stream,
            for what in the engine wants to tell them apart. With any, ``tiers`` are told as ``qos`` unless
            ``priority`` tells them, and ``deadline_ms`` as ``deadline``.
        tiers: the share of requests in each tier, drawn with ``seed``; if empty the report goes by tenant.
        deadline_ms: by tier, milliseconds from arrival to the last token.
        timeout_s: of one request, from its sending to its end.
        extra_body: fields added to each request.
        api_key: sent as bearer token.
    """

    url: str
    stream: Path
    model: str = ""
    requests: int = 0
    skip: int = 0
    arrivals: Arrivals = "poisson"
    load: float = 0.9
    capacity: float = 0.0
    calibrate: int = 128
    rate: float = 0.0
    max_tokens: int = 1024
    prompt_chars: int = 0
    hints: Sequence[str] = ("tenant",)
    tiers: Mapping[str, float] = field(default_factory=dict)
    deadline_ms: Mapping[str, float] = field(default_factory=dict)
    timeout_s: float = 600.0
    seed: int = 0
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    api_key: str = ""


class ServeProgress(NamedTuple):
    """How far it is: ``phase`` is ``calibrating`` or ``serving``."""

    phase: str
    sent: int
    finished: int
    failed: int
    total: int


OnProgress = Callable[[ServeProgress], None]


def run_serve(options: ServeOptions, progress: OnProgress | None = None) -> ServeResult:
    """Send the stream and wait for all answers; a failed request is counted, not raised.

    Raises:
        InputError: the options or the stream do not fit together.
        BenchError: the server does not answer, or aiohttp is missing.
    """
    check(options)
    stream = read(options.stream)
    return asyncio.run(_run(options, stream, progress or (lambda _: None)))


def check(options: ServeOptions) -> None:
    """Raises InputError for options that mean nothing."""
    unknown = set(options.hints) - set(HINTS)
    if unknown:
        raise InputError(f"no such hint: {', '.join(sorted(unknown))} (there are {', '.join(HINTS)})")
    if any(share < 0 for share in options.tiers.values()) or (
        options.tiers and sum(options.tiers.values()) <= 0
    ):
        raise InputError("the shares of the tiers must be positive")
    undrawn = [tier for tier in options.deadline_ms if not options.tiers.get(tier)]
    if undrawn:
        raise InputError(f"a deadline for a tier that no request is in: {', '.join(sorted(undrawn))}")
    if not all(0 < deadline < math.inf for deadline in options.deadline_ms.values()):
        raise InputError("deadlines must be positive numbers")
    numbers = (options.load, options.rate, options.capacity, options.timeout_s)
    if not all(math.isfinite(number) and number >= 0 for number in numbers) or options.load == 0:
        raise InputError("load, rate, capacity and timeout must be positive numbers")
    if options.max_tokens < 1:
        raise InputError("max_tokens must be at least 1")


def told(options: ServeOptions) -> set[str]:
    """Which of ``HINTS`` are sent: those named, and with any of them what tiers and deadlines imply."""
    names = set(options.hints)
    if names and options.tiers and "priority" not in names:
        names.add("qos")
    if names and options.deadline_ms:
        names.add("deadline")
    return names


def plan(options: ServeOptions, stream: Stream, rate: float) -> list[Query]:
    """The requests with their times (seconds from the start) at ``rate`` a second; the same for a seed."""
    end = options.skip + options.requests if options.requests else None
    chosen = stream.requests[options.skip : end]
    if not chosen:
        raise InputError(f"{options.stream} has only {len(stream.requests)} requests")
    times = arrival_times(options.arrivals, stream, options.skip, len(chosen))
    tiers = _draw_tiers(options, chosen)
    hints = told(options)
    return [
        _query(options, hints, request, tier, time / rate)
        for request, tier, time in zip(chosen, tiers, times, strict=True)
    ]


def arrival_times(kind: Arrivals, stream: Stream, skip: int, count: int) -> list[float]:
    """Times of ``count`` requests after ``skip``, from 0 and at one a second on average."""
    if kind == "burst":
        return [0.0] * count
    recorded = stream.arrivals.get(kind)
    if recorded is None:
        known = ", ".join([*stream.arrivals, "burst"])
        raise InputError(f"{stream.name} has no {kind} arrivals (it has {known})")
    part = recorded[skip : skip + count]
    span = part[-1] - part[0]
    # A part of a bursty stream may come much faster than the whole.
    scale = (count - 1) / span if span > 0 else 0.0
    return [(time - part[0]) * scale for time in part]


def _draw_tiers(options: ServeOptions, requests: Sequence[RecordedRequest]) -> list[str]:
    if not options.tiers:
        return ["" for _ in requests]
    draw = random.Random(options.seed)
    return draw.choices(list(options.tiers), list(options.tiers.values()), k=len(requests))


def _query(options: ServeOptions, hints: set[str], request: RecordedRequest, tier: str, time: float) -> Query:
    facts = request.facts
    if not facts.prompt:
        raise InputError(f"{options.stream} has no prompts: a live server needs a stream, not a trace")
    prompt = facts.prompt[: options.prompt_chars] if options.prompt_chars else facts.prompt
    deadline_ms = options.deadline_ms.get(tier)
    xargs: dict[str, Any] = {}
    if "tenant" in hints and facts.tenant:
        xargs["tenant"] = facts.tenant
    if "category" in hints and facts.category:
        xargs["category"] = facts.category
    if "request" in hints:
        xargs["request"] = facts.key
    if "qos" in hints and tier:
        xargs["qos"] = tier
    if "deadline" in hints and deadline_ms is not None:
        xargs["deadline_ms"] = deadline_ms
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": options.max_tokens, "temperature": 0.0}
    if "priority" in hints and tier:
        body["priority"] = PRIORITIES.get(tier, max(PRIORITIES.values()))
    extra = dict(options.extra_body)
    xargs |= extra.pop("vllm_xargs", {})
    if xargs:
        body["vllm_xargs"] = xargs
    tier = tier or facts.tenant or "all"
    return Query(facts.key, time, {**body, **extra}, tier, deadline_ms)


async def _run(options: ServeOptions, stream: Stream, progress: OnProgress) -> ServeResult:
    async with Client(options.url, options.timeout_s, options.api_key) as client:
        model = options.model or await client.first_model()
        rate, capacity = options.rate, options.capacity
        if not rate:
            if not capacity:
                capacity = await _calibrate(options, stream, client, model, progress)
            rate = options.load * capacity
        queries = plan(options, stream, rate)
        answers = await drive(client, model, queries, "serving", progress)
    return ServeResult(stream.name, model, rate, capacity, tuple(queries), tuple(answers))


async def _calibrate(
    options: ServeOptions, stream: Stream, client: Client, model: str, progress: OnProgress
) -> float:
    """Requests a second that the server answers while all its slots are full.

    From a burst of requests spread over those of the stream that are not served, as far as there are such
    (the server must not see a prompt twice): tokens a second until 70 % have finished, over the mean of
    tokens a request. What comes after would measure how a batch runs dry.
    """
    end = options.skip + options.requests if options.requests else len(stream.requests)
    others = (*stream.requests[: options.skip], *stream.requests[end:]) or stream.requests
    count = min(options.calibrate, len(others))
    chosen = [others[i * len(others) // count] for i in range(count)]
    hints = told(options)
    queries = [_query(options, hints, request, "", 0.0) for request in chosen]
    answers = await drive(client, model, queries, "calibrating", progress)
    return capacity_of(answers)


def capacity_of(answers: Sequence[Answer]) -> float:
    """Requests a second in the saturated part of a burst. Raises BenchError if most of it failed."""
    good = [answer for answer in answers if not answer.error]
    if len(good) < 2 or len(good) < len(answers) / 2:
        reason = next((answer.error for answer in answers if answer.error), "too few requests")
        raise BenchError(f"the server failed most of a burst of {len(answers)} requests: {reason}")
    begin = min(answer.sent for answer in good)
    ends = sorted(answer.finished for answer in good)
    until = ends[max(0, math.ceil(SATURATED_SHARE * len(ends)) - 1)]
    tokens = sum(answer.tokens_until(until) for answer in good)
    return tokens / (until - begin) / (sum(answer.tokens for answer in good) / len(good))


async def drive(
    client: Client, model: str, queries: Sequence[Query], phase: str, progress: OnProgress
) -> list[Answer]:
    """Send each request at its time, whatever became of the others; answers in the order of the queries."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    sent = finished = failed = 0

    async def one(query: Query) -> Answer:
        nonlocal sent, finished, failed
        await asyncio.sleep(max(0.0, begin + query.time - loop.time()))
        sent += 1
        answer = await client.ask(model, query, begin)
        finished += 1
        failed += bool(answer.error)
        progress(ServeProgress(phase, sent, finished, failed, len(queries)))
        return answer

    return await asyncio.gather(*(one(query) for query in queries))
