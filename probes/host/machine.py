"""Checks of the machine: clocks, sleep states, interrupts, scheduler, hypervisor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from quietcore.probes.host.finding import Finding, Roots, check, format_list, parse_list, read_text, try_read
from quietcore.probes.host.kernel import sees_all_processes

SLOW_EXIT_US = 20
_STOLEN_SHARE = 0.005
_PRESSURE_PERCENT = 10.0
_CLOUDS = ("KVM", "QEMU", "VMware", "VirtualBox", "Virtual Machine", "Xen", "HVM domU", "Google", "Bochs")


def _online(roots: Roots) -> list[tuple[int, Path]]:
    """CPUs that run, with their directories."""
    base = roots.sys / "devices/system/cpu"
    return [(cpu, base / f"cpu{cpu}") for cpu in sorted(parse_list(read_text(base / "online")))]


@check("cpu-governor")
def frequency_governor(roots: Roots) -> Iterator[Finding]:
    """Whether every CPU's cpufreq governor is ``performance``."""
    name = "cpu-governor"
    by_governor: dict[str, list[int]] = {}
    for cpu, directory in _online(roots):
        governor = try_read(directory / "cpufreq/scaling_governor")
        # of intel_pstate and amd_pstate: what the hardware makes of the governor
        preference = try_read(directory / "cpufreq/energy_performance_preference")
        label = governor + (f" ({preference})" if preference and governor != "performance" else "")
        by_governor.setdefault(label, []).append(cpu)
    unknown = by_governor.pop("", [])
    detail = ", ".join(f"{label} on CPUs {format_list(cpus)}" for label, cpus in by_governor.items())
    if not by_governor:
        yield Finding(name, "unknown", "no CPU has cpufreq: firmware or hypervisor sets the frequency")
    elif set(by_governor) != {"performance"}:
        yield Finding(name, "warn", detail, "cpupower frequency-set -g performance")
    elif unknown:
        yield Finding(name, "unknown", f"{detail}, not known of CPUs {format_list(unknown)}")
    else:
        yield Finding(name, "ok", detail)


@check("c-states")
def idle_states(roots: Roots) -> Iterator[Finding]:
    """The deepest idle state that each CPU may enter, by exit latency in microseconds."""
    name = "c-states"
    deepest: dict[tuple[int, str], list[int]] = {}
    for cpu, directory in _online(roots):
        states = [
            (int(read_text(state / "latency")), read_text(state / "name"))
            for state in sorted((directory / "cpuidle").glob("state*"))
            if try_read(state / "disable") != "1"
        ]
        if states:
            deepest.setdefault(max(states), []).append(cpu)
    base = roots.sys / "devices/system/cpu/cpuidle"
    governor = try_read(base / "current_governor") or try_read(base / "current_governor_ro")
    suffix = f"; cpuidle governor {governor}" if governor else ""
    if not deepest:
        yield Finding(name, "unknown", f"no idle states are listed{suffix}")
        return
    detail = "deepest state "
    detail += ", ".join(
        f"{state} (exit latency {latency} us) on CPUs {format_list(cpus)}"
        for (latency, state), cpus in sorted(deepest.items(), reverse=True)
    )
    worst = max(latency for latency, _ in deepest)
    if worst <= SLOW_EXIT_US:
        yield Finding(name, "ok", detail + suffix)
    else:
        remedy = f"cpupower idle-set -D {SLOW_EXIT_US + 1} disables states slower than {SLOW_EXIT_US} us"
        yield Finding(name, "warn", f"max exit latency {worst} us: {detail}{suffix}", remedy)


@check("isolated-cpus")
def isolated_cpus(roots: Roots) -> Iterator[Finding]:
    """CPUs that the boot line keeps from the scheduler, or from the tick; for information."""
    base = roots.sys / "devices/system/cpu"
    isolated = format_list(parse_list(read_text(base / "isolated")))
    tickless = format_list(parse_list(try_read(base / "nohz_full")))
    yield Finding("isolated-cpus", "ok", f"isolated: {isolated or 'none'}; nohz_full: {tickless or 'none'}")


