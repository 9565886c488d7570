"""A stream through an estimator as a server would do it: labels come later than the next requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quietcore.scheduler.bench.streams import RecordedRequest
from quietcore.scheduler.estimate import End, Estimate, Estimator

_EVERY = 100  # requests between two calls of `progress`


@dataclass(frozen=True, slots=True)
class Replay:
    """What was estimated for each request, and how long that took.

    Attributes:
        scoring_ns: of each call of ``estimate``, nanoseconds.
    """

    estimates: tuple[Estimate, ...]
    scoring_ns: tuple[int, ...]


def replay(
    requests: Sequence[RecordedRequest],
    estimator: Estimator,
    feedback_delay: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Replay:
    """Estimate each request when those at least ``feedback_delay`` before it have ended, and only those."""
    estimates: list[Estimate] = []
    scoring: list[int] = []
    for i, request in enumerate(requests):
        ended = i - feedback_delay
        if ended >= 0:
            label = requests[ended]
            estimator.observe(label.facts, estimates[ended], label.output_tokens, End.STOPPED)
        begin = time.perf_counter_ns()
        estimates.append(estimator.estimate(request.facts))
        scoring.append(time.perf_counter_ns() - begin)
        if i % _EVERY == _EVERY - 1:
            progress(_EVERY)
    progress(len(requests) % _EVERY)
    return Replay(tuple(estimates), tuple(scoring))
