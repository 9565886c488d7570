"""What happened to a target's launches: pairs with and without a switch, rates, tails.

The analysis of "When CPU Noise Slows Down GPU Inference" (eunomia, 2026): consecutive
launches of a thread are a pair; a pair with a context switch inside is compared with
those without; switches and interrupts are given per 1000 launches; and the tail beyond a quantile
is searched for switches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from quietcore.agent.attribution import Account
from quietcore.probes.durations import DurationTotals, Tail, Theft, quantile, tail

TAILS = (0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Launch pairs of one kind: how many, and their interval in nanoseconds."""

    count: int
    p50_ns: int | None
    p99_ns: int | None


@dataclass(frozen=True, slots=True)
class Rates:
    """Per 1000 launch pairs."""

    involuntary: float
    voluntary: float
    interrupts: float


@dataclass(frozen=True, slots=True)
class Durations:
    """Median, tail and stolen part of one kind of duration, nanoseconds."""

    count: int
    p50_ns: int
    p99_ns: int
    mean_ns: float
    stolen_ns: dict[Theft, int]
    stolen_share: float


@dataclass(frozen=True, slots=True)
class LaunchReport:
    """Launches of one target.

    Attributes:
        seen: launches that were counted.
        estimate: launches in the whole window, from the share of time that was counted.
        margin: half the 95 % confidence interval of ``estimate``; 0 if all was counted,
            ``None`` if too few stretches were.
        seen_share: part of the window in which the probes counted.
    """

    seen: int
    estimate: float
    margin: float | None
    seen_share: float
    by_api: dict[str, int]
    interval: Durations | None
    latency: Durations | None
    clean: Pairs
    voluntary: Pairs
    involuntary: Pairs
    rates: Rates
    tails: tuple[Tail, ...]


def report_launches(
    whole: Account, steps: Sequence[tuple[Account, int]], seen_ns: int
) -> LaunchReport | None:
    """Summarise a target's launches; ``None`` if none was seen.

    Args:
        steps: account and counted nanoseconds of each step of the measurement.
        seen_ns: counted nanoseconds of the whole.
    """
    if not whole.launchers or not whole.launches or not seen_ns:
        return None
    wall = whole.end - whole.start
    seen_share = min(seen_ns / wall, 1.0)
    by_api: dict[str, int] = {}
    for launcher in whole.launchers.values():
        for api, n in launcher.calls.items():
            by_api[api] = by_api.get(api, 0) + n
    interval = whole.durations("interval")
    return LaunchReport(
        seen=whole.launches,
        estimate=whole.launches / seen_share,
        margin=_margin(steps, wall, seen_share),
        seen_share=seen_share,
        by_api=dict(sorted(by_api.items(), key=lambda item: -item[1])),
        interval=_summary(interval),
        latency=_summary(whole.durations("launch")),
        clean=_pairs(interval.clean),
        voluntary=_pairs(interval.slept_within),
        involuntary=_pairs(interval.pushed),
        rates=_rates(interval),
        tails=tuple(t for q in TAILS if (t := tail(interval, q))),
    )


def _margin(steps: Sequence[tuple[Account, int]], wall: int, seen_share: float) -> float | None:
    """Of the estimate: from the scatter of the launch rate between stretches that were counted."""
    if seen_share > 0.999:
        return 0.0
    rates = [(a.launches or 0) / seen for a, seen in steps if seen]
    if len(rates) < 3:
        return None
    # the part that was seen has no error of sampling
    unseen = math.sqrt(1 - seen_share)
    return 1.96 * statistics.stdev(rates) / math.sqrt(len(rates)) * wall * unseen


def _summary(durations: DurationTotals) -> Durations | None:
    if not durations.count:
        return None
    histogram = durations.histogram
    return Durations(
        durations.count,
        quantile(histogram, 0.5) or 0,
        quantile(histogram, 0.99) or 0,
        durations.sum_ns / durations.count,
        dict(durations.stolen),
        durations.stolen_ns / durations.sum_ns if durations.sum_ns else 0.0,
    )


def _pairs(histogram: Sequence[int]) -> Pairs:
    return Pairs(sum(histogram), quantile(histogram, 0.5), quantile(histogram, 0.99))


def _rates(interval: DurationTotals) -> Rates:
    per_1000 = 1000 / interval.count if interval.count else 0.0
    return Rates(
        interval.involuntary * per_1000, interval.voluntary * per_1000, interval.interrupts * per_1000
    )
