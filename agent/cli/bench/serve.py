"""``quietcore bench serve``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from quietcore.agent.cli.bench.output import INPUT_FILE, clear_errors, number, pairs, percent, sending, table
from quietcore.agent.cli.exit_codes import FOUND
from quietcore.agent.cli.options import Number


@click.command()
@click.argument("stream", type=INPUT_FILE)
@click.option("--url", required=True, help="The server's, without /v1.")
@click.option("--model", default="", help="As the server names it; default: the first it lists.")
@click.option("--requests", type=click.IntRange(0), default=0, help="How many; default: all.")
@click.option("--skip", type=click.IntRange(0), default=0, help="Requests of the stream left out before.")
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "bursty", "burst", "trace"]),
    default="poisson",
    show_default=True,
)
@click.option(
    "--load",
    type=Number(0, 100, min_open=True),
    default=0.9,
    show_default=True,
    help="Of --capacity.",
)
@click.option(
    "--capacity",
    type=Number(0),
    default=0.0,
    help="Requests a second of the saturated server; default: measured with a burst.",
)
@click.option(
    "--calibrate", type=click.IntRange(1), default=128, show_default=True, help="Size of that burst."
)
@click.option("--rate", type=Number(0), default=0.0, help="Requests a second, instead of a load.")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=1024, show_default=True, help="The same for all requests."
)
@click.option("--prompt-chars", type=click.IntRange(0), default=0, help="Cut prompts there.")
@click.option(
    "--hint",
    "hints",
    metavar="NAME",
    multiple=True,
    help="Told of a request besides its tenant: category, request; priority, in place of --tier's qos.",
)
@click.option("--no-hints", is_flag=True, help="Tell nothing; tiers and deadlines count in the report only.")
@click.option(
    "--tier", "tiers", metavar="NAME=SHARE", multiple=True, help="Share of requests in a tier, told as qos."
)
@click.option(
    "--deadline-ms",
    "deadlines",
    metavar="TIER=MS",
    multiple=True,
    help="From arrival to the last token, told too.",
)
@click.option("--timeout", type=Number(0, min_open=True), default=600.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--api-key", envvar="OPENAI_API_KEY", default="", help="Default: $OPENAI_API_KEY.")
@click.option("--rows", is_flag=True, help="Add every request to the JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(stream: Path, as_json: bool, rows: bool, **options: Any) -> None:
    """Send a recorded stream to a live OpenAI server, with hints for the scheduler, and time the answers.

    The client never sends the length of an answer. For figures of one set of hints `vllm bench serve
    --extra-body '{"vllm_xargs": {"tenant": "a"}}'` does as well; it knows no tiers and no deadlines.

    Exit codes: 0 done, 1 requests failed, 2 wrong usage or input, 3 the server does not answer or a
    library is missing.
    """
    with clear_errors():
        from quietcore.scheduler.bench.serve import ServeOptions, run_serve

        settings = {name: value for name, value in options.items() if name not in _RENAMED}
        if options["no_hints"] and options["hints"]:
            raise click.UsageError("--no-hints and --hint exclude each other")
        settings["hints"] = () if options["no_hints"] else ("tenant", *options["hints"])
        settings["tiers"] = _numbers(options["tiers"], "--tier")
        settings["deadline_ms"] = _numbers(options["deadlines"], "--deadline-ms")
        settings["timeout_s"] = options["timeout"]
        with sending() as progress:
            result = run_serve(ServeOptions(stream=stream, **settings), progress)
    document = result.to_json(rows=rows)
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        _show(document)
    if result.failures:
        sys.exit(FOUND)


_RENAMED = ("hints", "no_hints", "tiers", "deadlines", "timeout")


def _numbers(given: Sequence[str], option: str) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in pairs(given, option)}
    except ValueError as e:
        raise click.UsageError(f"{option} wants numbers: {e}") from e


def _show(document: dict[str, Any]) -> None:
    load = f", load {document['load']:.2f}" if document["load"] else ""
    click.echo(
        f"{document['stream']} on {document['model']}: {document['requests']} requests in "
        f"{document['seconds']:.1f} s, {document['rate']:.2f} a second{load}, "
        f"{document['output_tokens_per_second']:.0f} tokens a second"
    )
    parts = {"all": document["all"], **document["tiers"]}
    if len(document["tiers"]) == 1:
        parts = {"all": document["all"]}
    header = (
        "tier",
        "requests",
        "failed",
        "latency s",
        "P50",
        "P95",
        "P99",
        "TTFT s",
        "P99",
        "TPOT ms",
        "P99",
    )
    click.echo(table([*header, "deadlines"], [_row(tier, part) for tier, part in parts.items()]))
    for error, count in document["failures"].items():
        click.echo(f"failed {count}: {error}")


def _row(tier: str, part: dict[str, Any]) -> list[str]:
    latency, ttft, tpot = ((part[name] or {}) for name in ("latency", "ttft", "tpot"))
    milliseconds = {name: value * 1000 for name, value in tpot.items()}
    return [
        *(tier, str(part["requests"]), str(part["failed"])),
        *(number(latency.get(name)) for name in ("mean", "p50", "p95", "p99")),
        *(number(ttft.get(name)) for name in ("mean", "p99")),
        *(number(milliseconds.get(name), 1) for name in ("mean", "p99")),
        percent(part["deadlines_met"]).lstrip("+"),
    ]
