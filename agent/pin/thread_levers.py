"""Levers on threads: the CPUs that they may use, nice, slice, and the nice of their session."""

from __future__ import annotations

import ctypes as ct
import errno
import functools
import os
import platform
import struct
from pathlib import Path
from typing import ClassVar

from quietcore.agent.pin.levers import CpuListLever, GoneError, Lever, RefusedError, kernel_answers
from quietcore.agent.pin.things import Autogroup, Thing, Thread, Value, is_there
from quietcore.probes import proc
from quietcore.probes.cgroups import CpuCgroups, with_ancestors
from quietcore.probes.errors import MeasureError
from quietcore.probes.host.finding import format_list, parse_list, read_text, status_fields, try_read

UNBOUND = "+"
"""Ends a list of CPUs that is no choice of the thread's, only what its cpuset allows."""
FAIR = frozenset({0, 3})
"""SCHED_OTHER and SCHED_BATCH: the policies for which nice and slice mean anything."""
_POSSIBLE = Path("/sys/devices/system/cpu/possible")
_EFFECTIVE = ("cpuset.cpus.effective", "cpuset.effective_cpus")  # v2, v1
_SETATTR = {"x86_64": 314, "aarch64": 274}
_GETATTR = {"x86_64": 315, "aarch64": 275}
# struct sched_attr (linux/sched/types.h): size, policy, flags, nice, priority, runtime, deadline, period, ...
_ATTR = struct.Struct("<IIQiIQQQII")
_RESET_ON_FORK = 1


def _expect(thread: Thread) -> None:
    if not is_there(thread):
        raise GoneError(f"{thread} is gone")


class Affinity(CpuListLever):
    """The CPUs that a thread may use.

    A value that ends with ``+`` is no wish of the thread's own but all that its cpuset allows. It is
    restored as such, so that the thread follows the cpuset again wherever that goes.
    """

    name: ClassVar[str] = "affinity"
    thing: ClassVar[type[Thing]] = Thread
    inherited: ClassVar[bool] = True
    word: ClassVar[str] = "CPUs"

    def read(self, thing: Thread) -> Value:
        _expect(thing)
        with kernel_answers():
            # not by sched_getaffinity: it leaves out CPUs that are offline now
            fields = status_fields(proc.PROC, f"{thing.pid}/task/{thing.tid}")
        allowed = parse_list(fields["Cpus_allowed_list"])
        return format_list(allowed) + (UNBOUND if self._is_unbound(thing.pid, allowed) else "")

    def write(self, thing: Thread, value: Value) -> None:
        text = str(value)
        cpus = _possible() if text.endswith(UNBOUND) else parse_list(text)
        _expect(thing)
        with kernel_answers():
            os.sched_setaffinity(thing.tid, cpus)

    def same(self, one: Value, other: Value) -> bool:
        first, second = str(one), str(other)
        if first.endswith(UNBOUND) and second.endswith(UNBOUND):
            return True
        return super().same(first.removesuffix(UNBOUND), second.removesuffix(UNBOUND))

    @staticmethod
    def _is_unbound(pid: int, allowed: set[int]) -> bool:
        return allowed == _possible() or allowed == allowed_by_cpuset(pid)


@functools.cache
def _possible() -> set[int]:
    return parse_list(read_text(_POSSIBLE))


@functools.cache
def cpusets() -> CpuCgroups | None:
    """The hierarchy of the cpuset controller; ``None`` if none is mounted."""
    try:
        return CpuCgroups.find(controller="cpuset")
    except MeasureError:
        return None


def allowed_by_cpuset(pid: int) -> set[int]:
    """The CPUs that a process's cpuset lets it use; empty where there is none, or it cannot be seen."""
    found = cpusets()
    try:
        directory = found.directory(pid) if found else None
    except MeasureError:
        return set()
    for level in with_ancestors(directory) if directory else ():
        for name in _EFFECTIVE:
            if text := try_read(level / name):
                return parse_list(text)
    return set()


