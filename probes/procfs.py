"""The backend for users without root: each thread's own account in /proc, read at every snapshot.

Nothing tells us of births and deaths, so each snapshot walks the targets again. Two
counters lag: the kernel adds to a thread's CPU time at its next tick or switch, and a
wait to its run delay when the wait is over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from quietcore.probes import proc
from quietcore.probes.backend import BackendName, Events, Probe, ProcessEvent, ProgramStatus, UprobeLink
from quietcore.probes.cgroups import CpuCgroups, processes
from quietcore.probes.errors import BackendUnavailableError, MeasureError, TargetGoneError
from quietcore.probes.readings import Snapshot, ThreadTotals, TimeSplit

MISSING = (
    "run-queue wait, preemption and CPU quota apart from each other (only their sum, the run delay)",
    "sleep apart from blocking",
    "who ran while a thread waited, and who woke whom",
    "time lost to interrupts, and their sources",
    "CUDA calls, launch intervals and launch latencies",
    "threads that live only between two snapshots, and what a thread did after the last one before it ended",
    "processes that a child leaves behind when it ends between two snapshots",
)
_HIDDEN = (
    "look it up again with ps or pgrep; if another user runs it, the mount option hidepid of /proc "
    "may hide it: run as that user or as root"
)
_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_MAX_ENDED = 8192


class _Counters(NamedTuple):
    """What the kernel counted since a thread's birth; times in nanoseconds."""

    on_cpu: int = 0
    run_delay: int = 0
    voluntary: int = 0
    involuntary: int = 0

    def went_back(self, earlier: _Counters) -> bool:
        return self.on_cpu < earlier.on_cpu or self.run_delay < earlier.run_delay


@dataclass(slots=True)
class _Thread:
    """A thread's beginning, as told to the outside and as the kernel has it (ticks), and its last reading."""

    began: int
    started: int
    born: bool
    base: _Counters
    last: _Counters
    totals: ThreadTotals | None = None
    over: bool = False


@dataclass(slots=True)
class _Process:
    """A target process. ``scanned``: what is born later has not been seen yet."""

    started: int
    scanned: int
    older: set[int]  # children from before it was a target
    threads: dict[int, _Thread] = field(default_factory=dict)


