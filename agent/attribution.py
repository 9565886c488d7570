"""From a window of readings to one target's account: what was stolen from which threads, and by whom."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from quietcore.agent.critical import critical_threads
from quietcore.agent.targets import Target
from quietcore.probes import cgroups, proc
from quietcore.probes.durations import EMPTY, DurationTotals
from quietcore.probes.errors import MeasureError
from quietcore.probes.readings import BlameTotals, Count, LauncherTotals, ThreadWindow, Window

IDLE = 0
HELD_BACK = 0xFFFFFFFF
"""Offender where a CPU idled for longer than it takes to wake up (``probes/bpf/account.h``)."""
PERIOD_NS = 100_000_000
"""The usual period of a CPU quota: what is held back now counts when the next one begins."""
MIN_LAUNCHES_SHARE = 0.01
"""A thread with fewer launches than this part of the busiest one's paces nothing."""
TICK_HZ = round(1 / time.clock_getres(5))
"""The kernel's tick (CONFIG_HZ), which is what CLOCK_REALTIME_COARSE (5) advances by."""
PF_KTHREAD = 0x00200000  # include/linux/sched.h
LAUNCHES = ("cuLaunch", "cuGraphLaunch", "cudaLaunch", "cudaGraphLaunch")


@dataclass(frozen=True, slots=True)
class Culprit:
    """Who took time from a target's critical threads.

    Attributes:
        kind: ``process``, ``kernel thread``, ``irq``, ``softirq``, ``vector``, ``quota`` or ``idle CPU``;
            of several processes together (:mod:`quietcore.agent.culprits`): ``processes``,
            ``kernel threads`` or ``cgroup``.
        name: comm of the process, interrupt, or cgroup.
        ns: that it ran while the threads were runnable, or within them.
        threads: by (tid, comm): the same, for processes.
        cgroup: id of its cpu cgroup, 0 if unknown.
        count: processes that stand together.
    """

    kind: str
    name: str
    ns: int
    pid: int = 0
    cgroup: int = 0
    threads: Mapping[tuple[int, str], int] = field(default_factory=dict)
    count: int = 1


@dataclass(frozen=True, slots=True)
class Account:
    """One target in one window; times in nanoseconds, of its critical threads unless said otherwise.

    ``self_contention`` is what the target's own threads took from each other,
    ``wakeup_latency`` what passed while the CPU still idled, ``tick`` what the kernel's regular timer
    tick took, as on every busy CPU: none of the three is interference.
    ``unattributed`` is waiting for which no culprit was recorded: where the backend sees culprits, nobody
    is accused of it either. ``None``: not seen by the backend.
    ``quotas`` is by cgroup directory, what its CPU quota denied to all its threads; ``own_cgroups`` are
    the ids of the cpu cgroups that the target lives in.
    """

    target: Target
    start: int
    end: int
    backend: str
    threads: Mapping[int, ThreadWindow]
    critical: frozenset[int]
    critical_by: str
    wall: int
    on_cpu: int
    run_delay: int
    throttled: int | None
    irq: int | None
    softirq: int | None
    self_contention: int | None
    wakeup_latency: int | None
    tick: int | None
    unattributed: int
    culprits: tuple[Culprit, ...]
    launchers: Mapping[int, LauncherTotals] | None
    steal_ns: int | None
    quotas: Mapping[str, int] = field(default_factory=dict)
    own_cgroups: frozenset[int] = frozenset()

    @property
    def stolen(self) -> int:
        """All that was stolen: waits, interrupts (steal of a hypervisor stands apart)."""
        return self.run_delay + (self.irq or 0) + (self.softirq or 0)

    @property
    def interference(self) -> int:
        """The part of it that others are known to have taken."""
        own = (self.self_contention or 0) + (self.wakeup_latency or 0) + (self.tick or 0)
        return self.stolen - own - (self.unknown or 0)

    @property
    def unknown(self) -> int | None:
        """Waiting behind somebody who was not recorded, who may be its own thread as well as another's."""
        return None if self.self_contention is None else self.unattributed

    def share(self, ns: int | None) -> float | None:
        """Part of the critical threads' wall time."""
        return None if ns is None or not self.wall else ns / self.wall

    @property
    def launches(self) -> int | None:
        """Launches that were seen, of all threads."""
        if self.launchers is None:
            return None
        return sum(launch_count(launcher) for launcher in self.launchers.values())

    def durations(self, kind: str) -> DurationTotals:
        """``interval``, ``launch`` or ``sync`` of all launching threads together."""
        total = EMPTY
        for launcher in (self.launchers or {}).values():
            total = total + getattr(launcher, kind)
        return total


