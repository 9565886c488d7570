"""What requests of a virtual run had to bear, by tier, and how the engine was shared among tenants."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quietcore.scheduler.bench.accuracy import quantile
from quietcore.scheduler.bench.virtual import Timeline

MEASURES = ("ttft", "tpot", "latency")
STATISTICS = ("mean", "p50", "p95", "p99")
ALL = "all"
WINDOW_S = 10.0
"""Length of the windows in which tenants' shares are compared."""

Spread = dict[str, float]
"""By name of ``STATISTICS``, seconds."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A request that was served, with what the report goes by."""

    timeline: Timeline
    output_tokens: int
    cost_s: float
    tier: str
    tenant: str
    deadline_s: float = math.inf

    @property
    def latency(self) -> float:
        return (self.timeline.finished_ns - self.timeline.arrival_ns) / 1e9

    @property
    def ttft(self) -> float:
        """To the first token."""
        return (self.timeline.first_token_ns - self.timeline.arrival_ns) / 1e9

    @property
    def tpot(self) -> float:
        """A token after the first, on average; not a number for answers of one."""
        span = self.timeline.finished_ns - self.timeline.first_token_ns
        return span / 1e9 / (self.output_tokens - 1) if self.output_tokens > 1 else math.nan


@dataclass(frozen=True, slots=True)
class Report:
    """Figures of a run.

    Attributes:
        tiers: by tier (and ``all``), then by measure.
        deadlines_met: share of the requests that had a deadline; None if none had.
        fairness: Jain's index of the engine time that tenants got while they all had requests waiting; None
            where that never was so.
    """

    tiers: Mapping[str, Mapping[str, Spread]]
    deadlines_met: float | None
    fairness: float | None


def report(finished: Sequence[Finished]) -> Report:
    """Figures of a run's requests."""
    groups: dict[str, list[Finished]] = {ALL: list(finished)}
    if len({each.tier for each in finished}) > 1:
        for each in finished:
            groups.setdefault(each.tier, []).append(each)
    tiers = {
        tier: {measure: _spread([getattr(each, measure) for each in group]) for measure in MEASURES}
        for tier, group in groups.items()
    }
    kept = [each.latency <= each.deadline_s for each in finished if each.deadline_s < math.inf]
    return Report(tiers, statistics.fmean(kept) if kept else None, fairness(finished))


def _spread(values: Sequence[float]) -> Spread:
    values = [value for value in values if not math.isnan(value)] or [0.0]
    return {
        "mean": statistics.fmean(values),
        "p50": statistics.median(values),
        "p95": quantile(values, 0.95),
        "p99": quantile(values, 0.99),
    }


def mean_report(reports: Sequence[Report]) -> Report:
    """The mean of each figure over runs."""
    tiers = {
        tier: {
            measure: {
                name: statistics.fmean(each.tiers[tier][measure][name] for each in reports)
                for name in STATISTICS
            }
            for measure in MEASURES
        }
        for tier in reports[0].tiers
        if all(tier in each.tiers for each in reports)
    }
    met = [each.deadlines_met for each in reports if each.deadlines_met is not None]
    fair = [each.fairness for each in reports if each.fairness is not None]
    return Report(tiers, statistics.fmean(met) if met else None, statistics.fmean(fair) if fair else None)


def fairness(finished: Sequence[Finished]) -> float | None:
    """Jain's index of engine time by tenant, the mean over windows in which two or more queue.

    A request's shared cost counts evenly from its admission to its end. Engine time that a tenant did not ask
    for is no unfairness, hence only windows throughout which each compared tenant had one request waiting.
    """
    if len({each.tenant for each in finished}) < 2:
        return None
    queueing: dict[int, set[str]] = defaultdict(set)
    for each in finished:
        first = math.ceil(each.timeline.arrival_ns / 1e9 / WINDOW_S)
        last = math.floor(each.timeline.admitted_ns / 1e9 / WINDOW_S)
        for window in range(first, last):
            queueing[window].add(each.tenant)
    contended = {window: tenants for window, tenants in queueing.items() if len(tenants) > 1}
    served: dict[int, dict[str, float]] = {window: dict.fromkeys(t, 0.0) for window, t in contended.items()}
    for each in finished:
        begin, end = each.timeline.admitted_ns / 1e9, each.timeline.finished_ns / 1e9
        for window in range(int(begin // WINDOW_S), int(end // WINDOW_S) + 1):
            if window in served and each.tenant in served[window]:
                inside = min(end, (window + 1) * WINDOW_S) - max(begin, window * WINDOW_S)
                served[window][each.tenant] += each.cost_s * inside / (end - begin)
    indices = [_jain(list(shares.values())) for shares in served.values() if any(shares.values())]
    return statistics.fmean(indices) if indices else None


def _jain(shares: Sequence[float]) -> float:
    return math.fsum(shares) ** 2 / (len(shares) * math.fsum(share**2 for share in shares))
