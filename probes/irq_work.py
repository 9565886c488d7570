"""Makes the kernel defer work to its irq_work interrupt, which is otherwise seldom on a quiet machine."""

from __future__ import annotations

import ctypes as ct
import errno
import fcntl
import os
import platform
import struct
import time

_SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_SOFTWARE, _CPU_CLOCK, _DISABLED, _CLOEXEC, _REFRESH = 1, 0, 1, 8, 0x2402
_PERIOD_NS = 100_000
_PATIENCE_S = 0.01


def queue_irq_work() -> None:
    """One interrupt on this CPU: a software clock that may overflow once is switched off by deferred work.

    Raises OSError where perf events are refused.
    """
    number = _SYS_PERF_EVENT_OPEN.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    # struct perf_event_attr, PERF_ATTR_SIZE_VER0: type, size, config, period, what to sample and read, flags
    attr = struct.pack("<IIQQQQQIIQ", _SOFTWARE, 64, _CPU_CLOCK, _PERIOD_NS, 0, 0, _DISABLED, 0, 0, 0)
    libc = ct.CDLL(None, use_errno=True)
    fd = libc.syscall(number, attr, 0, -1, -1, _CLOEXEC)
    if fd < 0:
        raise OSError(ct.get_errno(), os.strerror(ct.get_errno()))
    try:
        fcntl.ioctl(fd, _REFRESH, 1)
        # the clock runs while this thread does
        end = time.thread_time() + _PATIENCE_S
        while time.thread_time() < end:
            pass
    finally:
        os.close(fd)
