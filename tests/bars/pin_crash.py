"""SIGKILL at random moments of applying and of undoing: is everything as it was after the next restore?

The victims are processes of several threads, one of which makes new threads all the time, one with CPUs and a
nice of its own; interrupts of this machine that may be moved; and the cpuset of a cgroup. Every lever acts
on all of them at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bars.bar import Bar, BarError, Outcome, percent, progress
from tests.pin_victims import (
    ROOT,
    Crowd,
    State,
    cpuset_cgroup,
    cpuset_root,
    crowd,
    movable_irqs,
    read_state,
    strays,
    thread_state,
)

from quietcore.agent.pin.journal import look
from quietcore.agent.pin.restore import restore_journal
from quietcore.probes import proc
from quietcore.probes.topology import Irq

CROWDS, THREADS = 2, 4
CHURNER, OWN = 0, THREADS - 1
RESTORE_S = 0.01
"""Restores that are killed, too, live for up to so long."""
BY_COMMAND = 20
"""Every so often the restore is that of the command line."""
IN_FORCE = 0.3
"""Part of the kills that must have found something in force, or nothing was tried."""


@dataclass(frozen=True)
class Row:
    """One kill: ``entries`` were in the journal then; ``wrong`` is what was otherwise after the restore."""

    run: int
    lived_s: float
    entries: int
    restore_killed: bool
    conflicts: int
    wrong: list[str]


class Nursery:
    """Forks loops that are to be killed."""

    def __init__(self) -> None:
        path = f"{ROOT}:{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"
        self._process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "fixtures" / "pin_loop.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        if self._answer() != "ready":
            raise BarError("the loop did not start")

    def begin(self, task: dict[str, Any], *, restore: bool = False) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**task, "restore": restore}) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def kill(pid: int) -> bool:
    """``False`` if it had ended by itself."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    while not proc.has_ended(pid):
        time.sleep(0.001)
    return True


@contextlib.contextmanager
def _settings_kept(irqs: Sequence[Irq]) -> Iterator[None]:
    """Interrupts go back even if what is measured here fails."""
    masks = {irq.number: Path(f"/proc/irq/{irq.number}/smp_affinity_list") for irq in irqs}
    before = {number: path.read_text() for number, path in masks.items()}
    try:
        yield
    finally:
        for number, path in masks.items():
            path.write_text(before[number])


def collect(runs: int, seconds: float, seed: int = 1) -> list[Row]:
    """So many kills, each after up to so many seconds. Raises BarError where there are not two CPUs."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise BarError("needs two CPUs")
    chance = random.Random(seed)
    irqs = movable_irqs()
    rows = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(_settings_kept(irqs))
        group = stack.enter_context(cpuset_cgroup()) if cpuset_root() else None
        crowds = [stack.enter_context(crowd(THREADS)) for _ in range(CROWDS)]
        for one in crowds:
            if group:
                (group / "cgroup.procs").write_text(str(one.pid))
            os.sched_setaffinity(one.tids[OWN], {cpus[0]})
            os.setpriority(os.PRIO_PROCESS, one.tids[OWN], 4)
            one.tell(f"churn {CHURNER}")
        task = {
            "journal": str(folder / "pin.journal"),
            "threads": [list(one.thread(index)) for one in crowds for index in range(THREADS)],
            "irqs": [[irq.number, irq.name] for irq in irqs],
            "cgroup": str(group) if group else "",
            "cpus": cpus,
        }
        nursery = Nursery()
        stack.callback(nursery.stop)
        before = read_state(crowds, irqs, group)
        for run in range(runs):
            row = _one(
                run, nursery, task, chance, seconds, crowds, lambda: read_state(crowds, irqs, group), before
            )
            rows.append(row)
            if row.wrong:
                progress(f"run {run + 1}: {'; '.join(row.wrong)}")
                break
            if not (run + 1) % 50:
                progress(f"{run + 1} of {runs}")
    return rows


def _one(
    run: int,
    nursery: Nursery,
    task: dict[str, Any],
    chance: random.Random,
    seconds: float,
    crowds: Sequence[Crowd],
    now: Any,
    before: State,
) -> Row:
    journal = Path(task["journal"])
    began = time.monotonic()
    child = nursery.begin({**task, "seed": chance.random()})
    heir = chance.uniform(0, seconds)
    time.sleep(heir)
    crowds[0].tell("spawn 1")  # stays, with whatever its maker has at this moment
    time.sleep(chance.uniform(0, seconds - heir))
    if not kill(child):
        raise BarError("the loop ended by itself")
    lived = time.monotonic() - began
    contents = look(journal)
    entries = len(contents.entries) if contents else 0
    again = chance.random() < 0.5
    if again:
        second = nursery.begin({**task, "seed": 0}, restore=True)
        time.sleep(chance.uniform(0, RESTORE_S))
        again = kill(second)
    conflicts = _restore(journal, by_command=run % BY_COMMAND == BY_COMMAND - 1)
    wrong = before.differences(now())
    usual = thread_state(crowds[0].pid, crowds[0].tids[1])
    assert usual is not None
    wrong += strays(crowds, usual)
    if journal.read_bytes():
        wrong.append("the journal is not empty")
    crowds[0].tell("end")
    return Row(run, lived, entries, again, conflicts, wrong)


def _restore(journal: Path, *, by_command: bool) -> int:
    """Returns how many things were said to be others'."""
    if not by_command:
        return sum(event.kind == "conflict" for event in restore_journal(journal))
    command = [sys.executable, "-m", "quietcore.agent.cli", "pin", "restore", "--journal", str(journal)]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode


def conclude(rows: Sequence[Row]) -> Outcome:
    wrong = [row for row in rows if row.wrong or row.conflicts]
    in_force = sum(row.entries > 0 for row in rows)
    again = sum(row.restore_killed for row in rows)
    share = in_force / len(rows)
    figure = (
        f"{len(rows) - len(wrong)} of {len(rows)} as before; {in_force} kills found settings in force, "
        f"after {again} the restore was killed, too"
    )
    remarks = [f"run {row.run + 1}: {'; '.join(row.wrong) or 'taken for a conflict'}" for row in wrong]
    if share < IN_FORCE:
        remarks.append(f"only {percent(share)} of the kills found anything in force")
    return Outcome(
        not wrong and share >= IN_FORCE, figure, remarks=remarks, raw=[asdict(row) for row in rows]
    )


BAR = Bar(
    "pin-crash",
    "after SIGKILL at 200 random moments of apply and restore, every affinity, IRQ mask, nice, slice and "
    "cpuset is as before after the next restore",
    200,
    1,
    lambda runs, seconds: conclude(collect(runs, seconds)),
)
