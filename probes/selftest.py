"""Loads, attaches and fires every BPF program: what doctor knows about the backends."""

from __future__ import annotations

import contextlib
import ctypes as ct
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quietcore.probes.backend import Backend, Probe, ProgramStatus, check_namespace
from quietcore.probes.errors import BackendUnavailableError, MeasureError
from quietcore.probes.governor import SELF_TEST, symbol_offset
from quietcore.probes.irq_work import queue_irq_work

Outcome = Literal["ok", "idle", "fail"]
CALLS = 1_009
"""Launches of the self-test: a prime, so that no count comes out right by accident."""
_STATS_SWITCH = Path("/proc/sys/kernel/bpf_stats_enabled")
_BPF = {"x86_64": 321, "aarch64": 280}
_BPF_ENABLE_STATS, _BPF_STATS_RUN_TIME = 32, 0
_MEMBARRIER = {"x86_64": 324, "aarch64": 283}
_PRIVATE_EXPEDITED, _REGISTER_PRIVATE_EXPEDITED = 8, 16


@dataclass(frozen=True, slots=True)
class ProgramCheck:
    """One program of one backend. ``idle``: attached, but its event cannot be made to happen here."""

    backend: str
    flavour: str
    program: str
    outcome: Outcome
    runs: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class BackendCheck:
    """One backend: the step it came to, and its programs.

    ``step`` is ``ok``, or what failed: library, open, load, attach, fire, headers, ...
    """

    backend: str
    flavour: str
    ok: bool
    step: str
    detail: str
    remedy: str
    seconds: float
    programs: tuple[ProgramCheck, ...]
    log: str = ""


def check_backends() -> Iterator[BackendCheck]:
    """Check every backend, and every flavour of the libbpf one, one after the other."""
    from quietcore.probes.core import CoreBackend, flavours

    for flavour, _, _ in flavours():
        yield _check(lambda f=flavour: CoreBackend(f), "libbpf", flavour)  # type: ignore[misc]
    yield _check(_bcc, "bcc", "")
    yield _check_procfs()


def _bcc() -> Backend:
    from quietcore.probes.bcc import BccBackend

    return BccBackend()


def _check(make: Callable[[], Backend], name: str, flavour: str) -> BackendCheck:
    began = time.monotonic()

    def result(step: str, detail: str = "", remedy: str = "", log: str = "") -> BackendCheck:
        seconds = time.monotonic() - began
        return BackendCheck(name, flavour, step == "ok", step, detail, remedy, seconds, tuple(checks), log)

    checks: list[ProgramCheck] = []
    backend = make()
    try:
        check_namespace(name)
        backend.start()
        counted, launched = _fire(backend)
        checks += [_judge(name, flavour, p) for p in counted]
    except BackendUnavailableError as e:
        return result(e.step, e.cause, e.remedy, e.detail)
    except MeasureError as e:
        return result("fire", e.cause, e.remedy, e.detail)
    except OSError as e:
        return result("fire", str(e))
    finally:
        backend.close()
    if launched != CALLS:
        return result("fire", f"{launched} of {CALLS} self-test calls were counted", "report this as a bug")
    if silent := [c.program for c in checks if c.outcome == "fail"]:
        remedy = "another tool may hold the hook, or the kernel lacks it: see doctor --json"
        return result("fire", f"attached but never ran: {', '.join(silent)}", remedy)
    return result("ok")


def _judge(name: str, flavour: str, status: ProgramStatus) -> ProgramCheck:
    detail = "" if status.runs else _cannot_happen(status)
    outcome: Outcome = "ok" if status.runs else "idle" if detail else "fail"
    return ProgramCheck(name, flavour, f"{status.group}/{status.name}", outcome, status.runs, detail)


def _cannot_happen(status: ProgramStatus) -> str:
    """Why a hook stays silent on this machine, if there is a reason."""
    is_broadcast = "call_function_" in status.name and "single" not in status.name
    if is_broadcast and os.cpu_count() == 2:
        return "with two CPUs every function call is a single one"
    return ""


def _fire(backend: Backend) -> tuple[list[ProgramStatus], int]:
    """Make every hook happen. Returns the programs with their run counts, and the launches counted."""
    with _statistics():
        backend.add_process(os.getpid())
        library = ct.CDLL(str(SELF_TEST))
        library.qc_selftest_burst.restype = ct.c_uint64
        library.qc_selftest_burst.argtypes = [ct.c_void_p, ct.c_uint64]
        probe = Probe(symbol_offset(SELF_TEST, "qc_selftest_push"), 1, 0, return_safe=True)
        link = backend.attach_cuda(os.getpid(), str(SELF_TEST), [probe])
        try:
            backend.count_launches(True)
            # not the main thread: a filter by the wrong id would miss it
            caller = threading.Thread(
                target=library.qc_selftest_burst, args=(library.qc_selftest_push, CALLS), name="selftest"
            )
            caller.start()
            caller.join()
            backend.count_launches(False)
            for _ in range(10):
                _provoke()
                programs = backend.programs()
                if all(p.runs or _cannot_happen(p) for p in programs):
                    break
            launchers = backend.snapshot().launchers or {}
            launched = sum(sum(la.calls.values()) for la in launchers.values())
        finally:
            link.close()
        return programs, launched


