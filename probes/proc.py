"""Readers of /proc that every backend and the agent need. No state, no policy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quietcore.probes.errors import TargetGoneError

PROC = Path("/proc")
OVER = "ZX"
"""States of a thread that will not run again."""
_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class TaskStat:
    """The fields of /proc/PID/stat that we use.

    ``started`` is in clock ticks since boot, ``flags`` are PF_*, ``policy`` is SCHED_*; ``cpu`` is where it
    ran last.
    """

    pid: int
    comm: str
    state: str
    parent: int
    started: int
    flags: int
    cpu: int = 0
    policy: int = 0


def printable(name: str) -> str:
    """A name that anybody may have given, for a terminal and one line: what moves the cursor is a ``?``."""
    return name if name.isprintable() else "".join(c if c.isprintable() else "?" for c in name)


def read_stat(pid: int, tid: int | None = None) -> TaskStat | None:
    """The stat line of a process, or of one of its threads; ``None`` if it is gone or hidden (hidepid)."""
    path = f"/proc/{pid}/stat" if tid is None else f"/proc/{pid}/task/{tid}/stat"
    try:
        with open(path, "rb") as f:
            line = printable(f.read().decode(errors="replace").rstrip())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # comm may hold spaces and parentheses: it ends at the last one
    head, _, tail = line.rpartition(")")
    number, _, comm = head.partition("(")
    fields = tail.split()
    parent, flags, started, cpu, policy = (int(fields[index]) for index in (1, 6, 19, 36, 38))
    return TaskStat(int(number), comm, fields[0], parent, started, flags, cpu, policy)


def thread_ids(pid: int) -> list[int]:
    """Thread ids of a process. Raises TargetGoneError."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        raise TargetGoneError(f"process {pid} does not exist", "look it up again with ps or pgrep") from None


def has_ended(pid: int, started: int | None = None) -> bool:
    """Whether a process is over: gone, all its threads ended, or its number another's by now.

    The main thread may end before the others: it is a zombie then, while the process lives.

    Args:
        started: when the process that is meant began (clock ticks since boot), ``None`` for whoever it is.
    """
    stat = read_stat(pid)
    if stat is None or started not in (None, stat.started):
        return True
    if stat.state not in OVER:
        return False
    try:
        threads = [read_stat(pid, tid) for tid in thread_ids(pid)]
    except (TargetGoneError, PermissionError):
        return True
    return all(thread is None or thread.state in OVER for thread in threads)


_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of include/linux/proc_ns.h


def in_first_pid_namespace() -> bool:
    """Whether this process sees the host's process ids, as BPF programs do."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE
    except OSError:
        return True  # a kernel without pid namespaces


def process_ids() -> list[int]:
    """All processes of this pid namespace."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children(pid: int) -> list[int]:
    """Processes forked by any thread of ``pid`` that still live; empty if it is gone or hidden."""
    found: list[int] = []
    try:
        for tid in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{tid}/children", "rb") as f:
                found += map(int, f.read().split())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass
    return found


def thread_group(tid: int) -> int | None:
    """The process that a thread belongs to; ``None`` if it is gone or hidden."""
    try:
        with open(f"/proc/{tid}/status", "rb") as f:
            return next((int(line.split()[1]) for line in f if line.startswith(b"Tgid:")), None)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def command_line(pid: int) -> str:
    """Arguments joined by spaces; empty for kernel threads and processes that are gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return f.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def comm(pid: int) -> str:
    """The name of a process or thread; empty if it is gone or hidden."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as f:
            return printable(f.read().decode(errors="replace").removesuffix("\n"))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


@dataclass(frozen=True, slots=True)
class SchedStat:
    """/proc/PID/task/TID/schedstat: nanoseconds on a CPU and runnable without one."""

    on_cpu_ns: int
    run_delay_ns: int
    slices: int


def read_schedstat(pid: int, tid: int) -> SchedStat | None:
    """The kernel's own account of a thread; ``None`` if it is gone or the kernel keeps none."""
    try:
        with open(f"/proc/{pid}/task/{tid}/schedstat", "rb") as f:
            return SchedStat(*map(int, f.read().split()))
    except (FileNotFoundError, ProcessLookupError, TypeError, ValueError):
        return None


def context_switches(pid: int, tid: int) -> tuple[int, int] | None:
    """(voluntary, nonvoluntary) context switches of a thread; ``None`` if it is gone."""
    try:
        with open(f"/proc/{pid}/task/{tid}/status", "rb") as f:
            lines = dict(line.split(b":", 1) for line in f if b":" in line)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(lines[b"voluntary_ctxt_switches"]), int(lines[b"nonvoluntary_ctxt_switches"])


def steal_ns() -> dict[int, int]:
    """What the hypervisor took from each CPU, as the kernel knows it."""
    return {cpu: fields[7] * _NS_PER_TICK for cpu, fields in _cpu_lines() if len(fields) > 7}


def softirq_time_ns() -> dict[int, int]:
    """Time in softirqs of each CPU, as /proc/stat has it (sampled by the tick)."""
    return {cpu: fields[6] * _NS_PER_TICK for cpu, fields in _cpu_lines() if len(fields) > 6}


def _cpu_lines() -> Iterator[tuple[int, list[int]]]:
    with open("/proc/stat", "rb") as f:
        for line in f:
            name, *fields = line.split()
            if name.startswith(b"cpu") and name != b"cpu":
                yield int(name[3:]), [int(x) for x in fields]


def irq_names() -> dict[int, str]:
    """Device interrupts: number to ``NUMBER DEVICE``."""
    names = {}
    with open("/proc/interrupts", "rb") as f:
        cpus = len(f.readline().split())
        for line in f:
            number, _, rest = line.decode(errors="replace").partition(":")
            if number.strip().isdigit():
                described = rest.split()[cpus:]
                device = described[-1] if described else "?"
                names[int(number)] = f"{number.strip()} {device}"
    return names


def softirq_counts() -> dict[str, list[int]]:
    """/proc/softirqs: counts by vector name, one a CPU."""
    with open("/proc/softirqs", "rb") as f:
        next(f)
        rows = (line.decode().split() for line in f)
        return {row[0].rstrip(":"): [int(n) for n in row[1:]] for row in rows if row}