class ProcfsBackend:
    """CPU time, run delay and context switches of target threads, without privileges.

    The schedstat of every user's threads can be read unless ``/proc`` is mounted with hidepid.
    """

    name: BackendName = "procfs"

    def __init__(self) -> None:
        self.missing: Sequence[str] = MISSING
        self._processes: dict[int, _Process] = {}
        self._forgotten: dict[int, int] = {}  # pid -> start in ticks
        self._cgroups: dict[Path, set[int]] = {}  # directory -> processes from before it was a target
        self._hierarchy: CpuCgroups | None = None
        self._events: list[ProcessEvent] = []
        self._ended: dict[int, ThreadTotals] = {}
        self._losses = {"unreadable_threads": 0, "ended_threads": 0}
        self._followed = time.monotonic_ns()

    def start(self) -> None:
        """Check that the kernel keeps the account. Raises BackendUnavailableError."""
        pid = os.getpid()
        own = proc.read_schedstat(pid, pid)
        if own is None or not own.slices:
            raise BackendUnavailableError(
                "procfs",
                "schedstat",
                f"/proc/{pid}/schedstat is {'missing' if own is None else 'all zeros'}",
                "use a kernel with CONFIG_SCHED_INFO=y and /proc mounted, or another backend as root",
            )

    def add_process(self, pid: int) -> None:
        """Account all threads of a process, and processes that it will fork.

        Raises:
            TargetGoneError: no such process, or it is hidden from this user.
            MeasureError: its schedstat cannot be read.
        """
        stat = proc.read_stat(pid)
        known = self._processes.get(pid)
        if stat and known and known.started == stat.started:
            return
        process = _Process(stat.started if stat else 0, time.monotonic_ns(), set(_children([pid])))
        self._scan(pid, process, seeding=True)
        if all(thread.over for thread in process.threads.values()):
            if process.threads:
                raise TargetGoneError(f"process {pid} has ended and waits for its parent")
            if _started(pid) is None:
                raise TargetGoneError(f"process {pid} does not exist", _HIDDEN)
            raise MeasureError(
                f"/proc/{pid}/task/*/schedstat cannot be read",
                "run as the user of that process or as root, outside of a sandbox that masks /proc",
            )
        self._processes[pid] = process

    def add_cgroup(self, cgroup_id: int) -> None:
        """Account processes that will be forked in a cgroup; looked for at each snapshot.

        Raises MeasureError if no cgroup of the cpu hierarchy has this id.
        """
        hierarchy = self._hierarchy = self._hierarchy or CpuCgroups.find()
        directory = hierarchy.directory_by_id(cgroup_id)
        if directory is None:
            raise MeasureError(f"no cgroup under {hierarchy.mount} has the id {cgroup_id}")
        self._cgroups[directory] = set(processes(directory, recursive=False))

    def remove_process(self, pid: int) -> None:
        """Forget a process, and do not follow it any more."""
        self._drop(pid)
        self._ended = {tid: totals for tid, totals in self._ended.items() if totals.tgid != pid}

    def end_process(self, pid: int) -> None:
        """Nothing: each snapshot compares start times, and the next one tells of the end."""

    def _drop(self, pid: int) -> None:
        process = self._processes.pop(pid, None)
        if process:
            self._forgotten[pid] = process.started

    def attach_cuda(self, pid: int, path: str, probes: Sequence[Probe]) -> UprobeLink:
        """Always raises BackendUnavailableError: uprobes need a BPF backend."""
        raise BackendUnavailableError(
            "procfs",
            "attach",
            f"process {pid}: CUDA calls cannot be seen from /proc",
            "run as root, or with CAP_BPF and CAP_PERFMON, so that the libbpf backend works",
        )

    def count_launches(self, enabled: bool) -> None:
        """Nothing to switch: no probe can be attached."""

    def probe_hits(self) -> dict[int, int]:
        """Empty: no probe can be attached."""
        return {}

    def snapshot(self) -> Snapshot:
        """Running totals, now; those of threads that have ended stay until their process is removed."""
        self._follow()
        threads: dict[int, ThreadTotals] = {}
        for pid, process in list(self._processes.items()):
            stat = proc.read_stat(pid)
            same = stat is not None and stat.started == process.started
            threads |= self._scan(pid, process) if same else _end(process.threads.values())
            if not same or all(thread.over for thread in process.threads.values()):
                self._drop(pid)  # a zombie stays among its parent's children
                self._events.append(ProcessEvent("exit", pid))
        self._keep_ended(threads)
        try:
            steal = proc.steal_ns()
        except OSError:  # /proc mounted with subset=pid
            steal = {}
        return Snapshot(
            time=time.monotonic_ns(),
            backend=self.name,
            threads=self._ended | threads,
            losses=dict(self._losses),
            steal_ns=steal or None,
        )

    def _keep_ended(self, threads: dict[int, ThreadTotals]) -> None:
        for tid, totals in threads.items():
            self._ended.pop(tid, None)
            if totals.ended:
                self._ended[tid] = totals
        while len(self._ended) > _MAX_ENDED:
            del self._ended[next(iter(self._ended))]
            self._losses["ended_threads"] += 1

    def _follow(self) -> None:
        """Find processes that were forked since the last snapshot, and theirs."""
        self._forgotten = {
            pid: started for pid, started in self._forgotten.items() if _started(pid) == started
        }
        found = {
            child: process.scanned
            for pid, process in self._processes.items()
            for child in set(_children([pid])) - process.older
        }
        for directory, older in self._cgroups.items():
            now = set(processes(directory, recursive=False))
            older &= now
            found |= dict.fromkeys(now - older, self._followed)
        self._followed = time.monotonic_ns()
        while found:
            added = [pid for pid, since in found.items() if self._adopt(pid, since)]
            found = {child: self._processes[pid].scanned for pid in added for child in _children([pid])}

    def _adopt(self, pid: int, since: int) -> bool:
        """Account a process, from its birth if that was after ``since``. False if it is known or gone."""
        stat = proc.read_stat(pid)
        if pid in self._processes or pid in self._forgotten or stat is None:
            return False
        # all its children are born under our eyes
        self._processes[pid] = _Process(stat.started, since, older=set())
        self._events.append(ProcessEvent("fork", pid))
        return True

    def _scan(self, pid: int, process: _Process, *, seeding: bool = False) -> dict[int, ThreadTotals]:
        """Read all threads of a process."""
        begun = time.monotonic_ns()
        try:
            tids = set(proc.thread_ids(pid))
        except (TargetGoneError, PermissionError):
            tids = set()
        read: dict[int, ThreadTotals] = {}
        for tid in tids:
            try:
                totals = self._read(pid, tid, process, seeding)
            except PermissionError:
                self._losses["unreadable_threads"] += 1
                continue
            if totals:
                read[tid] = totals
        gone = [thread for tid, thread in process.threads.items() if tid not in tids]
        process.threads = {tid: thread for tid, thread in process.threads.items() if tid in tids}
        process.scanned = begun
        return _end(gone) | read

    def _read(self, pid: int, tid: int, process: _Process, seeding: bool) -> ThreadTotals | None:
        """One thread's totals; ``None`` if it is gone, or was told to be over before."""
        stat = proc.read_stat(pid, tid)
        account = proc.read_schedstat(pid, tid)
        now = time.monotonic_ns()
        switches = proc.context_switches(pid, tid)
        if stat is None or account is None or switches is None:
            return None
        counters = _Counters(account.on_cpu_ns, account.run_delay_ns, *switches)
        thread = process.threads.get(tid)
        if thread and (thread.started != stat.started or counters.went_back(thread.last)):
            # the tid was used again; or another thread took it over by exec, which has a past
            seeding, thread = thread.started == stat.started, None
        if thread is None:
            birth = _monotonic(stat.started)  # up to a tick too early
            if seeding or birth + _NS_PER_TICK <= process.scanned:
                thread = _Thread(now, stat.started, False, counters, counters)
            else:
                began = min(max(birth, process.scanned), now)
                thread = _Thread(began, stat.started, True, _Counters(), counters)
            process.threads[tid] = thread
        if thread.over:
            return None
        thread.last = counters
        thread.over = stat.state in proc.OVER
        thread.totals = _totals(stat, pid, tid, now, thread)
        return thread.totals

    def events(self) -> Events:
        """Forks and ends that snapshots found since the last call; never an exec."""
        found, self._events = self._events, []
        return Events(processes=found)

    def event_fd(self) -> int | None:
        """``None``: there is nothing to wait for."""
        return None

    def programs(self) -> list[ProgramStatus]:
        """Empty: nothing is loaded."""
        return []

    def close(self) -> None:
        """Forget all targets. May be called twice."""
        self._processes, self._forgotten, self._ended = {}, {}, {}
        self._cgroups, self._events = {}, []


