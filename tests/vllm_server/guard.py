"""A process that runs a command and leaves nothing of it behind.

    python -I guard.py PARENT CPUS GRACE SCRATCH -- COMMAND...

It is run isolated, so it stands alone: the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def _parents() -> dict[int, int]:
    """Parent of every process."""
    found: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                stat = Path("/proc", entry, "stat").read_text(errors="replace")
                found[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    return found


def descendants(pid: int) -> list[int]:
    """Children of ``pid``, their children and so on."""
    parents = _parents()
    found: list[int] = []
    level = {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found.extend(sorted(level))
    return found


def guard(argv: Sequence[str]) -> int:
    """``PARENT CPUS GRACE SCRATCH -- COMMAND...``: run COMMAND; leave nothing of it behind.

    Ends when COMMAND ends, when the parent process ends (a pidfd: PR_SET_PDEATHSIG would fire when the
    *thread* that started us ends) or on SIGTERM.  Being a subreaper, it inherits what COMMAND leaves behind:
    vLLM's engine survives the death of its API server.
    """
    parent, cpus, grace, scratch = int(argv[0]), argv[1], float(argv[2]), argv[3]
    command = argv[5:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _ignore)
    guard_pid = os.getpid()

    def before_exec() -> None:
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != guard_pid:
            os._exit(1)

    child: subprocess.Popen[bytes] | None = None
    status = 1
    try:
        parent_fd = os.pidfd_open(parent)
        if os.getppid() != parent:
            return 1
        os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")})
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=2,  # our stderr is the log, our stdout goes to the parent
            preexec_fn=before_exec,
            start_new_session=True,
        )
        print(child.pid, file=sys.__stdout__, flush=True)
        child_fd = os.pidfd_open(child.pid)
        poller = select.poll()
        for fd in (parent_fd, child_fd, wake_read):
            poller.register(fd, select.POLLIN)
        poller.poll()
    except ProcessLookupError:
        pass  # the parent is gone already
    finally:
        if child is not None:
            status = _end_all(child, grace)
        shutil.rmtree(scratch, ignore_errors=True)
    return status


def _ignore(number: int, frame: FrameType | None) -> None:
    """Signals only wake the guard's poll."""


def _end_all(child: subprocess.Popen[bytes], grace: float) -> int:
    """SIGTERM to ``child``, after ``grace`` SIGKILL to it and to everything below this process."""
    if child.poll() is None and grace > 0:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace)
    # The resource tracker unlinks shared memory once the others are gone, so it gets a moment.
    deadline = time.monotonic() + 1.0 if child.poll() is not None else 0.0
    while True:
        if time.monotonic() >= deadline:
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        child.poll()
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            break
        time.sleep(0.02)
    return child.returncode if child.returncode is not None else 1


if __name__ == "__main__":
    raise SystemExit(guard(sys.argv[1:]))
