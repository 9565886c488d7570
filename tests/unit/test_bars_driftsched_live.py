"""What the bar of the live experiment concludes from its runs."""

from __future__ import annotations

from dataclasses import replace

from tests.bars.driftsched_live import FCFS, OURS, Row, conclude

BASE = Row(0, FCFS, "stress", 10.0, 12.0, 20.0, 0)
FASTER = {"sjf": 0.6, "drift": 0.5}


def rows(speed: float) -> list[Row]:
    """Two runs, the second ``speed`` times as slow for all."""
    found = []
    for run, slow in enumerate((1.0, speed)):
        for phase in ("learning", "stress"):
            for policy in (FCFS, *OURS):
                median = BASE.median * slow * FASTER.get(policy, 1.0)
                row = replace(BASE, run=run, phase=phase, policy=policy, median=median)
                found.append(replace(row, mean=BASE.mean * slow, p99=BASE.p99 * slow))
    return found


def test_changes_are_of_the_same_run() -> None:
    outcome = conclude(rows(3.0))
    assert outcome.met
    assert "sjf median -40.0%" in outcome.figure
    assert "drift median -50.0%, mean +0.0%, P99 +0.0%" in outcome.figure
    assert [row[0] for row in outcome.rows] == [
        f"{phase} {policy}" for phase in ("learning", "stress") for policy in (FCFS, *OURS)
    ]


def test_a_failed_request_misses_it() -> None:
    found = rows(1.0)
    found[-1] = replace(found[-1], failed=1)
    assert not conclude(found).met