@contextlib.contextmanager
def _statistics() -> Iterator[None]:
    """Run counts are kept while bpf_stats is on. Raises MeasureError if it cannot be switched on."""
    descriptor = _enable_statistics()
    if descriptor is not None:
        try:
            yield
        finally:
            os.close(descriptor)
        return
    try:
        before = _STATS_SWITCH.read_text()
        _STATS_SWITCH.write_text("1")
    except OSError as e:
        raise MeasureError(
            f"runs of programs are not counted: {_STATS_SWITCH}: {e.strerror}",
            "run as root, with /proc/sys writable (docker --privileged)",
        ) from e
    try:
        yield
    finally:
        _STATS_SWITCH.write_text(before)


def _enable_statistics() -> int | None:
    """By a descriptor, which ends with us: kernel 5.8, also where /proc/sys is read-only."""
    number = _BPF.get(os.uname().machine)
    kind = ct.c_uint32(_BPF_STATS_RUN_TIME)
    if number is None:
        return None
    descriptor: int = ct.CDLL(None).syscall(number, _BPF_ENABLE_STATS, ct.byref(kind), ct.sizeof(kind))
    return descriptor if descriptor >= 0 else None


def _provoke() -> None:
    """Wake-ups, migrations, forks, device interrupts, softirqs and interprocessor interrupts."""
    allowed = os.sched_getaffinity(0)
    try:
        for cpu in allowed:
            os.sched_setaffinity(0, {cpu})
            time.sleep(0.001)
    finally:
        os.sched_setaffinity(0, allowed)
    subprocess.run(["/bin/true"], check=True)
    # a disk write ends in a device interrupt, a datagram to ourselves in NET_RX
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=_disk_folder()) as f:
        f.write(os.urandom(65536))
        os.fsync(f.fileno())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        s.sendto(b"x", s.getsockname())
    _interrupt_other_cpus()
    with contextlib.suppress(OSError):  # no perf events: others queue work now and then
        queue_irq_work()


def _disk_folder() -> str:
    """A folder that is not in memory, if there is one."""
    in_memory = {"tmpfs", "ramfs", "devtmpfs"}
    with open("/proc/mounts") as f:
        kinds = {fields[1]: fields[2] for fields in (line.split() for line in f)}
    for folder in ("/var/tmp", "/tmp"):
        mount = Path(folder)
        while str(mount) not in kinds:
            mount = mount.parent
        if kinds[str(mount)] not in in_memory:
            return folder
    return "/tmp"


def _interrupt_other_cpus() -> None:
    """A function call interrupt for a thread that spins on another CPU, by membarrier(2)."""
    number = _MEMBARRIER.get(os.uname().machine)
    cpus = sorted(os.sched_getaffinity(0))
    if number is None or len(cpus) < 2:
        return
    libc = ct.CDLL(None)
    stop = threading.Event()

    def spin() -> None:
        os.sched_setaffinity(0, {cpus[-1]})
        while not stop.is_set():
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        libc.syscall(number, _REGISTER_PRIVATE_EXPEDITED, 0, 0)
        for _ in range(50):
            libc.syscall(number, _PRIVATE_EXPEDITED, 0, 0)
            time.sleep(0.0002)
    finally:
        stop.set()
        thread.join()


def _check_procfs() -> BackendCheck:
    from quietcore.probes.procfs import ProcfsBackend

    began = time.monotonic()
    backend = ProcfsBackend()
    try:
        backend.start()
        backend.add_process(os.getpid())
        first = backend.snapshot()
        deadline = time.thread_time() + 0.02
        while time.thread_time() < deadline:
            pass
        window = backend.snapshot().since(first)
        ran = sum(t.split.on_cpu or 0 for t in window.threads.values())
    except MeasureError as e:
        return BackendCheck(
            "procfs", "", False, "read", e.cause, e.remedy, time.monotonic() - began, (), e.detail
        )
    finally:
        backend.close()
    seconds = time.monotonic() - began
    if not ran:
        return BackendCheck(
            "procfs", "", False, "read", "schedstat does not move", "needs CONFIG_SCHED_INFO", seconds, ()
        )
    detail = "degraded: does not see " + "; ".join(backend.missing)
    return BackendCheck("procfs", "", True, "ok", detail, "", seconds, ())
