"""Targets: which processes make up one serving instance, and following them as they come and go."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from quietcore.probes import cgroups, proc
from quietcore.probes.errors import MeasureError, TargetGoneError


@dataclass(slots=True)
class Target:
    """The processes of one serving instance.

    Attributes:
        name: for people, e.g. ``VLLM::EngineCor [4711]``.
        processes: pid to start time (ticks since boot): the pair survives the reuse of a pid.
        cgroup_id: of the cpu controller, where the target was named by its cgroup.
        ended: processes that are gone, as ``processes``; of a pid that was used twice, the later.
        note: what a reader of the result has to know of how it was named.
    """

    name: str
    processes: dict[int, int] = field(default_factory=dict)
    cgroup_id: int | None = None
    cgroup_dir: str | None = None
    ended: dict[int, int] = field(default_factory=dict)
    note: str = ""

    def add(self, pid: int) -> bool:
        """Take a process in; ``False`` if it has ended or is known."""
        stat = proc.read_stat(pid)
        if stat is None or self.processes.get(pid) == stat.started or proc.has_ended(pid, stat.started):
            return False
        self.processes[pid] = stat.started
        return True

    def drop(self, pid: int) -> None:
        """A process is gone."""
        if pid in self.processes:
            self.ended[pid] = self.processes.pop(pid)

    @property
    def alive(self) -> bool:
        """Whether a process of it runs, or its cgroup stands, which a restarted server fills again."""
        return bool(self.processes) or (self.cgroup_dir is not None and os.path.isdir(self.cgroup_dir))

    def owns(self, tgid: int) -> bool:
        """Whether a process is, or was, one of its own.

        Readings hold no start times. Where a stranger has the pid of one that ended, both are taken for
        the stranger: who disturbs those that live must not pass for one of them.
        """
        if tgid in self.processes:
            return True
        if tgid not in self.ended:
            return False
        # with none of ours left, there is nobody whom a stranger could have disturbed
        stat = proc.read_stat(tgid) if self.processes else None
        return stat is None or stat.started == self.ended[tgid]


def by_pid(pid: int) -> Target:
    """The process and its descendants. Raises MeasureError, TargetGoneError.

    A thread (``top -H`` shows their numbers) stands for its process; ``note`` says so then.
    """
    process = proc.thread_group(pid)
    stat = None if process is None else proc.read_stat(process)
    if process is None or stat is None:
        if os.path.exists(f"/proc/{pid}"):
            raise MeasureError(
                f"process {pid} may not be looked into: /proc is mounted with hidepid",
                "run as its user or as root",
            )
        hint = "a container's own number? give the host's, or use --match"
        raise TargetGoneError(f"process {pid} does not exist in this pid namespace", hint)
    if proc.has_ended(process):
        raise TargetGoneError(f"process {process} ({stat.comm}) has ended and waits for its parent")
    target = Target(f"{stat.comm} [{process}]")
    if process != pid:
        target.note = f"{pid} is a thread of {target.name}: all of that process is looked at"
    _add_tree(target, [process])
    return target


def by_match(pattern: re.Pattern[str]) -> list[Target]:
    """Processes whose comm or command line matches, each with its descendants.

    A match below another match belongs to the same target. This process and its
    ancestors, whose command lines hold the pattern, are left out. Raises TargetGoneError.
    """
    ours = _ancestors(os.getpid())
    matching = [pid for pid in proc.process_ids() if pid not in ours and _matches(pid, pattern)]
    targets = _group(matching)
    if not targets:
        raise TargetGoneError(
            f"no process matches {pattern.pattern!r}", "it is searched in comm (15 letters) and command line"
        )
    return targets


def by_cgroup(path: str) -> Target:
    """All processes of a cgroup and those below it, now and to come. Raises MeasureError."""
    directory = cgroups.resolve_cgroup_argument(path)
    target = Target(f"cgroup {cgroups.short_name(str(directory))}", cgroup_id=cgroups.cgroup_id(directory))
    target.cgroup_dir = str(directory)
    for pid in cgroups.processes(directory):
        target.add(pid)
    if not target.processes:
        raise TargetGoneError(f"no process in cgroup {path}", "start the server first, or name another")
    return target


def with_cuda() -> list[Target]:
    """Every process that has a CUDA library mapped, by instance. Raises TargetGoneError."""
    from quietcore.probes.cuda_libs import LibraryAccessError, find_libraries

    found, hidden = [], 0
    for pid in proc.process_ids():
        try:
            if find_libraries(pid):
                found.append(pid)
        except LibraryAccessError:
            hidden += 1
    if not found:
        why = f" ({hidden} could not be looked into: run as root)" if hidden else ""
        raise TargetGoneError(
            f"no process on this host uses CUDA{why}", "name one by --pid, --match or --cgroup"
        )
    return _group(found)


def _group(pids: Iterable[int]) -> list[Target]:
    chosen = set(pids)
    roots = [pid for pid in sorted(chosen) if not (_ancestors(pid) - {pid}) & chosen]
    targets = []
    for pid in roots:
        stat = proc.read_stat(pid)
        if stat and not proc.has_ended(pid):
            target = Target(f"{stat.comm} [{pid}]")
            _add_tree(target, [pid])
            targets.append(target)
    return targets


def _matches(pid: int, pattern: re.Pattern[str]) -> bool:
    command = proc.command_line(pid)
    # a kernel thread has no command line and is nobody's server
    return bool(command and (pattern.search(proc.comm(pid)) or pattern.search(command)))


def _ancestors(pid: int) -> set[int]:
    """The process itself and all above it."""
    line = set()
    while pid and pid not in line:
        line.add(pid)
        stat = proc.read_stat(pid)
        pid = stat.parent if stat else 0
    return line


def _add_tree(target: Target, pids: list[int]) -> None:
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if target.add(pid):
            waiting += proc.children(pid)


@dataclass(slots=True)
class Follower:
    """Keeps targets current: new processes in, dead ones out.

    Args:
        arrived: called with target and pid for each process that came.
        left: called with target and pid for each that went.
    """

    targets: list[Target]
    arrived: Callable[[Target, int], None]
    left: Callable[[Target, int], None]

    def forked(self, pid: int) -> None:
        """A target's process forked ``pid``, or one was born in a target's cgroup."""
        stat = proc.read_stat(pid)
        if stat is None:
            return
        for target in self.targets:
            is_child = stat.parent in target.processes
            is_inside = target.cgroup_dir and pid in cgroups.processes(target.cgroup_dir)
            if is_child or is_inside:
                self._drop_if_ended(target, pid)  # one of ours that had the same number
                if target.add(pid):
                    self.arrived(target, pid)

    def ended(self, pid: int) -> None:
        """A process, or its main thread, ended."""
        for target in self.targets:
            self._drop_if_ended(target, pid)

    def _drop_if_ended(self, target: Target, pid: int) -> bool:
        started = target.processes.get(pid)
        if started is None or not proc.has_ended(pid, started):
            return False
        target.drop(pid)
        self.left(target, pid)
        return True

    def sweep(self) -> None:
        """Look at all: what events missed, pids used again, processes moved into a cgroup."""
        for target in self.targets:
            for pid in list(target.processes):
                if self._drop_if_ended(target, pid):
                    continue
                for child in proc.children(pid):
                    if child not in target.processes and target.add(child):
                        self.arrived(target, child)
            if target.cgroup_dir:
                try:
                    inside = cgroups.processes(target.cgroup_dir)
                except MeasureError:
                    continue
                for pid in inside:
                    if pid not in target.processes and target.add(pid):
                        self.arrived(target, pid)
