"""Durations in log-linear buckets, with what was stolen within them.

A bucket is an eighth of an octave wide (so a quantile is exact to 12.5 %), its
upper bound inclusive as in Prometheus. The kernel side is ``hist_slot`` in
``bpf/launch.h``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SUB_BITS = 3
SLOTS = 288
_STEPS = 1 << SUB_BITS


class Theft(enum.Enum):
    """What takes time from a thread that wants to run."""

    RUNQUEUE = "runqueue_wait"
    PREEMPTED = "preempted"
    THROTTLED = "throttled"
    IRQ = "irq"
    SOFTIRQ = "softirq"


def slot_bound(slot: int) -> int:
    """Upper bound of a bucket in nanoseconds, inclusive.

    The inverse of ``hist_slot``: values 1..8 have buckets of their own, after that
    every octave has eight of equal width.
    """
    if slot < _STEPS:
        return slot + 1
    octave, step = divmod(slot, _STEPS)
    return (_STEPS + step + 1) << (octave - 1)


def slot_of(ns: int) -> int:
    """The bucket that holds ``ns``."""
    v = max(ns - 1, 0)
    if v < _STEPS:
        return v
    octave = v.bit_length() - 1
    slot = ((octave - SUB_BITS + 1) << SUB_BITS) + ((v >> (octave - SUB_BITS)) & (_STEPS - 1))
    return min(slot, SLOTS - 1)


@dataclass(frozen=True, slots=True)
class DurationTotals:
    """Counts, sums and histograms of one kind of duration of one thread.

    ``clean``, ``slept_within`` and ``pushed`` are histograms (``SLOTS`` counts each) of the
    durations within which the thread never left the CPU, left it of its own accord, or
    was switched out involuntarily. ``stolen`` is nanoseconds by cause within all of them.
    """

    count: int
    sum_ns: int
    stolen: Mapping[Theft, int]
    slept_ns: int
    voluntary: int
    involuntary: int
    interrupts: int
    clean: Sequence[int]
    slept_within: Sequence[int]
    pushed: Sequence[int]

    def __sub__(self, other: DurationTotals) -> DurationTotals:
        return self._combine(other, -1)

    def __add__(self, other: DurationTotals) -> DurationTotals:
        return self._combine(other, 1)

    def _combine(self, other: DurationTotals, sign: int) -> DurationTotals:
        def histogram(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
            return tuple(x + sign * y for x, y in zip(a, b, strict=True))

        return DurationTotals(
            self.count + sign * other.count,
            self.sum_ns + sign * other.sum_ns,
            {cause: ns + sign * other.stolen.get(cause, 0) for cause, ns in self.stolen.items()},
            self.slept_ns + sign * other.slept_ns,
            self.voluntary + sign * other.voluntary,
            self.involuntary + sign * other.involuntary,
            self.interrupts + sign * other.interrupts,
            histogram(self.clean, other.clean),
            histogram(self.slept_within, other.slept_within),
            histogram(self.pushed, other.pushed),
        )

    @property
    def stolen_ns(self) -> int:
        """All causes together."""
        return sum(self.stolen.values())

    @property
    def histogram(self) -> tuple[int, ...]:
        """All durations, whatever happened within."""
        return tuple(map(sum, zip(self.clean, self.slept_within, self.pushed, strict=True)))


EMPTY = DurationTotals(0, 0, dict.fromkeys(Theft, 0), 0, 0, 0, 0, (0,) * SLOTS, (0,) * SLOTS, (0,) * SLOTS)


def quantile(histogram: Sequence[int], q: float) -> int | None:
    """Upper bound (ns) of the bucket with the ``q`` quantile, ``None`` if nothing was counted."""
    total = sum(histogram)
    if not total:
        return None
    seen = 0
    for slot, count in enumerate(histogram):
        seen += count
        if seen and seen >= q * total:
            return slot_bound(slot)
    return slot_bound(SLOTS - 1)


@dataclass(frozen=True, slots=True)
class Tail:
    """Durations at or above a quantile's bucket: how many, and with which kind of switch inside."""

    quantile: float
    threshold_ns: int
    count: int
    involuntary: int
    voluntary: int


def tail(durations: DurationTotals, q: float) -> Tail | None:
    """The published tail attribution: outliers from the ``q`` quantile up, with a switch inside."""
    threshold = quantile(durations.histogram, q)
    if threshold is None:
        return None
    first = slot_of(threshold)
    return Tail(
        q,
        threshold,
        sum(durations.histogram[first:]),
        sum(durations.pushed[first:]),
        sum(durations.slept_within[first:]),
    )
