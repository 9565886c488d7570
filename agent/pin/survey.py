"""Looks at the host for a plan: where the critical threads, the culprits and the interrupts are now."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from quietcore.agent.attribution import Culprit, is_kernel_thread
from quietcore.agent.pin.host_levers import BalancerBan, find_balancer
from quietcore.agent.pin.levers import GoneError, RefusedError
from quietcore.agent.pin.owners import INTERRUPTS, Owner, find_owners
from quietcore.agent.pin.situation import CpusetFacts, Offender, Situation, ThreadFacts
from quietcore.agent.pin.things import Autogroup, Balancer, CpusetDir, find_thread, threads_of
from quietcore.agent.pin.thread_levers import FAIR, autogroup_of, cpusets, default_slice
from quietcore.probes import cgroups, proc
from quietcore.probes.errors import MeasureError
from quietcore.probes.host.finding import parse_list, status_fields, try_read
from quietcore.probes.topology import (
    CpuTimes,
    Irq,
    busy_shares,
    irq_rates,
    read_cpu_times,
    read_interrupts,
    read_topology,
)

LOOK_S = 1.0
"""How long the CPUs are watched for who is busy."""
_SLICES = 20
"""Looks at where the target's threads are meanwhile: they may move."""
_ACTIVE_NS = 500_000
"""Threads that ran less in the first slice, and pace nothing, are not looked at again."""
MAJOR = 0.1
"""Culprits with a smaller part of what was taken do not say where not to be."""
_INTERRUPTS = ("irq", "softirq", "vector")
_PROCESSES = ("process", "processes", "cgroup", "kernel thread", "kernel threads")
_REMEMBERING = (6, 2)
"""Kernel from which threads keep their own affinity when their cpuset changes; earlier ones forget it."""


@dataclass(frozen=True, slots=True)
class _Look:
    times: Mapping[int, CpuTimes]
    irqs: Mapping[int, Irq]
    switches: Mapping[int, tuple[int, int]]
    at: float


