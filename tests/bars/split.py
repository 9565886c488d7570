"""The six states of every thread against wall time, and three of our figures against the kernel's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tests.bars.bar import Bar, Outcome, percent, progress
from tests.bars.noise import TOOL_CPU, on_cpu, stress
from tests.bars.truth import Both, measure
from tests.integration.doubles import CPU, launcher

LIMIT = 0.01
PACES = ("20", "0")
FEW = 100
"""Fewer switches than this are compared to within one: 1 % of them is less."""


@dataclass(frozen=True)
class Row:
    """The worst of a run: errors of sum and on-CPU time as parts of wall, of preemptions as part of them."""

    run: int
    pace: str
    windows: int
    split_error: float
    on_cpu_error: float
    preemptions: int
    preemptions_error: float


def collect(runs: int, seconds: float) -> list[Row]:
    """Two launching threads and their parent, under CPU hogs and threads that wake often."""
    rows = []
    with on_cpu(TOOL_CPU):
        for run in range(runs):
            pace = PACES[run % len(PACES)]
            noise = ("--cpu", "1", "--switch", "1", "--switch-freq", "500")
            options = ("--worker", "--threads", "2", "--tokens-per-second", pace)
            with launcher(*options) as victim, stress(*noise, cpu=CPU):
                rows.append(compare(run, pace, measure(victim.pid, seconds)))
            progress(f"run {run + 1} of {runs}, pace {pace}: split {rows[-1].split_error:.4%}")
    return rows


def compare(run: int, pace: str, both: Both) -> Row:
    """Splits and on-CPU time in every step, preemptions over all of them."""
    split_errors, cpu_errors, switch_errors, preemptions = [], [], [], 0
    for step, before, after in zip(both.found.steps, both.seen, both.seen[1:], strict=False):
        for tid, thread in step.threads.items():
            split_errors.append(abs((thread.split.total or 0) - thread.wall_ns) / thread.wall_ns)
            if tid in before and tid in after:
                kernel = after[tid] - before[tid]
                cpu_errors.append(abs((thread.split.on_cpu or 0) - kernel.on_cpu) / thread.wall_ns)
    for tid, thread in both.found.whole.threads.items():
        kernel = both.seen[-1][tid] - both.seen[0][tid]
        off = abs((thread.involuntary or 0) - kernel.involuntary)
        if kernel.involuntary >= FEW or off > 1:
            switch_errors.append(off / max(kernel.involuntary, 1))
        preemptions += kernel.involuntary
    return Row(
        run,
        pace,
        len(split_errors),
        max(split_errors),
        max(cpu_errors),
        preemptions,
        max(switch_errors, default=0.0),
    )


def conclude(rows: Sequence[Row]) -> Outcome:
    split = max(row.split_error for row in rows)
    on_cpu_worst = max(row.on_cpu_error for row in rows)
    switches = max(row.preemptions_error for row in rows)
    windows = sum(row.windows for row in rows)
    return Outcome(
        met=max(split, on_cpu_worst, switches) <= LIMIT,
        figure=f"worst of {windows} thread windows: sum {percent(split, 4)}, "
        f"on-CPU {percent(on_cpu_worst, 2)}; preemptions {percent(switches, 2)}",
        columns=("run", "thread windows", "sum", "on CPU", "preemptions", "error"),
        rows=[
            [
                f"{row.run + 1} pace {row.pace}",
                str(row.windows),
                percent(row.split_error, 4),
                percent(row.on_cpu_error, 2),
                str(row.preemptions),
                percent(row.preemptions_error, 2),
            ]
            for row in rows
        ],
        raw=[asdict(row) for row in rows],
    )


BAR = Bar(
    "split",
    "sum of the split against wall, on-CPU against schedstat (of wall), preemptions against "
    "nonvoluntary_ctxt_switches: within 1 % each",
    6,
    10,
    lambda runs, seconds: conclude(collect(runs, seconds)),
)
