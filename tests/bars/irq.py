"""Interrupts injected on the core of a thread that spins: what it lost against what we say was taken.

The spinner reads the cycle counter without pause, so every gap is time in which its CPU did something else.
Both sides are differences to an undisturbed run. An interrupt also costs what no handler sees: entry, exit
and, in a guest, its delivery by the hypervisor. Two controls tell that cost from an error of ours: a thief
(no interrupts) and packets that take long (the same handlers, a hundredth of the interrupts).
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bars.bar import Bar, BarError, Outcome, describe_machine, percent, progress
from tests.bars.noise import TOOL_CPU, disk_load, long_softirq_load, on_cpu, softirq_load
from tests.bars.truth import cpu_counters
from tests.integration.doubles import CPU, ROOT, running, thief

from quietcore.agent import targets
from quietcore.agent.session import Session
from quietcore.probes.backend import open_backend

LIMIT = 0.10
PER_INTERRUPT_NS = 10_000
"""The most that a guest's interrupt may cost outside of its handler before we call it our error."""
NO_LOAD, CONTROL, LONG, SHORT, DISK = "none", "thief", "long packets", "short packets", "disk"
LOADS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    NO_LOAD: contextlib.nullcontext,
    CONTROL: lambda: thief(0.3),
    LONG: lambda: long_softirq_load(40_000),
    SHORT: lambda: softirq_load(50),
    DISK: lambda: disk_load(10_000),
}
CONTROLS = (CONTROL, LONG)


@dataclass(frozen=True)
class Row:
    """One spin. All but the counts are parts of its wall time; ``not_run`` is what its CPU clock lacks."""

    run: int
    load: str
    wall_ns: int
    lost: float
    gaps: int
    not_run: float = 0.0
    irq: float = 0.0
    softirq: float = 0.0
    off_cpu: float = 0.0
    interrupts: int = 0
    steal: float = 0.0


@dataclass(frozen=True)
class Increase:
    """What a load added, mean of the runs, to what was lost and to our figures; parts of wall time."""

    load: str
    lost: float
    alone: float
    together: float
    remainder_ns: float
    interrupts: float
    steal: float

    @property
    def error(self) -> float:
        return self.together / self.lost - 1

    @property
    def per_interrupt_ns(self) -> float:
        return self.remainder_ns / self.interrupts if self.interrupts > 0 else float("inf")


def collect(runs: int, seconds: float) -> tuple[list[Row], list[Row]]:
    """All loads in turn; then short packets with nothing of ours attached, for our own cost."""
    spinner = build_spinner()
    rows, bare = [], []
    with on_cpu(TOOL_CPU):
        for run in range(runs):
            for load in LOADS:
                rows.append(spin(spinner, run, load, seconds, probed=True))
                progress(f"run {run + 1} of {runs}, {load}: lost {rows[-1].lost:.2%}")
            bare.append(spin(spinner, run, SHORT, seconds, probed=False))
    return rows, bare


