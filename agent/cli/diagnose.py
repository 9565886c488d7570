"""``quietcore diagnose``."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from quietcore.agent import targets
from quietcore.agent.cli.exit_codes import CANNOT_MEASURE, FOUND, HEALTHY
from quietcore.agent.cli.options import Number
from quietcore.agent.verdict import THRESHOLD, Outcome

if TYPE_CHECKING:
    from quietcore.agent.session import Session

_Parameter = click.Parameter | None
_Context = click.Context | None


class _Budget(click.ParamType[Any]):
    name = "PERCENT|off"

    def convert(self, value: object, param: _Parameter, ctx: _Context) -> float | None:
        if value == "off":
            return None
        return _Percent().convert(value, param, ctx)


class _Percent(click.ParamType[Any]):
    name = "PERCENT"

    def convert(self, value: object, param: _Parameter, ctx: _Context) -> float:
        try:
            number = float(str(value).rstrip("%"))
        except ValueError:
            self.fail(f"{value!r} is not a percentage", param, ctx)
        if not 0 < number <= 100:
            self.fail(f"{value!r} is not above 0 and up to 100", param, ctx)
        return number / 100


class _Pattern(click.ParamType[Any]):
    name = "REGEX"

    def convert(self, value: object, param: _Parameter, ctx: _Context) -> re.Pattern[str]:
        try:
            return re.compile(str(value))
        except re.error as e:
            self.fail(f"{value!r} is not a regular expression: {e}", param, ctx)


@click.command()
@click.option("--pid", type=click.IntRange(min=1), help="One process, with its descendants.")
@click.option("--match", type=_Pattern(), help="Processes whose comm or command line matches.")
@click.option("--cgroup", metavar="PATH", help="All processes of a cgroup: a path or a container's id.")
@click.option("--duration", type=Number(1, 86400), default=10.0, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print the diagnosis as JSON.")
@click.option(
    "--backend",
    type=click.Choice(["auto", "libbpf", "bcc", "procfs"]),
    default="auto",
    show_default=True,
    help="How to look into the kernel; procfs needs no root but sees less.",
)
@click.option(
    "--overhead-budget",
    "budget",
    type=_Budget(),
    default="0.5%",
    show_default=True,
    help="Share of one core that launch probes may cost a target; off: always attached.",
)
@click.option(
    "--threshold",
    type=_Percent(),
    default=f"{THRESHOLD:.0%}",
    show_default=True,
    help="Interference from which the verdict says so.",
)
def command(
    pid: int | None,
    match: re.Pattern[str] | None,
    cgroup: str | None,
    duration: float,
    as_json: bool,
    backend: str,
    budget: float | None,
    threshold: float,
) -> None:
    """Measure a running server and say whether, and by whom, it is disturbed.

    Without --pid, --match or --cgroup: every process on the host that uses CUDA.

    Ctrl-C ends the measurement early: what was measured until then is judged.

    Exit codes: 0 no interference, 1 interference, 2 wrong usage, 3 cannot measure, 130 interrupted
    before the measurement began.
    """
    chosen = _choose(pid, match, cgroup)
    # not needed for --help or a wrong option
    from quietcore.agent.diagnosis import diagnose
    from quietcore.agent.session import Session
    from quietcore.probes.backend import open_backend
    from quietcore.probes.errors import BackendUnavailableError

    refused: list[BackendUnavailableError] = []
    with Session(open_backend(backend, refused), chosen, budget) as session:
        session.notes += [(None, f"not used: {e}") for e in refused]
        session.start()
        with _ending_at_ctrl_c(session):
            if not as_json and sys.stderr.isatty():
                with click.progressbar(length=int(duration * 10), label="measuring", file=sys.stderr) as bar:
                    done = 0

                    def advance(seconds: float) -> None:
                        nonlocal done
                        bar.update(int(seconds * 10) - done)
                        done = int(seconds * 10)

                    found = diagnose(session, duration, threshold=threshold, progress=advance)
            else:
                found = diagnose(session, duration, threshold=threshold)

    from quietcore.agent.report import document, terminal

    if as_json:
        click.echo(json.dumps(document.diagnoses(found), indent=2))
    else:
        terminal.show(found)
    outcomes = {d.verdict.outcome for d in found}
    if Outcome.INTERFERENCE in outcomes:
        sys.exit(FOUND)
    sys.exit(HEALTHY if Outcome.NOT_CPU in outcomes else CANNOT_MEASURE)


@contextlib.contextmanager
def _ending_at_ctrl_c(session: Session) -> Iterator[None]:
    """The first Ctrl-C ends the measurement, the second one the program."""
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        session.stop()
        signal.signal(signal.SIGINT, before)

    if before is not signal.SIG_IGN:  # a shell's background job: Ctrl-C is meant for others
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _choose(pid: int | None, match: re.Pattern[str] | None, cgroup: str | None) -> list[targets.Target]:
    if sum(option is not None for option in (pid, match, cgroup)) > 1:
        raise click.UsageError("give one of --pid, --match and --cgroup")
    if pid is not None:
        return [targets.by_pid(pid)]
    if match is not None:
        return targets.by_match(match)
    if cgroup is not None:
        return [targets.by_cgroup(cgroup)]
    return targets.with_cuda()
