"""``bench policy``: recorded requests through vLLM's real scheduler class, in virtual time."""

from __future__ import annotations

import functools
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from quietcore.scheduler.bench import InputError, modelless, parallel, streams
from quietcore.scheduler.bench.arrivals import Arrivals, order, saturated_rate, unit_rate
from quietcore.scheduler.bench.latency import ALL, Finished, Report, mean_report, report
from quietcore.scheduler.bench.plugin import (
    BASELINE,
    ORACLE,
    SETUPS,
    RecordedEstimator,
    build_scheduler,
    check,
)
from quietcore.scheduler.bench.replay import replay
from quietcore.scheduler.bench.virtual import Clock, StepTime, Timeline, VirtualEngine, VirtualRequest
from quietcore.scheduler.drift import NAMES, build
from quietcore.scheduler.estimate import End, Estimate, Estimator
from quietcore.scheduler.policy import STANDARD

__all__ = [
    "NAMES",
    "SETUPS",
    "Average",
    "Load",
    "Result",
    "Row",
    "Scenario",
    "averages",
    "plan_rows",
    "prepare",
    "run",
]

NO_GAIN = 0.01
"""Where the oracle gains less of the mean latency than this, there is no fraction of it to speak of."""


@dataclass(frozen=True)
class Scenario:
    """What is served, and how.

    Attributes:
        load: offered over saturated throughput (`arrivals.saturated_rate`); means nothing for a burst.
        warmup: requests at the beginning that estimators learn and the engine does not see.
        feedback_delay: requests after which an estimator sees a length, in the stream's order and before the
            run; None: it learns in the run, from what ends there.
        tiers: tier of each tenant, or, under the name ``*``, shares from which each request's tier is drawn.
        deadlines_s: by tier, seconds from arrival to the last token.
        depth: steps in flight: 2 as under asynchronous scheduling.
    """

    paths: tuple[Path, ...]
    arrivals: tuple[Arrivals, ...]
    load: float = 0.9
    seeds: int = 3
    warmup: int = 300
    feedback_delay: int | None = 50
    shape: modelless.EngineShape = field(default_factory=modelless.EngineShape)
    step_time: StepTime = field(default_factory=StepTime)
    priors: Mapping[str, Path] = field(default_factory=dict)
    tiers: Mapping[str, str] = field(default_factory=dict)
    tier_shares: Mapping[str, float] = field(default_factory=dict)
    deadlines_s: Mapping[str, float] = field(default_factory=dict)
    depth: int = 1
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the result: a policy, and the estimator that it ranks by."""

    policy: str
    estimator: str = ""

    def __str__(self) -> str:
        return f"{self.policy} ({self.estimator})" if self.estimator else self.policy


@dataclass(frozen=True)
class Load:
    """One virtual run."""

    scenario: Scenario
    path: Path
    arrivals: Arrivals
    seed: int
    row: Row
    estimates: tuple[Estimate, ...] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.row} on {streams.name_of(self.path)}, {self.arrivals}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Result:
    """Figures of a row on a stream and kind of arrivals, the mean over seeds.

    Attributes:
        gain: mean latency over that of ``fcfs``, less one.
        p99: P99 of latency over that of ``fcfs``, less one.
        fraction: share of the oracle's gain; None where the oracle gains next to nothing.
    """

    stream: str
    arrivals: Arrivals
    row: Row
    report: Report
    gain: float
    p99: float
    fraction: float | None


@dataclass(frozen=True, slots=True)
class Average:
    """The mean of a row's figures over streams, for each kind of arrivals and over all kinds.

    Attributes:
        streams: of how many.
        fraction: over those streams where the oracle gains something.
    """

    arrivals: str
    row: Row
    gain: float
    p99: float
    fraction: float | None
    streams: int


def averages(results: Sequence[Result]) -> list[Average]:
    """What the rows are worth on the whole."""
    kinds: dict[str, set[Arrivals]] = {kind: {kind} for kind in dict.fromkeys(r.arrivals for r in results)}
    if len(kinds) > 1:
        kinds[" and ".join(kinds)] = set().union(*kinds.values())
    found = []
    for name, among in kinds.items():
        for row in dict.fromkeys(r.row for r in results):
            chosen = [r for r in results if r.row == row and r.arrivals in among]
            fractions = [r.fraction for r in chosen if r.fraction is not None]
            found.append(
                Average(
                    name,
                    row,
                    statistics.fmean(r.gain for r in chosen),
                    statistics.fmean(r.p99 for r in chosen),
                    statistics.fmean(fractions) if fractions else None,
                    len({r.stream for r in chosen}),
                )
            )
    return found


def plan_rows(policies: Sequence[str], estimators: Sequence[str]) -> list[Row]:
    """``fcfs`` and ``oracle`` always, and each policy that ranks by cost with each estimator."""
    rows = [Row(BASELINE)]
    for policy in policies:
        if policy not in (BASELINE, ORACLE):
            names = estimators if SETUPS[policy].ranks_by_cost else [""]
            rows += [Row(policy, name) for name in names]
    return [*dict.fromkeys(rows), Row(ORACLE)]


@functools.lru_cache(maxsize=2)
def _read(path: Path, limit: int | None) -> streams.Stream:
    return streams.read(path, limit)


def check_streams(scenario: Scenario) -> None:
    """Raises InputError for a stream that is too short, or has no such arrivals."""
    for path in scenario.paths:
        stream = _read(path, scenario.limit)
        if len(stream.requests) < scenario.warmup + 2:
            raise InputError(
                f"{path} has {len(stream.requests)} requests, too few after {scenario.warmup} to warm up"
            )
        for kind in scenario.arrivals:
            unit_rate(kind, stream, scenario.warmup, 0)


def estimate_all(task: tuple[Path, str, Scenario]) -> tuple[Estimate, ...]:
    """Every request's estimate when labels are ``feedback_delay`` requests late."""
    path, name, scenario = task
    stream = _read(path, scenario.limit)
    estimator = build(name, prior=scenario.priors.get(stream.name), background=False)
    assert scenario.feedback_delay is not None
    return replay(stream.requests, estimator, scenario.feedback_delay).estimates