def heaviest(quotas: Mapping[str, int]) -> str:
    """The cgroup whose quota denied most, empty if there is none."""
    return max(quotas, key=lambda path: quotas[path], default="")


def launch_count(launcher: LauncherTotals) -> int:
    """Kernel and graph launches among a thread's calls."""
    return sum(n for api, n in launcher.calls.items() if api.startswith(LAUNCHES))


def account(
    window: Window,
    target: Target,
    *,
    launching: frozenset[int] = frozenset(),
    critical: tuple[frozenset[int], str] | None = None,
    throttled: Mapping[str, int] | None = None,
    own_cgroups: frozenset[int] = frozenset(),
) -> Account:
    """Account for one target.

    Args:
        launching: threads that launch, see :func:`launching_threads`: they are critical.
        critical: threads found before, to be kept for a part of the same session.
        throttled: nanoseconds denied by quota in the window, by the cgroups that apply to the target.
        own_cgroups: ids of the target's cpu cgroups.
    """
    threads = {tid: t for tid, t in window.threads.items() if target.owns(t.tgid)}
    launchers = None
    if window.launchers is not None:
        launchers = {tid: la for tid, la in window.launchers.items() if target.owns(la.tgid)}
    if critical is None:
        critical = find_critical(window, target, launching)
    chosen = {tid: threads[tid] for tid in critical[0] if tid in threads}

    def total(values: Iterable[int | None]) -> int | None:
        seen = [v for v in values if v is not None]
        return sum(seen) if seen else None

    run_delay = total(t.split.run_delay for t in chosen.values()) or 0
    held = total(t.split.throttled for t in chosen.values())
    blamed = _blamed(window, target, set(chosen))
    quotas = {path: ns for path, ns in (throttled or {}).items() if ns > 0}
    by_quota = _held_by_quota(blamed.held_back, quotas)
    late = sum(blamed.held_back.values()) - by_quota
    on_cpu = sum(t.split.on_cpu or 0 for t in chosen.values())
    interrupts, tick = _interrupts(window, set(chosen), on_cpu)
    culprits = [*blamed.culprits, *interrupts]
    if quota_ns := (held or 0) + by_quota:
        culprits.append(Culprit("quota", heaviest(quotas), quota_ns))
    if late:
        culprits.append(Culprit("idle CPU", "late to wake up", late))
    others = sum(c.ns for c in blamed.culprits) + late + quota_ns
    attributed = others + (blamed.own or 0) + (blamed.idle or 0)
    return Account(
        target=target,
        start=window.start,
        end=window.end,
        backend=window.backend,
        threads=threads,
        critical=frozenset(chosen),
        critical_by=critical[1],
        wall=sum(t.wall_ns for t in chosen.values()),
        on_cpu=on_cpu,
        run_delay=run_delay,
        throttled=held,
        irq=total(t.irq_ns for t in chosen.values()),
        softirq=total(t.softirq_ns for t in chosen.values()),
        self_contention=blamed.own,
        wakeup_latency=blamed.idle,
        tick=tick,
        unattributed=max(run_delay - attributed, 0),
        culprits=tuple(sorted(culprits, key=lambda c: -c.ns)),
        launchers=launchers,
        steal_ns=None if window.steal_ns is None else sum(window.steal_ns.values()),
        quotas=quotas,
        own_cgroups=own_cgroups,
    )


def launching_threads(window: Window, target: Target) -> frozenset[int]:
    """The target's threads that launch; not those that barely do, beside one that paces the work."""
    counts = {
        tid: launch_count(launcher)
        for tid, launcher in (window.launchers or {}).items()
        if target.owns(launcher.tgid)
    }
    least = max(1, MIN_LAUNCHES_SHARE * max(counts.values(), default=0))
    return frozenset(tid for tid, count in counts.items() if count >= least)


