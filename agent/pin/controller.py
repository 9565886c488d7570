"""Pin control of all targets: one course each, one journal, and threads that do the work.

The agent's loop calls :meth:`Controller.observe` once a second a target and is never held up: what takes time
(a look at the host, a write to disk) happens in two threads of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

from quietcore.agent.pin.actuate import Report, apply, sweep, undo
from quietcore.agent.pin.course import Course
from quietcore.agent.pin.events import Event, Mode, Reading
from quietcore.agent.pin.journal import DEFAULT_PATH, Journal
from quietcore.agent.pin.plan import Plan, Proposal, propose
from quietcore.agent.pin.restore import put_back, undone
from quietcore.agent.pin.survey import survey

UNHEARD_S = 30.0
"""A target of which no reading came for so long has ended."""


class Controller:
    """Watches targets, and acts as far as its mode allows.

    Args:
        journal_path: opened, and what it holds put back, only in mode AUTO.
        allow_offenders: whether other users' processes may be moved, too.
        protect: CPUs for housekeeping, never chosen for anybody.

    Raises:
        JournalBusyError: another agent runs.
        MeasureError: the journal cannot be opened.
    """

    def __init__(
        self,
        mode: Mode,
        journal_path: Path = DEFAULT_PATH,
        *,
        allow_offenders: bool = False,
        protect: frozenset[int] = frozenset(),
    ) -> None:
        self._mode = mode
        self._allow_offenders = allow_offenders
        self._protect = protect
        self._courses: dict[str, Course] = {}
        self._seen: dict[str, float] = {}
        self._leaving: list[Course] = []
        self._pending: list[Event] = []
        self._journal: Journal | None = None
        if mode is Mode.AUTO:
            self._journal = Journal.open(journal_path)
            self._pending += put_back(self._journal)
        # a look takes a second: no rollback must wait for it
        self._looking = ThreadPoolExecutor(1, "quietcore-look")
        self._acting = ThreadPoolExecutor(1, "quietcore-pin")

    def observe(self, reading: Reading) -> list[Event]:
        """A new reading of one target; what has been done, or is advised, since the last call."""
        events, self._pending = self._pending, []
        if self._mode is Mode.OFF:
            return events
        name = reading.target.name
        for other, seen in list(self._seen.items()):
            if other != name and reading.now - seen > UNHEARD_S:
                self.retire(other)
        for course in list(self._leaving):
            events += course.collect()
            if course.idle:
                self._leaving.remove(course)
        if not reading.target.alive:
            self.retire(name)
            return events
        if name not in self._courses:
            self._courses[name] = self._course(name)
        self._seen[name] = reading.now
        return events + self._courses[name].observe(reading)

    def retire(self, name: str) -> None:
        """A target has ended: what was done for it is put back soon, told by the next :meth:`observe`."""
        course = self._courses.pop(name, None)
        self._seen.pop(name, None)
        if course is not None:
            course.retire()
            self._leaving.append(course)

    def close(self) -> list[Event]:
        """Put everything back."""
        self._looking.shutdown(cancel_futures=True)
        self._acting.shutdown()
        events, self._pending = self._pending, []
        if self._journal is not None:
            try:
                for target in dict.fromkeys(entry.target for entry in self._journal.of(None)):
                    events += undone(target, undo(self._journal, target), "the agent ends")
            finally:
                self._journal.close()
                self._journal = None
        return events

    def _course(self, name: str) -> Course:
        def may_try() -> bool:
            return not any(
                course.on_trial for course in (*self._courses.values(), *self._leaving) if course is not mine
            )

        mine = Course(name, self._mode, self._hands(name), may_try)
        return mine

    def _hands(self, name: str) -> _HostHands:
        def avoid() -> frozenset[int]:
            taken = (course.cpus for other, course in self._courses.items() if other != name)
            return self._protect.union(*taken)

        return _HostHands(name, self._journal, self._looking, self._acting, avoid, self._allow_offenders)


class _HostHands:
    """Acts on this host for one target."""

    def __init__(
        self,
        name: str,
        journal: Journal | None,
        looking: Executor,
        acting: Executor,
        avoid: Callable[[], frozenset[int]],
        allow_offenders: bool,
    ) -> None:
        self._name = name
        self._journal = journal
        self._looking = looking
        self._acting = acting
        self._avoid = avoid
        self._allow_offenders = allow_offenders
        self._known: set[int] = set()

    def look(self, reading: Reading) -> Future[Proposal]:
        processes, avoid = dict(reading.target.processes), self._avoid()

        def work() -> Proposal:
            return propose(
                survey(
                    self._name,
                    processes,
                    reading.critical,
                    reading.culprits,
                    avoid=avoid,
                    allow_offenders=self._allow_offenders,
                )
            )

        return self._looking.submit(work)

    def apply(self, plan: Plan) -> Future[Report]:
        self._known = set()
        return self._acting.submit(lambda: apply(self._held(), plan.settings, self._name))

    def undo(self) -> Future[Report]:
        return self._acting.submit(lambda: undo(self._held(), self._name))

    def sweep(self, plan: Plan, reading: Reading) -> Future[Report]:
        processes, known = dict(reading.target.processes), self._known
        return self._acting.submit(
            lambda: sweep(self._held(), plan, self._name, processes, reading.critical, known)
        )

    def _held(self) -> Journal:
        assert self._journal is not None, "advice changes nothing"
        return self._journal