def survey(
    name: str,
    processes: Mapping[int, int],
    critical: Iterable[int],
    culprits: Iterable[Culprit],
    *,
    avoid: frozenset[int] = frozenset(),
    allow_offenders: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Situation:
    """The situation of a target; takes a second.

    Args:
        processes: of the target: pid to start (ticks).
        critical: ids of the threads that pace it.
        avoid: CPUs that must not be chosen.

    Raises:
        MeasureError: /proc or /sys cannot be read.
    """
    pids = [pid for pid, started in processes.items() if not proc.has_ended(pid, started)]
    owners_of = {tid: pid for tid in sorted(critical) if (pid := proc.thread_group(tid)) in pids}
    pacing = {tid: pid for tid, pid in owners_of.items() if pid is not None}
    first = _look(pacing)
    own_ns = _watch(pids, pacing, sleep)
    last = _look(pacing)
    seconds = last.at - first.at
    found = (_facts(pid, tid, _pushed(first, last, tid)) for tid, pid in pacing.items())
    major = _major(culprits)
    owners = find_owners(pids)
    balancer, banned = _balancer(owners)
    strangers = [pid for culprit in major for pid in _processes_of(culprit)]
    nice_counts, session = weights(pids, strangers)
    return Situation(
        target=name,
        threads=tuple(facts for facts in found if facts),
        topology=read_topology(),
        others={
            cpu: max(share - own_ns.get(cpu, 0) / 1e9 / seconds, 0.0)
            for cpu, share in busy_shares(first.times, last.times).items()
        },
        irqs=last.irqs,
        irq_rates=irq_rates(first.irqs, last.irqs, seconds),
        culprit_cpus=frozenset(cpu for culprit in major for cpu in _cpus_of(culprit, last.irqs)),
        interrupted=any(culprit.kind in _INTERRUPTS for culprit in major),
        avoid=avoid.union(*(owner.cpus for owner in owners)),
        nice_counts=nice_counts,
        session=session,
        slices=default_slice() > 0,
        cpuset=_cpuset(pids),
        balancer=balancer,
        banned=banned,
        offenders=_offenders(major, pids) if allow_offenders else (),
        owners=tuple(owners),
    )


def _look(threads: Mapping[int, int]) -> _Look:
    counted = {tid: proc.context_switches(pid, tid) for tid, pid in threads.items()}
    switches = {tid: count for tid, count in counted.items() if count}
    return _Look(read_cpu_times(), read_interrupts(), switches, time.monotonic())


def _watch(pids: Iterable[int], pacing: Mapping[int, int], sleep: Callable[[float], None]) -> dict[int, int]:
    """What the target itself ran on each CPU within :data:`LOOK_S`, ns, by where its threads were found."""
    watched = {thread.tid: pid for pid in pids for thread in threads_of(pid)}
    before = {tid: ran.on_cpu_ns for tid, pid in watched.items() if (ran := proc.read_schedstat(pid, tid))}
    spent: dict[int, int] = {}
    for number in range(_SLICES):
        sleep(LOOK_S / _SLICES)
        active = dict(pacing)
        for tid, pid in watched.items():
            ran, stat = proc.read_schedstat(pid, tid), proc.read_stat(pid, tid)
            if ran is None or stat is None or tid not in before:
                continue
            more = ran.on_cpu_ns - before[tid]
            before[tid] = ran.on_cpu_ns
            spent[stat.cpu] = spent.get(stat.cpu, 0) + more
            if more >= _ACTIVE_NS:
                active[tid] = pid
        if not number:
            watched = active
    return spent


def _pushed(first: _Look, last: _Look, tid: int) -> bool:
    before, after = first.switches.get(tid, (0, 0)), last.switches.get(tid, (0, 0))
    return after[1] - before[1] >= after[0] - before[0]


def _facts(pid: int, tid: int, pushed: bool = True) -> ThreadFacts | None:
    """A thread as it is; ``None`` if it is gone."""
    thread, stat = find_thread(pid, tid), proc.read_stat(pid, tid)
    if thread is None or stat is None:
        return None
    try:
        allowed = parse_list(status_fields(proc.PROC, f"{pid}/task/{tid}")["Cpus_allowed_list"])
        nice = os.getpriority(os.PRIO_PROCESS, tid)
    except (OSError, KeyError):
        return None
    return ThreadFacts(thread, stat.comm, frozenset(allowed), stat.cpu, nice, stat.policy in FAIR, pushed)


def _major(culprits: Iterable[Culprit]) -> list[Culprit]:
    found = list(culprits)
    least = MAJOR * sum(culprit.ns for culprit in found)
    return [culprit for culprit in found if culprit.ns >= least]


def _cpus_of(culprit: Culprit, irqs: Mapping[int, Irq]) -> frozenset[int]:
    """Where it is now; a softirq runs wherever its work comes up."""
    if culprit.kind == "irq" and (number := re.match(r"\d+", culprit.name)):
        irq = irqs.get(int(number[0]))
        return irq.effective if irq else frozenset()
    if culprit.kind not in _PROCESSES:
        return frozenset()
    stats = [proc.read_stat(tid) for tid, _ in culprit.threads]
    return frozenset(stat.cpu for stat in stats if stat is not None)


def _processes_of(culprit: Culprit) -> set[int]:
    if culprit.kind not in _PROCESSES:
        return set()
    found = {proc.thread_group(tid) for tid, _ in culprit.threads}
    return {pid for pid in found if pid is not None}


def weights(pids: list[int], strangers: Iterable[int]) -> tuple[bool, Autogroup | None]:
    """Whether the nice of threads counts against the culprits, and the session whose nice does beside it."""
    theirs = [pid for pid in strangers if not is_kernel_thread(pid)]
    if not theirs:
        return True, None
    ours = {cgroups.cpu_cgroup(pid) for pid in pids}
    # the kernel weighs threads within their cgroup only
    near = [pid for pid in theirs if cgroups.cpu_cgroup(pid) in ours]
    if not _has_autogroups(pids):
        return bool(near), None
    sessions = {autogroup_of(pid) for pid in pids}
    outside = [pid for pid in near if autogroup_of(pid) not in sessions]
    return len(outside) < len(near), _session(pids) if outside else None


def _has_autogroups(pids: Iterable[int]) -> bool:
    """Sessions are weighed as groups only in the root cgroup of the cpu controller."""
    enabled = try_read(proc.PROC / "sys/kernel/sched_autogroup_enabled") == "1"
    return enabled and any(_in_root(pid) for pid in pids)


def _in_root(pid: int) -> bool:
    directory = cgroups.cpu_cgroup(pid)
    return directory is None or not (directory.parent / "cgroup.procs").exists()


def _session(pids: list[int]) -> Autogroup | None:
    """The session of the target, if nobody else but who started it is in it."""
    groups = {autogroup_of(pid) for pid in pids}
    if len(groups) != 1 or groups == {""}:
        return None
    group = groups.pop()
    allowed = set(pids)
    for pid in pids:
        while (stat := proc.read_stat(pid)) and stat.parent and stat.parent not in allowed:
            allowed.add(pid := stat.parent)
    members = {pid for pid in proc.process_ids() if autogroup_of(pid) == group}
    return Autogroup(group, pids[0]) if members <= allowed else None


def _cpuset(pids: list[int]) -> CpusetFacts | None:
    """The cpuset of the target where it is its own and may be narrowed without loss."""
    found = cpusets()
    if found is None or not pids:
        return None
    try:
        directories = {found.directory(pid) for pid in pids}
    except MeasureError:
        return None
    if len(directories) != 1:
        return None
    directory = directories.pop()
    if not set(cgroups.processes(directory)) <= set(pids):
        return None
    return _cpuset_facts(directory, found.mount)


def _cpuset_facts(directory: Path, mount: Path) -> CpusetFacts | None:
    if directory == mount or not (directory / "cpuset.cpus").exists():
        return None
    names = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")
    cpus = next((found for name in names if (found := parse_list(try_read(directory / name)))), set())
    if not cpus or (not _kernel_remembers() and _has_bound_threads(directory, cpus)):
        return None
    return CpusetFacts(CpusetDir(str(directory), cgroups.cgroup_id(directory)), frozenset(cpus))


def _kernel_remembers() -> bool:
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return match is not None and (int(match[1]), int(match[2])) >= _REMEMBERING


def _has_bound_threads(directory: Path, cpus: set[int]) -> bool:
    facts = [_facts(pid, thread.tid) for pid in cgroups.processes(directory) for thread in threads_of(pid)]
    return any(found is not None and found.allowed != cpus for found in facts)


def _offenders(culprits: Iterable[Culprit], pids: Iterable[int]) -> tuple[Offender, ...]:
    """The processes among the culprits that may be moved, as far as nobody else decides where they run."""
    spared = {1, os.getpid(), *pids}
    found = []
    for culprit in culprits:
        if culprit.kind != "process" or not culprit.pid or culprit.pid in spared:
            continue
        owned = {lever for owner in find_owners([culprit.pid]) for lever in owner.levers}
        cpuset = None if "cpuset" in owned else _cpuset_apart(culprit.pid, spared)
        facts = [] if "affinity" in owned else [_facts(culprit.pid, t.tid) for t in threads_of(culprit.pid)]
        name = f"{culprit.name} [{culprit.pid}]"
        found.append(Offender(name, tuple(thread for thread in facts if thread), cpuset))
    return tuple(found)


def _cpuset_apart(pid: int, spared: set[int]) -> CpusetFacts | None:
    """The cpuset of a process, unless it holds any that must be spared."""
    found = cpusets()
    try:
        directory = found.directory(pid) if found else None
    except MeasureError:  # it has just ended
        return None
    if found is None or directory is None or spared & set(cgroups.processes(directory)):
        return None
    return _cpuset_facts(directory, found.mount)


def _balancer(owners: list[Owner]) -> tuple[Balancer | None, str]:
    """A running irqbalance and what it leaves alone; who cannot be asked owns the interrupts."""
    balancer = find_balancer()
    if balancer is None:
        return None, ""
    try:
        return balancer, str(BalancerBan().read(balancer))
    except GoneError:
        return None, ""
    except RefusedError as e:
        text = f"irqbalance (process {balancer.pid}) moves interrupts every few seconds, and {e}"
        owners.append(Owner("irqbalance", INTERRUPTS, text, "stop it to let quietcore move interrupts"))
        return None, ""
