"""Each check of a host in each of its verdicts, from made-up /proc and /sys trees."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from quietcore.probes.host import Finding, Roots, check_host, check_kernel, check_process
from quietcore.probes.host.finding import format_list, parse_list
from quietcore.probes.host.kernel import (
    btf,
    capabilities,
    kernel_version,
    lockdown,
    pid_namespace,
    tracefs,
)
from quietcore.probes.host.machine import (
    cpu_pressure,
    frequency_governor,
    idle_states,
    irqbalance,
    isolated_cpus,
    sched_ext,
    steal,
    virtualisation,
)
from quietcore.probes.host.process import cpu_affinity, cpu_quota, numa_placement, swap

Tree = dict[str, str]
CPU = "sys/devices/system/cpu"
HOST_NAMESPACE = "-> pid:[4026531836]"
OTHER_NAMESPACE = "-> pid:[4026532999]"


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    (tmp_path / "proc").mkdir()
    (tmp_path / "sys").mkdir()
    return Roots(tmp_path / "proc", tmp_path / "sys")


def plant(roots: Roots, tree: Tree) -> None:
    """Makes files; a text that begins with `->` makes a link, `{top}` stands for the folder of the tree."""
    top = roots.proc.parent
    for name, text in tree.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            path.symlink_to(text.removeprefix("-> "))
        else:
            path.write_text(text.replace("{top}", str(top)))


def cpus(count: int, **files: str) -> dict[str, str]:
    """The same files for each CPU; `__` stands for a slash."""
    tree = {f"{CPU}/online": f"0-{count - 1}\n" if count > 1 else "0\n"}
    for cpu in range(count):
        tree |= {f"{CPU}/cpu{cpu}/{name.replace('__', '/')}": text for name, text in files.items()}
    return tree


def idle_state(number: int, name: str, latency: int, disable: int = 0) -> dict[str, str]:
    base = f"cpuidle__state{number}__"
    return {f"{base}name": f"{name}\n", f"{base}latency": f"{latency}\n", f"{base}disable": f"{disable}\n"}


FAST = cpus(2, cpufreq__scaling_governor="performance\n")
MIXED = cpus(4, cpufreq__scaling_governor="performance\n")
MIXED[f"{CPU}/cpu2/cpufreq/scaling_governor"] = "schedutil\n"
INTEL = cpus(1, cpufreq__scaling_governor="powersave", cpufreq__energy_performance_preference="power")
IDLE = idle_state(0, "POLL", 0) | idle_state(1, "C1", 2)
SLOW = idle_state(2, "C6", 133)
SLOW_OFF = idle_state(2, "C6", 133, disable=1)
MAY_LOAD = f"CapEff:\t{1 << 38 | 1 << 39:016x}\n"
WITHOUT = "CapEff:\t0000000000000000\n"
PSI = "some avg10={} avg60=0.00 avg300=0.00 total=1\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=0\n"
GUEST = {"proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu hypervisor lahf_lm\n"}
DMI = "sys/class/dmi/id"
LOCK = "sys/kernel/security/lockdown"
SCX = "sys/kernel/sched_ext"
IRQBALANCE = {"proc/812/comm": "irqbalance\n"}
BANNED = {"proc/812/environ": "HOME=/\0IRQBALANCE_BANNED_CPULIST=2-3\0"}
HERE = {"proc/self/ns/pid": HOST_NAMESPACE}


@pytest.mark.parametrize(
    ("check", "tree", "status", "says"),
    [
        (frequency_governor, FAST, "ok", "performance on CPUs 0-1"),
        (
            frequency_governor,
            MIXED,
            "warn",
            "performance on CPUs 0-1,3, schedutil on CPUs 2",
        ),
        (
            frequency_governor,
            INTEL,
            "warn",
            "powersave (power) on CPUs 0",
        ),
        (frequency_governor, cpus(2), "unknown", "no CPU has cpufreq"),
        (
            frequency_governor,
            cpus(2) | {f"{CPU}/cpu1/cpufreq/scaling_governor": "performance"},
            "unknown",
            "not known of CPUs 0",
        ),
        (frequency_governor, {}, "unknown", "online cannot be read: No such file"),
        (idle_states, cpus(2, **IDLE), "ok", "deepest state C1 (exit latency 2 us) on CPUs 0-1"),
        (idle_states, cpus(2, **IDLE, **SLOW), "warn", "max exit latency 133 us: deepest state C6"),
        (idle_states, cpus(2, **IDLE, **SLOW_OFF), "ok", "deepest state C1"),
        (
            idle_states,
            cpus(1, **IDLE) | {f"{CPU}/cpuidle/current_governor_ro": "menu\n"},
            "ok",
            "; cpuidle governor menu",
        ),
        (idle_states, cpus(2), "unknown", "no idle states are listed"),
        (idle_states, cpus(1, cpuidle__state0__latency="fast"), "unknown", "not understood: ValueError"),
        (isolated_cpus, {f"{CPU}/isolated": "\n"}, "ok", "isolated: none; nohz_full: none"),
        (
            isolated_cpus,
            {f"{CPU}/isolated": "2-3\n", f"{CPU}/nohz_full": "(null)\n"},
            "ok",
            "isolated: 2-3; nohz_full: none",
        ),
        (isolated_cpus, {}, "unknown", "isolated cannot be read"),
        (irqbalance, IRQBALANCE, "warn", "process 812 moves interrupts"),
        (irqbalance, IRQBALANCE | BANNED, "ok", "process 812, with IRQBALANCE_BANNED_CPULIST=2-3"),
        (irqbalance, HERE | {"proc/9/comm": "bash\n"}, "ok", "not running"),
        (irqbalance, {"proc/9/comm": "bash\n"}, "unknown", "not among the processes"),
        (sched_ext, {}, "ok", "not in this kernel"),
        (sched_ext, {f"{SCX}/state": "disabled\n"}, "ok", "not active"),
        (sched_ext, {f"{SCX}/state": "enabled", f"{SCX}/root/ops": "lavd"}, "warn", "scheduler lavd"),
        (sched_ext, {f"{SCX}/nr_rejected": "0\n"}, "unknown", "state cannot be read"),
        (virtualisation, GUEST, "warn", "a virtual machine (by the CPU's flags)"),
        (virtualisation, GUEST | {f"{DMI}/sys_vendor": "QEMU\n"}, "warn", "a virtual machine (QEMU)"),
        (virtualisation, {"proc/cpuinfo": "flags\t\t: fpu\n"}, "ok", "no hypervisor"),
        (virtualisation, {"proc/cpuinfo": "Features\t: fp\n"}, "unknown", "does not tell"),
        (
            virtualisation,
            {f"{DMI}/sys_vendor": "Amazon EC2\n", f"{DMI}/product_name": "c7g.metal\n"},
            "unknown",
            "does not tell",
        ),
        (
            virtualisation,
            {f"{DMI}/sys_vendor": "Amazon EC2\n", f"{DMI}/product_name": "c7g.large\n"},
            "warn",
            "Amazon EC2 c7g.large",
        ),
        (steal, {"proc/stat": "cpu  500 0 0 499 0 0 0 1 0 0\ncpu0 0\n"}, "ok", "0.10% of CPU time"),
        (steal, {"proc/stat": "cpu  500 0 0 490 0 0 0 10 400 0\n"}, "warn", "1.00% of CPU time"),
        (steal, {"proc/stat": "cpu0 1 2 3\n"}, "unknown", "no line for all CPUs"),
        (cpu_pressure, {"proc/pressure/cpu": PSI.format("9.99")}, "ok", "in 10.0 % of the last 10 s"),
        (cpu_pressure, {"proc/pressure/cpu": PSI.format("10.00")}, "warn", "in 10.0 %"),
        (cpu_pressure, {"proc/pressure/cpu": "nonsense"}, "unknown", "not understood"),
        (cpu_pressure, {}, "unknown", "no PSI"),
        (kernel_version, {"proc/sys/kernel/osrelease": "5.8.0-rc1\n"}, "ok", "5.8.0-rc1"),
        (kernel_version, {"proc/sys/kernel/osrelease": "5.4.0-99\n"}, "warn", "older than 5.8"),
        (kernel_version, {"proc/sys/kernel/osrelease": "?\n"}, "unknown", "not understood"),
        (btf, {"sys/kernel/btf/vmlinux": "12345"}, "ok", "vmlinux, 5 bytes"),
        (btf, {}, "fail", "does not exist"),
        (lockdown, {LOCK: "[none] integrity confidentiality\n"}, "ok", "none"),
        (lockdown, {LOCK: "none [integrity] confidentiality\n"}, "ok", "integrity"),
        (lockdown, {LOCK: "none integrity [confidentiality]\n"}, "fail", "may not read"),
        (lockdown, {"sys/kernel/security/lsm": "capability\n"}, "ok", "not in this kernel"),
        (lockdown, {}, "unknown", "securityfs is not mounted"),
        (capabilities, {"proc/self/status": MAY_LOAD}, "ok", "CAP_BPF, CAP_PERFMON"),
        (capabilities, {"proc/self/status": f"CapEff:\t{1 << 21:016x}\n"}, "ok", "CAP_SYS_ADMIN"),
        (capabilities, {"proc/self/status": f"CapEff:\t{1 << 39:016x}\n"}, "fail", "CAP_BPF"),
        (capabilities, {"proc/self/status": WITHOUT}, "fail", "none of CAP_SYS_ADMIN"),
        (
            capabilities,
            {"proc/self/status": MAY_LOAD, "proc/self/uid_map": "0 1000 1\n"},
            "fail",
            "within a user namespace only",
        ),
        (capabilities, {"proc/self/status": "Name:\tx\n"}, "unknown", "KeyError('CapEff')"),
        (
            tracefs,
            {"proc/self/mounts": "tracefs /sys/kernel/tracing tracefs rw 0 0\n"},
            "ok",
            "/sys/kernel/tracing",
        ),
        (tracefs, {"proc/self/mounts": "proc /proc proc rw 0 0\n"}, "warn", "not mounted"),
        (tracefs, {}, "unknown", "mounts cannot be read"),
        (pid_namespace, HERE | {"proc/1/ns/pid": HOST_NAMESPACE}, "ok", "the host's"),
        (pid_namespace, HERE, "ok", "the host's"),
        (pid_namespace, HERE | {"proc/1/ns/pid": OTHER_NAMESPACE}, "warn", "of another pid namespace"),
        (
            pid_namespace,
            {"proc/self/ns/pid": OTHER_NAMESPACE, "proc/1/ns/pid": OTHER_NAMESPACE},
            "warn",
            "this agent runs in a container's pid namespace; host processes are invisible",
        ),
        (pid_namespace, {}, "unknown", "pid cannot be read"),
    ],
)
def test_checks_of_the_host(
    roots: Roots, check: Callable[[Roots], list[Finding]], tree: Tree, status: str, says: str
) -> None:
    plant(roots, tree)
    (finding,) = check(roots)
    assert finding.status == status, finding
    assert says in finding.detail


def of_process(cpus: str = "0-3", threads: int = 2, swap: str = "VmSwap:\t0 kB\n", mems: str = "0-1") -> Tree:
    lists = f"Cpus_allowed_list:\t{cpus}\nMems_allowed_list:\t{mems}\n"
    return {"proc/7/status": f"Name:\tx: y\nThreads:\t{threads}\n{swap}{lists}", f"{CPU}/online": "0-3\n"}


def states(*letters: str) -> Tree:
    return {f"proc/7/task/{7 + i}/stat": f"{7 + i} (a) b) {state} 1 1\n" for i, state in enumerate(letters)}


GPU = {
    f"sys/bus/pci/devices/0000:81:00.0/{k}": v for k, v in (("vendor", "0x10de\n"), ("class", "0x030200\n"))
}
GPU_AUDIO = {
    f"sys/bus/pci/devices/0000:81:00.1/{k}": v for k, v in (("vendor", "0x10de\n"), ("class", "0x040300\n"))
}
NODE = "sys/devices/system/node"
NODES = {f"{NODE}/node0/cpulist": "0-1\n", f"{NODE}/node1/cpulist": "2-3\n", f"{NODE}/online": "0-1\n"}
ON_1 = GPU | {"sys/bus/pci/devices/0000:81:00.0/numa_node": "1\n"}
PAGES = (
    "7f00 default anon={0} dirty=5 N0={0} N1={1} kernelpagesize_kB=4\n"
    "7f10 default huge N1=1 kernelpagesize_kB=2048\n"
)
MOUNTS = "31 23 0:28 / {top}/cg rw - cgroup2 none rw\n"
QUOTA = {
    "proc/self/mountinfo": MOUNTS,
    "proc/7/cgroup": "0::/pod/inner\n",
    "cg/cgroup.procs": "",
    "cg/pod/cgroup.procs": "",
    "cg/pod/cpu.max": "150000 100000\n",
    "cg/pod/inner/cgroup.procs": "7\n",
    "cg/pod/inner/cpu.max": "max 100000\n",
    "cg/pod/inner/cpu.weight": "100\n",
    "cg/pod/inner/cpu.stat": "nr_periods 9\nnr_throttled 0\nthrottled_usec 0\n",
}
THROTTLED = {"cg/pod/cpu.stat": "nr_periods 90\nnr_throttled 30\nthrottled_usec 2500000\n"}
UNLIMITED = {"cg/pod/cpu.max": "max 100000\n"}
SWAPS = {
    "proc/swaps": "Filename Type Size Used Priority\n/dev/sda2 partition 9 1 -2\n",
    "proc/sys/vm/swappiness": "60\n",
}
SWAPPED = of_process(swap="VmSwap:\t2048 kB\n")


@pytest.mark.parametrize(
    ("check", "tree", "status", "says"),
    [
        (cpu_affinity, of_process() | states("R", "S"), "ok", "4 CPUs (0-3) for 2 threads, 1 runnable now"),
        (cpu_affinity, of_process("3-7") | states("R", "R"), "warn", "1 CPUs (3) for 2 threads"),
        (cpu_affinity, of_process("0-1", 3) | states("R", "R", "R"), "warn", "3 runnable now"),
        (cpu_affinity, of_process("2", 1), "ok", "1 CPUs (2) for 1 threads"),
        (cpu_affinity, {}, "unknown", "status cannot be read"),
        (numa_placement, ON_1 | NODES | of_process("2-3", mems="1"), "ok", "memory allowed on nodes 1"),
        (numa_placement, ON_1 | NODES | of_process("1-3", mems="1"), "warn", "CPUs on nodes 0-1"),
        (
            numa_placement,
            ON_1 | NODES | of_process("2-3") | {"proc/7/numa_maps": PAGES.format(50, 10)},
            "ok",
            "memory 9% on node 0, 91% on node 1",
        ),
        (
            numa_placement,
            ON_1 | NODES | of_process("2-3") | {"proc/7/numa_maps": PAGES.format(512, 0)},
            "warn",
            "memory 50% on node 0, 50% on node 1",
        ),
        (numa_placement, GPU | {f"{NODE}/node0/cpulist": "0-3\n"}, "ok", "one NUMA node"),
        (numa_placement, GPU | NODES | of_process(), "unknown", "does not tell the GPUs' nodes"),
        (numa_placement, ON_1 | NODES, "unknown", "status cannot be read"),
        (cpu_quota, QUOTA, "ok", "1.5 CPUs (150 ms in 100 ms) by {top}/cg/pod; never throttled"),
        (cpu_quota, QUOTA | UNLIMITED, "ok", "none"),
        (cpu_quota, QUOTA | THROTTLED, "warn", "throttled: {top}/cg/pod in 30 of 90 periods, 2.5 s"),
        (cpu_quota, {"proc/self/mountinfo": MOUNTS}, "unknown", "the cgroup of process 7 cannot be read"),
        (cpu_quota, {"proc/self/mountinfo": ""}, "unknown", "no cgroup hierarchy"),
        (swap, of_process() | SWAPS, "ok", "nothing swapped out; vm.swappiness 60"),
        (swap, of_process(), "ok", "the host has no swap"),
        (swap, SWAPPED | SWAPS, "warn", "2.0 MiB of the process are swapped out; vm.swappiness 60"),
        (swap, of_process(swap=""), "unknown", "no memory of its own"),
        (swap, {}, "unknown", "status cannot be read"),
    ],
)
def test_checks_of_a_process(
    roots: Roots, check: Callable[[Roots, int], list[Finding]], tree: Tree, status: str, says: str
) -> None:
    plant(roots, tree)
    (finding,) = check(roots, 7)
    assert finding.status == status, finding
    assert says.replace("{top}", str(roots.proc.parent)) in finding.detail
    assert bool(finding.remedy) == (status == "warn") or status == "unknown"


def test_without_a_gpu_its_node_is_no_matter(roots: Roots) -> None:
    plant(roots, GPU_AUDIO | NODES | of_process())
    assert numa_placement(roots, 7) == []


def test_of_a_process_that_is_gone(roots: Roots) -> None:
    (finding,) = check_process(7, roots)
    assert (finding.check, finding.status) == ("process", "unknown")
    assert "process 7 does not exist" in finding.detail


def test_nothing_raises_where_nothing_can_be_read(roots: Roots) -> None:
    (roots.proc / "7").mkdir()
    findings = check_host(7, roots)
    assert {finding.status for finding in findings} <= {"unknown", "ok", "fail"}
    assert [f.check for f in findings if f.status == "ok"] == ["sched-ext"]
    assert [f.check for f in findings if f.status == "fail"] == ["btf"]


def test_nothing_raises_where_folders_stand_for_files(roots: Roots) -> None:
    for name in ("proc/stat", "proc/7/status", "proc/self/mountinfo", "proc/pressure/cpu", f"{CPU}/online"):
        (roots.proc.parent / name).mkdir(parents=True)
    findings = check_host(7, roots)
    by_check = {finding.check: finding for finding in findings}
    assert len(by_check) == len(findings)
    for name in ("steal", "cpu-affinity", "cpu-quota", "cpu-pressure", "cpu-governor"):
        assert (by_check[name].status, "Is a directory" in by_check[name].detail) == ("unknown", True)


def test_on_this_host() -> None:
    findings = check_host(os.getpid())
    names = [finding.check for finding in findings]
    assert len(set(names)) == len(names)
    assert {"cpu-governor", "steal", "cpu-affinity", "cpu-quota", "swap", "capabilities"} <= set(names)
    for finding in findings:
        assert "not understood" not in finding.detail, finding
        assert bool(finding.remedy) >= (finding.status in ("warn", "fail"))
    assert len(check_host()) < len(findings)


@pytest.mark.root
def test_what_the_kernel_allows_here() -> None:
    """The marker stands for a kernel on which BPF programs load: so nothing may fail."""
    assert [finding for finding in check_kernel() if finding.status == "fail"] == []


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3,8", {0, 1, 2, 3, 8}), ("", set()), ("5", {5}), ("0,2,4-5", {0, 2, 4, 5})],
)
def test_lists_of_cpus(text: str, numbers: set[int]) -> None:
    assert parse_list(text + "\n") == numbers
    assert format_list(numbers) == text
