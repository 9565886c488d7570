"""The default backend: our CO-RE objects through libbpf."""

from __future__ import annotations

import ctypes as ct
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from quietcore.probes import decode, layout
from quietcore.probes.accounts import API_NAMES, Accounts, program_status
from quietcore.probes.backend import BackendName, Events, Probe, ProcessEvent, ProgramStatus, UprobeLink
from quietcore.probes.bpf_maps import Map, RingBuffer
from quietcore.probes.bpf_object import BpfObject, Link
from quietcore.probes.errors import BackendUnavailableError
from quietcore.probes.libbpf import Libbpf
from quietcore.probes.readings import Snapshot

OBJECTS = Path(__file__).parent / "_built"
_SCHED = ("waking", "wakeup", "wakeup_new", "migrate", "fork", "exec", "exit")
_IRQ = ("irq_entry", "irq_exit", "softirq_entry", "softirq_exit")
_VECTORS = tuple(f"{name}_{edge}" for name in layout.VECTORS for edge in ("entry", "exit"))
_EVENTS: dict[int, Literal["fork", "exec", "exit"]] = {
    layout.EVENT_FORK: "fork",
    layout.EVENT_EXEC: "exec",
    layout.EVENT_EXIT: "exit",
}
OUTLIER_NS = 1_000_000
# from 6.6, but before 6.10 its pid filter let pass the main thread only (46ba0e49b642)
_MULTI_KERNEL = (6, 10)
# bpf_get_attach_cookie; distributions have ported it back to older ones
_COOKIE_KERNEL = (5, 15)


