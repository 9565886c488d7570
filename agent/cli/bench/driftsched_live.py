"""``quietcore bench driftsched --server``: the published experiment on live servers, one after the other."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from quietcore.agent.cli.bench.output import number, percent, sending, table
from quietcore.agent.cli.exit_codes import FOUND
from quietcore.agent.cli.options import Number

if TYPE_CHECKING:
    from quietcore.scheduler.bench.driftsched.live import LiveExperiment

SCHEMA = "quietcore.bench.driftsched-servers/1"
_Command = TypeVar("_Command", bound=Callable[..., Any])

OPTIONS = (
    click.option(
        "--server",
        "servers",
        metavar="[NAME=]URL",
        multiple=True,
        help="A live OpenAI server instead of virtual time; several are compared with the first.",
    ),
    click.option("--model", default="", help="As the servers name it; default: the first each lists."),
    click.option(
        "--token-scale",
        type=Number(0, min_open=True),
        default=1.0,
        show_default=True,
        help="Multiplies the budgets of 64 to 512 tokens, for a slow server.",
    ),
    click.option(
        "--gap-scale",
        type=Number(0),
        default=1.0,
        show_default=True,
        help="Multiplies the gaps between requests (50 to 150 ms, then 5 to 30).",
    ),
    click.option("--hints/--no-hints", default=True, show_default=True, help="Send qos and tenant."),
    click.option("--seed", type=int, default=0, show_default=True),
    click.option("--timeout", type=Number(0, min_open=True), default=600.0, show_default=True),
    click.option("--api-key", envvar="OPENAI_API_KEY", default="", help="Default: $OPENAI_API_KEY."),
)
"""Those that mean something with ``--server`` only."""


def options(command: _Command) -> _Command:
    """A decorator: adds ``OPTIONS``."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def run(
    servers: Sequence[str], requests: int | None, as_json: bool, *, timeout: float, **settings: Any
) -> None:
    """Serve the experiment on each, print what came out; exits with 1 if requests failed.

    Raises:
        UsageError: two servers of one name.
        InputError, BenchError: as :func:`run_live`.
    """
    from quietcore.scheduler.bench.driftsched.live import REQUESTS, LiveOptions, compare, model_of, run_live

    named = [_named(server) for server in servers]
    if len({name for name, _ in named}) < len(named):
        raise click.UsageError("two servers have the same name: --server NAME=URL tells them apart")
    count = REQUESTS if requests is None else requests
    plans = {name: LiveOptions(url, requests=count, timeout_s=timeout, **settings) for name, url in named}
    # all of them, before the first is measured in vain
    plans = {name: replace(plan, model=model_of(plan)) for name, plan in plans.items()}
    found: dict[str, LiveExperiment] = {}
    for name, plan in plans.items():
        click.echo(name, err=True)
        with sending() as progress:
            found[name] = run_live(plan, progress)
    first = next(iter(found.values()))
    documents = {name: {**each.to_json(), "vs_first": compare(first, each)} for name, each in found.items()}
    if as_json:
        shown = {name: value for name, value in settings.items() if name != "api_key"}
        click.echo(json.dumps({"schema": SCHEMA, "requests": count, **shown, "servers": documents}, indent=2))
    else:
        _show(documents)
    if any(result.failures for each in found.values() for result in each.phases.values()):
        sys.exit(FOUND)


def _named(server: str) -> tuple[str, str]:
    name, equals, url = server.partition("=")
    if not equals or "/" in name:
        name, url = urlsplit(server).netloc, server
    if not name or not urlsplit(url).netloc:
        raise click.UsageError(f"--server wants [NAME=]URL, as http://localhost:8000, not {server!r}")
    return name, url


def _show(documents: Mapping[str, Mapping[str, Any]]) -> None:
    header = (
        "server",
        "requests",
        "failed",
        "median s",
        "vs first",
        "mean s",
        "vs first",
        "P99 s",
        "vs first",
    )
    for phase in next(iter(documents.values()))["phases"]:
        click.echo(f"live servers, {phase} phase")
        click.echo(table(header, [_row(name, each, phase) for name, each in documents.items()]) + "\n")
    for name, each in documents.items():
        for phase, result in each["phases"].items():
            for error, times in result["failures"].items():
                click.echo(f"{name}, {phase} phase: failed {times}: {error}")


def _row(name: str, document: Mapping[str, Any], phase: str) -> list[str]:
    result = document["phases"][phase]
    latency = result["all"]["latency"] or {}
    change = document["vs_first"].get(phase, {})
    figures = (("p50", "median"), ("mean", "mean"), ("p99", "p99"))
    parts = ((number(latency.get(key)), percent(change.get(ratio))) for key, ratio in figures)
    return [name, str(result["requests"]), str(result["failed"]), *(cell for pair in parts for cell in pair)]
