"""``quietcore bench steptime``."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from quietcore.agent.cli.bench.output import clear_errors, jobs_option, progress, table

if TYPE_CHECKING:
    from quietcore.scheduler.bench.loop_model import Row

SCHEMA = "quietcore.bench.steptime/1"


@click.command()
@click.option("--seeds", type=click.IntRange(2), default=20, show_default=True, help="Runs of each scenario.")
@click.option(
    "--changes",
    type=click.IntRange(2),
    default=20,
    show_default=True,
    help="How often noise begins or ends in a run.",
)
@jobs_option()
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(seeds: int, changes: int, jobs: int, as_json: bool) -> None:
    """How soon step times are foreseen right when noise on the host begins or ends, in virtual time.

    Compares no correction, steps that time themselves, and the agent's feedback page, on engines whose true
    step times are known. No engine runs and no agent measures.

    Exit codes: 0 done, 2 wrong usage, 3 a library is missing.
    """
    with clear_errors():
        from quietcore.scheduler.bench import loop_model, parallel

        tasks = [
            (make, scenario) for make in range(len(loop_model.MAKES)) for scenario in loop_model.SCENARIOS
        ]
        with progress(len(tasks), "scenarios") as advance:
            rows = parallel.run(
                functools.partial(loop_model.compare_task, seeds=seeds, changes=changes),
                tasks,
                jobs,
                lambda task: advance(f"{loop_model.MAKES[task[0]].name}, {task[1].name}"),
            )
    if as_json:
        document = {
            "schema": SCHEMA,
            "corrections": loop_model.CORRECTIONS,
            "seeds": seeds,
            "changes": changes,
        }
        click.echo(json.dumps({**document, "rows": [_plain(row) for row in rows]}, indent=2))
    else:
        click.echo(_table(rows, loop_model.CORRECTIONS))


def _plain(row: Row) -> dict[str, object]:
    """Without infinities, which JSON does not have."""
    corrected = [None if math.isinf(seconds) else seconds for seconds in row.corrected_s]
    return {**asdict(row), "corrected_s": corrected}


def _table(rows: Sequence[Row], corrections: Sequence[str]) -> str:
    header = ("engine, scenario", "correction", "error", "of self-timed", "right after s", "clean", "back")
    lines = []
    for row in rows:
        for index, name in enumerate(corrections):
            mean, bound = row.ratio
            corrected = row.corrected_s[index]
            lines.append(
                (
                    f"{row.make}, {row.scenario}" if not index else "",
                    name,
                    f"{row.error[index]:.1%}",
                    f"{mean:.2f} (< {bound:.2f})" if name == "page" else "",
                    "never" if math.isinf(corrected) else f"{corrected:.2f}",
                    f"{row.clean[index]:.1%}",
                    f"{row.back[index]:.1%}",
                )
            )
    return table(header, lines)
