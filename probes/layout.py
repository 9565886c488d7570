"""ctypes mirror of ``bpf/layout.h``: what the maps hold. A test compares sizes and offsets."""

from __future__ import annotations

import ctypes as ct

from quietcore.probes.durations import SLOTS

COMM_LEN = 16
WAITERS_PER_CPU = 16
IRQ_NESTING = 8
MAX_APIS = 64
NR_THEFTS = 5
NR_INTERRUPTIONS = 3
NR_SOFTIRQS = 10
NR_VECTORS = 5
NR_IRQ_TOTALS = NR_SOFTIRQS + NR_VECTORS + 1

ON_CPU, RUNQUEUE_WAIT, PREEMPTED, THROTTLED, SLEEPING, BLOCKED, UNKNOWN, EXITED = range(8)
IRQ_HARD, IRQ_SOFT, IRQ_VECTOR = 1, 2, 3
EVENT_OUTLIER, EVENT_FORK, EVENT_EXEC, EVENT_EXIT = 1, 2, 3, 4

LOSSES = (
    "threads",
    "blame_ns",
    "waiters",
    "wakes",
    "irq_ns",
    "irq_nesting",
    "launchers",
    "events",
    "targets",
    "switches",
)
SOFTIRQS = ("HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU")
VECTORS = ("local_timer", "reschedule", "call_function", "call_function_single", "irq_work")


class Thread(ct.Structure):
    _fields_ = (
        ("written", ct.c_uint64),
        ("since", ct.c_uint64),
        ("ns", ct.c_uint64 * 8),
        ("state", ct.c_uint32),
        ("resolved", ct.c_uint32),
        ("seeded", ct.c_uint64),
        ("irq_ns", ct.c_uint64),
        ("softirq_ns", ct.c_uint64),
        ("irqs", ct.c_uint64),
        ("softirqs", ct.c_uint64),
        ("voluntary", ct.c_uint64),
        ("involuntary", ct.c_uint64),
        ("migrations", ct.c_uint64),
        ("wakeups", ct.c_uint64),
        ("born", ct.c_uint64),
        ("tgid", ct.c_uint32),
        ("cpu", ct.c_uint32),
        ("waiter", ct.c_uint32),
        ("offender", ct.c_uint32),
        ("comm", ct.c_char * COMM_LEN),
        ("writing", ct.c_uint64),
    )


class Waiter(ct.Structure):
    _fields_ = (
        ("since", ct.c_uint64),
        ("top_ns", ct.c_uint64),
        ("top_tid", ct.c_uint32),
        ("pad", ct.c_uint32),
    )


class CpuQueue(ct.Structure):
    _fields_ = (
        ("switched", ct.c_uint64),
        ("running", ct.c_uint32),
        ("pad", ct.c_uint32),
        ("tids", ct.c_uint32 * WAITERS_PER_CPU),
        ("waiters", Waiter * WAITERS_PER_CPU),
    )


class BlameKey(ct.Structure):
    _fields_ = (("victim", ct.c_uint32), ("offender", ct.c_uint32))


class Blame(ct.Structure):
    _fields_ = (
        ("ns", ct.c_uint64),
        ("slices", ct.c_uint64),
        ("cgroup", ct.c_uint64),
        ("tgid", ct.c_uint32),
        ("pad", ct.c_uint32),
        ("comm", ct.c_char * COMM_LEN),
    )


class WakeKey(ct.Structure):
    _fields_ = (("waker", ct.c_uint32), ("wakee", ct.c_uint32))


class Wake(ct.Structure):
    _fields_ = (("wakeups", ct.c_uint64), ("slept_ns", ct.c_uint64))


class IrqKey(ct.Structure):
    _fields_ = (("tid", ct.c_uint32), ("id", ct.c_uint32))


class IrqTime(ct.Structure):
    _fields_ = (("ns", ct.c_uint64), ("count", ct.c_uint64))


class Toll(ct.Structure):
    _fields_ = (
        ("stolen", ct.c_uint64 * NR_THEFTS),
        ("slept", ct.c_uint64),
        ("voluntary", ct.c_uint64),
        ("involuntary", ct.c_uint64),
        ("irqs", ct.c_uint64),
    )


class Durations(ct.Structure):
    _fields_ = (
        ("count", ct.c_uint64),
        ("sum", ct.c_uint64),
        ("stolen", ct.c_uint64 * NR_THEFTS),
        ("slept", ct.c_uint64),
        ("voluntary", ct.c_uint64),
        ("involuntary", ct.c_uint64),
        ("irqs", ct.c_uint64),
        ("hist", (ct.c_uint32 * SLOTS) * NR_INTERRUPTIONS),
    )


class Launcher(ct.Structure):
    _fields_ = (
        ("written", ct.c_uint64),
        ("tgid", ct.c_uint32),
        ("epoch", ct.c_uint32),
        ("depth", ct.c_uint32),
        ("api", ct.c_uint32),
        ("frame", ct.c_uint64),
        ("entered", ct.c_uint64),
        ("last_launch", ct.c_uint64),
        ("at_launch", Toll),
        ("at_entry", Toll),
        ("hits", ct.c_uint64),
        ("calls", ct.c_uint64 * MAX_APIS),
        ("interval", Durations),
        ("launch", Durations),
        ("sync", Durations),
        ("writing", ct.c_uint64),
    )


class CudaConfig(ct.Structure):
    _fields_ = (("epoch", ct.c_uint32), ("enabled", ct.c_uint32), ("outlier_ns", ct.c_uint64))


class Event(ct.Structure):
    _fields_ = (
        ("time", ct.c_uint64),
        ("kind", ct.c_uint32),
        ("tid", ct.c_uint32),
        ("tgid", ct.c_uint32),
        ("api", ct.c_uint32),
        ("ns", ct.c_uint64),
        ("stolen", ct.c_uint64 * NR_THEFTS),
        ("offender", ct.c_uint32),
        ("pad", ct.c_uint32),
        ("comm", ct.c_char * COMM_LEN),
    )
