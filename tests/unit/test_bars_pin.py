"""What the bars of pin control conclude: each can be met, and each can be missed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.bars import pin_crash, pin_rollback
from tests.pin_victims import State

CRASH = pin_crash.Row(0, 0.5, 8, False, 0, [])
UNDONE = [pin_rollback.Row(0, harm, "affinity", 3.0) for harm in pin_rollback.HARMS]


def test_crash_is_met_when_all_is_as_before() -> None:
    outcome = pin_crash.conclude([CRASH, replace(CRASH, restore_killed=True)])
    assert outcome.met
    assert outcome.figure.startswith("2 of 2 as before; 2 kills found settings in force, after 1 the restore")


@pytest.mark.parametrize(
    "row", [replace(CRASH, wrong=["thread 7: ('0-1', 0, 0) -> ('0', 0, 0)"]), replace(CRASH, conflicts=1)]
)
def test_crash_is_missed_by_one_that_is_not(row: pin_crash.Row) -> None:
    outcome = pin_crash.conclude([CRASH] * 199 + [row])
    assert not outcome.met
    assert len(outcome.remarks) == 1


def test_crash_is_missed_where_nothing_was_in_force() -> None:
    outcome = pin_crash.conclude([replace(CRASH, entries=0)] * 9 + [CRASH])
    assert not outcome.met
    assert "only 10.0% of the kills found anything in force" in outcome.remarks


def test_what_differs_is_named() -> None:
    before = State({7: ("0-1", 0, 1), 8: ("0-1", 0, 1)}, {36: "0-1\n"}, "0-1\n")
    after = State({7: ("0", 0, 1)}, {36: "1\n"}, "0\n")
    assert before.differences(before) == []
    assert len(before.differences(after)) == 4


def test_rollback_needs_every_one_in_time() -> None:
    assert pin_rollback.conclude(UNDONE).met
    late = [*UNDONE, replace(UNDONE[0], seconds=5.1)]
    outcome = pin_rollback.conclude(late)
    assert not outcome.met
    assert "crowded 5.1 s" in outcome.figure
