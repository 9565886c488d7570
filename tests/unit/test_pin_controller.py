"""Pin control of several targets, with one lever on made-up things and a real journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.boards import Board, settings
from tests.unit.factories import make_target

from quietcore.agent.pin import Controller, Event, JournalBusyError, Mode, Reading, actuate, controller
from quietcore.agent.pin.journal import Journal
from quietcore.agent.pin.plan import Plan, Proposal
from quietcore.agent.targets import Target

ONE, TWO = make_target(1, name="one"), make_target(2, name="two")
PATIENCE_S = 20.0


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, frozenset[int]]]:
    """What was asked of the survey: target and CPUs to avoid. Each target has a plan of its own."""
    asked = []

    def look(name: str, *_: object, avoid: frozenset[int], **__: object) -> SimpleNamespace:
        asked.append((name, avoid))
        return SimpleNamespace(target=name)

    def propose(found: Any) -> Proposal:
        first = found.target == ONE.name
        made = settings(a=11, b=21) if first else settings(b=22, c=32)
        return Proposal(
            (Plan("affinity", "a quiet CPU", tuple(made), frozenset({0 if first else 1})),), (), ()
        )

    monkeypatch.setattr(controller, "survey", look)
    monkeypatch.setattr(controller, "propose", propose)
    return asked


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Controller]]:
    made: list[Controller] = []

    def open_(mode: Mode, **options: Any) -> Controller:
        made.append(Controller(mode, tmp_path / "pin.journal", **options))
        return made[-1]

    yield open_
    for one in made:
        one.close()


class Clock:
    """Shows readings, one a second by their own clock."""

    def __init__(self, pins: Controller) -> None:
        self.pins = pins
        self.now = 0.0

    def show(self, stolen: float, *targets: Target) -> list[Event]:
        self.now += 1
        events = []
        for target in targets:
            events += self.pins.observe(Reading(target, frozenset({9}), stolen, None, (), 1.0, self.now))
        return events

    def until(self, kind: str, stolen: float, *targets: Target) -> list[Event]:
        """Until an event of this kind comes; work is done in other threads."""
        end, events = time.monotonic() + PATIENCE_S, list[Event]()
        while not any(event.kind == kind for event in events):
            assert time.monotonic() < end, events
            events += self.show(stolen, *targets)
            time.sleep(0.001)
        return events


def test_off_does_nothing(board: Board, looks: list[Any], make: Any, tmp_path: Path) -> None:
    clock = Clock(make(Mode.OFF))
    for _ in range(20):
        assert clock.show(0.5, ONE) == []
    assert looks == []
    assert list(tmp_path.iterdir()) == []


def test_advice_needs_no_journal(board: Board, looks: list[Any], make: Any, tmp_path: Path) -> None:
    events = Clock(make(Mode.ADVISE)).until("advise", 0.5, ONE)
    assert [event.kind for event in events] == ["advise"]
    assert board.writes == []
    assert list(tmp_path.iterdir()) == []


def test_kept_until_the_agent_ends(board: Board, looks: list[Any], make: Any, tmp_path: Path) -> None:
    pins = make(Mode.AUTO)
    clock = Clock(pins)
    clock.until("apply", 0.5, ONE)
    assert [board.values[thing] for thing in board.values] == [11, 21, 30]
    clock.until("keep", 0.0, ONE)
    (event,) = pins.close()
    assert (event.kind, event.target) == ("restore", ONE.name)
    assert "2 settings put back: the agent ends" in event.text
    assert [board.values[thing] for thing in board.values] == [10, 20, 30]
    assert (tmp_path / "pin.journal").read_bytes() == b""


def test_what_does_not_help_is_taken_back(board: Board, looks: list[Any], make: Any) -> None:
    clock = Clock(make(Mode.AUTO))
    events = clock.until("stand-aside", 0.5, ONE)
    assert [event.kind for event in events] == ["plan", "apply", "rollback", "stand-aside"]
    assert [board.values[thing] for thing in board.values] == [10, 20, 30]


def test_what_a_killed_agent_left_is_put_back_first(board: Board, make: Any, tmp_path: Path) -> None:
    with Journal.open(tmp_path / "pin.journal") as journal:
        actuate.apply(journal, settings(a=11), "before")
    pins = make(Mode.AUTO)
    assert [board.values[thing] for thing in board.values] == [10, 20, 30]
    (event,) = Clock(pins).show(0.0, ONE)
    assert (event.kind, event.target) == ("restore", "before")


def test_a_second_agent_is_refused(make: Any) -> None:
    make(Mode.AUTO)
    with pytest.raises(JournalBusyError):
        make(Mode.AUTO)
    make(Mode.ADVISE)


def test_two_targets_one_after_the_other(board: Board, looks: list[Any], make: Any) -> None:
    pins = make(Mode.AUTO, protect=frozenset({7}))
    clock = Clock(pins)
    clock.until("apply", 0.5, ONE, TWO)
    assert len(looks) == 1
    clock.until("keep", 0.0, ONE, TWO)
    events = clock.until("apply", 0.5, TWO)
    # what one holds is neither moved nor chosen for the other
    assert looks[-1] == (TWO.name, frozenset({0, 7}))
    assert "not applied: IRQ 2 (x): value: held for another target (one [1])" in events[-1].text
    assert [board.values[thing] for thing in board.values] == [11, 21, 32]


def test_a_target_that_ended(board: Board, looks: list[Any], make: Any) -> None:
    clock = Clock(make(Mode.AUTO))
    clock.until("apply", 0.5, ONE)
    clock.until("keep", 0.0, ONE)
    gone = Target(ONE.name)
    clock.until("rollback", 0.0, gone)
    assert [board.values[thing] for thing in board.values] == [10, 20, 30]
    assert clock.show(0.0, gone) == []


def test_a_target_of_which_nothing_is_heard(board: Board, looks: list[Any], make: Any) -> None:
    clock = Clock(make(Mode.AUTO))
    clock.until("apply", 0.5, ONE)
    clock.until("keep", 0.0, ONE)
    events = clock.until("rollback", 0.0, TWO)
    assert "one [1]: affinity rolled back: the target has ended" in events[-1].text
    assert clock.now > controller.UNHEARD_S


def test_closed_in_the_middle_of_a_trial(board: Board, looks: list[Any], make: Any) -> None:
    pins = make(Mode.AUTO)
    Clock(pins).until("apply", 0.5, ONE)
    pins.close()
    assert [board.values[thing] for thing in board.values] == [10, 20, 30]
