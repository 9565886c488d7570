"""What a plan is made from: the target's threads, the CPUs and interrupts around them, and who owns what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quietcore.agent.pin.owners import Owner
from quietcore.agent.pin.things import Autogroup, Balancer, CpusetDir, Thread
from quietcore.probes.topology import Irq, Topology


@dataclass(frozen=True, slots=True)
class ThreadFacts:
    """A thread as it was found.

    Attributes:
        allowed: CPUs that it may use; ``cpu`` is the one it ran on last.
        fair: whether nice and slice mean anything for its scheduling policy.
        pushed: it lost its CPU against its will more often than it gave it up.
    """

    thread: Thread
    comm: str
    allowed: frozenset[int]
    cpu: int
    nice: int = 0
    fair: bool = True
    pushed: bool = True


@dataclass(frozen=True, slots=True)
class CpusetFacts:
    """A cgroup that may be narrowed, and the CPUs that it allows now."""

    thing: CpusetDir
    cpus: frozenset[int]


@dataclass(frozen=True, slots=True)
class Offender:
    """A process that disturbs the target, with its own cpuset where it has one to itself."""

    name: str
    threads: tuple[ThreadFacts, ...]
    cpuset: CpusetFacts | None = None


@dataclass(frozen=True)
class Situation:
    """All that a plan is made from.

    Attributes:
        threads: the critical ones.
        others: by CPU, the part of the time in which anybody but the target kept it busy.
        culprit_cpus: where those that disturb it ran.
        interrupted: interrupts are among them.
        avoid: CPUs that are never chosen: for housekeeping, other targets', others' exclusive ones.
        nice_counts: nice of the threads counts against culprits: the same cgroup, the same session.
        session: of the target alone, where culprits are in others and the kernel weighs sessions.
        slices: threads may choose their slice.
        balancer: a running irqbalance, with the interrupts that it leaves alone already.
        offenders: empty unless the user allows them to be moved.
    """

    target: str
    threads: tuple[ThreadFacts, ...]
    topology: Topology
    others: Mapping[int, float]
    irqs: Mapping[int, Irq]
    irq_rates: Mapping[int, float]
    culprit_cpus: frozenset[int] = frozenset()
    interrupted: bool = False
    avoid: frozenset[int] = frozenset()
    nice_counts: bool = True
    session: Autogroup | None = None
    slices: bool = False
    cpuset: CpusetFacts | None = None
    balancer: Balancer | None = None
    banned: str = ""
    offenders: tuple[Offender, ...] = ()
    owners: tuple[Owner, ...] = ()
