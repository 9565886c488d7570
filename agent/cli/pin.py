"""``quietcore pin``: plan, apply, status and restore."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from quietcore import __version__
from quietcore.agent import targets
from quietcore.agent.cli.exit_codes import FOUND, HEALTHY
from quietcore.agent.cli.options import Number

if TYPE_CHECKING:
    from quietcore.agent.diagnosis import Diagnosis
    from quietcore.agent.pin.journal import Entry
    from quietcore.agent.pin.plan import Proposal

SCHEMA = "quietcore.pin/1"
_DEFAULT_JOURNAL = "/var/lib/quietcore/pin.journal"
_BUDGET = 0.005
_F = TypeVar("_F", bound=Callable[..., object])

_as_json = click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
_journal = click.option(
    "--journal",
    type=click.Path(path_type=Path, dir_okay=False),
    default=_DEFAULT_JOURNAL,
    show_default=True,
    help="Where old values are written before the first change.",
)


def _measured(function: _F) -> _F:
    """Options of the verbs that measure first."""
    options = (
        click.option("--duration", type=Number(1, 600), default=3.0, show_default=True),
        click.option(
            "--backend",
            type=click.Choice(["auto", "libbpf", "bcc", "procfs"]),
            default="auto",
            show_default=True,
            help="How to look into the kernel; procfs needs no root but names no culprits.",
        ),
        click.option(
            "--allow-offenders", is_flag=True, help="Also consider moving those that disturb the target."
        ),
    )
    for option in options:
        function = option(function)
    return function


@click.group()
def command() -> None:
    """Keep launch threads on quiet CPUs: look what could be done, do it, undo it.

    ``plan`` changes nothing. ``apply`` writes every old value to a journal first; ``restore`` puts back what
    is still as it was set, whatever happened meanwhile.

    Exit codes: 0 done; 1 ``plan``: nothing can be done, ``apply``: not all was set, ``status`` and
    ``restore``: others changed something meanwhile; 2 wrong usage; 3 cannot measure, or the journal cannot be
    used.
    """


@command.command()
@click.option("--pid", type=click.IntRange(min=1), help="One process, with its descendants.")
@_measured
@_as_json
def plan(pid: int | None, duration: float, backend: str, allow_offenders: bool, as_json: bool) -> None:
    """Measure, and show what could be done in which order; nothing is changed.

    Without --pid: for every process on the host that uses CUDA.

    Exit codes: 0 something could be done, 1 nothing, or only what others own, 2 wrong usage, 3 cannot
    measure.
    """
    chosen = targets.with_cuda() if pid is None else [targets.by_pid(pid)]
    found = _propose(chosen, duration, backend, allow_offenders)
    if as_json:
        _print_json({"targets": [_proposal_json(diagnosis, proposal) for diagnosis, proposal in found]})
    else:
        for diagnosis, proposal in found:
            _show_proposal(diagnosis, proposal)
    sys.exit(HEALTHY if any(proposal.plans for _, proposal in found) else FOUND)


@command.command()
@click.option("--pid", type=click.IntRange(min=1), required=True, help="One process, with its descendants.")
@_measured
@_as_json
@_journal
def apply(
    pid: int, duration: float, backend: str, allow_offenders: bool, as_json: bool, journal: Path
) -> None:
    """Measure, and apply the first plan; it stays until ``restore``.

    Exit codes: 0 all of it was set, 1 a part, or nothing (nothing can be done, or others own it), 2 wrong
    usage, 3 cannot measure, or the journal cannot be used.
    """
    from quietcore.agent.pin import actuate
    from quietcore.agent.pin.journal import Journal
    from quietcore.agent.pin.levers import Outcome
    from quietcore.agent.pin.restore import describe
    from quietcore.probes.errors import MeasureError

    with Journal.open(journal) as held:
        if held.entries:
            target = next(iter(held.entries.values())).target
            raise MeasureError(
                f"something is in force for {target} already", f"quietcore pin restore --journal {journal}"
            )
        ((diagnosis, proposal),) = _propose([targets.by_pid(pid)], duration, backend, allow_offenders)
        if not proposal.plans:
            if as_json:
                _print_json({**_proposal_json(diagnosis, proposal), "applied": None, "steps": []})
            else:
                _show_proposal(diagnosis, proposal)
            sys.exit(FOUND)
        first = proposal.plans[0]
        report = actuate.apply(held, first.settings, diagnosis.target.name)
        if held.entries:
            held.keep()
    if as_json:
        steps = [describe(step) for step in report.steps]
        _print_json({**_proposal_json(diagnosis, proposal), "applied": first.name, "steps": steps})
    else:
        click.echo(f"{diagnosis.target.name}: {first.name}: {first.why}")
        for step in report.steps:
            click.echo(f"  {step}")
        click.echo(f"quietcore pin restore{_option(journal)} undoes it")
    wanted = report.of(Outcome.SET, Outcome.ALREADY)
    sys.exit(HEALTHY if len(wanted) == len(report.steps) else FOUND)


@command.command()
@_as_json
@_journal
def status(as_json: bool, journal: Path) -> None:
    """Show what is in force, by the journal, and what others have changed since.

    Exit codes: 0 nothing is in force, or all is as it was set, 1 others changed something, 2 wrong usage,
    3 the journal cannot be read.
    """
    from quietcore.agent.pin.journal import look

    contents = look(journal)
    entries = list(contents.entries.values()) if contents and not contents.stale else []
    states = [_state(entry) for entry in entries]
    damaged = len(contents.damaged) if contents else 0
    if as_json:
        listed = [
            {
                "target": entry.target,
                "lever": entry.lever,
                "thing": str(entry.thing),
                "old": entry.old,
                "set": entry.ours[-1],
                "now": now,
                "state": state,
            }
            for entry, (state, now) in zip(entries, states, strict=True)
        ]
        kept = contents is not None and contents.kept
        _print_json({"journal": str(journal), "applied": kept, "damaged": damaged, "entries": listed})
    else:
        for entry, (state, now) in zip(entries, states, strict=True):
            text = f"{entry.target}: {entry.thing}: {entry.lever} {entry.old} -> {entry.ours[-1]}: {state}"
            click.echo(text if now is None or state != "conflict" else f"{text} ({now} now)")
        if not entries:
            click.echo("nothing is in force")
        if damaged:
            click.echo(f"{damaged} lines of {journal} cannot be read")
    sys.exit(FOUND if damaged or any(state == "conflict" for state, _ in states) else HEALTHY)


@command.command()
@_as_json
@_journal
def restore(as_json: bool, journal: Path) -> None:
    """Put everything back that is still as it was set; after a crash, too.

    Exit codes: 0 all is as it was, 1 others changed something (left alone), or something was refused,
    2 wrong usage, 3 another agent has the journal, or it cannot be used.
    """
    from quietcore.agent.pin.restore import restore_journal

    events = restore_journal(journal)
    if as_json:
        _print_json(
            {
                "events": [
                    {"kind": e.kind, "target": e.target, "text": e.text, "detail": e.detail} for e in events
                ]
            }
        )
    else:
        for event in events:
            click.echo(event.text.removeprefix(": "))
        if not events:
            click.echo("nothing is in force")
    refused = any(step["outcome"] == "refused" for event in events for step in event.detail.get("steps", ()))
    sys.exit(FOUND if refused or any(event.kind == "conflict" for event in events) else HEALTHY)


def _propose(
    chosen: Sequence[targets.Target], duration: float, backend: str, allow_offenders: bool
) -> list[tuple[Diagnosis, Proposal]]:
    # not needed for --help or a wrong option
    from quietcore.agent.diagnosis import diagnose
    from quietcore.agent.pin.plan import propose
    from quietcore.agent.pin.survey import survey
    from quietcore.agent.session import Session
    from quietcore.probes.backend import open_backend
    from quietcore.probes.errors import BackendUnavailableError

    refused: list[BackendUnavailableError] = []
    with Session(open_backend(backend, refused), list(chosen), _BUDGET) as session:
        session.start()
        found = diagnose(session, duration)
    for error in refused:
        click.echo(f"quietcore: not used: {error}", err=True)
    return [
        (
            diagnosis,
            propose(
                survey(
                    diagnosis.target.name,
                    diagnosis.target.processes,
                    diagnosis.whole.critical,
                    diagnosis.whole.culprits,
                    allow_offenders=allow_offenders,
                )
            ),
        )
        for diagnosis in found
    ]


def _show_proposal(diagnosis: Diagnosis, proposal: Proposal) -> None:
    name = diagnosis.target.name
    click.echo(f"{name}: {diagnosis.verdict}")
    for owner in proposal.owners:
        click.echo(f"  left alone: {owner}")
    for number, candidate in enumerate(proposal.plans, 1):
        click.echo(f"  {number}. {candidate.name}: {candidate.why}")
    for candidate in proposal.blocked:
        click.echo(f"  not ours to do: {candidate.name}: {candidate.why}")
    if not proposal.plans and not proposal.blocked:
        click.echo("  nothing can be done: no other place, interrupt or weight would change anything")


def _proposal_json(diagnosis: Diagnosis, proposal: Proposal) -> dict[str, Any]:
    from quietcore.agent.pin.plan import summary

    whole = diagnosis.whole
    return {
        "target": diagnosis.target.name,
        "critical": sorted(whole.critical),
        "stolen": whole.share(whole.stolen),
        "verdict": str(diagnosis.verdict),
        "plans": summary(proposal.plans),
        "blocked": summary(proposal.blocked),
        "owners": [
            {"name": o.name, "levers": sorted(o.levers), "text": o.text, "remedy": o.remedy}
            for o in proposal.owners
        ],
    }


def _state(entry: Entry) -> tuple[str, int | str | None]:
    """How a thing that was set is now, and its value."""
    from quietcore.agent.pin.levers import GoneError, RefusedError
    from quietcore.agent.pin.registry import LEVERS

    lever = LEVERS[entry.lever]
    try:
        now = lever.read(entry.thing)
    except GoneError:
        return "gone", None
    except RefusedError:
        return "unknown", None
    if any(lever.same(now, value) for value in entry.ours):
        return "in force", now
    return ("as before" if lever.same(now, entry.old) else "conflict"), now


def _option(journal: Path) -> str:
    return "" if str(journal) == _DEFAULT_JOURNAL else f" --journal {journal}"


def _print_json(facts: dict[str, Any]) -> None:
    click.echo(json.dumps({"schema": SCHEMA, "version": __version__, **facts}, indent=2))
