"""CPUs and interrupts of a host as a place to put threads: read, never changed.

Everything is read below two roots, so that a recorded tree of another machine does as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from quietcore.probes.errors import MeasureError
from quietcore.probes.host.finding import Roots, parse_list, read_text, try_read

_NVIDIA = "0x10de"
_DISPLAY = "0x03"  # PCI class
_WRITABLE = 0o222
_IDLE, _IOWAIT, _COUNTED = 3, 4, 8  # fields of a cpu line; guest time is within user time
_SMALLER = 0.8
"""A CPU of less than this part of the largest one's capacity is one of the small ones."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """One online CPU.

    Attributes:
        siblings: CPUs of the same core (SMT), itself among them.
        cache: CPUs that share its last-level cache, itself among them.
        node: NUMA node, -1 where the kernel knows none.
        small: an efficiency core of a hybrid machine.
    """

    number: int
    siblings: frozenset[int]
    cache: frozenset[int]
    node: int
    small: bool


@dataclass(frozen=True, slots=True)
class Irq:
    """One device interrupt.

    Attributes:
        name: of its handlers, the same for as long as the number means the same device; empty without any.
        counts: since boot, by CPU.
        affinity: where it may go; ``effective`` is where it does go, the same where the kernel does not tell.
        managed: placed by the kernel itself (queues of block devices): writing its affinity fails.
    """

    number: int
    name: str
    counts: Mapping[int, int]
    affinity: frozenset[int]
    effective: frozenset[int]
    managed: bool


@dataclass(frozen=True)
class Topology:
    """The online CPUs and how they are related.

    Attributes:
        possible: CPUs that may ever be online.
        isolated: kept from the scheduler's balancing (``isolcpus=``).
        nohz_full: without the regular tick.
        nodes: CPUs by NUMA node, offline ones included.
        gpus: CPUs near each NVIDIA GPU, by PCI address; empty where the bus does not tell.
    """

    cpus: Mapping[int, Cpu]
    possible: frozenset[int]
    isolated: frozenset[int]
    nohz_full: frozenset[int]
    nodes: Mapping[int, frozenset[int]] = field(default_factory=dict)
    gpus: Mapping[str, frozenset[int]] = field(default_factory=dict)

    @cached_property
    def online(self) -> frozenset[int]:
        return frozenset(self.cpus)

    @cached_property
    def near_gpus(self) -> frozenset[int]:
        """Online CPUs near any GPU; all of them where there is no GPU, or its place is not known."""
        near = frozenset(cpu for local in self.gpus.values() for cpu in local)
        return (near & self.online) or self.online


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Ticks of one CPU since boot: all of them, and those in which it did something."""

    total: int
    busy: int


def read_topology(roots: Roots | None = None) -> Topology:
    """The CPUs that run now. Raises MeasureError where sysfs does not list them."""
    roots = roots or Roots()
    base = roots.sys / "devices/system/cpu"
    try:
        online = frozenset(parse_list(read_text(base / "online")))
    except (OSError, ValueError) as e:
        raise MeasureError(f"the CPUs cannot be listed: {e}", "mount sysfs at /sys") from e
    nodes = {
        int(path.name.removeprefix("node")): frozenset(parse_list(try_read(path / "cpulist")))
        for path in sorted((roots.sys / "devices/system/node").glob("node[0-9]*"))
    }
    small = _small_cpus(roots, base, online)
    node_of = {cpu: node for node, cpus in nodes.items() for cpu in cpus}
    return Topology(
        cpus={
            cpu: Cpu(
                cpu,
                _siblings(base / f"cpu{cpu}", cpu) & online,
                _cache(base / f"cpu{cpu}", cpu, online) & online,
                node_of.get(cpu, -1),
                cpu in small,
            )
            for cpu in sorted(online)
        },
        possible=frozenset(parse_list(try_read(base / "possible"))) or online,
        isolated=frozenset(parse_list(try_read(base / "isolated"))),
        nohz_full=frozenset(parse_list(try_read(base / "nohz_full"))),
        nodes=nodes,
        gpus=_gpus(roots),
    )


def _siblings(directory: Path, cpu: int) -> frozenset[int]:
    for name in ("core_cpus_list", "thread_siblings_list"):  # the second until 5.3
        if listed := parse_list(try_read(directory / "topology" / name)):
            return frozenset(listed)
    return frozenset({cpu})


def _cache(directory: Path, cpu: int, online: frozenset[int]) -> frozenset[int]:
    """CPUs that share the last cache; where caches are hidden (many guests), those of the package."""
    best: tuple[int, frozenset[int]] = (0, frozenset())
    for index in (directory / "cache").glob("index[0-9]*"):
        level = try_read(index / "level")
        shared = frozenset(parse_list(try_read(index / "shared_cpu_list")))
        if level.isdigit() and try_read(index / "type") != "Instruction" and shared:
            best = max(best, (int(level), shared), key=lambda found: found[0])
    if best[1]:
        return best[1]
    for name in ("package_cpus_list", "core_siblings_list"):
        if listed := parse_list(try_read(directory / "topology" / name)):
            return frozenset(listed)
    return online


