"""The course of one target: disturbed, planned, applied, measured, kept or rolled back.

Every plan is tried on the host as it was found, against a measurement just before. The first that clears the
disturbance stays; if none does, the one that helped most is applied again, and stays if it helps again.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any, Protocol

from quietcore.agent.pin.actuate import Report
from quietcore.agent.pin.events import Event, Mode, Reading
from quietcore.agent.pin.levers import Outcome
from quietcore.agent.pin.plan import Plan, Proposal, summary
from quietcore.agent.pin.restore import conflicts, describe
from quietcore.agent.pin.trial import Judgement, Measured, Result, is_back, judge, left, mean
from quietcore.agent.verdict import THRESHOLD
from quietcore.probes.errors import MeasureError

NEEDED = 3
"""Readings in a row that must be disturbed before anything is done."""
TRIAL_S = 3.0
BASELINE_S = 2.0
BAD_IN_A_ROW = 2
"""Readings that end a plan at once: on trial if worse than before, later if it has ceased to help."""
SETTLE_S = 0.5
IDLE_S = 10.0
"""A trial waits this long for a target that has gone idle."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 3600.0
SHORT_PAUSE_S = 2.0
"""Before a new plan where one that was kept has ceased to help: the disturbance has moved."""
CALM_S = 600.0
"""After so long without a failure, pauses begin anew."""
_REMEMBERED = 32
_SLACK_S = 0.05
_PATIENCE_S = 0.02


class Hands(Protocol):
    """What acts on the host; nothing of it blocks."""

    def look(self, reading: Reading) -> Future[Proposal]: ...

    def apply(self, plan: Plan) -> Future[Report]: ...

    def undo(self) -> Future[Report]: ...

    def sweep(self, plan: Plan, reading: Reading) -> Future[Report]: ...


class _State(enum.Enum):
    WATCHING = "watching"
    BETWEEN = "between"
    TRYING = "trying"
    KEPT = "kept"


