"""The demo leaves no process behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quietcore.probes import proc

SRC = Path(__file__).resolve().parents[2] / "src"
KILLED = """
import os, signal, sys
from quietcore.agent.cli import demo
with demo._running(["sleep", "60"]) as child:
    print(child.pid, flush=True)
    os.kill(os.getpid(), signal.Signals[sys.argv[1]])
"""


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGHUP", "SIGKILL"])
def test_its_children_end_with_it(signal_name: str) -> None:
    """A closed terminal left a thief that kept a CPU busy for an hour, and a launcher for ever."""
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, signal_name],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        capture_output=True,
        timeout=30,
        check=False,
    )
    child = int(ended.stdout)
    deadline = time.monotonic() + 5
    while not proc.has_ended(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert proc.has_ended(child)
