"""The cgroups of the cpu controller: where they are, how tight they are, what they are called.

:class:`CpuCgroups` finds those of another controller as well.

Quota and weight of a thread are those of its cgroup in the cpu controller's hierarchy: a v1
mount with the option ``cpu`` where there is one (hybrid hosts included), else cgroup v2. A v2
cgroup for which the controller is not enabled belongs to the nearest one above for which it
is; that one's id is what BPF programs read from the task.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from quietcore.probes import proc
from quietcore.probes.errors import MeasureError, TargetGoneError

PROC = Path("/proc")
_REFRESH_NS = 5_000_000_000
_REMEMBERED = 1024  # cgroups that are gone, but whose ids may still come up
_HOST_MOUNT = "mount the host's /sys/fs/cgroup, read-only will do, where this process can see it"


class Quota(NamedTuple):
    """At most ``quota_us`` of CPU time in each ``period_us``, both microseconds."""

    quota_us: int
    period_us: int
    directory: Path

    @property
    def cpus(self) -> float:
        """The limit as a number of CPUs."""
        return self.quota_us / self.period_us


class ThrottleStats(NamedTuple):
    """How often the quota was used up, since the cgroup was made. Nanoseconds add up over CPUs."""

    nr_periods: int
    nr_throttled: int
    throttled_ns: int


class _Mount(NamedTuple):
    root: str  # the mounted part of the hierarchy, as our cgroup namespace names it
    point: Path
    version: Literal[1, 2]
    controllers: frozenset[str]


@dataclass(slots=True)
class CpuCgroups:
    """A controller's hierarchy, as far as it is mounted here; made by :meth:`find`.

    Attributes:
        version: of the cgroup interface that the controller uses.
        mount: the directory of its topmost visible cgroup.
        root: the name of that cgroup, ``/`` unless only a part is mounted.
    """

    version: Literal[1, 2]
    mount: Path
    root: str
    proc: Path = PROC
    clock: Callable[[], int] = time.monotonic_ns
    controller: str = "cpu"
    _paths: dict[int, str] = field(default_factory=dict)
    _walked: int | None = None

    @classmethod
    def find(cls, proc: Path = PROC, controller: str = "cpu") -> CpuCgroups:
        """From the mounts that this process sees. Raises MeasureError if there is none."""
        mounts = _mounts(proc)
        chosen = [m for m in mounts if controller in m.controllers] or [m for m in mounts if m.version == 2]
        if not chosen:
            cause = f"no cgroup hierarchy with the {controller} controller is mounted"
            raise MeasureError(cause, _HOST_MOUNT)
        # of several views the highest: each ".." is a step up, each name a step down
        best = min(chosen, key=lambda m: sum(-1 if part == ".." else 1 for part in _parts(m.root)))
        return cls(best.version, best.point, best.root, proc, controller=controller)

    def path(self, pid: int) -> str:
        """The name of a process's cgroup, as /proc/PID/cgroup has it. Raises TargetGoneError."""
        try:
            lines = (self.proc / str(pid) / "cgroup").read_text(errors="surrogateescape").splitlines()
        except OSError as e:
            raise TargetGoneError(f"the cgroup of process {pid} cannot be read: {e.strerror}") from e
        for line in lines:
            number, controllers, path = line.split(":", 2)
            if self.controller in controllers.split(",") if self.version == 1 else number == "0":
                return path.removesuffix(" (deleted)")
        raise MeasureError(f"process {pid} has no cgroup in the {self.controller} controller's hierarchy")

    def directory(self, pid: int) -> Path:
        """Where a process's cgroup is. Raises TargetGoneError, or MeasureError if it is not mounted here."""
        path = self.path(pid)
        found = self._at(path)
        if found is None or not _is_cgroup(found):
            found = next((d for d in self.directories() if pid in processes(d, recursive=False)), None)
        if found is None:
            raise MeasureError(
                f"cgroup {path} of process {pid} is not visible under {self.mount}", _HOST_MOUNT
            )
        return found

    def cpu_directory(self, pid: int) -> Path:
        """The cgroup whose quota, weight and id apply to a process. Raises as :meth:`directory`."""
        return self.controlled(self.directory(pid))

    def controlled(self, directory: Path) -> Path:
        """The nearest cgroup from ``directory`` up for which the cpu controller is enabled."""
        if self.version == 2:
            for candidate in with_ancestors(directory):
                if candidate == self.mount or (candidate / "cpu.weight").exists():
                    return candidate
        return directory

    def path_of(self, cgroup_id: int) -> str | None:
        """The path below the mount of a cgroup, also of one that is gone by now; ``None`` if unknown.

        Walks the hierarchy for an id not met before, but at most every five seconds.
        """
        due = self._walked is None or self.clock() - self._walked >= _REFRESH_NS
        if cgroup_id not in self._paths and due:
            self._walked = self.clock()
            now = {}
            for directory in self.directories():
                with suppress(OSError):
                    now[directory.stat().st_ino] = str(Path("/", directory.relative_to(self.mount)))
            gone = [(number, path) for number, path in self._paths.items() if number not in now]
            self._paths = dict(gone[-_REMEMBERED:]) | now
        return self._paths.get(cgroup_id)

    def directory_by_id(self, cgroup_id: int) -> Path | None:
        """The directory of a cgroup that exists now; ``None`` if there is none with this id."""
        path = self.path_of(cgroup_id)
        directory = self.mount / path.lstrip("/") if path else None
        return directory if directory and _is_cgroup(directory) else None

    def directories(self) -> Iterator[Path]:
        """All cgroups, those above first."""
        waiting = [self.mount]
        for directory in waiting:
            yield directory
            waiting += _subdirectories(directory)

    def resolve(self, text: str) -> Path:
        """The directory that the user means; see :func:`resolve_cgroup_argument`."""
        text = text.rpartition("://")[2]  # kubectl says containerd://3f4a...
        looked = list(dict.fromkeys(self._candidates(text)))
        for candidate in looked:
            if _is_cgroup(candidate):
                return candidate
        named = self._named(text) if text and "/" not in text else []
        if len(named) == 1:
            return named[0]
        if named:
            raise MeasureError(
                f"{text!r} may be any of {len(named)} cgroups: {', '.join(map(str, named[:3]))}",
                "give more of the container's id, or the path",
            )
        raise MeasureError(
            f"the cpu controller has no cgroup {text!r}: looked for {' and '.join(map(str, looked)) or '?'}"
            + ("" if "/" in text else f", and for a unit or container of that name below {self.mount}"),
            "/proc/PID/cgroup names the cgroup of a process; docker inspect -f '{{.Id}}' NAME gives an id",
        )

    def _candidates(self, text: str) -> Iterator[Path]:
        real = Path(os.path.realpath(text))  # /sys/fs/cgroup/cpu may be a link to cpu,cpuacct
        for mount in sorted(_mounts(self.proc), key=lambda m: -len(m.point.parts)):
            # the same path in another hierarchy, e.g. /sys/fs/cgroup/memory/docker/3f4a...
            if text.startswith("/") and real.is_relative_to(mount.point):
                yield self.mount / real.relative_to(mount.point)
                return
        if text:
            if (named := self._at(text)) is not None:
                yield named
            if ".." not in _parts(text):
                yield self.mount / text.strip("/")

    def _at(self, path: str) -> Path | None:
        """Where a cgroup of this name is, if it is in the mounted part."""
        top, parts = _parts(self.root), _parts(path)
        below = parts[len(top) :]
        # what lies above our cgroup namespace has no names, only ".."
        return self.mount.joinpath(*below) if parts[: len(top)] == top and ".." not in below else None

    def _named(self, text: str) -> list[Path]:
        is_id = re.fullmatch("[0-9a-f]{4,64}", text) is not None
        found: list[Path] = []
        for directory in self.directories():
            matches = directory.name == text or (is_id and container_id(directory.name).startswith(text))
            # what a container holds may be called like it
            if matches and not any(above in directory.parents for above in found):
                found.append(directory)
        return found


