"""The types that leave this room: what was seen, whoever saw it.

A :class:`Snapshot` holds running totals since the backend was attached; the
difference of two is a :class:`Window`. Times are nanoseconds, moments are
``CLOCK_MONOTONIC``. A value that a backend cannot see is ``None``, never zero.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from quietcore.probes.durations import DurationTotals


class State(enum.Enum):
    """What a thread is doing; the first six share out its wall time."""

    ON_CPU = "on_cpu"
    RUNQUEUE_WAIT = "runqueue_wait"
    PREEMPTED = "preempted"
    THROTTLED = "throttled"
    SLEEPING = "sleeping"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Nanoseconds of one thread by :class:`State`.

    ``run_delay`` is all time runnable but not running, as ``/proc/PID/schedstat`` has
    it; a backend that cannot tell its parts apart gives only the sum.
    """

    on_cpu: int | None = None
    runqueue_wait: int | None = None
    preempted: int | None = None
    throttled: int | None = None
    sleeping: int | None = None
    blocked: int | None = None
    run_delay: int | None = None

    @property
    def total(self) -> int | None:
        """Sum of the six states, ``None`` if one was not seen.

        Except ``throttled``: a backend that cannot tell it has that time in ``preempted``.
        """
        parts = [getattr(self, state.value) for state in State if state is not State.THROTTLED]
        return None if None in parts else sum(parts) + (self.throttled or 0)

    def plus(self, state: State, ns: int) -> TimeSplit:
        """The same split with ``ns`` more in ``state``."""
        changed = {state.value: (getattr(self, state.value) or 0) + ns}
        if state in (State.RUNQUEUE_WAIT, State.PREEMPTED, State.THROTTLED):
            changed["run_delay"] = (self.run_delay or 0) + ns
        return replace(self, **changed)

    def __sub__(self, other: TimeSplit) -> TimeSplit:
        return TimeSplit(*(_difference(getattr(self, name), getattr(other, name)) for name in self.__slots__))


def _difference(later: int | None, earlier: int | None) -> int | None:
    return None if later is None or earlier is None else later - earlier


@dataclass(frozen=True, slots=True)
class ThreadTotals:
    """Running totals of one thread.

    ``began`` is when accounting began: birth, or the moment the backend first saw it.
    A thread that has had no event since then is in a state only ``hint`` tells;
    that time stands in ``pending_ns`` until an event has settled (``resolved``) what it was.
    """

    tid: int
    tgid: int
    comm: str
    read_at: int
    began: int
    split: TimeSplit
    born: bool = False
    ended: bool = False
    pending_ns: int = 0
    hint: State = State.SLEEPING
    resolved: State | None = None
    irq_ns: int | None = None
    softirq_ns: int | None = None
    irqs: int | None = None
    softirqs: int | None = None
    voluntary: int | None = None
    involuntary: int | None = None
    migrations: int | None = None

    def settled(self, state: State | None) -> TimeSplit:
        """The split with the pending time put where it belongs."""
        return self.split.plus(state or self.hint, self.pending_ns) if self.pending_ns else self.split


@dataclass(frozen=True, slots=True)
class BlameTotals:
    """How long an offender ran on the CPU for which a victim waited."""

    ns: int
    slices: int
    tgid: int
    comm: str
    cgroup: int

    def __sub__(self, other: BlameTotals) -> BlameTotals:
        return replace(self, ns=self.ns - other.ns, slices=self.slices - other.slices)


@dataclass(frozen=True, slots=True)
class Count:
    """Nanoseconds and how many times."""

    ns: int = 0
    count: int = 0

    def __sub__(self, other: Count) -> Count:
        return Count(self.ns - other.ns, self.count - other.count)

    def __add__(self, other: Count) -> Count:
        return Count(self.ns + other.ns, self.count + other.count)


class IrqKind(enum.Enum):
    """Where an interrupt comes from."""

    HARD = "irq"
    SOFT = "softirq"
    VECTOR = "vector"


