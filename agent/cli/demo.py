"""``quietcore demo``."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from quietcore.agent import targets
from quietcore.agent.cli.exit_codes import FOUND
from quietcore.agent.cli.options import Number
from quietcore.probes.errors import BackendUnavailableError, MeasureError, TargetGoneError

BUILT = Path(__file__).parents[1] / "_built"
THIEF_DUTY = 0.5
PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


@click.command()
@click.option("--duration", type=Number(2, 3600), default=8.0, show_default=True, help="Seconds per part.")
def command(duration: float) -> None:
    """Show what quietcore does, measured for real.

    Where processes use CUDA, they are diagnosed. Elsewhere a small launcher with a stand-in for
    the CUDA library issues 950 launches a token, first undisturbed, then with a noisy
    neighbour on its core; both runs are diagnosed.

    Exit codes: 0 done, 1 the diagnoses are not what they should be, 3 cannot measure.
    """
    try:
        found = targets.with_cuda()
    except TargetGoneError:
        found = []
    if found:
        click.echo(f"{len(found)} processes on this host use CUDA: diagnosing them.\n")
        from quietcore.agent.cli.diagnose import command as diagnose

        with diagnose.make_context("diagnose", ["--duration", str(duration)]) as context:
            diagnose.invoke(context)  # exits
    if not (BUILT / "launcher").exists():
        raise MeasureError("the demo's launcher was not built", "python probes/_compile.py")
    _run(duration)


def _run(duration: float) -> None:
    cpu = max(os.sched_getaffinity(0))
    launcher = [str(BUILT / "launcher"), "--cpu", str(cpu), "--worker", "--tokens-per-second", "0"]
    thief = [str(BUILT / "thief"), "--cpu", str(cpu), "--duty", str(THIEF_DUTY), "--duration", "3600"]
    click.echo("No process here uses CUDA, so a launcher stands in: 950 launches a token,")
    click.echo(f"from a worker thread on CPU {cpu}, through a stand-in for libcuda.\n")
    with _running(launcher) as victim:
        click.echo("--- undisturbed ---")
        clean = _diagnose(victim.pid, duration)
        click.echo(f"\n--- with a neighbour that wants {THIEF_DUTY:.0%} of CPU {cpu} ---")
        with _running([*thief, "--clock", "cpu"]):
            disturbed = _diagnose(victim.pid, duration)
    if clean or not disturbed:
        click.echo("\nquietcore: the demo did not come out as it should; is the host busy?", err=True)
        sys.exit(FOUND)


def _diagnose(pid: int, duration: float) -> bool:
    """Print a diagnosis; whether it says interference."""
    from quietcore.agent.diagnosis import diagnose
    from quietcore.agent.report import terminal
    from quietcore.agent.session import Session
    from quietcore.agent.verdict import Outcome
    from quietcore.probes.backend import open_backend

    refused: list[BackendUnavailableError] = []
    with Session(open_backend(refused=refused), [targets.by_pid(pid)], 0.005) as session:
        if session.backend.name == "procfs":
            raise refused[0]  # it accuses nobody: there would be nothing to see
        session.start()
        found = diagnose(session, duration)
    terminal.show(found)
    return any(d.verdict.outcome is Outcome.INTERFERENCE for d in found)


def _ending_with_parent() -> Callable[[], object]:
    """For a child to call before it executes: without us it would keep a CPU busy for ever."""
    # loaded before the fork, after which as little as possible is to happen
    return functools.partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def _running(arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A child that is gone at the end, whatever happens, the end of this process by a signal included."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            arguments, stdout=output, stderr=subprocess.STDOUT, preexec_fn=_ending_with_parent()
        )
        try:
            time.sleep(0.5)
            if process.poll() is not None:
                output.seek(0)
                raise MeasureError(
                    f"{Path(arguments[0]).name} ended at once: {output.read().decode().strip()}"
                )
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
