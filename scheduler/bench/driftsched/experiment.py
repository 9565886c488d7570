"""All schedulers of the experiment, over its runs: latency against FIFO, errors against static budgets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from quietcore.scheduler import policy
from quietcore.scheduler.bench import parallel
from quietcore.scheduler.bench.accuracy import quantile
from quietcore.scheduler.bench.driftsched import continuous, static, workload
from quietcore.scheduler.bench.driftsched.estimators import PUBLISHED, Recording, Unit, length, static_budgets
from quietcore.scheduler.bench.driftsched.workload import Lengths, WorkRequest
from quietcore.scheduler.bench.plugin import SETUPS
from quietcore.scheduler.bench.virtual import StepTime
from quietcore.scheduler.drift import NAMES
from quietcore.scheduler.estimate import Estimate

__all__ = ["NAMES", "REFERENCE", "Figures", "Trial", "plan", "run"]

Batching = Literal["static", "continuous"]
FIFO, SJF = "fifo", "sjf"
WHOLE = "all"
PHASES = ("stress", "learning", WHOLE)
POLICIES = (FIFO, "priority", "weighted", "aging", SJF, "drift")
REFERENCE = (FIFO, PUBLISHED)


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of one scheduler with one estimator."""

    batching: Batching
    policy: str
    estimator: str
    seed: int
    lengths: Lengths = "pinned"
    unit: Unit = "words"
    requests: int = workload.REQUESTS

    def __str__(self) -> str:
        return f"{self.policy} ({self.estimator}), {self.batching} batching, run {self.seed + 1}"


@dataclass(frozen=True, slots=True)
class Figures:
    """Of a phase.

    Attributes:
        mean, p50, p95, p99: latency from arrival to the whole answer, seconds.
        mae, rmse: of the estimates at admission, in the unit that the estimator is told.
        static_mae, static_rmse: of static budgets for the same requests.
    """

    mean: float
    p50: float
    p95: float
    p99: float
    mae: float
    rmse: float
    static_mae: float
    static_rmse: float


def plan(
    batchings: Sequence[Batching],
    estimators: Sequence[str],
    runs: int,
    lengths: Lengths,
    unit: Unit,
    requests: int,
) -> list[Trial]:
    """The published five with the published estimator; SJF and our policy with each of the others."""
    rows = [(name, PUBLISHED) for name in POLICIES if name != "drift"]
    rows += [(name, each) for each in estimators if each != PUBLISHED for name in (SJF, "drift")]
    return [
        Trial(batching, name, estimator, seed, lengths, unit, requests)
        for batching in batchings
        for name, estimator in rows
        for seed in range(runs)
    ]


def run(
    trials: Sequence[Trial], jobs: int, progress: Callable[[Trial], None] = lambda trial: None
) -> dict[tuple[Batching, str, str], dict[str, Figures]]:
    """Figures by (batching, policy, estimator) and phase, the mean over runs."""
    found = parallel.run(run_trial, trials, jobs, progress)
    groups: dict[tuple[Batching, str, str], list[dict[str, Figures]]] = {}
    for trial, figures in zip(trials, found, strict=True):
        groups.setdefault((trial.batching, trial.policy, trial.estimator), []).append(figures)
    return {
        key: {phase: _mean([each[phase] for each in group]) for phase in group[0]}
        for key, group in groups.items()
    }


def run_trial(trial: Trial) -> dict[str, Figures]:
    """Serve a run's requests; figures by phase.

    Raises:
        BenchError: continuous batching needs vLLM, which cannot be imported.
    """
    requests = {request.facts.key: request for request in _requests(trial)}
    estimator = Recording(trial.estimator, requests, trial.unit)
    step_time = StepTime()
    if trial.batching == "static":
        latency = static.serve(list(requests.values()), _order(trial.policy, step_time), estimator, step_time)
    else:
        # Ours has waiting requests ranked anew when it has learned.
        skip = trial.estimator == PUBLISHED or not SETUPS[trial.policy].ranks_by_cost
        latency = continuous.serve(
            list(requests.values()), SETUPS[trial.policy], estimator, step_time, static.BATCH, skip=skip
        )
    budgets = static_budgets(requests)
    phases = {phase: [key for key in requests if phase in (WHOLE, requests[key].phase)] for phase in PHASES}
    return {
        phase: _figures(keys, latency, estimator.admitted, budgets, requests, trial.unit)
        for phase, keys in phases.items()
    }


def _requests(trial: Trial) -> list[WorkRequest]:
    return workload.make(trial.seed, trial.lengths, trial.requests)


def _order(name: str, step_time: StepTime) -> static.Order:
    """FIFO and SJF as published (words of the prompt + estimate), the others by the plug-in's keys."""
    if name == FIFO:
        return lambda request, arrival, estimate: arrival
    if name == SJF:
        return lambda request, arrival, estimate: (
            len(request.facts.prompt.split()) + int(estimate.mean),
            arrival,
        )
    key = policy.build(name).key

    def order(request: WorkRequest, arrival: float, estimate: Estimate) -> Any:
        facts = request.facts
        cost = step_time.shared_s(facts.prompt_tokens, round(estimate.mean), static.BATCH)
        return key(policy.Job(facts.key, arrival, cost, tier=facts.tenant, tenant=facts.tenant))

    return order


def _figures(
    keys: Sequence[str],
    latency: dict[str, float],
    estimates: dict[str, Estimate],
    budgets: dict[str, Estimate],
    requests: dict[str, WorkRequest],
    unit: Unit,
) -> Figures:
    seconds = [latency[key] for key in keys]
    actual = [length(requests[key], unit) for key in keys]
    mae, rmse = _errors([estimates[key] for key in keys], actual)
    static_mae, static_rmse = _errors([budgets[key] for key in keys], actual)
    return Figures(
        statistics.fmean(seconds),
        statistics.median(seconds),
        quantile(seconds, 0.95),
        quantile(seconds, 0.99),
        mae,
        rmse,
        static_mae,
        static_rmse,
    )


def _errors(estimates: Sequence[Estimate], actual: Sequence[int]) -> tuple[float, float]:
    absolute = [abs(e.p50 - a) for e, a in zip(estimates, actual, strict=True)]
    squares = [(e.mean - a) ** 2 for e, a in zip(estimates, actual, strict=True)]
    return statistics.fmean(absolute), math.sqrt(statistics.fmean(squares))


def _mean(figures: Sequence[Figures]) -> Figures:
    fields = Figures.__slots__
    return Figures(*(statistics.fmean(getattr(each, name) for each in figures) for name in fields))
