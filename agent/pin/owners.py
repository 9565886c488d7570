"""Who else decides where a target's threads run. What they own is left alone, and the user is told.

Everything is read below one root, so that a recorded tree of another host does as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from quietcore.probes.cgroups import CpuCgroups, short_name, with_ancestors
from quietcore.probes.errors import MeasureError
from quietcore.probes.host.finding import format_list, parse_list, status_fields, try_read

PLACING = frozenset({"affinity", "cpuset"})
"""Levers that say where threads run."""
WEIGHING = frozenset({"nice", "session-nice", "slice"})
INTERRUPTS = frozenset({"irq", "irqbalance"})
EVERYTHING = PLACING | WEIGHING | INTERRUPTS
_UNIT = re.compile(r"\.(service|scope|slice)$")
_UNIT_FOLDERS = (  # from weak to strong, see systemd.unit(5)
    "usr/lib/systemd/system",
    "lib/systemd/system",
    "run/systemd/transient",
    "run/systemd/system",
    "etc/systemd/system",
    "etc/systemd/system.control",
    "run/systemd/system.control",
)
_TUNED_FOLDERS = ("etc/tuned/profiles", "etc/tuned", "usr/lib/tuned/profiles", "usr/lib/tuned")
_TUNED_OWNERS = ("cpu-partitioning", "realtime")
_NUMA_FLAGS = re.compile(r"--(numa[-_]bind(?:[-_](?:nodes|cpus))?|numa[-_]binding)(?:=.*)?")


@dataclass(frozen=True, slots=True)
class Owner:
    """Somebody whose decisions are not touched.

    Attributes:
        levers: that are left alone because of it.
        text: what was found; ``remedy``: how the user may hand over to us.
        cpus: that are never chosen because of it.
    """

    name: str
    levers: frozenset[str]
    text: str
    remedy: str
    cpus: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}" if self.remedy else self.text


@dataclass(frozen=True, slots=True)
class _Host:
    root: Path
    pids: tuple[int, ...]

    def read(self, *parts: str) -> str:
        return try_read(self.root.joinpath(*parts))

    def words(self, pid: int, name: str) -> list[str]:
        """The arguments or the environment of a process."""
        return [word for word in self.read("proc", str(pid), name).split("\0") if word]

    def cgroups(self, pid: int, controller: str = "") -> str:
        """Its cgroup in a v1 hierarchy, else in v2."""
        unified = ""
        for line in self.read("proc", str(pid), "cgroup").splitlines():
            number, controllers, path = line.split(":", 2)
            if controller and controller in controllers.split(","):
                return path
            if number == "0":
                unified = path
        return unified

    def with_parents(self) -> Iterator[int]:
        """The processes, and those that started them."""
        seen: set[int] = set()
        for pid in self.pids:
            while pid > 1 and pid not in seen:
                seen.add(pid)
                yield pid
                fields = self.read("proc", str(pid), "stat").rpartition(")")[2].split()
                pid = int(fields[1]) if len(fields) > 1 else 0


def find_owners(pids: Collection[int], root: Path = Path("/")) -> list[Owner]:
    """All who have a say in where these processes run."""
    host = _Host(root, tuple(sorted(pids)))
    return [owner for find in _FINDERS for owner in find(host)]


def _kubelet(host: _Host) -> Iterator[Owner]:
    pods = [pid for pid in host.pids if "kubepods" in host.read("proc", str(pid), "cgroup")]
    static, cpus = _static_policy(host)
    if static and pods:
        yield Owner(
            "kubelet",
            PLACING,
            f"kubelet's static CPU manager places process {pods[0]}",
            "give its container another CPU manager policy, or take the gain of exclusive CPUs as it is",
            cpus,
        )
    elif pods:
        yield Owner("kubelet", frozenset({"cpuset"}), f"kubelet owns the cpuset of process {pods[0]}", "")
    elif static and cpus:
        yield Owner(
            "kubelet", frozenset(), f"CPUs {format_list(cpus)} are exclusive to pods (kubelet)", "", cpus
        )


def _static_policy(host: _Host) -> tuple[bool, frozenset[int]]:
    """Whether kubelet's policy is static, and the CPUs that it has given away."""
    folders, said = ["var/lib/kubelet"], False
    for directory in sorted((host.root / "proc").glob("[0-9]*")):
        if try_read(directory / "comm") == "kubelet":
            arguments = " ".join(host.words(int(directory.name), "cmdline"))
            if found := re.search(r"--root-dir[= ](\S+)", arguments):
                folders.append(found[1].lstrip("/"))
            said |= re.search(r"--cpu-manager-policy[= ]static\b", arguments) is not None
    for folder in folders:
        if text := host.read(folder, "cpu_manager_state"):
            try:
                state = json.loads(text)
                given = state.get("entries") or {}
                lists = [cpus for pod in given.values() for cpus in pod.values()]
                return state["policyName"] == "static", frozenset().union(*map(parse_list, lists))
            except (ValueError, KeyError, TypeError, AttributeError):
                return True, frozenset()  # not understood: better to stand aside
    return said, frozenset()


def _systemd(host: _Host) -> Iterator[Owner]:
    seen: set[str] = set()
    for pid in host.pids:
        path = host.cgroups(pid, "name=systemd")
        for unit in (part for part in path.split("/") if _UNIT.search(part)):
            if unit in seen:
                continue
            seen.add(unit)
            for setting in ("AllowedCPUs", "CPUAffinity"):
                if value := _unit_setting(host, unit, setting):
                    yield Owner(
                        "systemd",
                        PLACING,
                        f"{unit} has {setting}={value}",
                        f"remove it (systemctl revert {unit}) to let quietcore place its threads",
                    )


