"""The second backend: the programs of ``bpf/bcc.c`` through bcc, for kernels without BTF.

It attaches to tracepoints by perf events. A perf event's program does not run within another
one on the same CPU: a wake-up from an interrupt that hits a program of ours goes unseen.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes as ct
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from quietcore.probes import bcc_toolchain as toolchain
from quietcore.probes import layout
from quietcore.probes.accounts import Accounts, program_status
from quietcore.probes.backend import BackendName, Events, Probe, ProcessEvent, ProgramStatus, UprobeLink
from quietcore.probes.bcc_kernel import BccMap, PerfEvent
from quietcore.probes.bcc_toolchain import unavailable
from quietcore.probes.errors import BackendUnavailableError
from quietcore.probes.readings import Snapshot, ThreadTotals

MISSING = (
    "CPU quota: throttled time stands in preempted",
    "offenders' cgroups",
    "processes forked in a cgroup by someone else than a target",
    "single launch outliers",
)
_EVENTS = {
    "irq": ("irq_handler_entry", "irq_handler_exit", "softirq_entry", "softirq_exit"),
    "sched": (
        "sched_migrate_task",
        "sched_process_exec",
        "sched_process_exit",
        "sched_process_fork",
        "sched_waking",
        "sched_wakeup",
        "sched_wakeup_new",
        "sched_switch",
    ),
}
_CLASSES = toolchain.api_classes()


class _Target(ct.Structure):
    """A value of the map ``targets``: 0 when the process is over, else 1 + times it executed."""

    _fields_ = (("life", ct.c_uint32),)


class _Links:
    """Uprobes that were attached together."""

    def __init__(self, links: list[PerfEvent], forget: Callable[[_Links], None]) -> None:
        self._links, self._forget = links, forget

    def close(self) -> None:
        """Detach; a second call does nothing."""
        for link in reversed(self._links):
            link.close()
        self._forget(self)


class BccBackend:
    """Scheduler, interrupts and CUDA calls of target processes, from tracepoint arguments alone."""

    name: BackendName = "bcc"

    def __init__(self) -> None:
        self.missing: Sequence[str] = MISSING
        self._bpf: Any = None
        self._maps: dict[str, BccMap] = {}
        self._accounts = Accounts(self.name, self._maps, sees_throttling=False)
        self._known: dict[int, int] = {}
        self._programs: dict[str, str] = {}
        self._links: list[PerfEvent] = []
        self._uprobes: list[_Links] = []

    def start(self) -> None:
        """Compile, load and attach scheduler and interrupt programs. Raises BackendUnavailableError."""
        self._events = toolchain.event_folder()
        self._module = toolchain.import_bcc()
        vectors = toolchain.vectors(self._events)
        if not vectors:
            self.missing = (*MISSING, "local interrupts (timer, reschedule, function call) by name")
        cpus = len(self._module.table.get_possible_cpus())
        flags = ["-w", f"-DCPUS={cpus}", *toolchain.state_flags(self._events)]
        text = toolchain.source_text(vectors).encode()
        with self._step("compile"), toolchain.kernel_headers():
            self._bpf = self._module.BPF(text=text, cflags=flags)
        # bcc would keep itself alive, and clean up, until the end of the program
        atexit.unregister(self._bpf.cleanup)
        try:
            self._open_maps(text.decode(), cpus)
            hooks = [("irq", name) for name in _EVENTS["irq"]]
            hooks += [("irq_vectors", f"{name}_{end}") for name in vectors for end in ("exit", "entry")]
            # exits first: attaching interrupts every CPU, and an entry without its exit stays on the stack
            for category, name in sorted(hooks, key=lambda hook: "entry" in hook[1]):
                self._attach("irq", category, name)
            for name in _EVENTS["sched"]:
                self._attach("sched", "sched", name)
        except BaseException:
            self.close()
            raise

    def _open_maps(self, text: str, cpus: int) -> None:
        lib = self._module.libbcc.lib
        for name in toolchain.declared_maps(text):
            fd = lib.bpf_table_fd(self._bpf.module, name.encode())
            self._maps[name] = BccMap(lib, name, fd, cpus)

    def _attach(self, group: str, category: str, event: str) -> None:
        fd = self._load(group, f"tp_{event}", self._module.BPF.TRACEPOINT)
        try:
            number = int((self._events / category / event / "id").read_text())
            self._links.append(PerfEvent.tracepoint(fd, number))
        except OSError as e:
            raise unavailable("attach", f"{category}:{event}: {e.strerror}", "see quietcore doctor") from e

    def _load(self, group: str, program: str, kind: int) -> int:
        with self._step("load"):
            fd: int = self._bpf.load_func(program.encode(), kind).fd
        self._programs[program] = group
        return fd

    @contextlib.contextmanager
    def _step(self, step: str) -> Iterator[None]:
        """Turns what bcc raises, an Exception with its reasons on stderr, into our error."""
        quiet = toolchain.QuietStderr()
        try:
            with quiet:
                yield
        except BackendUnavailableError:
            raise
        except Exception as e:
            remedy = "run as root" if os.geteuid() else "run quietcore doctor for the log"
            raise unavailable(step, str(e), remedy, quiet.text) from e

    def add_process(self, pid: int) -> None:
        """Account all threads of a process, now and to come. Raises TargetGoneError, MeasureError."""
        self._accounts.add_process(pid)
        self._known[pid] = 1

    def add_cgroup(self, cgroup_id: int) -> None:
        """Nothing: see ``missing``. Forks of targets are followed all the same."""

    def end_process(self, pid: int) -> None:
        """A process is over; its totals stay."""
        self._known.pop(pid, None)
        self._accounts.end_process(pid)

    def remove_process(self, pid: int) -> None:
        """Forget a process and its threads."""
        self._known.pop(pid, None)
        self._accounts.remove_process(pid)

    def attach_cuda(self, pid: int, path: str, probes: Sequence[Probe]) -> UprobeLink:
        """Uprobes for one process. Raises BackendUnavailableError, nothing is left attached then."""
        # returns first: an entry without its return would leave a call open
        plan = [("cuda_return", p, True) for p in probes if p.return_safe]
        plan += [(f"cuda_entry_{p.api_id}", p, False) for p in probes]
        links: list[PerfEvent] = []
        try:
            for program, probe, on_return in plan:
                if _CLASSES.get(probe.api_id) != probe.api_class:
                    raise unavailable("attach", f"no program for API {probe.api_id}, class {probe.api_class}")
                fd = self._load("cuda", program, self._module.BPF.KPROBE)
                try:
                    links.append(PerfEvent.uprobe(fd, pid, path, probe.offset, on_return=on_return))
                except OSError as e:
                    where = f"uprobe at {path}+{probe.offset:#x}: {e.strerror}"
                    raise unavailable("attach", where, "see quietcore doctor") from e
        except BaseException:
            for link in reversed(links):
                link.close()
            raise
        self._uprobes.append(_Links(links, self._forget))
        return self._uprobes[-1]

    def _forget(self, links: _Links) -> None:
        if links in self._uprobes:
            self._uprobes.remove(links)

    def count_launches(self, enabled: bool) -> None:
        """Switch counting at attached probes on or off; on, intervals begin afresh."""
        self._accounts.count_launches(enabled, outlier_ns=0)

    def probe_hits(self) -> dict[int, int]:
        """Probe hits so far, by process."""
        return self._accounts.probe_hits()

    def snapshot(self) -> Snapshot:
        """Running totals, now."""
        seen = self._accounts.snapshot()
        return replace(
            seen,
            threads={tid: _settled(totals) for tid, totals in seen.threads.items()},
            launchers=seen.launchers if "cuda" in self._programs.values() else None,
        )

    def events(self) -> Events:
        """Process events since the last call, by asking; outliers there are none."""
        found = Events()
        self._find_new_processes()
        for pid, target in self._maps["targets"].items(ct.c_uint32, _Target):
            now, before = target.life, self._known.get(pid, 0)
            if now and not before:
                found.processes.append(ProcessEvent("fork", pid))
            if now > max(before, 1):
                found.processes.append(ProcessEvent("exec", pid))
            if before and not now:
                found.processes.append(ProcessEvent("exit", pid))
            self._known[pid] = now
        return found

    def _find_new_processes(self) -> None:
        """Those that have not left the CPU since their fork, and so could not tell."""
        for tid, thread in self._maps["threads"].items(ct.c_uint32, layout.Thread):
            if thread.tgid != tid and _is_fresh(thread) and _real_tgid(tid) == tid and tid not in self._known:
                self._maps["targets"].update(ct.c_uint32(tid), _Target(1), only_new=True)

    def event_fd(self) -> int | None:
        """None: :meth:`events` has to be asked."""
        return None

    def programs(self) -> list[ProgramStatus]:
        """Every loaded program with its run count (bpf_stats must be on)."""
        loaded = self._programs.items()
        return [program_status(group, name, self._bpf.funcs[name.encode()].fd) for name, group in loaded]

    def close(self) -> None:
        """Detach and unload everything. May be called twice."""
        for links in list(self._uprobes):
            links.close()
        for link in reversed(self._links):
            link.close()
        self._links.clear()
        bpf, self._bpf = self._bpf, None
        self._maps.clear()
        self._programs.clear()
        if bpf is not None:
            with toolchain.QuietStderr():
                bpf.cleanup()


def _is_fresh(thread: layout.Thread) -> bool:
    return bool(thread.born) and not thread.voluntary + thread.involuntary


def _real_tgid(tid: int) -> int | None:
    """The process of a thread; ``None`` if it is gone."""
    try:
        with open(f"/proc/{tid}/status", "rb") as f:
            return next(int(line.split()[1]) for line in f if line.startswith(b"Tgid:"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def _settled(totals: ThreadTotals) -> ThreadTotals:
    """Until its first switch, a forked thread is filed under the process that forked it."""
    if not totals.born or totals.voluntary or totals.involuntary:
        return totals
    return replace(totals, tgid=_real_tgid(totals.tid) or totals.tgid)
