"""Pin control on real processes: heirs, sweeps, the controller, the command line, kills at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.bars.pin_crash import collect, conclude
from tests.integration.doubles import CLI, running
from tests.pin_victims import Crowd, crowd, thread_state

from quietcore.agent.attribution import Culprit
from quietcore.agent.pin import Controller, Event, Mode, Reading, restore_journal
from quietcore.agent.pin.actuate import Report, apply, sweep, undo
from quietcore.agent.pin.journal import Journal
from quietcore.agent.pin.levers import Outcome
from quietcore.agent.pin.plan import Plan, Setting
from quietcore.agent.pin.survey import survey
from quietcore.agent.pin.thread_levers import default_slice
from quietcore.agent.targets import by_pid

pytestmark = pytest.mark.root

CPUS = sorted(os.sched_getaffinity(0))
ALL = frozenset(CPUS)
TARGET = "crowd"
SPIN = "while True: pass"

needs_two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")


def cpus_of(tid: int) -> set[int]:
    return os.sched_getaffinity(tid)


def outcomes(report: Report) -> list[Outcome]:
    return [step.outcome for step in report.steps]


def pinned(victim: Crowd, index: int = 0, cpu: int = CPUS[0]) -> Plan:
    thread = victim.thread(index)
    settings = (Setting("affinity", thread, str(cpu)), Setting("nice", thread, -5))
    return Plan("affinity+nice", "", settings, frozenset({cpu}), nice=-5)


@needs_two_cpus
def test_heirs_are_freed(victim: Crowd, tmp_path: Path) -> None:
    path = tmp_path / "pin.journal"
    usual = thread_state(victim.pid, victim.tids[1])
    with Journal.open(path) as journal:
        plan = pinned(victim)
        apply(journal, plan.settings, TARGET)
        heir, child, other = victim.tell("spawn 0"), victim.tell("fork 0"), victim.tell("spawn 1")
        assert thread_state(victim.pid, heir) == (str(CPUS[0]), -5, default_slice())
        assert cpus_of(child) == {CPUS[0]}
    restore_journal(path)  # as after a kill
    for pid, tid in ((victim.pid, heir), (child, child), (victim.pid, other), (victim.pid, victim.tids[0])):
        assert thread_state(pid, tid) == usual


@needs_two_cpus
def test_a_new_thread_that_somebody_else_bound_stays_so(victim: Crowd, journal: Journal) -> None:
    apply(journal, pinned(victim).settings, TARGET)
    heir = victim.tell("spawn 0")
    os.sched_setaffinity(heir, {CPUS[1]})
    undo(journal)
    assert cpus_of(heir) == {CPUS[1]}


@needs_two_cpus
def test_a_sweep_sets_new_critical_threads_and_frees_the_others(victim: Crowd, journal: Journal) -> None:
    plan = pinned(victim)
    apply(journal, plan.settings, TARGET)
    critical, heir = victim.tell("spawn 0"), victim.tell("spawn 0")
    usual = thread_state(victim.pid, victim.tids[1])
    tids = {victim.tids[0], critical, victim.tids[2]}
    sweep(journal, plan, TARGET, {victim.pid: victim.started}, tids, set())
    assert thread_state(victim.pid, heir) == usual
    for tid in tids:
        state = thread_state(victim.pid, tid)
        assert state is not None
        assert state[:2] == (str(CPUS[0]), -5)
    # what a thread has inherited is not what it goes back to
    assert journal.entries["nice", victim.thread_of(critical)].old == 0
    undo(journal)
    assert {thread_state(victim.pid, tid) for tid in tids} == {usual}


@needs_two_cpus
def test_a_sweep_concedes_what_others_set(victim: Crowd, journal: Journal) -> None:
    plan = pinned(victim)
    apply(journal, plan.settings, TARGET)
    os.sched_setaffinity(victim.tids[0], {CPUS[1]})
    processes = {victim.pid: victim.started}
    (conflict,) = sweep(journal, plan, TARGET, processes, {victim.tids[0]}, set()).conflicts
    assert (conflict.lever, conflict.why) == ("affinity", f"{CPUS[1]} now, we had set {CPUS[0]}: left alone")
    # nor is it set again later
    assert not sweep(journal, plan, TARGET, processes, {victim.tids[0]}, set()).steps
    assert cpus_of(victim.tids[0]) == {CPUS[1]}
    undo(journal)
    assert os.getpriority(os.PRIO_PROCESS, victim.tids[0]) == 0


@needs_two_cpus
def test_a_sweep_forgets_what_is_gone(victim: Crowd, journal: Journal) -> None:
    plan = pinned(victim)
    apply(journal, plan.settings, TARGET)
    new = victim.tell("spawn 0")
    processes = {victim.pid: victim.started}
    sweep(journal, plan, TARGET, processes, {new}, set())
    known = len(journal.entries)
    victim.tell("end")
    sweep(journal, plan, TARGET, processes, {victim.tids[0]}, set())
    assert len(journal.entries) == known - 2


@needs_two_cpus
def test_never_wider_than_what_a_thread_may_use(victim: Crowd, journal: Journal) -> None:
    thread = victim.thread(0)
    os.sched_setaffinity(thread.tid, {CPUS[0]})
    report = apply(journal, [Setting("affinity", thread, str(CPUS[1]))], TARGET)
    assert outcomes(report) == [Outcome.REFUSED]
    report = apply(journal, [Setting("affinity", thread, ",".join(map(str, CPUS)))], TARGET)
    assert outcomes(report) == [Outcome.ALREADY]
    assert cpus_of(thread.tid) == {CPUS[0]}


def test_the_situation_of_a_real_target(victim: Crowd) -> None:
    with crowd(1) as stranger:
        stranger.tell("churn 0")
        culprit = Culprit("process", "python3", 5, stranger.pid, 0, {(stranger.tids[0], "python3"): 5})
        found = survey(
            TARGET,
            {victim.pid: victim.started},
            {victim.tids[0], 1 << 22},
            [culprit, Culprit("softirq", "NET_RX", 1)],
            avoid=frozenset({CPUS[0]}),
            allow_offenders=True,
            sleep=lambda _: time.sleep(0.1),
        )
    (facts,) = found.threads
    assert facts.thread == victim.thread(0)
    assert (facts.allowed & ALL, facts.nice, facts.fair) == (ALL, 0, True)
    assert found.culprit_cpus
    assert found.culprit_cpus <= ALL
    assert found.interrupted
    assert CPUS[0] in found.avoid
    assert set(found.others) <= found.topology.online
    (offender,) = found.offenders
    assert {f.thread.tid for f in offender.threads} >= {stranger.pid, stranger.tids[0]}


def until(pins: Controller, victim: Crowd, stolen: float, kind: str) -> list[Event]:
    """Shows readings of this machine's clock, a second each by their own account."""
    target = by_pid(victim.pid)
    events: list[Event] = []
    now, end = time.monotonic() + 1e6, time.monotonic() + 30
    while not any(event.kind == kind for event in events):
        assert time.monotonic() < end, events
        now += 1
        events += pins.observe(Reading(target, frozenset(victim.tids[:1]), stolen, None, (), 1.0, now))
        time.sleep(0.02)
    return events