def _unit_setting(host: _Host, unit: str, setting: str) -> str:
    """The value that stands in a unit's files and drop-ins; empty if none."""
    template = re.sub(r"@[^@]*(\.\w+)$", r"@\1", unit)
    value = ""
    for name in dict.fromkeys((template, unit)):
        files = [host.root / folder / name for folder in _UNIT_FOLDERS]
        for folder in _UNIT_FOLDERS:
            files += sorted((host.root / folder / f"{name}.d").glob("*.conf"))
        for path in files:
            for found in re.findall(rf"^\s*{setting}\s*=[ \t]*(.*?)\s*$", try_read(path), re.MULTILINE):
                value = found
    return value


def _tuned(host: _Host) -> Iterator[Owner]:
    active = host.read("etc/tuned/active_profile").split()
    owner = next((found for profile in active if (found := _owner_profile(host, profile))), "")
    if not owner:
        return
    isolated = frozenset[int]()
    listed = re.search(
        r"^\s*isolated_cores\s*=\s*([\d,-]+)\s*$",
        host.read(f"etc/tuned/{owner}-variables.conf"),
        re.MULTILINE,
    )
    if listed:
        isolated = frozenset(parse_list(listed[1]))
    where = f" with isolated_cores={format_list(isolated)}" if isolated else ""
    yield Owner(
        "tuned",
        EVERYTHING,
        f"tuned's profile {' '.join(active)}{where} places threads and interrupts",
        "choose another profile (tuned-adm profile) to let quietcore act",
        isolated,
    )


def _owner_profile(host: _Host, profile: str, depth: int = 5) -> str:
    """The profile that partitions CPUs, this one or one that it includes; empty if none."""
    if not depth:
        return ""
    for name in _TUNED_OWNERS:
        if profile == name or profile.startswith(f"{name}-"):
            return name
    for folder in _TUNED_FOLDERS:
        text = host.read(folder, profile, "tuned.conf")
        if found := re.search(r"^\s*include\s*=\s*(.+)$", text, re.MULTILINE):
            names = re.split(r"[\s,]+", found[1].strip())
            return next((owner for name in names if (owner := _owner_profile(host, name, depth - 1))), "")
    return ""


def _partition(host: _Host) -> Iterator[Owner]:
    try:
        cpusets = CpuCgroups.find(host.root / "proc", "cpuset")
    except MeasureError:
        return
    seen: set[Path] = set()
    for pid in host.pids:
        try:
            directory = cpusets.directory(pid)
        except MeasureError:
            continue
        for level in with_ancestors(directory):
            if level in seen or level == cpusets.mount:
                continue
            seen.add(level)
            kind = try_read(level / "cpuset.cpus.partition")
            if kind.split(" ")[0] in ("root", "isolated") and "invalid" not in kind:
                text = f"cgroup {short_name(str(level))} is a cpuset partition ({kind})"
                yield Owner("partition", PLACING, text, "write member to its cpuset.cpus.partition")
            elif try_read(level / "cpuset.cpu_exclusive") == "1":
                text = f"cgroup {short_name(str(level))} has its CPUs exclusively (cpuset.cpu_exclusive)"
                yield Owner("partition", PLACING, text, "write 0 to its cpuset.cpu_exclusive")


def _isolcpus(host: _Host) -> Iterator[Owner]:
    isolated = parse_list(host.read("sys/devices/system/cpu/isolated"))
    for pid in host.pids if isolated else ():
        try:
            allowed = parse_list(status_fields(host.root / "proc", pid)["Cpus_allowed_list"])
        except (OSError, KeyError, ValueError):
            continue
        if allowed <= isolated:
            cpus = format_list(allowed)
            text = f"process {pid} was put onto isolated CPUs ({cpus}): where it runs is the user's choice"
            yield Owner("isolcpus", PLACING, text, "")
            return


def _sched_ext(host: _Host) -> Iterator[Owner]:
    state = host.read("sys/kernel/sched_ext/state")
    if state not in ("", "disabled"):
        name = host.read("sys/kernel/sched_ext/root/ops") or "(unnamed)"
        text = f"the BPF scheduler {name} decides who runs where (sched_ext is {state})"
        yield Owner("sched_ext", PLACING | WEIGHING, text, "stop it to let quietcore act")


def _engines(host: _Host) -> Iterator[Owner]:
    for pid in host.with_parents():
        for word in host.words(pid, "cmdline"):
            if found := _NUMA_FLAGS.fullmatch(word):
                text = f"process {pid} was started with --{found[1]}: its engine binds its own threads"
                yield Owner("engine", PLACING, text, "start it without to let quietcore place its threads")
                return
    for pid in host.pids:
        if "SGLANG_SET_CPU_AFFINITY=1" in host.words(pid, "environ"):
            text = f"process {pid} has SGLANG_SET_CPU_AFFINITY=1: its engine binds its own threads"
            yield Owner("engine", PLACING, text, "start it without to let quietcore place its threads")
            return


_FINDERS: tuple[Callable[[_Host], Iterator[Owner]], ...] = (
    _kubelet,
    _systemd,
    _tuned,
    _partition,
    _isolcpus,
    _sched_ext,
    _engines,
)