class Nice(Lever):
    """The nice value of a thread."""

    name: ClassVar[str] = "nice"
    thing: ClassVar[type[Thing]] = Thread
    inherited: ClassVar[bool] = True
    word: ClassVar[str] = "nice"

    def read(self, thing: Thread) -> Value:
        _expect(thing)
        with kernel_answers():
            return os.getpriority(os.PRIO_PROCESS, thing.tid)

    def write(self, thing: Thread, value: Value) -> None:
        _expect(thing)
        with kernel_answers():
            os.setpriority(os.PRIO_PROCESS, thing.tid, int(value))


class Slice(Lever):
    """The time slice that a thread asks for, nanoseconds; 0 for the kernel's own. From 6.12."""

    name: ClassVar[str] = "slice"
    thing: ClassVar[type[Thing]] = Thread
    inherited: ClassVar[bool] = True
    word: ClassVar[str] = "slice"

    def read(self, thing: Thread) -> Value:
        _expect(thing)
        policy, _, _, runtime = self._get(thing.tid)
        usual = default_slice()
        if policy not in FAIR:
            raise RefusedError(f"its scheduling policy ({policy}) has no slice")
        if not usual:
            raise RefusedError("this kernel (before 6.12) lets no thread choose its slice")
        return 0 if runtime == usual else runtime

    def write(self, thing: Thread, value: Value) -> None:
        _expect(thing)
        policy, flags, nice, _ = self._get(thing.tid)
        attr = _ATTR.pack(_ATTR.size, policy, flags & _RESET_ON_FORK, nice, 0, int(value), 0, 0, 0, 0)
        with kernel_answers():
            _call(_SETATTR, thing.tid, attr, 0)

    @staticmethod
    def _get(tid: int) -> tuple[int, int, int, int]:
        with kernel_answers():
            return get_attr(tid)


def get_attr(tid: int) -> tuple[int, int, int, int]:
    """Policy, flags, nice and slice (ns) of a thread, 0 for this one. Raises OSError."""
    buffer = ct.create_string_buffer(_ATTR.size)
    _call(_GETATTR, tid, buffer, _ATTR.size, 0)
    _, policy, flags, nice, _, runtime, *_ = _ATTR.unpack(buffer.raw)
    return policy, flags, nice, runtime


@functools.cache
def default_slice() -> int:
    """What a thread has that asks for nothing, by our own; 0 before kernel 6.12."""
    try:
        return get_attr(0)[3]
    except OSError:
        return 0


def _call(numbers: dict[str, int], *arguments: object) -> None:
    number = numbers.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    libc = ct.CDLL(None, use_errno=True)
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ct.get_errno(), os.strerror(ct.get_errno()))


class SessionNice(Lever):
    """The nice of a whole session (autogroup), where the kernel weighs sessions against each other.

    Inside such a kernel the nice of a thread counts only against threads of its own session.
    """

    name: ClassVar[str] = "session-nice"
    thing: ClassVar[type[Thing]] = Autogroup
    word: ClassVar[str] = "nice"

    def read(self, thing: Autogroup) -> Value:
        pid = self._member(thing)
        with kernel_answers():
            return int(read_text(proc.PROC / str(pid) / "autogroup").split()[-1])

    def write(self, thing: Autogroup, value: Value) -> None:
        pid = self._member(thing)
        with kernel_answers():
            (proc.PROC / str(pid) / "autogroup").write_text(str(int(value)))

    @staticmethod
    def _member(thing: Autogroup) -> int:
        for pid in (thing.pid, *proc.process_ids()):
            if autogroup_of(pid) == thing.group:
                return pid
        raise GoneError(f"{thing} has no process left")


def autogroup_of(pid: int) -> str:
    """The name of a process's autogroup; empty without any, and for a process that is gone."""
    return try_read(proc.PROC / str(pid) / "autogroup").partition(" ")[0]