def _small_cpus(roots: Roots, base: Path, online: frozenset[int]) -> frozenset[int]:
    """Efficiency cores: by their own list (Intel), else by capacity (ARM, and x86 from 6.12)."""
    atoms = frozenset(parse_list(try_read(roots.sys / "devices/cpu_atom/cpus")))
    if atoms and atoms != online:
        return atoms
    capacity = {cpu: try_read(base / f"cpu{cpu}/cpu_capacity") for cpu in online}
    known = {cpu: int(text) for cpu, text in capacity.items() if text.isdigit()}
    largest = max(known.values(), default=0)
    return frozenset(cpu for cpu, size in known.items() if size < _SMALLER * largest)


def _gpus(roots: Roots) -> dict[str, frozenset[int]]:
    return {
        device.name: frozenset(parse_list(try_read(device / "local_cpulist")))
        for device in sorted((roots.sys / "bus/pci/devices").glob("*"))
        if try_read(device / "vendor") == _NVIDIA and try_read(device / "class").startswith(_DISPLAY)
    }


def read_interrupts(roots: Roots | None = None) -> dict[int, Irq]:
    """Device interrupts by number. Raises MeasureError without /proc/interrupts."""
    roots = roots or Roots()
    found = {}
    for number, counts in _interrupt_lines(roots):
        directory = roots.proc / "irq" / str(number)
        try:
            affinity = frozenset(parse_list(read_text(directory / "smp_affinity_list")))
        except (OSError, ValueError):
            continue  # it has gone, or has no affinity (per-CPU interrupts of ARM)
        effective = frozenset(parse_list(try_read(directory / "effective_affinity_list")))
        found[number] = Irq(
            number,
            irq_name(number, roots),
            counts,
            affinity,
            effective or affinity,
            managed=is_managed(number, roots),
        )
    return found


def is_managed(number: int, roots: Roots | None = None) -> bool:
    """Whether the kernel places an interrupt itself: its file has no write permission, not even root's."""
    try:
        path = (roots or Roots()).proc / "irq" / str(number) / "smp_affinity_list"
        return not os.stat(path).st_mode & _WRITABLE
    except OSError:
        return False


def irq_name(number: int, roots: Roots | None = None) -> str:
    """The handlers of a device interrupt, as :attr:`Irq.name`; empty if it has none, or is gone."""
    try:
        with os.scandir((roots or Roots()).proc / "irq" / str(number)) as entries:
            return ",".join(sorted(entry.name for entry in entries if entry.is_dir()))
    except OSError:
        return ""


def _interrupt_lines(roots: Roots) -> Iterator[tuple[int, dict[int, int]]]:
    try:
        lines = (roots.proc / "interrupts").read_text(errors="replace").splitlines()
    except OSError as e:
        raise MeasureError(f"the interrupts cannot be listed: {e}", "mount procfs at /proc") from e
    # only online CPUs have a column
    cpus = [int(column.removeprefix("CPU")) for column in lines[0].split()] if lines else []
    for line in lines[1:]:
        number, _, rest = line.partition(":")
        fields = rest.split()
        if number.strip().isdigit() and len(fields) >= len(cpus):
            yield int(number), {cpu: int(text) for cpu, text in zip(cpus, fields, strict=False)}


def read_cpu_times(roots: Roots | None = None) -> dict[int, CpuTimes]:
    """By CPU. Raises MeasureError without /proc/stat."""
    roots = roots or Roots()
    try:
        lines = read_text(roots.proc / "stat").splitlines()
    except OSError as e:
        raise MeasureError(f"the CPUs' times cannot be read: {e}", "mount procfs at /proc") from e
    found = {}
    for line in lines:
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            ticks = [int(text) for text in fields[:_COUNTED]]
            total = sum(ticks)
            found[int(name[3:])] = CpuTimes(total, total - ticks[_IDLE] - ticks[_IOWAIT])
    return found


def busy_shares(first: Mapping[int, CpuTimes], last: Mapping[int, CpuTimes]) -> dict[int, float]:
    """Part of the time between two readings in which each CPU did something, 0..1.

    A CPU without a tick in between, or with one of the readings only, is left out.
    """
    shares = {}
    for cpu, after in last.items():
        before = first.get(cpu)
        if before is not None and after.total > before.total:
            # idle time is corrected now and then, and may go backwards
            shares[cpu] = min(max((after.busy - before.busy) / (after.total - before.total), 0.0), 1.0)
    return shares


def irq_rates(first: Mapping[int, Irq], last: Mapping[int, Irq], seconds: float) -> dict[int, float]:
    """Interrupts a second between two readings, by number, of those that meant the same both times."""
    return {
        number: max(sum(irq.counts.values()) - sum(first[number].counts.values()), 0) / seconds
        for number, irq in last.items()
        if number in first and first[number].name == irq.name
    }