def prepare(
    scenario: Scenario, rows: Sequence[Row], jobs: int, progress: Callable[[str], None] = lambda name: None
) -> list[Load]:
    """The virtual runs, with the estimates that they rank by."""
    check_streams(scenario)
    estimates: dict[tuple[Path, str], tuple[Estimate, ...]] = {}
    if scenario.feedback_delay is not None:
        names = dict.fromkeys(row.estimator for row in rows if row.estimator)
        tasks = [(path, name, scenario) for path in scenario.paths for name in names]
        found = parallel.run(estimate_all, tasks, jobs, lambda task: progress(f"{task[1]} on {task[0].name}"))
        estimates = {(path, name): each for (path, name, _), each in zip(tasks, found, strict=True)}
    return [
        Load(scenario, path, kind, seed, row, estimates.get((path, row.estimator)))
        for path in scenario.paths
        for kind in scenario.arrivals
        for row in rows
        for seed in range(1 if kind == "trace" else scenario.seeds)
    ]


def run(
    loads: Sequence[Load], jobs: int, progress: Callable[[Load], None] = lambda load: None
) -> list[Result]:
    """Drive all runs and set them against first come, first served and the oracle."""
    reports = parallel.run(run_load, loads, jobs, progress)
    groups: dict[tuple[str, Arrivals, Row], list[Report]] = {}
    for load, each in zip(loads, reports, strict=True):
        groups.setdefault((streams.name_of(load.path), load.arrivals, load.row), []).append(each)
    means = {key: mean_report(group) for key, group in groups.items()}
    results = []
    for (stream, kind, row), each in means.items():
        latency = each.tiers[ALL]["latency"]
        baseline = means[stream, kind, Row(BASELINE)].tiers[ALL]["latency"]
        best = means[stream, kind, Row(ORACLE)].tiers[ALL]["latency"]["mean"]
        gain = latency["mean"] / baseline["mean"] - 1
        most = best / baseline["mean"] - 1
        fraction = gain / most if most < -NO_GAIN else None
        results.append(Result(stream, kind, row, each, gain, latency["p99"] / baseline["p99"] - 1, fraction))
    return results