def cgroups_of(target: Target) -> frozenset[int]:
    """Ids of the cpu cgroups that the target's processes are in now."""
    found = {target.cgroup_id} if target.cgroup_id is not None else set()
    for pid in target.processes:
        directory = cgroups.cpu_cgroup(pid)
        if directory is not None:
            try:
                found.add(cgroups.cgroup_id(directory))
            except MeasureError:  # it has just been removed
                continue
    return frozenset(found)


def find_critical(window: Window, target: Target, launching: frozenset[int]) -> tuple[frozenset[int], str]:
    """The threads that pace the target: those that launch, else by wake-up chains."""
    threads = {tid: t for tid, t in window.threads.items() if target.owns(t.tgid)}
    mine = launching & threads.keys()
    if mine:
        return frozenset(mine), "launches"
    return critical_threads(threads, window.wakes)


class _Blamed(NamedTuple):
    """Waiting by who ran instead, ns; ``held_back`` by victim, while the CPU idled for too long."""

    culprits: list[Culprit]
    own: int | None
    idle: int | None
    held_back: dict[int, int]


def _blamed(window: Window, target: Target, victims: set[int]) -> _Blamed:
    if window.blames is None:
        return _Blamed([], None, None, {})
    own = idle = 0
    held_back: dict[int, int] = {}
    by_process: dict[int, dict[tuple[int, str], int]] = {}
    cgroup: dict[int, int] = {}
    for (victim, offender), blame in window.blames.items():
        if victim not in victims:
            continue
        if offender == IDLE:
            idle += blame.ns
            continue
        if offender == HELD_BACK:
            held_back[victim] = blame.ns
            continue
        pid, comm = _offender(window, offender, blame)
        if target.owns(pid):
            own += blame.ns
        else:
            threads = by_process.setdefault(pid, {})
            threads[offender, comm] = threads.get((offender, comm), 0) + blame.ns
            cgroup[pid] = blame.cgroup or cgroup.get(pid, 0)
    culprits = []
    for pid, threads in by_process.items():
        main = max(threads, key=lambda t: threads[t])
        kind = "kernel thread" if is_kernel_thread(pid) else "process"
        name = next((comm for tid, comm in threads if tid == pid and comm), main[1]) or "?"
        culprits.append(Culprit(kind, name, sum(threads.values()), pid, cgroup.get(pid, 0), threads))
    return _Blamed(culprits, own, idle, held_back)


def _held_by_quota(held_back: Mapping[int, int], quotas: Mapping[str, int]) -> int:
    """The part of the waits beside an idle CPU that quotas explain: no thread waits longer than they deny."""
    if not quotas:
        return 0
    denied = sum(quotas.values()) + PERIOD_NS
    return sum(min(ns, denied) for ns in held_back.values())


def _offender(window: Window, tid: int, blame: BlameTotals) -> tuple[int, str]:
    """Process and comm. A waiter that migrates charges the offender by tid alone: look it up."""
    if blame.tgid:
        return blame.tgid, blame.comm
    if known := window.threads.get(tid):
        return known.tgid, known.comm
    return proc.thread_group(tid) or tid, proc.comm(tid)


def is_kernel_thread(pid: int) -> bool:
    """Whether a live process is a kernel thread; ``False`` if it is gone."""
    stat = proc.read_stat(pid)
    # not by the lack of an executable: a zombie has none either
    return stat is not None and bool(stat.flags & PF_KTHREAD)


def _interrupts(window: Window, victims: set[int], on_cpu: int) -> tuple[list[Culprit], int | None]:
    """The interrupts as culprits, and what the regular tick took; timers beyond it are culprits."""
    if window.irqs is None:
        return [], None
    totals: dict[tuple[str, str], Count] = {}
    for (tid, source), count in window.irqs.items():
        if tid in victims:
            key = (source.kind, source.name)
            totals[key] = totals.get(key, Count()) + count
    tick = 0
    culprits = []
    for (kind, name), total in totals.items():
        ns = total.ns
        if total.count and (name == "local_timer" or name.endswith("arch_timer")):
            regular = min(TICK_HZ * on_cpu / 1e9 / total.count, 1.0)
            tick += round(ns * regular)
            ns -= round(ns * regular)
        if ns:
            culprits.append(Culprit(kind, name, ns))
    return culprits, tick
