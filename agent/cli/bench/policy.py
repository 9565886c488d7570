"""``quietcore bench policy``."""

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
    pairs,
    percent,
    progress,
    table,
)
from quietcore.agent.cli.options import Number

if TYPE_CHECKING:
    from quietcore.scheduler.bench.policy import Average, Result, Scenario

SCHEMA = "quietcore.bench.policy/1"
ARRIVALS = ("poisson", "bursty", "burst", "trace")


@click.command()
@click.argument("paths", metavar="STREAM|TRACE...", type=INPUT_FILE, nargs=-1, required=True)
@click.option(
    "--arrivals", type=click.Choice(ARRIVALS), multiple=True, default=("burst", "bursty"), show_default=True
)
@click.option(
    "--load",
    type=Number(0, 10, min_open=True),
    default=0.9,
    show_default=True,
    help="Offered over saturated throughput; means nothing for a burst.",
)
@click.option("--policy", "policies", metavar="NAME", multiple=True, help="One of several; default: all.")
@click.option(
    "--estimator",
    "estimators",
    metavar="NAME",
    multiple=True,
    default=("drift",),
    show_default=True,
    help="What ranks requests; several give a row each.",
)
@click.option("--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Runs to average.")
@click.option(
    "--feedback",
    metavar="N|online",
    default="50",
    show_default=True,
    help="Estimates see a length N requests later, as in bench drift; online: when it ends in the run.",
)
@click.option("--warmup", type=click.IntRange(0), default=300, show_default=True, help="As in bench drift.")
@click.option("--prior", type=INPUT_FILE, help="As in bench drift.")
@click.option("--prior-dir", type=INPUT_FOLDER, help="As in bench drift.")
@click.option("--slots", type=click.IntRange(1, 4096), default=32, show_default=True, help="max_num_seqs.")
@click.option(
    "--step-tokens", type=click.IntRange(1), default=8192, show_default=True, help="max_num_batched_tokens."
)
@click.option("--step-ms", type=Number(0), default=12.0, show_default=True, help="Of a step.")
@click.option("--sequence-ms", type=Number(0), default=0.1, show_default=True, help="And per sequence in it.")
@click.option(
    "--prefill-token-ms",
    type=Number(0),
    default=0.08,
    show_default=True,
    help="And per token of prefill.",
)
@click.option("--async-scheduling", is_flag=True, help="Two steps in flight.")
@click.option(
    "--tier",
    "tiers",
    metavar="NAME=TENANT|SHARE",
    multiple=True,
    help="Tier of a tenant (premium=acme), or share of requests drawn into it (premium=0.2).",
)
@click.option(
    "--deadline", "deadlines", metavar="TIER=SECONDS", multiple=True, help="From arrival to the last token."
)
@click.option("--limit", type=click.IntRange(1), help="Only the first requests of each stream.")
@jobs_option()
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(
    paths: Sequence[Path],
    arrivals: Sequence[Any],
    policies: Sequence[str],
    estimators: Sequence[str],
    jobs: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Replay recorded requests through vLLM's real scheduler class, in virtual time, for every policy.

    No model runs: a step lasts --step-ms + --sequence-ms for each sequence + --prefill-token-ms for each
    token of prefill, and KV memory is unlimited. Needs vLLM in the same environment.

    Exit codes: 0 done, 2 wrong usage or input, 3 vLLM or another library is missing.
    """
    with clear_errors():
        from quietcore.scheduler.bench import modelless, policy

        _check_names("policy", policies, policy.SETUPS)
        _check_names("estimator", estimators, policy.NAMES)
        modelless.import_vllm()
        scenario = _scenario(tuple(paths), tuple(dict.fromkeys(arrivals)), options)
        rows = policy.plan_rows(policies or list(policy.SETUPS), estimators)
        names = {row.estimator for row in rows if row.estimator} if scenario.feedback_delay else set()
        with progress(len(paths) * len(names), "estimators on streams") as advance:
            loads = policy.prepare(scenario, rows, jobs, advance)
        with progress(len(loads), "virtual runs") as advance:
            results = policy.run(loads, jobs, lambda load: advance(str(load)))
        means = policy.averages(results)
    if as_json:
        click.echo(json.dumps(_document(scenario, options, results, means), indent=2))
    else:
        _show(results, means)


def _check_names(kind: str, given: Sequence[str], known: Sequence[str] | dict[str, Any]) -> None:
    unknown = set(given) - set(known)
    if unknown:
        raise click.UsageError(f"no {kind} is named {min(unknown)}: choose of {', '.join(known)}")


def _scenario(paths: tuple[Path, ...], arrivals: tuple[Any, ...], options: dict[str, Any]) -> Scenario:
    from quietcore.scheduler.bench import drift, policy
    from quietcore.scheduler.bench.modelless import EngineShape
    from quietcore.scheduler.bench.virtual import MS, StepTime

    priors: dict[str, Path] = {}
    if options["prior_dir"]:
        if options["prior"]:
            raise click.UsageError("give one of --prior and --prior-dir")
        priors = drift.find_priors(paths, options["prior_dir"])
    elif options["prior"]:
        priors = drift.same_prior(paths, options["prior"])
    tenants: dict[str, str] = {}
    shares: dict[str, float] = {}
    for tier, value in pairs(options["tiers"], "--tier"):
        try:
            shares[tier] = float(value)
        except ValueError:
            tenants[value] = tier
    if tenants and shares:
        raise click.UsageError("--tier names tenants or shares, not both")
    try:
        deadlines = {tier: float(value) for tier, value in pairs(options["deadlines"], "--deadline")}
        delay = None if options["feedback"] == "online" else int(options["feedback"])
    except ValueError as e:
        raise click.UsageError(f"--deadline and --feedback want numbers: {e}") from e
    if delay is not None and delay < 1:
        raise click.UsageError("--feedback must be at least 1")
    step_ms = (options["step_ms"], options["sequence_ms"], options["prefill_token_ms"])
    return policy.Scenario(
        paths,
        arrivals,
        load=options["load"],
        seeds=options["seeds"],
        warmup=options["warmup"],
        feedback_delay=delay,
        shape=EngineShape(options["slots"], options["step_tokens"]),
        step_time=StepTime(*(round(ms * MS) for ms in step_ms)),
        priors=priors,
        tiers=tenants,
        tier_shares=shares,
        deadlines_s=deadlines,
        depth=2 if options["async_scheduling"] else 1,
        limit=options["limit"],
    )


def _document(
    scenario: Scenario, options: dict[str, Any], results: Sequence[Result], means: Sequence[Average]
) -> dict[str, Any]:
    settings = {name: value for name, value in options.items() if name not in ("prior", "prior_dir")}
    return {
        "schema": SCHEMA,
        "settings": {**settings, "arrivals": list(scenario.arrivals)},
        "streams": [{**asdict(result), "row": str(result.row), **asdict(result.row)} for result in results],
        "mean": [{**asdict(mean), "row": str(mean.row), **asdict(mean.row)} for mean in means],
    }


_HEADER = (
    *("policy", "mean", "vs fcfs", "of oracle", "P50", "P95", "P99", "vs fcfs"),
    *("TTFT", "P99", "TPOT ms", "P99", "deadlines", "fairness"),
)


def _show(results: Sequence[Result], means: Sequence[Average]) -> None:
    for stream, kind in dict.fromkeys((result.stream, result.arrivals) for result in results):
        of_stream = [r for r in results if (r.stream, r.arrivals) == (stream, kind)]
        rows = []
        for result in of_stream:
            for tier in result.report.tiers:
                rows.append(_row(result, tier))
        click.echo(f"{stream}, {kind} (seconds)")
        click.echo(table(_HEADER, rows) + "\n")
    header = ("policy", "mean vs fcfs", "P99 vs fcfs", "of the oracle's gain", "streams")
    for kinds in dict.fromkeys(mean.arrivals for mean in means):
        click.echo(f"mean over streams, {kinds}")
        rows = [
            [
                str(mean.row),
                percent(mean.gain),
                percent(mean.p99),
                number(mean.fraction, 3),
                str(mean.streams),
            ]
            for mean in means
            if mean.arrivals == kinds
        ]
        click.echo(table(header, rows) + "\n")


def _row(result: Result, tier: str) -> list[str]:
    of_tier = result.report.tiers[tier]
    latency, ttft, tpot = of_tier["latency"], of_tier["ttft"], of_tier["tpot"]
    whole = tier == "all"
    return [
        str(result.row) if whole else f"  {tier}",
        number(latency["mean"]),
        percent(result.gain) if whole else "",
        number(result.fraction) if whole else "",
        *(number(latency[name]) for name in ("p50", "p95", "p99")),
        percent(result.p99) if whole else "",
        *(number(ttft[name]) for name in ("mean", "p99")),
        *(number(tpot[name] * 1000, 1) for name in ("mean", "p99")),
        percent(result.report.deadlines_met).lstrip("+") if whole else "",
        number(result.report.fairness) if whole else "",
    ]
