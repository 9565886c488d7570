"""``quietcore bench drift``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quietcore.agent.cli.bench.output import (
    INPUT_FILE,
    INPUT_FOLDER,
    clear_errors,
    jobs_option,
    number,
    percent,
    progress,
    table,
)

if TYPE_CHECKING:
    from quietcore.scheduler.bench.accuracy import Accuracy
    from quietcore.scheduler.bench.drift import Outcome

SCHEMA = "quietcore.bench.drift/1"
MEAN = "mean over streams"


@click.command()
@click.argument("paths", metavar="STREAM...", type=INPUT_FILE, nargs=-1, required=True)
@click.option(
    "--feedback-delay",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Requests until the length of one is seen.",
)
@click.option(
    "--warmup",
    type=click.IntRange(0),
    default=300,
    show_default=True,
    help="Requests at the beginning of a stream that are learned, but not judged.",
)
@click.option(
    "--estimator", "estimators", metavar="NAME", multiple=True, help="One of several; default: all."
)
@click.option(
    "--prior", type=INPUT_FILE, help="What estimators know at first; default: the prior that is shipped."
)
@click.option(
    "--prior-dir",
    type=INPUT_FOLDER,
    help="A prior for each stream, called like it: leave one stream out.",
)
@click.option(
    "--predictions", type=click.Path(dir_okay=False, path_type=Path), help="Write every estimate as CSV."
)
@click.option("--limit", type=click.IntRange(1), help="Only the first requests of each stream.")
@click.option("--seed", type=int, default=0, show_default=True)
@jobs_option()
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(
    paths: Sequence[Path],
    feedback_delay: int,
    warmup: int,
    estimators: Sequence[str],
    prior: Path | None,
    prior_dir: Path | None,
    predictions: Path | None,
    limit: int | None,
    seed: int,
    jobs: int,
    as_json: bool,
) -> None:
    """Stream recorded requests through the estimators, and compare with the lengths that came.

    STREAM is a .jsonl.gz file with prompts, or a .parquet trace of lengths. A label is seen when
    --feedback-delay further requests have been estimated, never earlier.

    Exit codes: 0 done, 2 wrong usage or input, 3 a library is missing.
    """
    if prior and prior_dir:
        raise click.UsageError("give one of --prior and --prior-dir")
    with clear_errors():
        from quietcore.scheduler.bench import drift

        unknown = set(estimators) - set(drift.NAMES)
        if unknown:
            raise click.UsageError(
                f"no estimator is named {min(unknown)}: choose of {', '.join(drift.NAMES)}"
            )
        if prior_dir:
            priors = drift.find_priors(paths, prior_dir)
        else:
            priors = drift.same_prior(paths, prior) if prior else {}
        tasks = drift.plan(
            paths,
            estimators or drift.NAMES,
            priors,
            feedback_delay=feedback_delay,
            warmup=warmup,
            limit=limit,
            seed=seed,
        )
        with progress(len(tasks), "estimators on streams") as advance:
            outcomes = drift.run(tasks, jobs, lambda task: advance(f"{task.estimator} on {task.stream}"))
        if predictions:
            try:
                with predictions.open("w", encoding="utf-8", newline="") as file:
                    drift.write_predictions(outcomes, file)
            except OSError as e:
                raise click.UsageError(f"cannot write {predictions}: {e.strerror}") from e
        means = drift.averages(outcomes)
    if as_json:
        settings = {"feedback_delay": feedback_delay, "warmup": warmup, "limit": limit, "seed": seed}
        click.echo(json.dumps(_document(settings, outcomes, means), indent=2))
    else:
        _show(outcomes, means)


def _document(
    settings: dict[str, Any], outcomes: Sequence[Outcome], means: dict[str, Accuracy]
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        **settings,
        "streams": [{"stream": o.stream, "estimator": o.estimator, **asdict(o.accuracy)} for o in outcomes],
        "mean": [{"estimator": name, **asdict(accuracy)} for name, accuracy in means.items()],
    }


def _show(outcomes: Sequence[Outcome], means: dict[str, Accuracy]) -> None:
    parts = [(o.stream, o.estimator, o.accuracy) for o in outcomes]
    if len({o.stream for o in outcomes}) > 1:
        parts += [(MEAN, name, accuracy) for name, accuracy in means.items()]
    for stream in dict.fromkeys(stream for stream, _, _ in parts):
        of_stream = [(name, accuracy) for s, name, accuracy in parts if s == stream]
        click.echo(f"{stream} ({of_stream[0][1].requests} requests judged)")
        header = [name.replace("bias", "|bias|") if stream == MEAN else name for name in _HEADER]
        click.echo(table(header, [_row(name, accuracy) for name, accuracy in of_stream]) + "\n")


_HEADER = (
    *("estimator", "tau", "pairs", "MAE", "vs static", "RMSE", "vs static", "bias", "median APE"),
    *("tau after swap", "us median", "us P99"),
)


def _row(name: str, a: Accuracy) -> list[str]:
    return [
        *(name, number(a.tau, 3), number(a.pair_accuracy, 3)),
        *(number(a.mae, 1), percent(a.mae_vs_static), number(a.rmse, 1), percent(a.rmse_vs_static)),
        *(percent(a.bias), percent(a.median_ape), number(a.tau_after_swap, 3)),
        *(number(a.scoring_median_us, 1), number(a.scoring_p99_us, 1)),
    ]