class Course:
    """One target's.

    Args:
        may_try: whether no other target's plan is on trial, which would disturb this one's.
    """

    def __init__(self, name: str, mode: Mode, hands: Hands, may_try: Callable[[], bool]) -> None:
        self.name = name
        self._mode = mode
        self._hands = hands
        self._may_try = may_try
        self._state = _State.WATCHING
        self._recent: deque[Reading] = deque(maxlen=_REMEMBERED)
        self._valid_from = 0.0
        self._queue: list[Plan] = []
        self._results: list[tuple[Plan, Result]] = []
        self._final = False
        self._plan: Plan | None = None
        self._before = self._kept = Measured(0.0, None)
        self._bad = 0
        self._pause_until = 0.0
        self._failures = 0
        self._failed_at = 0.0
        self._said: set[str] = set()
        self._job: tuple[Future[Any], Callable[[Any], list[Event]], float] | None = None
        self._now = 0.0
        self._retired = False

    @property
    def on_trial(self) -> bool:
        """Whether its plans are being tried."""
        return self._state in (_State.BETWEEN, _State.TRYING) or (
            self._state is _State.WATCHING and self._job is not None
        )

    @property
    def cpus(self) -> frozenset[int]:
        """CPUs on which its critical threads were put."""
        return self._plan.cpus if self._plan else frozenset()

    def observe(self, reading: Reading) -> list[Event]:
        """Once a second; may wait for 20 ms."""
        self._now = reading.now
        self._note(reading)
        events = self._collect(0.0)
        if self._job is None:
            events += self._act(reading)
            events += self._collect(_PATIENCE_S)
        return events

    def retire(self) -> None:
        """The target is gone: what was done for it is put back; :meth:`collect` until it is ``idle``."""
        self._retired = True
        self._queue = []

    def collect(self) -> list[Event]:
        """What has come of the last job, without waiting."""
        return self._collect(0.0)

    @property
    def idle(self) -> bool:
        """Whether nothing is in force and nothing is being done."""
        return self._job is None and self._plan is None

    def _note(self, reading: Reading) -> None:
        if self._state is _State.WATCHING and (reading.stolen < THRESHOLD or not reading.critical):
            self._recent.clear()
        elif reading.critical and reading.now - reading.seconds >= self._valid_from - _SLACK_S:
            self._recent.append(reading)

    def _begin(self, job: Future[Any], then: Callable[[Any], list[Event]]) -> None:
        self._job = (job, then, self._now)

    def _collect(self, patience: float) -> list[Event]:
        events: list[Event] = []
        deadline = time.monotonic() + patience
        while self._job is not None or (self._retired and self._plan is not None):
            if self._job is None:
                self._roll_back_because("the target has ended", 0.0)
                continue
            job, then, began = self._job
            if wait([job], max(deadline - time.monotonic(), 0.0)).not_done:
                break
            self._job = None
            # a window that holds the change itself says nothing
            self._valid_from = self._now + (SETTLE_S if began == self._now else 0.0)
            try:
                events += then(job.result())
            except (MeasureError, OSError) as e:
                events += self._fail(e)
        return events

    def _fail(self, error: Exception) -> list[Event]:
        """The journal cannot be written, or the host cannot be read: nothing may stay in force."""
        plan, self._plan = self._plan, None
        if plan is not None:
            self._begin(self._hands.undo(), lambda report: conflicts(self.name, report))
        return self._give_up(f"pin control failed: {error}", {"reason": "error"})

    def _act(self, reading: Reading) -> list[Event]:
        if self._state is _State.WATCHING:
            return self._watch(reading)
        if self._state is _State.BETWEEN:
            return self._compare_again()
        if self._state is _State.TRYING:
            return self._try_on(reading)
        return self._hold(reading)

    def _watch(self, reading: Reading) -> list[Event]:
        if self._failures and reading.now - self._failed_at > CALM_S:
            self._failures = 0
        if len(self._recent) >= NEEDED and reading.now >= self._pause_until and self._may_try():
            self._begin(self._hands.look(reading), self._planned)
        return []

    def _planned(self, proposal: Proposal) -> list[Event]:
        events = []
        for owner in proposal.owners:
            detail = {"owner": owner.name, "levers": sorted(owner.levers), "remedy": owner.remedy}
            events += self._say(str(owner), "stand-aside", detail, f"{self.name}: left alone: {owner}")
        tries = {"plans": summary(proposal.plans), "blocked": summary(proposal.blocked)}
        if self._mode is Mode.ADVISE:
            self._pause()
            for plan in (proposal.plans or proposal.blocked)[:1]:
                text = f"{self.name}: would try {plan.name}: {plan.why}"
                events += self._say(f"{plan.name} {plan.why}", "advise", tries, text)
            return events
        if not proposal.plans:
            text = "no plan can change anything" if not proposal.owners else "all plans are others' to make"
            return events + self._give_up(text, {"reason": "no_plan", **tries})
        if len(self._recent) < NEEDED or self._retired:  # it ended while we looked
            return events
        names = ", ".join(plan.name for plan in proposal.plans)
        events.append(Event("plan", self.name, tries, f"{self.name}: to be tried: {names}"))
        self._queue, self._results, self._final = list(proposal.plans), [], False
        self._before = mean(list(self._recent)[-NEEDED:])
        self._try_next()
        return events

    def _try_next(self) -> None:
        plan = self._plan = self._queue.pop(0)
        self._begin(self._hands.apply(plan), self._applied)

    def _applied(self, report: Report) -> list[Event]:
        assert self._plan is not None
        self._recent.clear()
        self._bad = 0
        self._state = _State.TRYING
        done = report.of(Outcome.SET)
        others = [step for step in report.steps if step.outcome not in (Outcome.SET, Outcome.ALREADY)]
        detail = {"plan": self._plan.name, "steps": [describe(step) for step in report.steps]}
        text = f"{self.name}: {self._plan.name} applied, {len(done)} settings"
        if others:
            text += f"; not applied: {', '.join(map(str, others))}"
        events = [Event("apply", self.name, detail, text)]
        if not done:
            result = Result(self._plan.name, Judgement.NOT_APPLIED, self._before, None)
            self._results.append((self._plan, result))
            self._roll_back(result)
        return events

    def _try_on(self, reading: Reading) -> list[Event]:
        if not self._recent or self._recent[-1] is not reading:
            if reading.now - self._valid_from > IDLE_S:
                self._queue = []
                self._final = True
                self._roll_back_because("the target has gone idle", NEEDED * SHORT_PAUSE_S)
            return []
        assert self._plan is not None
        is_bad = judge(self._before, mean([reading])) is Judgement.HURTS
        self._bad = self._bad + 1 if is_bad else 0
        if self._bad < BAD_IN_A_ROW and _seconds(self._recent) < TRIAL_S - _SLACK_S:
            return self._sweep(reading)
        after = mean(self._recent)
        result = Result(self._plan.name, judge(self._before, after), self._before, after)
        self._results.append((self._plan, result))
        if result.judgement is Judgement.CLEARED or (self._final and result.judgement is Judgement.HELPS):
            self._state, self._kept, self._bad = _State.KEPT, after, 0
            self._queue = []
            detail = {"result": result.as_json(), "tried": [r.as_json() for _, r in self._results]}
            return [Event("keep", self.name, detail, f"{self.name}: kept: {result}")]
        self._roll_back(result)
        return []

    def _roll_back(self, result: Result) -> None:
        def then(report: Report) -> list[Event]:
            detail = {"result": result.as_json(), "steps": [describe(step) for step in report.steps]}
            text = f"{self.name}: {result}: rolled back"
            events = [Event("rollback", self.name, detail, text), *conflicts(self.name, report)]
            self._plan = None
            self._recent.clear()
            return events + self._go_on()

        self._begin(self._hands.undo(), then)

    def _go_on(self) -> list[Event]:
        """After a plan was taken back: the next, or the best once more, or none."""
        if not self._queue and not self._final:
            helped = [found for found in self._results if found[1].judgement is Judgement.HELPS]
            self._final = True
            self._queue = [min(helped, key=_left)[0]] if helped else []
        if self._queue:
            self._state = _State.BETWEEN
            return []
        tried = "; ".join(str(result) for _, result in self._results)
        detail = {"reason": "nothing_helps", "tried": [result.as_json() for _, result in self._results]}
        return self._give_up(f"nothing helps, everything is as it was: {tried}", detail, "nothing helps")

    def _compare_again(self) -> list[Event]:
        if self._recent and _seconds(self._recent) >= BASELINE_S - _SLACK_S:
            self._before = mean(self._recent)
            if self._before.stolen < THRESHOLD:
                return self._give_up(
                    "the disturbance ended by itself, everything is as it was", {}, pause=0.0
                )
            self._try_next()
        elif self._now - self._valid_from > IDLE_S:
            return self._give_up("the target has gone idle, everything is as it was", {}, pause=0.0)
        return []

    def _hold(self, reading: Reading) -> list[Event]:
        if not self._recent or self._recent[-1] is not reading:
            return []
        now = mean([reading])
        self._bad = self._bad + 1 if is_back(self._before, self._kept, now) else 0
        if self._bad >= BAD_IN_A_ROW:
            pause = min(SHORT_PAUSE_S * 2**self._failures, LONGEST_PAUSE_S)
            self._roll_back_because(f"it no longer helps ({now})", pause)
            return []
        return self._sweep(reading)

    def _sweep(self, reading: Reading) -> list[Event]:
        assert self._plan is not None
        valid_from = self._valid_from

        def then(report: Report) -> list[Event]:
            self._valid_from = valid_from  # it changes nothing for those that are measured
            if report.conflicts:
                self._queue = []
                self._final = True
                self._roll_back_because("others change the same settings", CALM_S)
            return conflicts(self.name, report)

        self._begin(self._hands.sweep(self._plan, reading), then)
        return []

    def _roll_back_because(self, why: str, pause: float) -> None:
        self._begin(self._hands.undo(), lambda report: self._undone(report, why, pause))

    def _undone(self, report: Report, why: str, pause: float = 0.0) -> list[Event]:
        name = self._plan.name if self._plan else ""
        detail = {"plan": name, "reason": why, "steps": [describe(step) for step in report.steps]}
        self._plan = None
        self._recent.clear()
        self._state = _State.WATCHING
        self._pause(pause)
        text = f"{self.name}: {name} rolled back: {why}"
        return [Event("rollback", self.name, detail, text), *conflicts(self.name, report)]

    def _give_up(
        self, text: str, detail: dict[str, Any], once: str = "", pause: float | None = None
    ) -> list[Event]:
        """Leave the target alone for a while."""
        self._state = _State.WATCHING
        self._queue = []
        self._recent.clear()
        self._pause(pause)
        return self._say(once or text, "stand-aside", detail, f"{self.name}: {text}")

    def _pause(self, seconds: float | None = None) -> None:
        """By default twice as long each time."""
        if seconds is None:
            seconds = min(FIRST_PAUSE_S * 2**self._failures, LONGEST_PAUSE_S)
        if seconds:
            self._failures = min(self._failures + 1, 10)
            self._failed_at = self._now
        self._pause_until = max(self._pause_until, self._now + seconds)

    def _say(self, key: str, kind: Any, detail: dict[str, Any], text: str) -> list[Event]:
        """Once only."""
        if key in self._said:
            return []
        self._said.add(key)
        return [Event(kind, self.name, detail, text)]


def _seconds(readings: Sequence[Reading] | deque[Reading]) -> float:
    return sum(reading.seconds for reading in readings)


def _left(found: tuple[Plan, Result]) -> float:
    """The part of the stolen time that a plan left."""
    _, result = found
    return left(result.before, result.after) / result.before.stolen if result.after else 1.0
