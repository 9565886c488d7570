"""Which CPU the threads of the server may run on."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tests.vllm_server.guard import descendants


def _tids(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    return []


def online(cpu: int) -> bool:
    listed = Path("/sys/devices/system/cpu/online").read_text().strip()
    ranges = [part.partition("-") for part in listed.split(",")]
    return any(int(first) <= cpu <= int(last or first) for first, _, last in ranges)


def misplaced_threads(
    root: int, cpu: int, engine: int, engine_cpu: int, *, correct: bool = False
) -> dict[int, set[int]]:
    """Threads below ``root`` that may run elsewhere than on ``cpu``, below ``engine`` on ``engine_cpu``.

    Gives tid to CPUs.  With ``correct``, moves them.
    """
    engines = {engine, *descendants(engine)}
    found: dict[int, set[int]] = {}
    for pid in [root, *descendants(root)]:
        want = {engine_cpu if pid in engines else cpu}
        for tid in _tids(pid):
            with contextlib.suppress(ProcessLookupError):
                have = os.sched_getaffinity(tid)
                if have != want:
                    found[tid] = have
                    if correct:
                        os.sched_setaffinity(tid, want)
    return found
