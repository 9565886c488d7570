"""From the structs in the maps to readings. Both BPF backends share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from quietcore.probes import layout
from quietcore.probes.durations import DurationTotals, Theft
from quietcore.probes.proc import printable
from quietcore.probes.readings import (
    BlameTotals,
    Count,
    IrqKind,
    IrqSource,
    LauncherTotals,
    Outlier,
    State,
    ThreadTotals,
    TimeSplit,
)

STATES = tuple(State)
_THEFTS = tuple(Theft)
_STATE_NAMES = tuple(state.value for state in State)
_IRQ_KINDS = {layout.IRQ_HARD: IrqKind.HARD, layout.IRQ_SOFT: IrqKind.SOFT, layout.IRQ_VECTOR: IrqKind.VECTOR}


def text(raw: bytes) -> str:
    """A comm, fit for a terminal."""
    return printable(raw.decode(errors="replace"))


def is_torn(value: layout.Thread | layout.Launcher) -> bool:
    """Whether the writer was at work while the value was copied."""
    return bool(value.written != value.writing)


def thread_totals(tid: int, raw: layout.Thread, now: int, hint: State) -> ThreadTotals:
    """The totals of a thread at ``now``, the running state included."""
    ns = list(raw.ns[:6])
    pending = 0
    running = max(now - raw.since, 0)
    if raw.state == layout.UNKNOWN:
        pending = running
    elif raw.state < layout.UNKNOWN:
        ns[raw.state] += running
    delay = ns[layout.RUNQUEUE_WAIT] + ns[layout.PREEMPTED] + ns[layout.THROTTLED]
    settled = raw.seeded and raw.state != layout.UNKNOWN
    return ThreadTotals(
        tid=tid,
        tgid=raw.tgid,
        comm=text(raw.comm),
        read_at=now,
        began=raw.born or raw.seeded,
        split=TimeSplit(**dict(zip(_STATE_NAMES, ns, strict=True)), run_delay=delay),
        born=bool(raw.born),
        ended=raw.state == layout.EXITED,
        pending_ns=pending,
        hint=hint,
        resolved=STATES[raw.resolved] if settled else None,
        irq_ns=raw.irq_ns,
        softirq_ns=raw.softirq_ns,
        irqs=raw.irqs,
        softirqs=raw.softirqs,
        voluntary=raw.voluntary,
        involuntary=raw.involuntary,
        migrations=raw.migrations,
    )


def blame_totals(raw: layout.Blame) -> BlameTotals:
    """One offender's account with one victim."""
    return BlameTotals(raw.ns, raw.slices, raw.tgid, text(raw.comm), raw.cgroup)


def wake_count(raw: layout.Wake) -> Count:
    """Wake-ups and the sleep that they ended."""
    return Count(raw.slept_ns, raw.wakeups)


class IrqNames:
    """Names of interrupts; re-read when a number is met for the first time."""

    def __init__(self, read: Callable[[], dict[int, str]]) -> None:
        self._read = read
        self._names: dict[int, str] = {}

    def source(self, raw_id: int) -> IrqSource:
        """From ``irq_kind << 16 | number``."""
        kind, number = raw_id >> 16, raw_id & 0xFFFF
        if kind == layout.IRQ_SOFT:
            name = layout.SOFTIRQS[number] if number < len(layout.SOFTIRQS) else str(number)
        elif kind == layout.IRQ_VECTOR:
            name = layout.VECTORS[number]
        else:
            if number not in self._names:
                self._names = self._read()
            name = self._names.setdefault(number, str(number))
        return IrqSource(_IRQ_KINDS[kind].value, name)


def irq_totals(rows: Iterable[list[layout.IrqTime]]) -> dict[tuple[int, IrqSource], Count]:
    """Totals of all tasks by (CPU, source); device interrupts together as ``irq all``."""
    totals = {}
    for row, by_cpu in enumerate(rows):
        if row < layout.NR_SOFTIRQS:
            source = IrqSource(IrqKind.SOFT.value, layout.SOFTIRQS[row])
        elif row < layout.NR_SOFTIRQS + layout.NR_VECTORS:
            source = IrqSource(IrqKind.VECTOR.value, layout.VECTORS[row - layout.NR_SOFTIRQS])
        else:
            source = IrqSource(IrqKind.HARD.value, "all")
        for cpu, value in enumerate(by_cpu):
            totals[cpu, source] = Count(value.ns, value.count)
    return totals


def durations(raw: layout.Durations) -> DurationTotals:
    """Counts, sums and the three histograms."""
    clean, slept, pushed = (tuple(histogram) for histogram in raw.hist)
    return DurationTotals(
        raw.count,
        raw.sum,
        dict(zip(_THEFTS, raw.stolen, strict=True)),
        raw.slept,
        raw.voluntary,
        raw.involuntary,
        raw.irqs,
        clean,
        slept,
        pushed,
    )


def launcher_totals(tid: int, raw: layout.Launcher, apis: Mapping[int, str]) -> LauncherTotals:
    """The CUDA calls of one thread; ``apis`` maps ids to names."""
    calls = {apis.get(i, str(i)): n for i, n in enumerate(raw.calls) if n}
    return LauncherTotals(
        tid, raw.tgid, calls, durations(raw.interval), durations(raw.launch), durations(raw.sync), raw.hits
    )


def outlier(raw: layout.Event, apis: Mapping[int, str]) -> Outlier:
    """One launch interval that lost much."""
    stolen = {theft.value: ns for theft, ns in zip(_THEFTS, raw.stolen, strict=True) if ns}
    return Outlier(
        raw.time,
        raw.tid,
        raw.tgid,
        text(raw.comm),
        apis.get(raw.api, str(raw.api)),
        raw.ns,
        stolen,
        raw.offender,
    )
