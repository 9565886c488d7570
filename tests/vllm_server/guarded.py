"""A command run under ``guard.py``, with its log."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path


class VllmError(RuntimeError):
    """The server or its load did not do what it should; the message has the end of its log."""


def tail(path: Path, lines: int = 15, width: int = 300) -> str:
    """The last lines of a log, without vLLM's list of routes."""
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        return f"({error})"
    kept = [line[:width] for line in text.splitlines() if line.strip() and "Route: /" not in line]
    return "\n".join(kept[-lines:])


class Guarded:
    """A command run under the guard."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        cpus: Sequence[int],
        log_path: Path,
        grace: float,
    ) -> None:
        self.log_path = log_path
        self._grace = grace
        self._scratch = scratch = tempfile.mkdtemp(
            prefix="qcvllm", dir="/tmp"
        )  # short: holds the sockets of ZeroMQ
        self.pid = 0
        full_env = {**os.environ, **env, "TMPDIR": scratch, "VLLM_RPC_BASE_PATH": scratch}
        guard = [sys.executable, "-I", str(Path(__file__).resolve().with_name("guard.py"))]
        guard += [str(os.getpid()), ",".join(map(str, cpus)), str(grace), scratch, "--"]
        try:
            with log_path.open("wb") as log:
                self._process = subprocess.Popen(
                    [*guard, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=full_env,
                    cwd=log_path.parent,
                    start_new_session=True,  # Ctrl-C reaches only us; we stop it in order
                    text=True,
                )
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line.isdigit():
            self.stop()
            raise VllmError(f"could not start {command[0]}:\n{tail(log_path)}")
        self.pid = int(line)

    def running(self) -> bool:
        return self._process.poll() is None

    def returncode(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        """End the command and all that it started; again is harmless."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._grace + 20)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        if self._process.returncode < 0 and self.pid:  # the guard was killed and could not do its work
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            shutil.rmtree(self._scratch, ignore_errors=True)
            self.pid = 0
        if self._process.stdout is not None:
            self._process.stdout.close()