@check("irqbalance")
def irqbalance(roots: Roots) -> Iterator[Finding]:
    """Whether irqbalance runs, and whether it is told to spare CPUs."""
    for directory in sorted(roots.proc.glob("[0-9]*")):
        if try_read(directory / "comm") != "irqbalance":
            continue
        settings = try_read(directory / "environ").split("\0")
        banned = [text for text in settings if re.match(r"IRQBALANCE_BANNED_CPU(LIST|S)=.", text)]
        if banned:
            yield Finding("irqbalance", "ok", f"process {directory.name}, with {banned[0]}")
        else:
            yield Finding(
                "irqbalance",
                "warn",
                f"process {directory.name} moves interrupts between CPUs, also onto those of launch threads",
                "set IRQBALANCE_BANNED_CPULIST to their CPUs in its environment file, or stop it",
            )
        return
    if sees_all_processes(roots):
        yield Finding("irqbalance", "ok", "not running")
    else:
        yield Finding("irqbalance", "unknown", "not among the processes that are visible here")


@check("sched-ext")
def sched_ext(roots: Roots) -> Iterator[Finding]:
    """Whether a BPF scheduler has taken over."""
    base = roots.sys / "kernel/sched_ext"
    if not base.exists():
        yield Finding("sched-ext", "ok", "not in this kernel")
        return
    state = read_text(base / "state")
    if state == "disabled":
        yield Finding("sched-ext", "ok", "not active")
    else:
        yield Finding(
            "sched-ext",
            "warn",
            f"{state}: the BPF scheduler {try_read(base / 'root/ops') or '(unnamed)'} decides who runs where",
            "nice, cpu weights and quotas may not act as usual; pinning leaves CPUs to it",
        )


@check("virtualisation")
def virtualisation(roots: Roots) -> Iterator[Finding]:
    """Whether this is a guest."""
    name = "virtualisation"
    flags = re.findall(r"^flags\s*:(.*)$", try_read(roots.proc / "cpuinfo"), re.MULTILINE)
    dmi = " ".join(
        filter(None, (try_read(roots.sys / "class/dmi/id" / f) for f in ("sys_vendor", "product_name")))
    )
    kind = try_read(roots.sys / "hypervisor/type") or dmi or "by the CPU's flags"
    is_cloud = any(cloud in dmi for cloud in _CLOUDS) or ("Amazon EC2" in dmi and "metal" not in dmi)
    if any("hypervisor" in line.split() for line in flags) or (not flags and is_cloud):
        yield Finding(
            name,
            "warn",
            f"a virtual machine ({kind}): time that the hypervisor takes shows only in part, as steal",
            "where time is missing, compare with the same load on the host, or dedicate physical CPUs",
        )
    elif flags:
        yield Finding(name, "ok", "no hypervisor" + (f" ({dmi})" if dmi else ""))
    else:
        yield Finding(name, "unknown", "this architecture's /proc/cpuinfo does not tell")


@check("steal")
def steal(roots: Roots) -> Iterator[Finding]:
    """What the hypervisor took, as a share of all CPU time since boot."""
    for line in read_text(roots.proc / "stat").splitlines():
        if line.startswith("cpu "):
            # user, nice, system, idle, iowait, irq, softirq, steal; guest time is within user
            times = [int(text) for text in line.split()[1:9]]
            share = times[7] / max(sum(times), 1)
            detail = f"{share:.2%} of CPU time since boot"
            if share > _STOLEN_SHARE:
                yield Finding("steal", "warn", detail, "ask for dedicated or less crowded CPUs")
            else:
                yield Finding("steal", "ok", detail)
            return
    yield Finding("steal", "unknown", f"{roots.proc / 'stat'} has no line for all CPUs")


@check("cpu-pressure")
def cpu_pressure(roots: Roots) -> Iterator[Finding]:
    """The share of the last ten seconds in which some task of the host waited for a CPU."""
    path = roots.proc / "pressure/cpu"
    if not path.exists():
        yield Finding(
            "cpu-pressure", "unknown", "this kernel has no PSI", "boot with psi=1 if it is built in"
        )
        return
    match = re.search(r"^some avg10=([\d.]+)", read_text(path), re.MULTILINE)
    if match is None:
        raise ValueError(str(path))
    percent = float(match[1])
    detail = f"tasks waited for a CPU in {percent:.1f} % of the last 10 s"
    if percent >= _PRESSURE_PERCENT:
        yield Finding("cpu-pressure", "warn", detail, "quietcore diagnose names who")
    else:
        yield Finding("cpu-pressure", "ok", detail)