@dataclass(frozen=True, slots=True, order=True)
class IrqSource:
    """An interrupt by kind and name: ``irq 29 eth0``, ``softirq NET_RX``, ``vector local_timer``."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class LauncherTotals:
    """CUDA calls of one thread: by API, and durations (see :mod:`quietcore.probes.durations`).

    ``calls`` counts outermost calls only; ``hits`` every probe that fired. ``interval`` runs
    from launch to launch of the thread, ``launch`` and ``sync`` from entry to return.
    """

    tid: int
    tgid: int
    calls: Mapping[str, int]
    interval: DurationTotals
    launch: DurationTotals
    sync: DurationTotals
    hits: int = 0

    def __sub__(self, other: LauncherTotals) -> LauncherTotals:
        calls = {api: n - other.calls.get(api, 0) for api, n in self.calls.items()}
        return replace(
            self,
            calls={api: n for api, n in calls.items() if n},
            interval=self.interval - other.interval,
            launch=self.launch - other.launch,
            sync=self.sync - other.sync,
            hits=self.hits - other.hits,
        )


@dataclass(frozen=True, slots=True)
class Outlier:
    """One launch interval that lost more than the threshold."""

    time: int
    tid: int
    tgid: int
    comm: str
    api: str
    interval_ns: int
    stolen: Mapping[str, int]
    offender: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Running totals at one moment. Keys of ``blames`` and ``wakes``: (victim or waker, offender or wakee).

    ``steal_ns`` is what the kernel says the hypervisor took, by CPU.
    ``irq_totals`` counts all tasks' interrupts, by (CPU, source).
    """

    time: int
    backend: str
    threads: Mapping[int, ThreadTotals]
    blames: Mapping[tuple[int, int], BlameTotals] | None = None
    wakes: Mapping[tuple[int, int], Count] | None = None
    irqs: Mapping[tuple[int, IrqSource], Count] | None = None
    irq_totals: Mapping[tuple[int, IrqSource], Count] | None = None
    launchers: Mapping[int, LauncherTotals] | None = None
    losses: Mapping[str, int] = field(default_factory=dict)
    steal_ns: Mapping[int, int] | None = None

    def since(self, earlier: Snapshot) -> Window:
        """What happened between ``earlier`` and this snapshot, of the same backend."""
        return Window(
            start=earlier.time,
            end=self.time,
            backend=self.backend,
            threads={
                tid: _thread_window(now, earlier.threads.get(tid), earlier.time)
                for tid, now in self.threads.items()
                if not _was_over(earlier.threads.get(tid), now)
            },
            blames=_differences(self.blames, earlier.blames, BlameTotals(0, 0, 0, "", 0)),
            wakes=_differences(self.wakes, earlier.wakes, Count()),
            irqs=_differences(self.irqs, earlier.irqs, Count()),
            irq_totals=_differences(self.irq_totals, earlier.irq_totals, Count()),
            launchers=_launcher_windows(self.launchers, earlier.launchers),
            losses={k: n - earlier.losses.get(k, 0) for k, n in self.losses.items()},
            steal_ns=None
            if self.steal_ns is None or earlier.steal_ns is None
            else {cpu: ns - earlier.steal_ns.get(cpu, ns) for cpu, ns in self.steal_ns.items()},
        )


@dataclass(frozen=True, slots=True)
class ThreadWindow:
    """One thread within a window. ``wall_ns`` is the part of the window in which it lived and was seen."""

    tid: int
    tgid: int
    comm: str
    wall_ns: int
    split: TimeSplit
    ended: bool = False
    irq_ns: int | None = None
    softirq_ns: int | None = None
    irqs: int | None = None
    softirqs: int | None = None
    voluntary: int | None = None
    involuntary: int | None = None
    migrations: int | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between two snapshots. Fields as in :class:`Snapshot`."""

    start: int
    end: int
    backend: str
    threads: Mapping[int, ThreadWindow]
    blames: Mapping[tuple[int, int], BlameTotals] | None
    wakes: Mapping[tuple[int, int], Count] | None
    irqs: Mapping[tuple[int, IrqSource], Count] | None
    irq_totals: Mapping[tuple[int, IrqSource], Count] | None
    launchers: Mapping[int, LauncherTotals] | None
    losses: Mapping[str, int]
    steal_ns: Mapping[int, int] | None

    @property
    def wall_ns(self) -> int:
        """Length of the window."""
        return self.end - self.start


def _was_over(earlier: ThreadTotals | None, now: ThreadTotals) -> bool:
    return earlier is not None and earlier.ended and earlier.began == now.began


def _thread_window(now: ThreadTotals, before: ThreadTotals | None, start: int) -> ThreadWindow:
    if before is not None and before.began != now.began:
        before = None  # the tid was used again
    settled = now.settled(now.resolved)
    # without events in between, both sides put the pending time in the same place
    split = settled - before.settled(now.resolved or now.hint) if before else settled
    wall = now.read_at - (before.read_at if before else now.began)
    if now.ended and split.total is not None:
        wall = split.total

    def change(name: str) -> int | None:
        later: int | None = getattr(now, name)
        return later if before is None else _difference(later, getattr(before, name))

    counters = ("irq_ns", "softirq_ns", "irqs", "softirqs", "voluntary", "involuntary", "migrations")
    return ThreadWindow(
        now.tid, now.tgid, now.comm, wall, split, now.ended, **{name: change(name) for name in counters}
    )


_Key = TypeVar("_Key")
_Total = TypeVar("_Total", BlameTotals, Count)


def _differences(
    later: Mapping[_Key, _Total] | None, earlier: Mapping[_Key, _Total] | None, nothing: _Total
) -> dict[_Key, _Total] | None:
    if later is None:
        return None
    changed = {key: value - (earlier or {}).get(key, nothing) for key, value in later.items()}
    return {key: value for key, value in changed.items() if value.ns or _events(value)}


def _events(value: BlameTotals | Count) -> int:
    return value.slices if isinstance(value, BlameTotals) else value.count


def _launcher_windows(
    later: Mapping[int, LauncherTotals] | None, earlier: Mapping[int, LauncherTotals] | None
) -> Mapping[int, LauncherTotals] | None:
    if later is None:
        return None
    windows = {}
    for tid, now in later.items():
        before = (earlier or {}).get(tid)
        windows[tid] = now - before if before and before.tgid == now.tgid else now
    return {tid: window for tid, window in windows.items() if window.hits}