def kernel_version() -> tuple[int, int]:
    """Of the running kernel: (major, minor)."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def flavours() -> Iterator[tuple[str, set[str], set[str]]]:
    """(name, sched programs, irq programs) in the order to try: typed arguments before raw ones."""
    for kind in ("btf", "raw"):
        for switch in (f"switch_{kind}", f"switch_{kind}_3args"):
            sched = {switch, *(f"{name}_{kind}" for name in _SCHED)}
            irq = {f"{name}_{kind}" for name in (*_IRQ, *_VECTORS)}
            yield switch.removeprefix("switch_"), sched, irq


class CoreBackend:
    """Scheduler, interrupts and CUDA calls of target processes, aggregated in the kernel.

    Args:
        flavour: which set of hooks (see :func:`flavours`); ``None`` tries them in order.
    """

    name: BackendName = "libbpf"

    def __init__(self, flavour: str | None = None) -> None:
        self._wanted = flavour
        self.missing: Sequence[str] = ()
        self.flavour = ""
        self._objects: dict[str, BpfObject] = {}
        self._maps: dict[str, Map] = {}
        self._accounts = Accounts(self.name, self._maps)
        self._links: list[tuple[str, str, Link]] = []
        self._uprobes: list[Link] = []
        self._ring: RingBuffer | None = None
        self._multi = kernel_version() >= _MULTI_KERNEL
        self._cuda_refused: BackendUnavailableError | None = None

    def start(self) -> None:
        """Load and attach scheduler and interrupt programs. Raises BackendUnavailableError."""
        self.library = Libbpf()
        refused: BackendUnavailableError | None = None
        for name, sched, irq in flavours():
            if self._wanted not in (None, name):
                continue
            try:
                self._load("sched", sched)
                self._attach_all("irq", self._load_irq(irq))
                self._attach_all("sched", sched)
            except BackendUnavailableError as e:
                refused = refused or e
                self.close()
                # without the right to load, another set of hooks does not help
                if os.geteuid() != 0:
                    break
                continue
            self.flavour = name
            self._ring = RingBuffer(self.library, self._maps["events"], layout.Event)
            return
        raise refused or BackendUnavailableError("libbpf", "choice", f"no flavour {self._wanted}")

    def _load(self, name: str, programs: set[str]) -> BpfObject:
        loaded = BpfObject(self.library, OBJECTS / f"{name}.bpf.o", self._maps)
        self._objects[name] = loaded
        loaded.enable(programs)
        if name == "sched":
            loaded.resize("cpu_queues", self.library.cpus)
        loaded.load()
        self._maps.update(loaded.maps | self._maps)
        return loaded

    def _load_irq(self, programs: set[str]) -> set[str]:
        """Local vectors are hooks of x86 alone: leave out those that this kernel lacks."""
        vectors = {p for p in programs if p.rsplit("_", 1)[0] in _VECTORS}
        try:
            self._load("irq", programs)
        except BackendUnavailableError:
            self._objects.pop("irq").close()
            programs = programs - vectors
            self._load("irq", programs)
            self.missing = ("local interrupts (timer, reschedule, function call) by name",)
        return programs

    def _attach_all(self, name: str, programs: set[str]) -> None:
        # exits first: attaching interrupts every CPU, and an entry without its exit stays on the stack
        for program in sorted(programs, key=lambda p: ("entry" in p, p)):
            self._links.append((name, program, self._objects[name].attach(program)))

    def add_process(self, pid: int) -> None:
        """Account all threads of a process, now and to come. Raises TargetGoneError, MeasureError."""
        self._accounts.add_process(pid)

    def add_cgroup(self, cgroup_id: int) -> None:
        """Account processes that are forked in a cgroup."""
        self._maps["target_cgroups"].update(ct.c_uint64(cgroup_id), ct.c_uint32(1))

    def end_process(self, pid: int) -> None:
        """A process is over; its totals stay."""
        # the exit program has done it, except where the process ended while it was added
        self._accounts.end_process(pid)

    def remove_process(self, pid: int) -> None:
        """Forget a process, its threads and launchers."""
        self._accounts.remove_process(pid)

    def attach_cuda(self, pid: int, path: str, probes: Sequence[Probe]) -> UprobeLink:
        """Uprobes for one process. Raises BackendUnavailableError, nothing is left attached then."""
        self._load_cuda()
        cuda, links = self._objects["cuda"], []
        returning = [p for p in probes if p.return_safe]
        # returns first: an entry without its return would leave a call open
        plan = (("cuda_return", returning, True), ("cuda_entry", list(probes), False))
        try:
            for program, chosen, on_return in plan:
                if self._multi and chosen:
                    try:
                        links.append(
                            cuda.attach_uprobe_multi(
                                program,
                                pid,
                                path,
                                [p.offset for p in chosen],
                                [_cookie(p) for p in chosen],
                                on_return=on_return,
                            )
                        )
                        continue
                    except OSError as e:
                        if e.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                            raise BackendUnavailableError(
                                "libbpf", "attach", f"uprobes in {path}: {e.strerror}", "see quietcore doctor"
                            ) from e
                        self._multi = False
                for p in chosen:
                    links.append(
                        cuda.attach_uprobe(program, pid, path, p.offset, _cookie(p), on_return=on_return)
                    )
        except BaseException:
            for link in reversed(links):
                link.close()
            raise
        self._uprobes += links

        def detach() -> None:
            # the traps go when the last link goes, and each waits for RCU: close them together
            closers = [threading.Thread(target=link.close) for link in reversed(links)]
            for closer in closers:
                closer.start()
            for closer in closers:
                closer.join()
            for link in links:
                if link in self._uprobes:
                    self._uprobes.remove(link)

        return Link(detach)

    def _load_cuda(self) -> None:
        """Raises BackendUnavailableError: each time, once the kernel has refused."""
        if "cuda" in self._objects:
            return
        if self._cuda_refused:
            raise self._cuda_refused
        cuda = BpfObject(self.library, OBJECTS / "cuda.bpf.o", self._maps)
        if self._multi:
            cuda.set_multi({"cuda_entry", "cuda_return"})
        try:
            cuda.load()
        except BackendUnavailableError as e:
            cuda.close()
            if kernel_version() < _COOKIE_KERNEL:
                cause = "CUDA probes need kernel 5.15 (attach cookies)"
                e = BackendUnavailableError("libbpf", "load", cause, "use --backend bcc", e.detail)
            self._cuda_refused = e
            raise e from None
        self._objects["cuda"] = cuda
        self._maps.update(cuda.maps | self._maps)

    def count_launches(self, enabled: bool) -> None:
        """Switch counting at attached probes on or off; on, intervals begin afresh.

        Probes come and go one by one, so a stretch that is counted begins after the last is
        attached and ends before the first is detached. Needs a probe to have been attached.
        """
        self._accounts.count_launches(enabled, OUTLIER_NS)

    def probe_hits(self) -> dict[int, int]:
        """Probe hits so far, by process."""
        return self._accounts.probe_hits()

    def snapshot(self) -> Snapshot:
        """Running totals, now."""
        return self._accounts.snapshot()

    def events(self) -> Events:
        """Process events and outliers since the last call."""
        found = Events()
        arrived: list[Any] = self._ring.consume() if self._ring else []
        for event in arrived:
            if event.kind == layout.EVENT_OUTLIER:
                found.outliers.append(decode.outlier(event, API_NAMES))
            else:
                found.processes.append(ProcessEvent(_EVENTS[event.kind], event.tgid))
        return found

    def event_fd(self) -> int | None:
        """Becomes readable when a target forks, executes or ends."""
        return self._ring.fd if self._ring else None

    def programs(self) -> list[ProgramStatus]:
        """Every loaded program with its run count (bpf_stats must be on) and hook."""
        rows = [(o, p) for o, p, _ in self._links]
        if "cuda" in self._objects:
            rows += [("cuda", p) for p in ("cuda_entry", "cuda_return")]
        return [program_status(o, p, self._objects[o].program_fd(p)) for o, p in rows]

    def close(self) -> None:
        """Detach and unload everything. May be called twice."""
        closers: list[Callable[[], object]] = [link.close for link in reversed(self._uprobes)]
        closers += [link.close for _, _, link in reversed(self._links)]
        closers += [self._ring.close] if self._ring else []
        closers += [loaded.close for loaded in self._objects.values()]
        self._uprobes, self._links, self._objects, self._ring = [], [], {}, None
        self._maps.clear()
        for close in closers:
            close()


def _cookie(probe: Probe) -> int:
    return probe.api_id | probe.api_class << 8
