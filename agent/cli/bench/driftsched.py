"""``quietcore bench driftsched``."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from quietcore.agent.cli.bench import driftsched_live
from quietcore.agent.cli.bench.output import clear_errors, jobs_option, number, percent, progress, table

if TYPE_CHECKING:
    from quietcore.scheduler.bench.driftsched.experiment import Figures

SCHEMA = "quietcore.bench.driftsched/1"
_SHARED = ("servers", "requests", "as_json")


@click.command()
@click.option(
    "--batching",
    "batchings",
    type=click.Choice(["static", "continuous"]),
    multiple=True,
    default=("static",),
    show_default=True,
    help="Micro-batches of 32 as published, or vLLM's real scheduler class; may be given twice.",
)
@click.option(
    "--estimator",
    "estimators",
    metavar="NAME",
    multiple=True,
    default=("drift",),
    show_default=True,
    help="Beside the published one.",
)
@click.option("--runs", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option(
    "--requests",
    type=click.IntRange(30),
    default=None,
    help="Of both phases; default: 3000, as published, and 300 with --server.",
)
@click.option(
    "--lengths",
    type=click.Choice(["pinned", "natural"]),
    default="pinned",
    show_default=True,
    help="Whether every answer fills its max_tokens.",
)
@click.option(
    "--unit",
    type=click.Choice(["words", "tokens"]),
    default="words",
    show_default=True,
    help="What the length of an answer is counted in; words, as published.",
)
@jobs_option()
@driftsched_live.options
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(
    batchings: Sequence[Any],
    estimators: Sequence[str],
    runs: int,
    requests: int | None,
    lengths: Any,
    unit: Any,
    jobs: int,
    servers: Sequence[str],
    as_json: bool,
    **live: Any,
) -> None:
    """Repeat the published experiment of DriftSched (arXiv 2606.02982), in virtual time or on live servers.

    A learning phase and a stress phase, three tenants, four job types. Requests are made up after the
    published recipe; docs/bench.md lists what had to be assumed.

    With --server the same requests go to each server in turn, which decides by itself in what order it
    serves them: start one with another scheduler, or other settings, to compare. Every answer fills its
    max_tokens. Options of the other kind of run are refused.

    Exit codes: 0 done, 1 requests failed (--server), 2 wrong usage, 3 vLLM is missing (continuous
    batching), a library is, or the server does not answer.
    """
    _refuse_mixture(click.get_current_context(), live, bool(servers))
    with clear_errors():
        if servers:
            driftsched_live.run(servers, requests, as_json, **live)
            return
        from quietcore.scheduler.bench import modelless
        from quietcore.scheduler.bench.driftsched import experiment, workload

        requests = requests or workload.REQUESTS
        unknown = set(estimators) - set(experiment.NAMES)
        if unknown:
            known = ", ".join(experiment.NAMES)
            raise click.UsageError(f"no estimator is named {min(unknown)}: choose of {known}")
        if "continuous" in batchings:
            modelless.import_vllm()
        trials = experiment.plan(batchings, estimators, runs, lengths, unit, requests)
        with progress(len(trials), "runs") as advance:
            figures = experiment.run(trials, jobs, lambda trial: advance(str(trial)))
        parts = [(key, phase, each) for key, phases in figures.items() for phase, each in phases.items()]
        reference = {
            (batching, phase): each
            for (batching, policy, estimator), phase, each in parts
            if (policy, estimator) == experiment.REFERENCE
        }
    rows = [_figures(key, phase, each, reference[key[0], phase]) for key, phase, each in parts]
    if as_json:
        settings = {"runs": runs, "requests": requests, "lengths": lengths, "unit": unit}
        click.echo(json.dumps({"schema": SCHEMA, **settings, "rows": rows}, indent=2))
    else:
        _show(rows, unit)


def _refuse_mixture(context: click.Context, live: Collection[str], servers: bool) -> None:
    """Raises UsageError for an option that would do nothing: of virtual time with servers, or ``live``
    without.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in _SHARED and (name in live) != servers:
            wrong = "means nothing with --server" if servers else "needs --server"
            raise click.UsageError(f"{parameter.opts[0]} {wrong}")


def _figures(key: tuple[str, str, str], phase: str, each: Figures, fifo: Figures) -> dict[str, Any]:
    batching, policy, estimator = key
    return {
        "batching": batching,
        "policy": policy,
        "estimator": estimator,
        "phase": phase,
        **asdict(each),
        "mean_vs_fifo": each.mean / fifo.mean - 1,
        "p50_vs_fifo": each.p50 / fifo.p50 - 1,
        "p95_vs_fifo": each.p95 / fifo.p95 - 1,
        "p99_vs_fifo": each.p99 / fifo.p99 - 1,
        "mae_vs_static": each.mae / each.static_mae - 1 if each.static_mae else None,
        "rmse_vs_static": each.rmse / each.static_rmse - 1 if each.static_rmse else None,
    }


def _show(rows: Sequence[Mapping[str, Any]], unit: str) -> None:
    header = (
        *("scheduler", "median s", "vs FIFO", "mean s", "vs FIFO", "P99 s", "vs FIFO"),
        *(f"MAE {unit}", "vs static", "RMSE", "vs static"),
    )
    for batching, phase in dict.fromkeys((row["batching"], row["phase"]) for row in rows):
        click.echo(f"{batching} batching, {'both phases' if phase == 'all' else phase + ' phase'}")
        lines = [
            [
                f"{row['policy']} ({row['estimator']})",
                *(number(row["p50"], 1), percent(row["p50_vs_fifo"])),
                *(number(row["mean"], 1), percent(row["mean_vs_fifo"])),
                *(number(row["p99"], 1), percent(row["p99_vs_fifo"])),
                *(number(row["mae"], 1), percent(row["mae_vs_static"])),
                *(number(row["rmse"], 1), percent(row["rmse_vs_static"])),
            ]
            for row in rows
            if (row["batching"], row["phase"]) == (batching, phase)
        ]
        click.echo(table(header, lines) + "\n")
