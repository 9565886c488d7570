"""When the requests of a stream come, scaled to a load."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Literal, get_args

from quietcore.scheduler.bench import InputError
from quietcore.scheduler.bench.streams import RecordedRequest, Stream
from quietcore.scheduler.bench.virtual import StepTime

Arrivals = Literal["poisson", "bursty", "burst", "trace"]
KINDS: tuple[Arrivals, ...] = get_args(Arrivals)
BURSTY_CV = 4.0
"""Coefficient of variation of the gamma distributed gaps of ``bursty``."""


def unit_rate(kind: Arrivals, stream: Stream, skip: int, seed: int) -> list[float]:
    """Times of the requests after ``skip``: from 0, one a second on average, or all at 0 (``burst``).

    Seed 0 gives the recorded times, others draw new ones of the same kind (of ``burst``: see `order`).

    Raises:
        InputError: the stream has no such times, or they go back.
    """
    count = len(stream.requests) - skip
    if kind == "burst":
        return [0.0] * count
    recorded = stream.arrivals.get(kind)
    if seed and kind != "trace":
        times = _draw(kind, count, random.Random(seed))
    elif recorded is None:
        known = ", ".join([*stream.arrivals, "burst"])
        raise InputError(f"{stream.name} has no {kind} arrivals (it has {known})")
    else:
        times = list(recorded[skip:])
        if any(later < time for time, later in itertools.pairwise(times)):
            raise InputError(f"{stream.name} has {kind} arrivals that are not in order")
    span = times[-1] - times[0]
    if span <= 0:
        return [0.0] * count
    return [(time - times[0]) * (count - 1) / span for time in times]


def order(kind: Arrivals, count: int, seed: int) -> list[int]:
    """In which order the requests come: the recorded one, but for a burst of another seed than 0."""
    indices = list(range(count))
    if kind == "burst" and seed:
        random.Random(seed).shuffle(indices)
    return indices


def _draw(kind: Arrivals, count: int, rng: random.Random) -> list[float]:
    shape = 1.0 if kind == "poisson" else BURSTY_CV**-2
    times, now = [], 0.0
    for _ in range(count):
        now += rng.gammavariate(shape, 1 / shape)
        times.append(now)
    return times


def saturated_rate(requests: Sequence[RecordedRequest], slots: int, step_time: StepTime) -> float:
    """Requests a second of an engine all of whose slots are always busy: one over the mean shared cost.

    The shared cost of a request is its prefill and, for each token, a slot's part of a step with all slots.
    """
    total = sum(
        step_time.shared_s(request.facts.prompt_tokens, request.output_tokens, slots) for request in requests
    )
    return len(requests) / total