def build_spinner() -> Path:
    folder = ROOT / "build" / "doubles"
    spinner = folder / "spinner"
    make = ["make", "-s", "-C", str(ROOT / "tests" / "doubles"), f"OUT={folder}", str(spinner)]
    done = subprocess.run(make, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BarError(f"the spinner was not built: {done.stderr.strip()}")
    return spinner


def spin(spinner: Path, run: int, load: str, seconds: float, *, probed: bool) -> Row:
    """One spin from its first to its last reading: we attach before, and look after it has ended."""
    with contextlib.ExitStack() as stack:
        gate = Path(stack.enter_context(tempfile.TemporaryDirectory()), "gate")
        options = ("--cpu", str(CPU), "--duration", str(seconds), "--gate", gate)
        double = stack.enter_context(running(spinner, *options))
        assert double.process.stdout is not None
        double.process.stdout.readline()
        stack.enter_context(LOADS[load]())
        session = None
        if probed:
            target = targets.by_pid(double.pid)
            session = stack.enter_context(Session(open_backend("libbpf"), [target], None))
            session.start()
        before = cpu_counters(CPU)
        gate.touch()
        said = double.result(seconds + 60)
        steal = (cpu_counters(CPU) - before).steal
        seen = _seen(session, said["tid"], said["wall_ns"]) if session else {}
    wall = said["wall_ns"]
    not_run = 1 - said["cpu_ns"] / wall
    return Row(run, load, wall, said["lost_ns"] / wall, said["gaps"], not_run, steal=steal / wall, **seen)


def _seen(session: Session, tid: int, wall: int) -> dict[str, Any]:
    thread = session.backend.snapshot().since(session.first).threads[tid]
    return {
        "irq": (thread.irq_ns or 0) / wall,
        "softirq": (thread.softirq_ns or 0) / wall,
        "off_cpu": (thread.split.run_delay or 0) / wall,
        "interrupts": thread.irqs or 0,
    }


def increases(rows: Sequence[Row]) -> list[Increase]:
    """Each load against no load, mean over the runs."""

    def mean(load: str, part: Callable[[Row], float]) -> float:
        values = [part(row) for row in rows if row.load == load]
        return sum(values) / len(values)

    found = []
    for load in LOADS:
        if load == NO_LOAD:
            continue

        def more(part: Callable[[Row], float], load: str = load) -> float:
            return mean(load, part) - mean(NO_LOAD, part)

        lost, alone = more(lambda r: r.lost), more(lambda r: r.irq + r.softirq)
        together = alone + more(lambda r: r.off_cpu)
        remainder = (lost - together) * mean(load, lambda r: r.wall_ns)
        interrupts, steal = more(lambda r: r.interrupts), more(lambda r: r.steal)
        found.append(Increase(load, lost, alone, together, remainder, interrupts, steal))
    return found


def conclude(rows: Sequence[Row], bare: Sequence[Row], *, guest: bool) -> Outcome:
    found = increases(rows)
    wrong = [i for i in found if abs(i.error) > LIMIT]
    # delivery costs time, so it can only explain what we lack, and only where the controls agree
    explained = [
        i
        for i in wrong
        if guest and i.load not in CONTROLS and i.error < 0 and i.per_interrupt_ns <= PER_INTERRUPT_NS
    ]
    errors = ", ".join(f"{i.load} {100 * i.error:+.1f} %" for i in found)
    figure = f"together against lost: {errors}"
    if explained:
        costs = " and ".join(f"{i.per_interrupt_ns / 1e3:.1f}" for i in explained)
        steal = max(abs(i.steal) for i in found)
        figure += f"; the remainder is {costs} us an interrupt outside the handlers (steal {percent(steal)})"
    remarks = []
    probed = [row for row in rows if row.load == SHORT]
    if bare and probed:
        without, with_probes = _lost_per_gap_us(bare), _lost_per_gap_us(probed)
        remarks.append(
            f"our own part of that: {SHORT} cost {with_probes:.1f} us a gap with our programs attached, "
            f"{without:.1f} without"
        )
    return Outcome(
        met=len(explained) == len(wrong),
        figure=figure,
        columns=(
            "load",
            "lost",
            "IRQ + softirq",
            "with off-CPU",
            "error",
            "interrupts",
            "rest, us each",
            "steal",
        ),
        rows=[
            [
                i.load,
                percent(i.lost, 2),
                percent(i.alone, 2),
                percent(i.together, 2),
                f"{100 * i.error:+.1f} %",
                f"{i.interrupts:+.0f}",
                f"{i.per_interrupt_ns / 1e3:.1f}" if i.load not in CONTROLS else "",
                percent(i.steal, 2),
            ]
            for i in found
        ],
        remarks=remarks,
        raw=[{"row": asdict(row), "probed": True} for row in rows]
        + [{"row": asdict(row), "probed": False} for row in bare],
    )


def _lost_per_gap_us(rows: Sequence[Row]) -> float:
    return sum(row.lost * row.wall_ns for row in rows) / sum(row.gaps for row in rows) / 1e3


def measure(runs: int, seconds: float) -> Outcome:
    rows, bare = collect(runs, seconds)
    return conclude(rows, bare, guest=describe_machine()["guest"])


BAR = Bar(
    "irq",
    "IRQ + softirq + off-CPU rise by what a spinner loses more, within 10 %; or, in a guest, the remainder "
    "is stated and explained by controls",
    3,
    8,
    measure,
)
