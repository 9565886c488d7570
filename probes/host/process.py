"""Checks of one process's place: CPUs, NUMA nodes, quota, swap."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from quietcore.probes.cgroups import CpuCgroups, quota, short_name, throttle_stats, with_ancestors
from quietcore.probes.host.finding import (
    Finding,
    Roots,
    check,
    format_list,
    parse_list,
    read_text,
    status_fields,
    try_read,
)

_NVIDIA = "0x10de"
_DISPLAY = "0x03"  # PCI class
_FAR_SHARE = 0.1


@check("cpu-affinity")
def cpu_affinity(roots: Roots, pid: int) -> Iterator[Finding]:
    """How many CPUs a process may use, against its threads."""
    status = status_fields(roots.proc, pid)
    allowed = parse_list(status["Cpus_allowed_list"])
    allowed &= parse_list(try_read(roots.sys / "devices/system/cpu/online")) or allowed
    threads, runnable = int(status["Threads"]), 0
    for path in (roots.proc / str(pid) / "task").glob("[0-9]*/stat"):
        # the state follows the name, which may hold anything
        runnable += try_read(path).rpartition(")")[2].split()[:1] == ["R"]
    detail = f"{len(allowed)} CPUs ({format_list(allowed)}) for {threads} threads, {runnable} runnable now"
    if runnable > len(allowed) or (len(allowed) == 1 and threads > 1):
        yield Finding(
            "cpu-affinity", "warn", detail, "allow it more CPUs (taskset, cpuset), or fewer threads"
        )
    else:
        yield Finding("cpu-affinity", "ok", detail)


@check("numa")
def numa_placement(roots: Roots, pid: int) -> Iterator[Finding]:
    """Whether a process's CPUs and memory are on its GPUs' nodes; no finding without an NVIDIA GPU.

    Which GPU it uses is not known here: all of the host's count.
    """
    gpus = _gpu_nodes(roots)
    if not gpus:
        return
    nodes = {
        int(path.name.removeprefix("node")): parse_list(read_text(path / "cpulist"))
        for path in (roots.sys / "devices/system/node").glob("node[0-9]*")
    }
    near = set(gpus.values()) - {-1}
    if len(nodes) < 2:
        yield Finding("numa", "ok", "one NUMA node")
        return
    if not near:
        yield Finding("numa", "unknown", "the PCI bus does not tell the GPUs' nodes")
        return
    status = status_fields(roots.proc, pid)
    allowed = parse_list(status["Cpus_allowed_list"])
    running = {node for node, cpus in nodes.items() if cpus & allowed}
    memory, source = _memory_by_node(roots, pid), "memory"
    if memory is None:
        # only the owner and root see where the pages are
        mems = parse_list(status["Mems_allowed_list"]) & set(nodes)
        memory, source = dict.fromkeys(mems, 1), "memory allowed"
    total = max(sum(memory.values()), 1)
    shares = ", ".join(f"{n / total:.0%} on node {node}" for node, n in sorted(memory.items()))
    where = shares if source == "memory" else f"on nodes {format_list(memory)}"
    detail = f"GPUs on nodes {format_list(near)}; CPUs on nodes {format_list(running)}; {source} {where}"
    far = sum(n for node, n in memory.items() if node not in near) / total
    if running - near or far > _FAR_SHARE:
        remedy = f"start it with numactl --cpunodebind={format_list(near)} --membind={format_list(near)}"
        yield Finding("numa", "warn", detail, remedy)
    else:
        yield Finding("numa", "ok", detail)


def _gpu_nodes(roots: Roots) -> dict[str, int]:
    """NVIDIA display devices by PCI address; -1 where the node is not known."""
    return {
        device.name: int(try_read(device / "numa_node") or -1)
        for device in (roots.sys / "bus/pci/devices").glob("*")
        if try_read(device / "vendor") == _NVIDIA and try_read(device / "class").startswith(_DISPLAY)
    }


def _memory_by_node(roots: Roots, pid: int) -> dict[int, int] | None:
    """Bytes by NUMA node; ``None`` if it is not for us to see, or nothing is mapped."""
    memory: dict[int, int] = {}
    for line in try_read(roots.proc / str(pid) / "numa_maps").splitlines():
        size = re.search(r"kernelpagesize_kB=(\d+)", line)
        for node, pages in re.findall(r"\bN(\d+)=(\d+)", line):
            memory[int(node)] = memory.get(int(node), 0) + int(pages) * int(size[1] if size else 4) * 1024
    return memory or None


@check("cpu-quota")
def cpu_quota(roots: Roots, pid: int) -> Iterator[Finding]:
    """The tightest quota of a process's cgroup and those above it, and each one's throttling."""
    directory = CpuCgroups.find(roots.proc).cpu_directory(pid)
    tightest = quota(directory)
    throttled = [text for level in with_ancestors(directory) if (text := _throttling(level))]
    if tightest is None:
        limit = "none"
    else:
        period = f"{tightest.quota_us / 1000:g} ms in {tightest.period_us / 1000:g} ms"
        limit = f"{tightest.cpus:g} CPUs ({period}) by {short_name(str(tightest.directory))}"
    if throttled:
        yield Finding(
            "cpu-quota",
            "warn",
            f"{limit}; throttled: {', '.join(throttled)}",
            "raise or remove the CPU limit (limits.cpu, --cpus, CPUQuota=)",
        )
    else:
        yield Finding("cpu-quota", "ok", limit + ("; never throttled" if tightest else ""))


def _throttling(directory: Path) -> str:
    """Empty if it never happened."""
    stats = throttle_stats(directory)
    if stats is None or not stats.nr_throttled:
        return ""
    share = f"{stats.nr_throttled} of {stats.nr_periods} periods, {stats.throttled_ns / 1e9:.1f} s"
    return f"{short_name(str(directory))} in {share}"


@check("swap")
def swap(roots: Roots, pid: int) -> Iterator[Finding]:
    """How much of a process is swapped out."""
    status = status_fields(roots.proc, pid)
    swappiness = try_read(roots.proc / "sys/vm/swappiness")
    suffix = f"; vm.swappiness {swappiness}" if swappiness else ""
    areas = try_read(roots.proc / "swaps").splitlines()[1:]
    if "VmSwap" not in status:
        yield Finding("swap", "unknown", f"process {pid} has no memory of its own")
        return
    used_kib = int(status["VmSwap"].split()[0])
    if used_kib:
        remedy = "lock its memory, give the host more, or swapoff"
        yield Finding(
            "swap", "warn", f"{used_kib / 1024:.1f} MiB of the process are swapped out{suffix}", remedy
        )
    else:
        yield Finding("swap", "ok", f"nothing swapped out{suffix}" if areas else "the host has no swap")
