"""A cgroup of the cpu controller for a test, v1 or v2; gone at the end, its processes moved back up."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "quietcore-test-"
PERIOD_US = 100_000
_number = itertools.count()


class CpuCgroup:
    """One made by :func:`cpu_cgroup`, at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def join(self, pid: int) -> None:
        """Move a process in, with all its threads."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def limit(self, cpus: float | None) -> None:
        """At most so many CPUs' time in each 100 ms (the CFS quota); ``None`` lifts it."""
        quota = None if cpus is None else round(cpus * PERIOD_US)
        if (v2 := self.path / "cpu.max").exists():
            v2.write_text(f"{quota or 'max'} {PERIOD_US}")
        else:
            (self.path / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (self.path / "cpu.cfs_quota_us").write_text(str(quota or -1))


def controller_root() -> Path | None:
    """The top of a hierarchy in which a cgroup with a CPU quota can be made; ``None`` without one."""
    v1, v2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    if (v1 / "cpu.shares").exists():
        return v1
    enabled = v2 / "cgroup.subtree_control"
    return v2 if enabled.exists() and "cpu" in enabled.read_text().split() else None


@contextlib.contextmanager
def cpu_cgroup() -> Iterator[CpuCgroup]:
    """Make one. Raises FileNotFoundError where :func:`controller_root` finds nothing."""
    root = controller_root()
    if root is None:
        raise FileNotFoundError("no cgroup hierarchy with the cpu controller enabled")
    _remove_stale(root)
    folder = root / f"{PREFIX}{os.getpid()}-{next(_number)}"
    folder.mkdir()
    try:
        yield CpuCgroup(folder)
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    # a process that is ending still counts as a member for a moment
    for _ in range(100):
        with contextlib.suppress(OSError):
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    (folder.parent / "cgroup.procs").write_text(pid)
            folder.rmdir()
            return
        time.sleep(0.1)
    raise TimeoutError(f"{folder} cannot be removed")


def _remove_stale(root: Path) -> None:
    """Those of runs that were killed."""
    for folder in root.glob(f"{PREFIX}*"):
        owner = re.match(r"\d+", folder.name.removeprefix(PREFIX))
        if owner and not Path("/proc", owner[0]).exists():
            _remove(folder)