def run_load(load: Load) -> Report:
    """One virtual run: its figures.

    Raises:
        BenchError: vLLM cannot be imported, or the plug-in fails.
    """
    timelines, requests = drive(load)
    stream = _read(load.path, load.scenario.limit)
    finished = []
    for timeline, request in zip(timelines, requests, strict=True):
        facts = stream.requests[int(request.key)].facts
        cost = load.scenario.step_time.shared_s(
            request.prompt_tokens, request.output_tokens, load.scenario.shape.slots
        )
        tier = str(request.hints.get("qos", STANDARD))
        deadline = load.scenario.deadlines_s.get(tier, math.inf)
        finished.append(Finished(timeline, request.output_tokens, cost, tier, facts.tenant, deadline))
    return report(finished)


def drive(load: Load, *, skip: bool = True) -> tuple[list[Timeline], list[VirtualRequest]]:
    """The requests of a run and what became of them."""
    scenario = load.scenario
    stream = _read(load.path, scenario.limit)
    requests = _requests(load, stream)
    facts = {
        request.key: replace(stream.requests[int(request.key)].facts, arrival=request.arrival_ns / 1e9)
        for request in requests
    }
    largest = sorted(request.prompt_tokens + request.output_tokens for request in requests)[
        -scenario.shape.slots :
    ]
    shape = replace(scenario.shape, kv_tokens=sum(largest) + 64 * scenario.shape.slots)
    clock = Clock()
    estimator = _estimator(load, stream)
    scheduler = build_scheduler(SETUPS[load.row.policy], shape, scenario.step_time, clock, estimator, facts)
    # An estimator that learns in the run has waiting requests ranked anew step by step.
    skip = skip and (scenario.feedback_delay is not None or not load.row.estimator)
    engine = VirtualEngine(scheduler, clock, scenario.step_time, depth=scenario.depth, skip=skip)
    timelines = engine.run(requests)
    check(scheduler)
    return timelines, requests


def _requests(load: Load, stream: streams.Stream) -> list[VirtualRequest]:
    scenario = load.scenario
    chosen = stream.requests[scenario.warmup :]
    times = unit_rate(load.arrivals, stream, scenario.warmup, load.seed)
    rate = scenario.load * saturated_rate(chosen, scenario.shape.slots, scenario.step_time)
    draw = random.Random(load.seed)
    requests = []
    for time, i in zip(times, order(load.arrivals, len(chosen), load.seed), strict=True):
        facts = chosen[i].facts
        tier = scenario.tiers.get(facts.tenant, STANDARD)
        if scenario.tier_shares:
            tier = draw.choices(list(scenario.tier_shares), list(scenario.tier_shares.values()))[0]
        hints: dict[str, str | int | float] = {"tenant": facts.tenant} if facts.tenant else {}
        if scenario.tiers or scenario.tier_shares:
            hints["qos"] = tier
        if tier in scenario.deadlines_s:
            hints["deadline_ms"] = 1000 * scenario.deadlines_s[tier]
        requests.append(
            VirtualRequest(
                key=str(scenario.warmup + i),
                arrival_ns=round(time / rate * 1e9),
                prompt_tokens=facts.prompt_tokens,
                output_tokens=max(chosen[i].output_tokens, 1),
                hints=hints,
            )
        )
    return requests


def _estimator(load: Load, stream: streams.Stream) -> Estimator:
    requests = stream.requests
    if load.estimates is not None:
        return RecordedEstimator({str(i): each for i, each in enumerate(load.estimates)}, load.row.estimator)
    if load.row.estimator:
        estimator = build(load.row.estimator, prior=load.scenario.priors.get(stream.name), background=False)
        for request in requests[: load.scenario.warmup]:
            first = estimator.estimate(request.facts)
            estimator.observe(request.facts, first, request.output_tokens, End.STOPPED)
        return estimator
    truth = (float(max(request.output_tokens, 1)) for request in requests)
    return RecordedEstimator({str(i): Estimate(each, each, each) for i, each in enumerate(truth)}, ORACLE)
