"""Exit codes and the one line on standard error, whatever ends a command."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
from click.testing import CliRunner

from quietcore.agent import cli as module
from quietcore.agent.cli.diagnose import _ending_at_ctrl_c
from quietcore.probes.errors import MeasureError

SRC = Path(__file__).resolve().parents[2] / "src"
CLI = (sys.executable, "-m", "quietcore.agent.cli")


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], Any]:
    """The exit code of ``quietcore verb``, for what the verb does."""

    def run(verb: Callable[[], object]) -> Any:
        monkeypatch.setattr(sys, "argv", ["quietcore", "verb"])
        monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # main() puts its own before it
        monkeypatch.setattr(module.cli, "get_command", lambda *_: click.Command("verb", callback=verb))
        with pytest.raises(SystemExit) as caught:
            module.main()
        return caught.value.code

    return run


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def verb() -> NoReturn:
        raise error

    return verb


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_a_command_chooses_its_code(ending: Any, capfd: pytest.CaptureFixture[str], code: int) -> None:
    assert ending(lambda: sys.exit(code)) == code
    assert ending(lambda: click.echo("done")) == 0
    assert capfd.readouterr() == ("done\n", "")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (MeasureError("no kernel", "get one"), 3, "quietcore: no kernel; get one"),
        (RuntimeError("odd\n  thing"), 3, "quietcore: RuntimeError: odd thing; QUIETCORE_TRACEBACK=1 shows"),
        (KeyError("cuda_config"), 3, "quietcore: KeyError: 'cuda_config'; "),
        (OSError(errno.ENOSPC, "No space left"), 3, "quietcore: OSError: [Errno 28] No space left; "),
        (click.ClickException("no such thing"), 3, "Error: no such thing"),
    ],
)
def test_what_goes_wrong_is_one_line(
    ending: Any, capfd: pytest.CaptureFixture[str], error: Exception, code: int, line: str
) -> None:
    assert ending(raising(error)) == code
    output, told = capfd.readouterr()
    assert output == ""
    assert told.startswith(line)
    assert told.count("\n") == 1


def test_wrong_usage(ending: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert ending(raising(click.UsageError("no"))) == 2
    assert "Error: no" in capfd.readouterr().err


@pytest.mark.parametrize("verb", ["diagnose", "demo"])
@pytest.mark.parametrize("seconds", ["nan", "0", "inf"])
def test_a_duration_that_would_not_end(verb: str, seconds: str) -> None:
    result = CliRunner().invoke(module.cli, [verb, "--duration", seconds])
    assert (result.exit_code, "Invalid value for '--duration'" in result.output) == (2, True)


def test_a_traceback_for_who_asks(
    ending: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUIETCORE_TRACEBACK", "1")
    assert ending(raising(RuntimeError("odd"))) == 3
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupted_command(ending: Any, capfd: pytest.CaptureFixture[str], error: BaseException) -> None:
    assert ending(raising(error)) == 130
    assert capfd.readouterr().err.strip() == ""


def call(*arguments: str, output: int) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    return subprocess.run(
        [*CLI, *arguments], stdout=output, stderr=subprocess.PIPE, text=True, env=environment, check=False
    )


@pytest.mark.parametrize("arguments", [("--help",), ("diagnose", "--help"), ("--version",)])
def test_a_closed_pipe(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = call(*arguments, output=writer)
    finally:
        os.close(writer)
    assert done.returncode == 3
    assert done.stderr == "quietcore: the output was closed before all of it was written\n"


def test_a_full_disk() -> None:
    with open("/dev/full", "w") as full:
        done = call("--help", output=full.fileno())
    assert done.returncode == 3
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


class Measuring:
    """Counts how often it is told to stop."""

    stops = 0

    def stop(self) -> None:
        self.stops += 1


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)


def test_the_first_ctrl_c_ends_the_measurement_and_the_second_the_program() -> None:
    session: Any = Measuring()
    before = signal.getsignal(signal.SIGINT)
    with _ending_at_ctrl_c(session):
        press_ctrl_c()
        assert session.stops == 1
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()
    assert signal.getsignal(signal.SIGINT) is before
    assert session.stops == 1


def test_ctrl_c_in_a_callback_of_a_library_is_not_lost() -> None:
    """An exception cannot leave it: Python says so on standard error, and goes on."""
    script = (
        "import ctypes, os, signal, sys, time\n"
        "from quietcore.agent import cli\n"
        "callback = ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))\n"
        "def verb(*_):\n"
        "    callback()\n"
        "    time.sleep(20)\n"
        "cli.cli.get_command = lambda *_: cli.click.Command('verb', callback=verb)\n"
        "cli.main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, "verb"],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        capture_output=True,
        timeout=15,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (130, b"\n")


def test_a_background_job_goes_on_at_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    session: Any = Measuring()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _ending_at_ctrl_c(session):
            press_ctrl_c()
    finally:
        signal.signal(signal.SIGINT, before)
    assert session.stops == 0
