"""The kernel's own counters, read at the moments at which ours are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from quietcore.agent import targets
from quietcore.agent.diagnosis import Diagnosis, diagnose
from quietcore.agent.session import Session
from quietcore.probes.backend import Backend, open_backend
from quietcore.probes.readings import Snapshot, Window

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class TaskCounters:
    """Of one thread, nanoseconds: /proc/PID/task/TID/schedstat, and switches from its status."""

    on_cpu: int
    run_delay: int
    voluntary: int
    involuntary: int

    def __sub__(self, other: TaskCounters) -> TaskCounters:
        return TaskCounters(
            self.on_cpu - other.on_cpu,
            self.run_delay - other.run_delay,
            self.voluntary - other.voluntary,
            self.involuntary - other.involuntary,
        )


def task_counters(pid: int) -> dict[int, TaskCounters]:
    """Of all threads of a process."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            on_cpu, run_delay, _ = map(int, (task / "schedstat").read_text().split())
            status = (task / "status").read_text().splitlines()
            switches = {k: int(v) for k, v in (line.split(":") for line in status if "ctxt_switches" in line)}
            found[int(task.name)] = TaskCounters(
                on_cpu,
                run_delay,
                switches["voluntary_ctxt_switches"],
                switches["nonvoluntary_ctxt_switches"],
            )
    return found


@dataclass(frozen=True)
class CpuCounters:
    """Of one CPU: nanoseconds by class of /proc/stat (in ticks), and softirqs by name."""

    irq: int
    softirq: int
    steal: int
    softirqs: dict[str, int]

    def __sub__(self, other: CpuCounters) -> CpuCounters:
        return CpuCounters(
            self.irq - other.irq,
            self.softirq - other.softirq,
            self.steal - other.steal,
            {name: n - other.softirqs[name] for name, n in self.softirqs.items()},
        )


def cpu_counters(cpu: int) -> CpuCounters:
    """From /proc/stat and /proc/softirqs."""
    stat = Path("/proc/stat").read_text().splitlines()
    fields = next(line.split()[1:] for line in stat if line.startswith(f"cpu{cpu} "))
    header, *lines = Path("/proc/softirqs").read_text().splitlines()
    column = header.split().index(f"CPU{cpu}") + 1
    softirqs = {line.split()[0].rstrip(":"): int(line.split()[column]) for line in lines}
    return CpuCounters(int(fields[5]) * TICK_NS, int(fields[6]) * TICK_NS, int(fields[7]) * TICK_NS, softirqs)


class _Witnessed:
    """A backend before each of whose snapshots something else is read, too."""

    def __init__(self, backend: Backend, read: Callable[[], Any]) -> None:
        self._backend = backend
        self._read = read
        self.seen: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def snapshot(self) -> Snapshot:
        self.seen.append(self._read())
        return self._backend.snapshot()


@dataclass(frozen=True)
class Both:
    """A diagnosis and what was read beside it, at each snapshot: the start and the end of every step."""

    found: Diagnosis
    window: Window
    seen: list[Any]


def measure_with(
    target: targets.Target, seconds: float, read: Callable[[], Any], budget: float | None = 0.005
) -> Both:
    """Diagnose a target; ``read`` is called right before each snapshot."""
    opened = _Witnessed(open_backend("libbpf"), read)
    with Session(cast(Backend, opened), [target], budget) as session:
        session.start()
        return Both(diagnose(session, seconds)[0], session.whole, opened.seen)


def measure(pid: int, seconds: float, budget: float | None = 0.005) -> Both:
    """Diagnose a process beside the counters of its threads."""
    return measure_with(targets.by_pid(pid), seconds, lambda: task_counters(pid), budget)
