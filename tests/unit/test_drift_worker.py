"""Where the refit process runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
# An "engine" on one CPU that starts a worker, which says where it may run.
ENGINE = """
import os, subprocess, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
worker = (
    "import os; from quietcore.scheduler.drift.worker import leave_cores_of;"
    " leave_cores_of(os.getppid()); print(*sorted(os.sched_getaffinity(0)))"
)
subprocess.run([sys.executable, "-c", worker], check=True)
"""


def cpus_of_worker(pinned: int) -> set[int]:
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, str(pinned)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return {int(cpu) for cpu in done.stdout.split()}


def test_it_leaves_the_core_of_a_pinned_engine() -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("needs two CPUs")
    pinned = max(allowed)
    assert cpus_of_worker(pinned) == allowed - {pinned}


def test_it_stays_where_who_started_the_engine_may_run() -> None:
    before = os.sched_getaffinity(0)
    only = min(before)
    os.sched_setaffinity(0, {only})
    try:
        assert cpus_of_worker(only) == {only}
    finally:
        os.sched_setaffinity(0, before)
