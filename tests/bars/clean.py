"""Nothing wrong, nothing found: a launcher alone, and an engine whose API server sleeps and polls."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

from tests.bars.bar import Bar, BarError, Outcome, percent, progress
from tests.bars.cli import diagnose
from tests.integration.doubles import Double, launcher, sleepy_server

HEALTHY = 0


@dataclass(frozen=True)
class Row:
    """What one diagnosis said; ``share`` is what others took, of the critical threads' time."""

    run: int
    case: str
    code: int
    outcome: str
    text: str
    share: float


def collect(runs: int, seconds: float) -> list[Row]:
    """Both cases, one after the other, in every run; diagnosed with default options."""
    rows = []
    for run in range(runs):
        for case, victim in (("launcher", launcher("--worker")), ("sleepy API server", sleepy_server())):
            rows.append(one_run(run, case, victim, seconds))
        shares = ", ".join(f"{row.case} {row.share:.2%}" for row in rows[-2:])
        progress(f"run {run + 1} of {runs}: {shares}")
    return rows


def one_run(run: int, case: str, victim: AbstractContextManager[Double], seconds: float) -> Row:
    with victim as double:
        said = diagnose(double.pid, seconds)
        if double.process.poll() is not None:
            raise BarError(f"the {case} ended by itself")
    return Row(run, case, said.code, said.outcome, said.text, said.target["verdict"]["share"])


def conclude(rows: Sequence[Row]) -> Outcome:
    found = sum(row.outcome == "interference" for row in rows)
    unsure = sum(row.outcome != "interference" and row.code != HEALTHY for row in rows)
    worst = max(row.share for row in rows)
    # "not enough data" is no verdict of interference, and no answer either
    return Outcome(
        met=not found and not unsure,
        figure=f"{found} verdicts of interference in {len(rows)} diagnoses, {unsure} without an answer; "
        f"others took at most {percent(worst, 2)}",
        columns=("run", "exit code", "share", "verdict"),
        rows=[
            [f"{row.run + 1} {row.case}", str(row.code), percent(row.share, 2), row.outcome] for row in rows
        ],
        remarks=[f"run {row.run + 1}, {row.case}: {row.text}" for row in rows if row.code != HEALTHY],
        raw=[asdict(row) for row in rows],
    )


BAR = Bar(
    "clean",
    "a clean run and a sleepy API server, each time healthy: 0 verdicts of interference",
    20,
    5,
    lambda runs, seconds: conclude(collect(runs, seconds)),
)
