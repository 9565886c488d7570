"""From a window of readings to one target's account: what was stolen from which threads, and by whom."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from quietcore.agent.critical import critical_threads
from quietcore.agent.targets import Target
from quietcore.probes import proc
from quietcore.probes.durations import EMPTY, DurationTotals
from quietcore.probes.readings import BlameTotals, Count, LauncherTotals, ThreadWindow, Window

IDLE = 0
TICK_HZ = round(1 / time.clock_getres(5))
"""The kernel's tick (CONFIG_HZ), which is what CLOCK_REALTIME_COARSE (5) advances by."""
LAUNCHES = ("cuLaunch", "cuGraphLaunch", "cudaLaunch", "cudaGraphLaunch")


@dataclass(frozen=True, slots=True)
class Culprit:
    """Who took time from a target's critical threads.

    Attributes:
        kind: ``process``, ``kernel thread``, ``irq``, ``softirq``, ``vector`` or ``quota``.
        name: comm of the process, interrupt, or cgroup.
        ns: that it ran while the threads were runnable, or within them.
        threads: by (tid, comm): the same, for processes.
        cgroup: id of its cpu cgroup, 0 if unknown.
    """

    kind: str
    name: str
    ns: int
    pid: int = 0
    cgroup: int = 0
    threads: Mapping[tuple[int, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Account:
    """One target in one window; times in nanoseconds, of its critical threads unless said otherwise.

    ``self_contention`` is what the target's own threads took from each other,
    ``wakeup_latency`` what passed while the CPU still idled, ``tick`` what the kernel's regular timer
    tick took, as on every busy CPU: none of the three is interference.
    ``unattributed`` is waiting for which no culprit was recorded. ``None``: not seen by the backend.
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

    @property
    def stolen(self) -> int:
        """All that was stolen: waits, interrupts (steal of a hypervisor stands apart)."""
        return self.run_delay + (self.irq or 0) + (self.softirq or 0)

    @property
    def interference(self) -> int:
        """The part of it that others took."""
        own = (self.self_contention or 0) + (self.wakeup_latency or 0) + (self.tick or 0)
        return self.stolen - own

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
) -> Account:
    """Account for one target.

    Args:
        launching: threads that were seen to launch at any time of the session: they are critical.
        critical: threads found before, to be kept for a part of the same session.
        throttled: nanoseconds denied by quota, by cgroup, to name the cgroup.
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
    blamed, own, idle = _blamed(window, target, set(chosen))
    others = sum(c.ns for c in blamed)
    on_cpu = sum(t.split.on_cpu or 0 for t in chosen.values())
    interrupts, tick = _interrupts(window, set(chosen), on_cpu)
    culprits = [*blamed, *interrupts]
    if held:
        culprits.append(_quota(held, throttled or {}))
    attributed = others + (own or 0) + (idle or 0) + (held or 0)
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
        self_contention=own,
        wakeup_latency=idle,
        tick=tick,
        unattributed=max(run_delay - attributed, 0),
        culprits=tuple(sorted(culprits, key=lambda c: -c.ns)),
        launchers=launchers,
        steal_ns=None if window.steal_ns is None else sum(window.steal_ns.values()),
    )


def find_critical(window: Window, target: Target, launching: frozenset[int]) -> tuple[frozenset[int], str]:
    """The threads that pace the target: those that launch, else by wake-up chains."""
    threads = {tid: t for tid, t in window.threads.items() if target.owns(t.tgid)}
    mine = launching & threads.keys()
    if mine:
        return frozenset(mine), "launches"
    return critical_threads(threads, window.wakes)


def _blamed(
    window: Window, target: Target, victims: set[int]
) -> tuple[list[Culprit], int | None, int | None]:
    if window.blames is None:
        return [], None, None
    own = idle = 0
    by_process: dict[int, dict[tuple[int, str], int]] = {}
    cgroup: dict[int, int] = {}
    for (victim, offender), blame in window.blames.items():
        if victim not in victims:
            continue
        pid, comm = _offender(window, offender, blame)
        if offender == IDLE:
            idle += blame.ns
        elif target.owns(pid):
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
    return culprits, own, idle


def _offender(window: Window, tid: int, blame: BlameTotals) -> tuple[int, str]:
    """Process and comm. A waiter that migrates charges the offender by tid alone: look it up."""
    if blame.tgid or tid == IDLE:
        return blame.tgid, blame.comm
    if known := window.threads.get(tid):
        return known.tgid, known.comm
    return proc.thread_group(tid) or tid, proc.comm(tid)


def is_kernel_thread(pid: int) -> bool:
    """Whether a live process is a kernel thread; ``False`` if it is gone."""
    try:
        return not os.readlink(f"/proc/{pid}/exe")
    except FileNotFoundError:
        # a kernel thread has the folder but no executable
        return os.path.exists(f"/proc/{pid}/stat")
    except OSError:
        return False


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


def _quota(held: int, throttled: Mapping[str, int]) -> Culprit:
    where = max(throttled, key=lambda path: throttled[path], default="")
    return Culprit("quota", where, held)