def test_a_controller_takes_back_what_does_not_help(victim: Crowd, tmp_path: Path) -> None:
    before = thread_state(victim.pid, victim.tids[0])
    with contextlib.closing(Controller(Mode.AUTO, tmp_path / "pin.journal")) as pins:
        events = until(pins, victim, 0.5, "apply")
        assert next(event for event in events if event.kind == "plan").detail["plans"]
        assert thread_state(victim.pid, victim.tids[0]) != before
        until(pins, victim, 0.5, "rollback")
    assert thread_state(victim.pid, victim.tids[0]) == before


def test_a_controller_keeps_what_helps_until_it_ends(victim: Crowd, tmp_path: Path) -> None:
    before = thread_state(victim.pid, victim.tids[0])
    pins = Controller(Mode.AUTO, tmp_path / "pin.journal")
    with contextlib.closing(pins):
        until(pins, victim, 0.5, "apply")
        until(pins, victim, 0.0, "keep")
        assert thread_state(victim.pid, victim.tids[0]) != before
    assert thread_state(victim.pid, victim.tids[0]) == before


@needs_two_cpus
@pytest.mark.slow
def test_kills_at_random_moments_leave_nothing_behind() -> None:
    outcome = conclude(collect(20, 0.2))
    assert outcome.met, (outcome.figure, outcome.remarks)


@pytest.mark.slow
def test_the_command_line(tmp_path: Path) -> None:
    journal = ("--journal", str(tmp_path / "pin.journal"), "--json")

    def pin(*arguments: str) -> tuple[int, dict[str, Any]]:
        done = subprocess.run([*CLI, "pin", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stderr
        return done.returncode, json.loads(done.stdout)

    with running(sys.executable, "-S", "-c", SPIN) as spinner:
        before = thread_state(spinner.pid, spinner.pid)
        code, planned = pin("plan", "--pid", str(spinner.pid), "--duration", "2", "--json")
        assert code == 0
        assert planned["targets"]
        assert thread_state(spinner.pid, spinner.pid) == before
        code, applied = pin("apply", "--pid", str(spinner.pid), "--duration", "2", *journal)
        assert applied["applied"]
        assert thread_state(spinner.pid, spinner.pid) != before
        code, status = pin("status", *journal)
        assert (code, status["applied"]) == (0, True)
        code, _ = pin("restore", *journal)
        assert code == 0
        assert thread_state(spinner.pid, spinner.pid) == before
