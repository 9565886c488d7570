"""Waiting for a CPU, from wake-ups and switches, against the kernel's own count of it.

Ours is the sum of three states that the programs accumulate separately; the kernel's is run_delay of
/proc/PID/task/TID/schedstat, read right before each of the two snapshots. Nothing of ours reads
``task->sched_info``, where the kernel keeps it.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from tests.bars.bar import Bar, BarError, Outcome, ms, percent, progress
from tests.bars.noise import TOOL_CPU, on_cpu, quota, stress
from tests.bars.truth import measure
from tests.integration.doubles import CPU, Double, launcher

MEDIAN_LIMIT, WORST_LIMIT = 0.01, 0.03
PACE = "20"


@dataclass(frozen=True)
class Load:
    """What disturbs a run: options of stress-ng, a CPU quota, and how the launcher paces itself."""

    name: str
    stress: tuple[str, ...]
    quota: float | None
    pace: str


CPU_HOGS = ("--cpu", "2")
WAKERS = ("--cpu", "1", "--timer", "1", "--timer-freq", "1000", "--switch", "1", "--switch-freq", "500")
LOADS = (
    Load("cpu", CPU_HOGS, None, PACE),
    Load("cpu", CPU_HOGS, None, "0"),
    Load("cpu and wakers", WAKERS, None, PACE),
    Load("cpu and wakers", WAKERS, None, "0"),
    Load("quota 40 %", (), 0.4, "0"),
    Load("quota 40 %, cpu", ("--cpu", "1"), 0.4, PACE),
)


@dataclass(frozen=True)
class Row:
    """One launching thread in one run; nanoseconds."""

    run: int
    load: str
    pace: str
    thread: str
    wall: int
    runqueue_wait: int
    preempted: int
    throttled: int
    kernel_run_delay: int

    @property
    def ours(self) -> int:
        return self.runqueue_wait + self.preempted + self.throttled

    @property
    def error(self) -> float:
        return (self.ours - self.kernel_run_delay) / self.kernel_run_delay


def collect(runs: int, seconds: float) -> list[Row]:
    """The loads in turn, two launching threads in each run."""
    rows: list[Row] = []
    with on_cpu(TOOL_CPU):
        for run in range(runs):
            load = LOADS[run % len(LOADS)]
            options = ("--worker", "--threads", "2", "--tokens-per-second", load.pace)
            with launcher(*options) as victim, disturbed(victim, load):
                found = one_run(run, load, victim, seconds)
            rows += found
            errors = ", ".join(f"{row.error:+.3%}" for row in found)
            progress(f"run {run + 1} of {runs}: {load.name}, pace {load.pace}: {errors}")
    return rows


@contextlib.contextmanager
def disturbed(victim: Double, load: Load) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if load.quota is not None:
            stack.enter_context(quota(victim.pid, load.quota))
        if load.stress:
            stack.enter_context(stress(*load.stress, cpu=CPU))
        yield


def one_run(run: int, load: Load, victim: Double, seconds: float) -> list[Row]:
    both = measure(victim.pid, seconds)
    rows = []
    for tid, end in both.seen[-1].items():
        kernel = end - both.seen[0][tid]
        ours = both.found.whole.threads[tid]
        if not ours.comm.startswith("launch-"):
            continue
        split = ours.split
        rows.append(
            Row(
                run,
                load.name,
                load.pace,
                ours.comm,
                ours.wall_ns,
                split.runqueue_wait or 0,
                split.preempted or 0,
                split.throttled or 0,
                kernel.run_delay,
            )
        )
    return rows


def conclude(rows: Sequence[Row]) -> Outcome:
    if idle := [row for row in rows if not row.kernel_run_delay]:
        raise BarError(f"{idle[0].thread} never waited in run {idle[0].run + 1}: there was no noise")
    errors = [abs(row.error) for row in rows]
    median, worst = statistics.median(errors), max(errors)
    table = [
        [
            f"{row.run + 1} {row.load}, pace {row.pace}",
            row.thread,
            ms(row.runqueue_wait),
            ms(row.preempted),
            ms(row.throttled),
            ms(row.ours),
            ms(row.kernel_run_delay),
            f"{row.error:+.3%}",
        ]
        for row in rows
    ]
    return Outcome(
        met=median <= MEDIAN_LIMIT and worst <= WORST_LIMIT,
        figure=f"median {percent(median, 3)}, worst {percent(worst, 3)} of {len(rows)} threads",
        columns=("run", "thread", "wait ms", "preempted", "throttled", "ours", "schedstat", "error"),
        rows=table,
        raw=[{**asdict(row), "error": row.error} for row in rows],
    )


BAR = Bar(
    "run-delay",
    "waits from wake-ups and switches within 1 % (median) and 3 % (worst) of schedstat's run_delay",
    10,
    30,
    lambda runs, seconds: conclude(collect(runs, seconds)),
)
