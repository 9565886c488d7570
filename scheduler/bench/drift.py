"""``bench drift``: every estimator over every stream, with labels that come late."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from quietcore.scheduler.bench import InputError, parallel, streams
from quietcore.scheduler.bench.accuracy import Accuracy, average, judge, rank_agreement
from quietcore.scheduler.bench.replay import replay
from quietcore.scheduler.drift import NAMES, build
from quietcore.scheduler.estimate import Estimate

__all__ = [
    "BASELINE",
    "NAMES",
    "Outcome",
    "Task",
    "averages",
    "find_priors",
    "plan",
    "run",
    "same_prior",
    "write_predictions",
]

BASELINE = "static"
SWAP_SPAN = 500
"""Requests after a change of models in which recovery is judged."""


@dataclass(frozen=True, slots=True)
class Task:
    """One estimator over one stream.

    Attributes:
        feedback_delay: requests until a label is seen.
        warmup: requests at the beginning that are estimated and learned, but not judged.
        prior: file with what the estimator knows at first; None: the one that is shipped.
    """

    path: Path
    estimator: str
    feedback_delay: int = 50
    warmup: int = 300
    prior: Path | None = None
    limit: int | None = None
    seed: int = 0

    @property
    def stream(self) -> str:
        return streams.name_of(self.path)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Figures of a task, and every estimate, warm-up included."""

    stream: str
    estimator: str
    accuracy: Accuracy
    estimates: tuple[Estimate, ...]


def run_task(task: Task) -> Outcome:
    """Replay a stream through a new estimator and judge it after the warm-up.

    Raises:
        InputError: the file is no stream, or too short to be judged.
        BenchError: a library is missing.
    """
    stream = streams.read(task.path, task.limit)
    if len(stream.requests) < task.warmup + 2:
        raise InputError(
            f"{task.path} has {len(stream.requests)} requests, too few after {task.warmup} to warm up"
        )
    estimator = build(task.estimator, prior=task.prior, seed=task.seed, background=False)
    found = replay(stream.requests, estimator, task.feedback_delay)
    actual = [request.output_tokens for request in stream.requests]
    accuracy = judge(found.estimates[task.warmup :], actual[task.warmup :], found.scoring_ns[task.warmup :])
    after_swaps = [
        rank_agreement(
            [e.mean for e in found.estimates[swap : swap + SWAP_SPAN]], actual[swap : swap + SWAP_SPAN]
        )[0]
        for swap in stream.find_swaps()
        if swap >= task.warmup
    ]
    if after_swaps:
        accuracy = accuracy.after_swap(sum(after_swaps) / len(after_swaps))
    return Outcome(stream.name, task.estimator, accuracy, found.estimates)


def run(
    tasks: Sequence[Task], jobs: int, progress: Callable[[Task], None] = lambda task: None
) -> list[Outcome]:
    """All tasks; errors are set against those of the static budgets, which must be among them."""
    outcomes = parallel.run(run_task, tasks, jobs, progress)
    static = {outcome.stream: outcome.accuracy for outcome in outcomes if outcome.estimator == BASELINE}
    return [
        Outcome(o.stream, o.estimator, o.accuracy.against(static[o.stream]), o.estimates) for o in outcomes
    ]


def plan(
    paths: Sequence[Path],
    estimators: Sequence[str],
    priors: Mapping[str, Path],
    *,
    feedback_delay: int,
    warmup: int,
    limit: int | None,
    seed: int,
) -> list[Task]:
    """Every estimator on every stream, the static budgets first.

    Args:
        priors: by stream; the shipped prior serves those that are not in it.

    Raises:
        InputError: two files have the same name, or one is no stream.
    """
    names = [streams.name_of(path) for path in paths]
    if len(set(names)) < len(names):
        raise InputError("two of the streams have the same name")
    return [
        Task(path, estimator, feedback_delay, warmup, priors.get(name), limit, seed)
        for path, name in zip(paths, names, strict=True)
        for estimator in dict.fromkeys((BASELINE, *estimators))
    ]


def find_priors(paths: Sequence[Path], folder: Path) -> dict[str, Path]:
    """For each stream the file of ``folder`` that is called like it, whatever its suffix (leave one out).

    Raises:
        InputError: a stream has none, or several.
    """
    found = {}
    for name in map(streams.name_of, paths):
        files = [file for file in sorted(folder.glob(f"{name}.*")) if file.is_file()]
        if len(files) != 1:
            raise InputError(
                f"{folder} holds {len(files)} files named {name}.*: one prior a stream is needed"
            )
        found[name] = files[0]
    return found


def same_prior(paths: Sequence[Path], prior: Path) -> dict[str, Path]:
    """One prior for all streams."""
    return dict.fromkeys(map(streams.name_of, paths), prior)


def averages(outcomes: Sequence[Outcome]) -> dict[str, Accuracy]:
    """The mean over streams, by estimator."""
    names = dict.fromkeys(outcome.estimator for outcome in outcomes)
    return {name: average([o.accuracy for o in outcomes if o.estimator == name]) for name in names}


def write_predictions(outcomes: Sequence[Outcome], file: TextIO) -> None:
    """CSV: one row per request and estimator; with the stream's name in front if there are several."""
    several = len({outcome.stream for outcome in outcomes}) > 1
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*(["stream"] if several else []), "i", "estimator", "mean", "p50", "p90"])
    writer.writerows(_rows(outcomes, several))


def _rows(outcomes: Sequence[Outcome], several: bool) -> Iterator[list[str | int]]:
    for outcome in outcomes:
        for i, estimate in enumerate(outcome.estimates):
            values = [f"{value:.9g}" for value in (estimate.mean, estimate.p50, estimate.p90)]
            yield [*([outcome.stream] if several else []), i, outcome.estimator, *values]
