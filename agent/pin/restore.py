"""Puts back what an agent, or ``pin apply``, left behind, and tells of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from quietcore.agent.pin.actuate import Report, Step, undo
from quietcore.agent.pin.events import Event
from quietcore.agent.pin.journal import Journal
from quietcore.agent.pin.levers import Outcome


def restore_journal(path: Path, *, leave_applied: bool = False) -> list[Event]:
    """Put back what an agent left behind: at an agent's start, and for ``pin restore``.

    Args:
        leave_applied: leave alone what ``pin apply`` set, which is meant to stay.

    Raises:
        JournalBusyError: another agent runs.
        MeasureError: the journal cannot be opened.
    """
    if not os.path.exists(path):
        return []
    with Journal.open(path) as journal:
        return put_back(journal, leave_applied=leave_applied)


def put_back(journal: Journal, *, leave_applied: bool = False) -> list[Event]:
    """What a journal that was found is good for. Raises MeasureError."""
    contents = journal.contents
    events = []
    if contents.stale:
        text = "a journal from before the last boot, which undid everything: dropped"
        events.append(Event("restore", "", {"stale": True}, text))
    if contents.damaged:
        copy = journal.set_aside()
        text = f"{len(contents.damaged)} lines of the journal cannot be read: kept in {copy}"
        events.append(Event("conflict", "", {"damaged": len(contents.damaged), "copy": str(copy)}, text))
        contents.damaged = []
    if contents.kept and leave_applied:
        return events
    for target in dict.fromkeys(e.target for e in journal.of(None)):
        events += undone(target, undo(journal, target))
    if not journal.entries:
        journal.clear()
    return events


def undone(target: str, report: Report, why: str = "") -> list[Event]:
    """What to tell of an undo."""
    restored, refused = report.of(Outcome.RESTORED), report.of(Outcome.REFUSED)
    detail = {"steps": [describe(step) for step in report.steps], "reason": why}
    text = f"{target}: {len(restored)} settings put back" + (f": {why}" if why else "")
    if refused:
        text += f"; {len(refused)} refused, kept in the journal: {refused[0]}"
    return [Event("restore", target, detail, text), *conflicts(target, report)]


def conflicts(target: str, report: Report) -> list[Event]:
    """One event for each thing that others changed."""
    return [Event("conflict", target, describe(step), f"{target}: {step}") for step in report.conflicts]


def describe(step: Step) -> dict[str, Any]:
    """For JSON."""
    return {
        "lever": step.lever,
        "thing": str(step.thing),
        "outcome": step.outcome.name.lower(),
        "old": step.old,
        "new": step.new,
        "why": step.why,
    }
