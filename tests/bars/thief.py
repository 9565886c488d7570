"""A neighbour that takes a known part of the core: is it named, and the stolen share right?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tests.bars.bar import Bar, Outcome, percent, progress
from tests.bars.noise import TOOL_CPU, on_cpu
from tests.bars.truth import Both, measure
from tests.integration.doubles import launcher, thief

from quietcore.agent import verdict

DUTIES = (0.1, 0.3, 0.6)
LIMIT = 0.02


@dataclass(frozen=True)
class Row:
    """One diagnosis; shares are of the critical threads' wall time."""

    run: int
    duty: float
    interference: bool
    named: bool
    stolen: float
    kernel_share: float
    verdict: str

    @property
    def error(self) -> float:
        return self.stolen - self.kernel_share

    @property
    def right(self) -> bool:
        return self.interference and self.named and abs(self.error) <= LIMIT


def collect(runs: int, seconds: float) -> list[Row]:
    """A launcher that runs flat out, with a new thief of each duty cycle in every run."""
    rows = []
    with on_cpu(TOOL_CPU):
        for run in range(runs):
            for duty in DUTIES:
                with launcher("--worker") as victim, thief(duty) as neighbour:
                    rows.append(compare(run, duty, neighbour.pid, measure(victim.pid, seconds)))
            errors = ", ".join(f"{row.error:+.2%}" for row in rows[-len(DUTIES) :])
            named = sum(row.named for row in rows[-len(DUTIES) :])
            progress(f"run {run + 1} of {runs}: named {named} of {len(DUTIES)}, share off by {errors}")
    return rows


def compare(run: int, duty: float, thief_pid: int, both: Both) -> Row:
    whole, culprits = both.found.whole, both.found.verdict.culprits
    kernel = sum(both.seen[-1][tid].run_delay - both.seen[0][tid].run_delay for tid in whole.critical)
    return Row(
        run,
        duty,
        both.found.verdict.outcome is verdict.Outcome.INTERFERENCE,
        bool(culprits) and culprits[0].pid == thief_pid,
        whole.stolen / whole.wall,
        kernel / whole.wall,
        str(both.found.verdict),
    )


def conclude(rows: Sequence[Row]) -> Outcome:
    table, figures = [], []
    for duty in sorted({row.duty for row in rows}):
        of_duty = [row for row in rows if row.duty == duty]
        named = sum(row.interference and row.named for row in of_duty)
        worst = max(of_duty, key=lambda row: abs(row.error))
        stolen = sum(row.stolen for row in of_duty) / len(of_duty)
        kernel = sum(row.kernel_share for row in of_duty) / len(of_duty)
        figures.append(f"{duty:.0%}: {named} of {len(of_duty)}, {100 * worst.error:+.2f} points")
        table.append(
            [
                f"duty {duty:.0%}",
                f"{named} of {len(of_duty)}",
                percent(stolen, 2),
                percent(kernel, 2),
                f"{100 * worst.error:+.2f}",
            ]
        )
    return Outcome(
        met=all(row.right for row in rows),
        figure="named first, worst share: " + "; ".join(figures),
        columns=("thief", "named first", "stolen (mean)", "schedstat (mean)", "worst, points"),
        rows=table,
        remarks=[
            f"run {row.run + 1}, duty {row.duty:.0%}: {row.verdict} (schedstat {row.kernel_share:.1%})"
            for row in rows
            if not row.right
        ],
        raw=[{**asdict(row), "error": row.error} for row in rows],
    )


BAR = Bar(
    "thief",
    "a thief of 10, 30, 60 % duty is named first every time, stolen share within 2 points of "
    "schedstat's run_delay / wall",
    20,
    3,
    lambda runs, seconds: conclude(collect(runs, seconds)),
)