def _mounts(proc: Path) -> list[_Mount]:
    try:
        lines = (proc / "self" / "mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError as e:
        raise MeasureError(f"the mounts cannot be read: {e.strerror}", "mount /proc") from e
    found = []
    for line in lines:
        mount, _, source = line.partition(" - ")
        kind, *_, options = source.split(" ")
        if kind in ("cgroup", "cgroup2"):
            root, point = (_unescape(text) for text in mount.split(" ")[3:5])
            controllers = frozenset(options.split(",") if kind == "cgroup" else ())
            found.append(_Mount(root, Path(point), 1 if kind == "cgroup" else 2, controllers))
    return found


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _is_cgroup(directory: Path) -> bool:
    return (directory / "cgroup.procs").exists()


def _subdirectories(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _read(path: Path) -> str:
    """A file's text, empty if it is not there."""
    try:
        return path.read_text()
    except OSError:
        return ""


def with_ancestors(directory: Path) -> Iterator[Path]:
    """A cgroup and those above it, as far as they are mounted."""
    for candidate in (directory, *directory.parents):
        if not _is_cgroup(candidate):
            return
        yield candidate


def own_quota(directory: Path) -> Quota | None:
    """A cgroup's own quota; ``None`` if it has none."""
    if limits := _read(directory / "cpu.max").split():
        quota, period = limits
    else:
        quota = _read(directory / "cpu.cfs_quota_us").strip()
        period = _read(directory / "cpu.cfs_period_us").strip()
    if quota in ("", "max", "-1") or not period:
        return None
    return Quota(int(quota), int(period), directory)


def quota(directory: Path) -> Quota | None:
    """The tightest quota of a cgroup and all above it; ``None`` if none has one."""
    quotas = [found for level in with_ancestors(directory) if (found := own_quota(level))]
    return min(quotas, key=lambda found: found.cpus, default=None)


def throttle_stats(directory: Path | str) -> ThrottleStats | None:
    """How a cgroup's own quota was used; ``None`` without the cpu controller, or if it is gone."""
    rows = (line.split() for line in _read(Path(directory, "cpu.stat")).splitlines())
    stat = {row[0]: int(row[1]) for row in rows if len(row) == 2}
    if "nr_throttled" not in stat:
        return None
    # v1 counts nanoseconds, v2 microseconds
    throttled_ns = stat["throttled_time"] if "throttled_time" in stat else stat["throttled_usec"] * 1000
    return ThrottleStats(stat["nr_periods"], stat["nr_throttled"], throttled_ns)


def cgroup_id(directory: Path | str) -> int:
    """The id that the kernel and BPF programs know a cgroup by. Raises MeasureError if it is gone."""
    try:
        return os.stat(directory).st_ino
    except OSError as e:
        raise MeasureError(f"no cgroup at {directory}: {e.strerror}", "look in /proc/PID/cgroup") from e


def processes(directory: Path | str, recursive: bool = True) -> list[int]:
    """Ids of the processes in a cgroup, and below it if ``recursive``; empty if it is gone.

    Processes that live outside of our pid namespace are left out.
    """
    found: set[int] = set()
    waiting = [Path(directory)]
    for level in waiting:
        found.update(_members(level))
        if recursive:
            waiting += _subdirectories(level)
    return sorted(found - {0})


def _members(directory: Path) -> Iterator[int]:
    try:
        yield from map(int, (directory / "cgroup.procs").read_text().split())
    except OSError as e:
        if e.errno == errno.EOPNOTSUPP:  # a threaded v2 cgroup lists threads only
            for tid in _read(directory / "cgroup.threads").split():
                status = _read(PROC / tid / "status")
                yield from (int(line.split()[1]) for line in status.splitlines() if line.startswith("Tgid:"))


@cache
def _here() -> CpuCgroups:
    return CpuCgroups.find()


def cpu_cgroup(pid: int) -> Path | None:
    """The directory of the cgroup whose quota applies to a process; ``None`` if gone or not mounted."""
    try:
        return _here().cpu_directory(pid)
    except MeasureError:
        return None


def path_of(cgroup_id: int) -> str | None:
    """The path below the mount of the cgroup with this id, for :func:`short_name`; ``None`` if unknown."""
    try:
        return _here().path_of(cgroup_id)
    except MeasureError:
        return None


def resolve_cgroup_argument(text: str) -> Path:
    """The directory of the cgroup that the user named.

    Args:
        text: a path under /sys/fs/cgroup (of any hierarchy), a path as /proc/PID/cgroup has it,
            the name of a systemd unit, or the beginning of a container's id (four digits or more).

    Raises:
        MeasureError: there is none, or several; it says what was looked for.
    """
    return _here().resolve(text)


_POD = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?![0-9a-f])")
_CONTAINER = re.compile(r"(?:([a-z][a-z-]*)-)?([0-9a-f]{64})(?:\.scope)?")
_RUNTIMES = {"libpod": "podman", "libpod_parent": "podman", "crio": "cri-o", "cri-containerd": "containerd"}
_RUNTIMES |= {name: name for name in ("docker", "nerdctl", "containerd")}
_SLURM = re.compile(r"/job_(\d+)")
_LXC = re.compile(r"/lxc(?:\.payload\.|/)([^/]+)")
_MOUNTED = re.compile(r"^/sys/fs/cgroup(/(cpu[a-z,]*|unified))?(?=/|$)")


def container_id(name: str) -> str:
    """The container's id in the name of a cgroup's directory; empty if it is none's."""
    match = _CONTAINER.fullmatch(name.rpartition(":")[2])
    # conmon watches the container from outside
    return match[2] if match and "conmon" not in (match[1] or "") else ""


def short_name(path: str) -> str:
    """A cgroup's path in few words.

    ``docker 3f4a0c55d2b1``, ``pod UID/3f4a0c55d2b1``, ``nginx.service``, ``slurm job 42``, else the path.
    """
    path = _MOUNTED.sub("", path)
    parts = _parts(path)
    held = max((index for index, part in enumerate(parts) if container_id(part)), default=None)
    short_id = container_id(parts[held])[:12] if held is not None else ""
    if pods := _POD.findall(path):
        return f"pod {pods[-1].replace('_', '-')}" + (f"/{short_id}" if short_id else "")
    if held is not None:
        match = _CONTAINER.fullmatch(parts[held].rpartition(":")[2])
        prefix = (match[1] if match else None) or (parts[held - 1] if held else "")
        return f"{_RUNTIMES.get(prefix, 'container')} {short_id}"
    for kind, pattern in (("lxc", _LXC), ("slurm job", _SLURM)):
        if match := pattern.search(path):
            return f"{kind} {match[1]}"
    units = [part for part in parts if part.endswith((".service", ".scope"))]
    return _readable(units[-1]) if units else _readable(path or "/")


def _readable(name: str) -> str:
    """Systemd's escapes undone, long ids cut."""
    name = re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), name)
    return proc.printable(re.sub(r"([0-9a-f]{12})[0-9a-f]{52}", r"\1", name))
