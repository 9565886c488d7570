"""The course of a target, with hands that only take note: what is done when, and what is told."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from tests.unit.factories import make_target

from quietcore.agent.pin.actuate import Report, Step
from quietcore.agent.pin.course import Course
from quietcore.agent.pin.events import Event, Mode, Reading
from quietcore.agent.pin.levers import Outcome
from quietcore.agent.pin.owners import PLACING, Owner
from quietcore.agent.pin.plan import Plan, Proposal, Setting
from quietcore.agent.pin.things import Thread
from quietcore.agent.pin.trial import Judgement, Measured, is_back, judge, left, mean
from quietcore.probes.errors import MeasureError

TARGET = make_target(1)
THREAD = Thread(1, 1, 11, 1)
T = TypeVar("T")


def plan(name: str, cpu: int = 0) -> Plan:
    return Plan(name, f"{name} is tried", (Setting("affinity", THREAD, str(cpu)),), frozenset({cpu}))


def settled(result: T | Exception) -> Future[T]:
    future: Future[T] = Future()
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
    return future


def report(outcome: Outcome, why: str = "") -> Report:
    return Report((Step("affinity", THREAD, outcome, "0-1", "0", why),))


@dataclass
class Noting:
    """Hands that note what they are asked to do."""

    proposal: Proposal
    done: list[str] = field(default_factory=list)
    applied: Report | Exception = field(default_factory=lambda: report(Outcome.SET))
    swept: Report | Exception = field(default_factory=Report)
    undone: Report | Exception = field(default_factory=lambda: report(Outcome.RESTORED))
    looks: Future[Proposal] | None = None
    in_force: str = ""

    def look(self, reading: Reading) -> Future[Proposal]:
        self.done.append("look")
        return self.looks or settled(self.proposal)

    def apply(self, plan: Plan) -> Future[Report]:
        self.done.append(f"apply {plan.name}")
        self.in_force = plan.name
        return settled(self.applied)

    def undo(self) -> Future[Report]:
        self.done.append("undo")
        self.in_force = ""
        return settled(self.undone)

    def sweep(self, plan: Plan, reading: Reading) -> Future[Report]:
        return settled(self.swept)


@dataclass
class Drive:
    """A course that is shown readings, a second each."""

    hands: Noting
    course: Course
    now: float = 100.0
    events: list[Event] = field(default_factory=list)

    def show(self, stolen: float, times: int = 1, rate: float | None = None, critical: bool = True) -> None:
        for _ in range(times):
            self.now += 1
            tids = frozenset({11} if critical else ())
            reading = Reading(TARGET, tids, stolen, rate, (), 1.0, self.now)
            self.events += self.course.observe(reading)

    def show_effect(self, effects: dict[str, float], seconds: int, without: float = 0.5) -> None:
        """What is stolen depends on the plan that is in force."""
        for _ in range(seconds):
            self.show(effects.get(self.hands.in_force, without))

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def texts(self, kind: str) -> list[str]:
        return [event.text for event in self.events if event.kind == kind]


def drive(
    *plans: Plan, mode: Mode = Mode.AUTO, owners: Sequence[Owner] = (), blocked: Sequence[Plan] = ()
) -> Drive:
    hands = Noting(Proposal(plans, tuple(blocked), tuple(owners)))
    return Drive(hands, Course(TARGET.name, mode, hands, lambda: True))


def test_a_calm_target_is_left_alone() -> None:
    d = drive(plan("affinity"))
    d.show(0.01, 60)
    assert (d.hands.done, d.events) == ([], [])


def test_a_hiccup_is_no_disturbance() -> None:
    d = drive(plan("affinity"))
    for _ in range(10):
        d.show(0.5, 2)
        d.show(0.0)
    assert d.hands.done == []


def test_a_plan_that_clears_it_is_kept() -> None:
    d = drive(plan("affinity"), plan("nice"))
    d.show(0.5, 3)
    assert d.hands.done == ["look", "apply affinity"]
    d.show(0.3)  # the window in which it was applied says nothing
    d.show(0.01, 3)
    assert d.kinds() == ["plan", "apply", "keep"]
    assert d.course.cpus == {0}
    assert d.events[-1].detail["result"]["judgement"] == "cleared"
    d.show(0.01, 100)
    assert d.hands.done == ["look", "apply affinity"]


def test_each_is_tried_on_the_host_as_it_was_found() -> None:
    d = drive(plan("affinity"), plan("nice"))
    d.show_effect({"affinity": 0.48, "nice": 0.0}, 20)
    assert d.hands.done == ["look", "apply affinity", "undo", "apply nice"]
    assert d.kinds() == ["plan", "apply", "rollback", "apply", "keep"]
    assert "affinity does not help, 50.0% stolen -> 48.0% stolen: rolled back" in d.texts("rollback")[0]


def test_the_best_is_kept_if_none_clears_it() -> None:
    d = drive(plan("affinity"), plan("nice"), plan("slice"))
    d.show_effect({"affinity": 0.3, "nice": 0.2, "slice": 0.35}, 45)
    assert d.hands.done[-2:] == ["undo", "apply nice"]
    assert d.kinds().count("apply") == 4
    assert d.events[-1].kind == "keep"
    tried = d.events[-1].detail["tried"]
    assert [(t["plan"], t["judgement"]) for t in tried] == [
        ("affinity", "helps"),
        ("nice", "helps"),
        ("slice", "helps"),
        ("nice", "helps"),
    ]


def test_where_nothing_helps_all_is_as_it_was_and_that_is_said_once() -> None:
    d = drive(plan("affinity"), plan("nice"))
    d.show_effect({}, 400)
    assert d.hands.in_force == ""
    assert d.course.idle
    (text,) = d.texts("stand-aside")
    assert "nothing helps, everything is as it was: affinity does not help" in text
    assert d.hands.done.count("look") >= 2  # after a pause it is tried again


def test_pauses_grow() -> None:
    d = drive(plan("affinity"))
    d.show_effect({}, 1000)
    # after 60, 120, 240 s: not each time that it is disturbed
    assert 3 <= d.hands.done.count("look") <= 5


def test_a_plan_that_hurts_goes_at_the_second_bad_reading() -> None:
    d = drive(plan("affinity"))
    d.show(0.3, 3, rate=1000.0)
    d.show(0.3, 1, rate=1000.0)
    d.show(0.9, 1, rate=300.0)
    assert d.hands.in_force == "affinity"
    d.show(0.9, 1, rate=300.0)
    assert d.hands.in_force == ""
    assert "affinity hurts" in d.texts("rollback")[0]


def test_slower_is_worse_however_little_is_stolen() -> None:
    d = drive(plan("affinity"))
    d.show(0.3, 4, rate=1000.0)
    d.show(0.0, 3, rate=700.0)
    assert "affinity hurts, 30.0% stolen, 1,000/s -> 0.0% stolen, 700/s" in d.texts("rollback")[0]


def test_the_offender_follows_a_kept_plan() -> None:
    d = drive(plan("affinity"))
    d.show(0.5, 4)
    d.show(0.0, 30)
    assert d.events[-1].kind == "keep"
    at = d.now
    d.show(0.5, 2)
    assert d.hands.in_force == ""
    assert d.now - at < 5
    assert "no longer helps" in d.texts("rollback")[0]
    # it has moved: soon there is a new plan
    d.show(0.5, 5)
    assert d.hands.done[-2:] == ["look", "apply affinity"]


def test_a_disturbance_that_ends_while_we_look() -> None:
    d = drive(plan("affinity"))
    d.hands.looks = Future()
    d.show(0.5, 3)
    d.show(0.0)
    d.hands.looks.set_result(d.hands.proposal)
    d.show(0.0, 5)
    assert d.hands.done == ["look"]
    assert d.events == []


def test_a_look_that_takes_long_holds_nobody_up() -> None:
    d = drive(plan("affinity"))
    d.hands.looks = Future()
    d.show(0.5, 6)
    assert d.hands.done == ["look"]
    assert d.course.on_trial
    d.hands.looks.set_result(d.hands.proposal)
    d.show(0.5)
    assert d.hands.done == ["look", "apply affinity"]


def test_noise_that_ends_between_two_plans_is_nobodys_merit() -> None:
    d = drive(plan("affinity"), plan("nice"))
    d.show(0.5, 7)
    assert d.hands.done[-1] == "undo"
    d.show(0.0, 4)
    assert "ended by itself" in d.texts("stand-aside")[0]
    assert "apply nice" not in d.hands.done


def test_a_target_that_goes_idle_on_trial() -> None:
    d = drive(plan("affinity"))
    d.show(0.5, 3)
    d.show(0.0, 15, critical=False)
    assert d.hands.in_force == ""
    assert "gone idle" in d.texts("rollback")[0]
    assert d.course.idle


def test_a_plan_of_which_nothing_could_be_set() -> None:
    d = drive(plan("affinity"))
    d.hands.applied = report(Outcome.REFUSED, "managed")
    d.show(0.5, 5)
    assert "0 settings; not applied:" in d.texts("apply")[0]
    assert "affinity could not be applied" in d.texts("stand-aside")[0]


def test_what_others_set_is_theirs() -> None:
    d = drive(plan("affinity"))
    d.show(0.5, 4)
    d.show(0.0, 5)
    d.hands.swept = report(Outcome.CONFLICT, "3 now: left alone")
    d.show(0.0, 2)
    assert d.hands.in_force == ""
    assert d.kinds()[-2:] == ["conflict", "rollback"]
    looks = d.hands.done.count("look")
    d.show(0.5, 60)
    assert d.hands.done.count("look") == looks


def test_a_journal_that_cannot_be_written() -> None:
    d = drive(plan("affinity"))
    d.hands.applied = MeasureError("the journal cannot be written")
    d.show(0.5, 30)
    assert d.hands.done == ["look", "apply affinity", "undo"]
    assert "pin control failed: the journal cannot be written" in d.texts("stand-aside")[0]
    assert d.course.idle


def test_a_journal_that_fails_for_good() -> None:
    d = drive(plan("affinity"))
    d.hands.applied = d.hands.undone = MeasureError("the journal cannot be written")
    d.show(0.5, 30)
    assert d.hands.done == ["look", "apply affinity", "undo"]
    assert len(d.texts("stand-aside")) == 1


def test_advice_changes_nothing_and_comes_once() -> None:
    d = drive(plan("affinity"), plan("nice"), mode=Mode.ADVISE)
    d.show(0.5, 500)
    assert set(d.hands.done) == {"look"}
    assert d.kinds() == ["advise"]
    assert d.events[0].text == "server [1]: would try affinity: affinity is tried"


def test_owners_are_named_once_and_their_plans_not_tried() -> None:
    owner = Owner("kubelet", PLACING, "kubelet places it", "ask kubelet")
    d = drive(plan("nice"), owners=[owner], blocked=[plan("affinity")])
    d.show_effect({}, 300)
    assert "apply affinity" not in d.hands.done
    first, last = d.texts("stand-aside")
    assert first == "server [1]: left alone: kubelet places it; ask kubelet"
    assert "nothing helps" in last


def test_nothing_left_to_try() -> None:
    owner = Owner("tuned", PLACING, "tuned places it", "")
    d = drive(owners=[owner], blocked=[plan("affinity")])
    d.show(0.5, 300)
    assert [event.detail.get("reason") for event in d.events] == [None, "no_plan"]
    assert drive().course.idle


def test_only_one_target_at_a_time() -> None:
    d = drive(plan("affinity"))
    free = False
    d.course = Course(TARGET.name, Mode.AUTO, d.hands, lambda: free)
    d.show(0.5, 10)
    assert d.hands.done == []
    free = True
    d.show(0.5)
    assert d.hands.done == ["look", "apply affinity"]


@pytest.mark.parametrize("seconds", [4, 6, 9])
def test_a_target_that_ends(seconds: int) -> None:
    d = drive(plan("affinity"))
    d.show_effect({"affinity": 0.0}, seconds)
    assert d.hands.in_force == "affinity"
    d.course.retire()
    d.events += d.course.collect()
    assert d.hands.in_force == ""
    assert d.course.idle
    assert "has ended" in d.texts("rollback")[-1]


def test_judging() -> None:
    before = Measured(0.5, 100.0)
    assert judge(before, Measured(0.04, 190.0)) is Judgement.CLEARED
    assert judge(before, Measured(0.2, None)) is Judgement.HELPS
    assert judge(before, Measured(0.45, 100.0)) is Judgement.NO_HELP
    assert judge(before, Measured(0.6, 100.0)) is Judgement.HURTS
    assert judge(before, Measured(0.0, 79.0)) is Judgement.HURTS
    # a murmur above the threshold that becomes one below it is not cleared by anything
    assert judge(Measured(0.021, None), Measured(0.019, None)) is Judgement.NO_HELP


def test_a_plan_that_crowds_its_own_threads_has_won_nothing() -> None:
    before = Measured(0.3, None)
    assert judge(before, Measured(0.0, None, contention=0.5)) is Judgement.HURTS
    assert judge(before, Measured(0.0, None, contention=0.28)) is Judgement.NO_HELP
    # what was there before is not its fault
    crowded = Measured(0.3, None, contention=0.4)
    assert judge(crowded, Measured(0.0, None, contention=0.4)) is Judgement.CLEARED
    assert left(crowded, Measured(0.1, None, contention=0.2)) == 0.0
    assert str(crowded) == "30.0% stolen, 40.0% by its own threads"


def test_when_a_kept_plan_has_ceased_to_help() -> None:
    before, kept = Measured(0.5, None), Measured(0.1, None)
    assert not is_back(before, kept, Measured(0.3, None))
    assert is_back(before, kept, Measured(0.4, None))
    assert not is_back(Measured(0.03, None), Measured(0.0, None), Measured(0.03, None))


def test_means_weigh_by_length() -> None:
    def reading(stolen: float, rate: float | None, seconds: float) -> Reading:
        return Reading(TARGET, frozenset({1}), stolen, rate, (), seconds, 0.0)

    assert mean([reading(0.0, 10.0, 1.0), reading(0.45, 40.0, 2.0)]) == Measured(0.3, 30.0)
    assert mean([reading(0.1, None, 1.0)]).rate is None