def _totals(stat: proc.TaskStat, pid: int, tid: int, now: int, thread: _Thread) -> ThreadTotals:
    on_cpu, run_delay, voluntary, involuntary = (
        n - base for n, base in zip(thread.last, thread.base, strict=True)
    )
    return ThreadTotals(
        tid=tid,
        tgid=pid,
        comm=stat.comm,
        read_at=now,
        began=thread.began,
        split=TimeSplit(on_cpu=on_cpu, run_delay=run_delay),
        born=thread.born,
        ended=thread.over,
        voluntary=voluntary,
        involuntary=involuntary,
    )


def _end(threads: Iterable[_Thread]) -> dict[int, ThreadTotals]:
    """The last totals of threads that are gone."""
    ended = {}
    for thread in threads:
        if thread.totals and not thread.over:
            last = thread.totals
            ended[last.tid] = replace(last, ended=True)
    return ended


def _started(pid: int) -> int | None:
    stat = proc.read_stat(pid)
    return stat.started if stat else None


def _monotonic(ticks_since_boot: int) -> int:
    """CLOCK_MONOTONIC stands still in suspend, the start times of /proc do not."""
    asleep = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return ticks_since_boot * _NS_PER_TICK - asleep


@cache
def _has_children_file() -> bool:
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def _children(parents: Iterable[int]) -> list[int]:
    """Processes forked by ``parents`` that still live."""
    wanted = set(parents)
    if _has_children_file():
        return [child for pid in wanted for child in proc.children(pid)]
    # a kernel without CONFIG_PROC_CHILDREN
    stats = (proc.read_stat(pid) for pid in proc.process_ids())
    return [stat.pid for stat in stats if stat and stat.parent in wanted]
