"""What levers act on, named so that it is never mistaken for another that came after it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from quietcore.probes import proc

Value = int | str
"""What a lever sets: a number, or a list of CPUs as the kernel prints it."""


class Thread(NamedTuple):
    """A thread: its process and itself, each with its start (clock ticks since boot)."""

    pid: int
    started: int
    tid: int
    thread_started: int

    def __str__(self) -> str:
        return f"thread {self.tid} ({proc.comm(self.tid) or 'ended'})"


class Autogroup(NamedTuple):
    """A session's scheduling group, whose number comes but once a boot; ``pid`` was in it."""

    group: str
    pid: int

    def __str__(self) -> str:
        return f"session {self.group}"


class IrqLine(NamedTuple):
    """A device interrupt: its number and its handlers."""

    number: int
    name: str

    def __str__(self) -> str:
        return f"IRQ {self.number} ({self.name})"


class CpusetDir(NamedTuple):
    """A cgroup of the cpuset controller: its directory and that one's inode."""

    path: str
    inode: int

    def __str__(self) -> str:
        return f"cpuset {self.path}"


class Balancer(NamedTuple):
    """A running irqbalance and its start (clock ticks since boot)."""

    pid: int
    started: int

    def __str__(self) -> str:
        return f"irqbalance {self.pid}"


Thing = Thread | Autogroup | IrqLine | CpusetDir | Balancer
_KINDS: dict[type[Thing], tuple[type, ...]] = {
    Thread: (int, int, int, int),
    Autogroup: (str, int),
    IrqLine: (int, str),
    CpusetDir: (str, int),
    Balancer: (int, int),
}


def thing_of(kind: type[Thing], fields: object) -> Thing:
    """A thing from its fields, as JSON gives them back. Raises ValueError if they are not its."""
    types = _KINDS[kind]
    if (
        not isinstance(fields, list)
        or len(fields) != len(types)
        or any(type(field) is not wanted for field, wanted in zip(fields, types, strict=True))
    ):
        raise ValueError(f"{fields!r} is no {kind.__name__}")
    return kind(*fields)


def find_thread(pid: int, tid: int) -> Thread | None:
    """A thread that lives now; ``None`` if it, or its process, is gone."""
    process, thread = proc.read_stat(pid), proc.read_stat(pid, tid)
    if process is None or thread is None or thread.state in proc.OVER:
        return None
    return Thread(pid, process.started, tid, thread.started)


def is_there(thread: Thread) -> bool:
    """Whether this very thread lives: its numbers may be others' by now."""
    return find_thread(thread.pid, thread.tid) == thread


def threads_of(pid: int) -> list[Thread]:
    """All threads of a process that live now, empty if it is gone."""
    process = proc.read_stat(pid)
    if process is None:
        return []
    found = []
    try:
        tids: Sequence[str] = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    for name in tids:
        thread = proc.read_stat(pid, int(name))
        if thread is not None and thread.state not in proc.OVER:
            found.append(Thread(pid, process.started, int(name), thread.started))
    return found


def ticks_now() -> int:
    """The clock by which processes' starts are told."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
