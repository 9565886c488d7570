"""Readings made by hand: what a test does not name is zero, and the rest of a thread's time is sleep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from quietcore.agent.attribution import Account, Culprit
from quietcore.agent.diagnosis import Diagnosis
from quietcore.agent.launches import LaunchReport
from quietcore.agent.targets import Target
from quietcore.agent.verdict import Outcome, Verdict
from quietcore.probes.backend import BackendName, Events, Probe, ProgramStatus, UprobeLink
from quietcore.probes.durations import EMPTY, SLOTS, DurationTotals, Theft, slot_of
from quietcore.probes.readings import (
    BlameTotals,
    Count,
    IrqSource,
    LauncherTotals,
    Outlier,
    Snapshot,
    ThreadTotals,
    ThreadWindow,
    TimeSplit,
    Window,
)

US, MS, SECOND = 1_000, 1_000_000, 1_000_000_000


def make_target(*pids: int, name: str = "server") -> Target:
    return Target(f"{name} [{pids[0]}]", dict.fromkeys(pids, 1))


def make_split(
    wall: int,
    *,
    on_cpu: int = 0,
    waiting: int = 0,
    preempted: int = 0,
    throttled: int = 0,
    blocked: int = 0,
) -> TimeSplit:
    """A split that adds up to ``wall``."""
    run_delay = waiting + preempted + throttled
    sleeping = wall - on_cpu - run_delay - blocked
    return TimeSplit(on_cpu, waiting, preempted, throttled, sleeping, blocked, run_delay)


def make_thread(
    tid: int,
    tgid: int = 0,
    comm: str = "python3",
    *,
    wall: int = SECOND,
    irq: int | None = 0,
    softirq: int | None = 0,
    split: TimeSplit | None = None,
    **times: int,
) -> ThreadWindow:
    """One thread of a window; ``times`` as for :func:`make_split`."""
    split = split or make_split(wall, **times)
    return ThreadWindow(tid, tgid or tid, comm, wall, split, irq_ns=irq, softirq_ns=softirq)


def make_totals(
    tid: int,
    read_at: int,
    split: TimeSplit | None = None,
    *,
    tgid: int = 0,
    began: int = 0,
    born: bool = False,
    ended: bool = False,
    **times: int,
) -> ThreadTotals:
    """Running totals of one thread; ``times`` as for :func:`make_split`."""
    split = split or make_split(read_at - began, **times)
    return ThreadTotals(tid, tgid or tid, "python3", read_at, began, split, born=born, ended=ended)


def make_snapshot(
    time: int,
    threads: Iterable[ThreadTotals] = (),
    *,
    blames: Mapping[tuple[int, int], BlameTotals] | None = None,
    launchers: Iterable[LauncherTotals] | None = None,
    losses: Mapping[str, int] | None = None,
) -> Snapshot:
    return Snapshot(
        time,
        "libbpf",
        {t.tid: t for t in threads},
        blames=blames,
        launchers=None if launchers is None else {la.tid: la for la in launchers},
        losses=losses or {},
    )


def make_window(
    *threads: ThreadWindow,
    length: int = SECOND,
    blames: Mapping[tuple[int, int], BlameTotals] | None = None,
    wakes: Mapping[tuple[int, int], Count] | None = None,
    irqs: Mapping[tuple[int, IrqSource], Count] | None = None,
    launchers: Iterable[LauncherTotals] = (),
    sees_blame: bool = True,
) -> Window:
    """A window of a BPF backend; with ``sees_blame`` off, of one that sees no more than /proc has."""
    return Window(
        start=5 * SECOND,
        end=5 * SECOND + length,
        backend="libbpf" if sees_blame else "procfs",
        threads={t.tid: t for t in threads},
        blames=(blames or {}) if sees_blame else None,
        wakes=(wakes or {}) if sees_blame else None,
        irqs=(irqs or {}) if sees_blame else None,
        irq_totals=None,
        launchers={la.tid: la for la in launchers} if sees_blame else None,
        losses={},
        steal_ns={0: 0},
    )


def make_blame(ns: int, tgid: int = 0, comm: str = "", cgroup: int = 0) -> BlameTotals:
    return BlameTotals(ns, 1 if ns else 0, tgid, comm, cgroup)


def make_durations(
    clean: Sequence[int] = (),
    slept: Sequence[int] = (),
    pushed: Sequence[int] = (),
    *,
    stolen: Mapping[Theft, int] | None = None,
    interrupts: int = 0,
) -> DurationTotals:
    """From single durations, one switch within each that had any."""

    def histogram(values: Sequence[int]) -> tuple[int, ...]:
        counts = [0] * SLOTS
        for ns in values:
            counts[slot_of(ns)] += 1
        return tuple(counts)

    return DurationTotals(
        count=len(clean) + len(slept) + len(pushed),
        sum_ns=sum(clean) + sum(slept) + sum(pushed),
        stolen={**dict.fromkeys(Theft, 0), **(stolen or {})},
        slept_ns=0,
        voluntary=len(slept),
        involuntary=len(pushed),
        interrupts=interrupts,
        clean=histogram(clean),
        slept_within=histogram(slept),
        pushed=histogram(pushed),
    )


def make_launcher(
    tid: int,
    tgid: int = 0,
    calls: Mapping[str, int] | None = None,
    *,
    interval: DurationTotals = EMPTY,
    launch: DurationTotals = EMPTY,
    hits: int | None = None,
) -> LauncherTotals:
    calls = {"cuLaunchKernel": 1000} if calls is None else calls
    hits = sum(calls.values()) if hits is None else hits
    return LauncherTotals(tid, tgid or tid, calls, interval, launch, EMPTY, hits)


def make_account(
    *,
    wall: int = 10 * SECOND,
    seconds: float = 10.0,
    on_cpu: int | None = None,
    run_delay: int = 0,
    own: int | None = 0,
    idle: int | None = 0,
    culprits: Sequence[Culprit] = (),
    critical: frozenset[int] = frozenset({7}),
    critical_by: str = "wake-ups",
    launchers: Mapping[int, LauncherTotals] | None = None,
    threads: Mapping[int, ThreadWindow] | None = None,
) -> Account:
    """An account whose critical thread runs all the time that it does not wait."""
    return Account(
        target=make_target(7),
        start=0,
        end=int(seconds * SECOND),
        backend="libbpf",
        threads=threads if threads is not None else {7: make_thread(7, wall=wall)},
        critical=critical,
        critical_by=critical_by,
        wall=wall,
        on_cpu=wall - run_delay if on_cpu is None else on_cpu,
        run_delay=run_delay,
        throttled=0,
        irq=0,
        softirq=0,
        self_contention=own,
        wakeup_latency=idle,
        tick=0,
        unattributed=0,
        culprits=tuple(culprits),
        launchers=launchers,
        steal_ns=0,
    )


def make_diagnosis(
    whole: Account,
    *,
    outcome: Outcome = Outcome.NOT_CPU,
    steps: Sequence[Account] = (),
    launches: LaunchReport | None = None,
    seen_share: float | None = None,
    outliers: Sequence[Outlier] = (),
    notes: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> Diagnosis:
    return Diagnosis(
        target=whole.target,
        verdict=Verdict(outcome, whole.share(whole.interference) or 0.0, None, whole.culprits),
        whole=whole,
        steps=tuple(steps),
        warm_up=(),
        launches=launches,
        seen_share=seen_share,
        overhead=None if seen_share is None else 0.001,
        outliers=tuple(outliers),
        losses={},
        missing=tuple(missing),
        notes=tuple(notes),
    )


class SilentBackend:
    """Satisfies the protocol and sees nothing."""

    name: BackendName = "libbpf"
    missing: Sequence[str] = ()

    def start(self) -> None: ...

    def add_process(self, pid: int) -> None: ...

    def add_cgroup(self, cgroup_id: int) -> None: ...

    def end_process(self, pid: int) -> None: ...

    def remove_process(self, pid: int) -> None: ...

    def attach_cuda(self, pid: int, path: str, probes: Sequence[Probe]) -> UprobeLink:
        raise NotImplementedError

    def count_launches(self, enabled: bool) -> None: ...

    def probe_hits(self) -> dict[int, int]:
        return {}

    def snapshot(self) -> Snapshot:
        return make_snapshot(0)

    def events(self) -> Events:
        return Events()

    def event_fd(self) -> int | None:
        return None

    def programs(self) -> list[ProgramStatus]:
        return []

    def close(self) -> None: ...
