"""The test doubles as running processes. Whatever happens, they are gone at the end."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "agent" / "_built"
CLI = (sys.executable, "-m", "quietcore.agent.cli")
CPU = max(os.sched_getaffinity(0))


class Double:
    """A running double and, once it has ended, the JSON that it printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    def result(self, timeout: float = 60) -> dict[str, Any]:
        """Wait for the end."""
        output, _ = self.process.communicate(timeout=timeout)
        result: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
        return result


@contextlib.contextmanager
def running(*arguments: str | Path, env: dict[str, str] | None = None) -> Iterator[Double]:
    process = subprocess.Popen(
        [str(a) for a in arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **(env or {})},
    )
    try:
        yield Double(process)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
        if process.stdout and not process.stdout.closed:
            process.stdout.close()
        process.wait()


@contextlib.contextmanager
def launcher(*options: str, cpu: int | None = CPU, env: dict[str, str] | None = None) -> Iterator[Double]:
    placed = [] if cpu is None else ["--cpu", str(cpu)]
    with running(BUILT / "launcher", *placed, *options, env=env) as double:
        time.sleep(0.3)
        yield double


@contextlib.contextmanager
def gated_launcher(gate: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Double]:
    """Has loaded its libraries and waits for the file ``gate`` before the first launch."""
    with running(BUILT / "launcher", "--gate", gate, *options, env=env) as double:
        assert double.process.stdout is not None
        assert double.process.stdout.readline().startswith("ready")
        yield double


@contextlib.contextmanager
def thief(duty: float, cpu: int = CPU) -> Iterator[Double]:
    with running(
        BUILT / "thief", "--cpu", str(cpu), "--duty", str(duty), "--clock", "cpu", "--duration", "600"
    ) as double:
        yield double


@contextlib.contextmanager
def sleepy_server(cpu: int = CPU) -> Iterator[Double]:
    """An API server that sleeps and polls, with an engine that is well."""
    script = ROOT / "tests" / "fixtures" / "sleepy_server.py"
    with running(sys.executable, script, BUILT / "launcher", str(cpu)) as double:
        time.sleep(0.5)
        yield double


def quietcore(
    *arguments: str, timeout: float = 60, user: int | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command line, as a user calls it; ``user`` without any group."""
    return subprocess.run(
        [*CLI, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        env={**os.environ, **(env or {})},
    )


def attached_programs() -> set[int]:
    """Ids of all BPF programs on the machine."""
    output = subprocess.run(["bpftool", "-j", "prog", "list"], capture_output=True, text=True, check=True)
    return {program["id"] for program in json.loads(output.stdout or "[]")}
