"""The one protocol that the three backends speak, and the choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from quietcore.probes import proc
from quietcore.probes.errors import BackendUnavailableError
from quietcore.probes.readings import Outlier, Snapshot

BackendName = Literal["libbpf", "bcc", "procfs"]
NAMES: tuple[BackendName, ...] = ("libbpf", "bcc", "procfs")
CALIBRATION_ID = 63
"""The api id that calibrates probes, a launch: no API has it, so that a stray count is not mistaken."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One place of a library where calls of one API are seen.

    Attributes:
        offset: in the file, bytes.
        api_id: below 64, see :data:`quietcore.probes.cuda_libs.API_SYMBOLS`.
        api_class: the class's number of ``enum api_class``.
        return_safe: a return probe can be set here too.
    """

    offset: int
    api_id: int
    api_class: int
    return_safe: bool


@dataclass(frozen=True, slots=True)
class ProcessEvent:
    """A target forked a process, executed another program, or ended."""

    kind: Literal["fork", "exec", "exit"]
    tgid: int


@dataclass(slots=True)
class Events:
    """What arrived since the last call."""

    processes: list[ProcessEvent] = field(default_factory=list)
    outliers: list[Outlier] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ProgramStatus:
    """A loaded BPF program. Run count and time (ns) are counted while bpf_stats is on."""

    group: str
    name: str
    runs: int
    run_time_ns: int


class UprobeLink(Protocol):
    """Attached uprobes of one process and library."""

    def close(self) -> None:
        """Detach."""


class Backend(Protocol):
    """Sees threads of target processes.

    Order of calls: ``start``, then ``add_process`` for each target, then ``snapshot`` as
    often as wanted, ``close`` at last. All raise :class:`MeasureError` or its kin.
    """

    name: BackendName
    missing: Sequence[str]
    """What this backend cannot see, in words for the user."""

    def start(self) -> None:
        """Load and attach all but the uprobes."""

    def add_process(self, pid: int) -> None:
        """Account all threads of a process, and those it will have. Raises TargetGoneError."""

    def add_cgroup(self, cgroup_id: int) -> None:
        """Account processes that will be forked in a cgroup (id in the cpu hierarchy)."""

    def end_process(self, pid: int) -> None:
        """A process is over: whoever gets its pid next is a stranger. Its totals stay."""

    def remove_process(self, pid: int) -> None:
        """Forget a process and its totals."""

    def attach_cuda(self, pid: int, path: str, probes: Sequence[Probe]) -> UprobeLink:
        """Set uprobes in the library at ``path`` for one process."""

    def count_launches(self, enabled: bool) -> None:
        """Switch counting at attached probes on or off; on, launch intervals begin afresh."""

    def probe_hits(self) -> dict[int, int]:
        """Probe hits so far, by process; empty where there are none."""

    def snapshot(self) -> Snapshot:
        """Running totals, now."""

    def events(self) -> Events:
        """Events since the last call; empty where the backend has none."""

    def event_fd(self) -> int | None:
        """A file descriptor that becomes readable with a process event, if there is one."""

    def programs(self) -> list[ProgramStatus]:
        """The loaded BPF programs; empty where there are none."""

    def close(self) -> None:
        """Detach and unload everything."""


def open_backend(name: str = "auto", refused: list[BackendUnavailableError] | None = None) -> Backend:
    """Start the named backend, or the best that works here.

    ``auto`` tries libbpf, bcc and procfs in this order; why the better ones did not work is
    appended to ``refused``.

    Raises:
        BackendUnavailableError: the named one does not work; its message says why.
    """
    if name != "auto":
        return _start(name)
    for candidate in NAMES[:-1]:
        try:
            return _start(candidate)
        except BackendUnavailableError as e:
            if refused is not None:
                refused.append(e)
    return _start(NAMES[-1])


def check_namespace(name: str) -> None:
    """Raise BackendUnavailableError where a backend would take the numbers of other processes for ours."""
    if name in NAMES[:-1] and not proc.in_first_pid_namespace():
        raise BackendUnavailableError(
            name,
            "namespace",
            "this process is in a container's pid namespace, and BPF sees the host's process ids",
            "start the container with the host's pid namespace (docker --pid=host, Kubernetes hostPID)",
        )


def _start(name: str) -> Backend:
    backend: Backend
    check_namespace(name)
    # imported here: ctypes bindings and bcc are not free
    if name == "libbpf":
        from quietcore.probes.core import CoreBackend

        backend = CoreBackend()
    elif name == "bcc":
        from quietcore.probes.bcc import BccBackend

        backend = BccBackend()
    elif name == "procfs":
        from quietcore.probes.procfs import ProcfsBackend

        backend = ProcfsBackend()
    else:
        raise BackendUnavailableError(name, "choice", "no such backend", f"one of {', '.join(NAMES)}")
    backend.start()
    return backend
