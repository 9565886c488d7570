"""Processes, interrupts and a cgroup for pin control to act on, and what they are like at a moment."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cpu_cgroup import PREFIX

from quietcore.agent.pin.plan import Setting
from quietcore.agent.pin.things import CpusetDir, IrqLine, Thread, find_thread, threads_of
from quietcore.agent.pin.thread_levers import cpusets, get_attr
from quietcore.probes import proc
from quietcore.probes.host.finding import format_list, status_fields, try_read
from quietcore.probes.topology import Irq, read_interrupts

ROOT = Path(__file__).parents[1]
CROWD = ROOT / "tests" / "fixtures" / "crowd.py"
SLICE_NS = 3_000_000
ThreadState = tuple[str, int, int]
"""CPUs, nice, slice."""


class Crowd:
    """A running ``crowd.py``; ``tids`` are its workers."""

    def __init__(self, threads: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", CROWD, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        assert self.process.stdout is not None
        self.tids: list[int] = json.loads(self.process.stdout.readline())

    def tell(self, command: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def thread(self, index: int) -> Thread:
        return self.thread_of(self.tids[index])

    def thread_of(self, tid: int) -> Thread:
        found = find_thread(self.pid, tid)
        assert found is not None
        return found

    @property
    def started(self) -> int:
        stat = proc.read_stat(self.pid)
        assert stat is not None
        return stat.started

    def stop(self) -> None:
        for child in proc.children(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, 9)
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def crowd(threads: int = 4) -> Iterator[Crowd]:
    made = Crowd(threads)
    try:
        yield made
    finally:
        made.stop()


def cpuset_root() -> Path | None:
    """Where a cgroup with a cpuset of its own can be made; ``None`` without."""
    found = cpusets()
    if found is None:
        return None
    enabled = found.version == 1 or "cpuset" in try_read(found.mount / "cgroup.subtree_control").split()
    return found.mount if enabled else None


@contextlib.contextmanager
def cpuset_cgroup() -> Iterator[Path]:
    """A cgroup that allows all CPUs; its processes are moved up at the end. Needs :func:`cpuset_root`."""
    root = cpuset_root()
    assert root is not None
    folder = root / f"{PREFIX}{os.getpid()}-pin"
    folder.mkdir()
    try:
        for name in ("cpuset.cpus", "cpuset.mems"):
            source = root / name if (root / name).exists() else root / f"{name}.effective"
            (folder / name).write_text(source.read_text())
        yield folder
    finally:
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (root / "cgroup.procs").write_text(pid)
        folder.rmdir()


def movable_irqs(most: int = 4) -> list[Irq]:
    """Device interrupts of this machine that may be moved."""
    return [irq for irq in read_interrupts().values() if irq.name and not irq.managed][:most]


def thread_state(pid: int, tid: int) -> ThreadState | None:
    """``None`` if it is gone."""
    try:
        cpus = status_fields(proc.PROC, f"{pid}/task/{tid}")["Cpus_allowed_list"]
        return cpus, os.getpriority(os.PRIO_PROCESS, tid), get_attr(tid)[3]
    except OSError:
        return None


@dataclass(frozen=True)
class State:
    """All that pin control may have changed."""

    threads: dict[int, ThreadState]
    irqs: dict[int, str]
    cpuset: str

    def differences(self, other: State) -> list[str]:
        found = [
            f"thread {tid}: {state} -> {other.threads.get(tid)}"
            for tid, state in self.threads.items()
            if other.threads.get(tid) != state
        ]
        found += [
            f"IRQ {n}: {cpus} -> {other.irqs[n]}" for n, cpus in self.irqs.items() if other.irqs[n] != cpus
        ]
        return found + ([f"cpuset: {self.cpuset} -> {other.cpuset}"] if self.cpuset != other.cpuset else [])


def read_state(crowds: Sequence[Crowd], irqs: Sequence[Irq], cgroup: Path | None) -> State:
    """Of the workers, of these interrupts and of the cgroup."""
    threads = {
        tid: state for one in crowds for tid in one.tids if (state := thread_state(one.pid, tid)) is not None
    }
    masks = {irq.number: Path(f"/proc/irq/{irq.number}/smp_affinity_list").read_text() for irq in irqs}
    return State(threads, masks, (cgroup / "cpuset.cpus").read_text() if cgroup else "")


def strays(crowds: Sequence[Crowd], wanted: ThreadState) -> list[str]:
    """Threads that were born since, and are not as their makers were at first."""
    return [
        f"thread {thread.tid} of {one.pid}: {state}"
        for one in crowds
        for thread in threads_of(one.pid)
        if thread.tid not in (one.pid, *one.tids)
        and (state := thread_state(one.pid, thread.tid)) not in (None, wanted)
    ]


def settings_on(
    cpu: int, threads: Sequence[Thread], irqs: Sequence[tuple[int, str]], cgroup: str = ""
) -> list[Setting]:
    """Every lever at once: all on one CPU."""
    cpus = format_list({cpu})
    made = [
        setting
        for thread in threads
        for setting in (
            Setting("affinity", thread, cpus),
            Setting("nice", thread, -5 - cpu),
            Setting("slice", thread, SLICE_NS + 100_000 * cpu),
        )
    ]
    made += [Setting("irq", IrqLine(number, name), cpus) for number, name in irqs]
    if cgroup:
        made.append(Setting("cpuset", CpusetDir(cgroup, os.stat(cgroup).st_ino), cpus))
    return made
