"""A plan that hurts: how long until everything is as it was?

Two harms. *Crowded*: two launch threads, a neighbour on one of two CPUs; the gentlest plan puts both onto
the quiet one, where they take turns. *Followed*: neighbours on every CPU, a plan that helps has been kept,
and then they are pinned onto the CPU of the launch thread, with more weight than that has.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bars.bar import Bar, BarError, Outcome, progress
from tests.integration.doubles import Double, launcher, thief
from tests.pin_victims import ThreadState, thread_state

from quietcore.agent import targets
from quietcore.agent.attribution import account, launching_threads
from quietcore.agent.pin import Controller, Event, Mode, Reading
from quietcore.agent.session import Session
from quietcore.agent.targets import Target
from quietcore.probes import proc
from quietcore.probes.backend import open_backend

LIMIT_S = 5.0
DUTY = 0.7
HEAVY = -20
CPUS = sorted(os.sched_getaffinity(0))
CROWDED, FOLLOWED = "crowded", "followed"


@dataclass(frozen=True)
class Row:
    """One harm: the plan that was in force, and the time until the threads were as before."""

    run: int
    harm: str
    plan: str
    seconds: float


def readings(session: Session, target: Target, seconds: float) -> Iterator[Reading]:
    """One a second, as the agent's loop has them."""
    for step in session.run(seconds):
        # the probes are attached part of the time: who launches is known from all of it
        found = account(step.window, target, launching=launching_threads(session.whole, target))
        length = (found.end - found.start) / 1e9
        stolen, own = (found.share(ns) or 0.0 for ns in (found.interference, found.self_contention))
        now = time.monotonic()
        yield Reading(target, found.critical, stolen, None, found.culprits, length, now, own)


def states(pid: int) -> dict[int, ThreadState | None]:
    return {tid: thread_state(pid, tid) for tid in proc.thread_ids(pid)}


def act(
    double: Double, seconds: float, harm: Callable[[list[Event]], str], before: dict[int, ThreadState | None]
) -> tuple[str, float]:
    """The plan that was harmed, and how long it stayed in force since. Raises BarError if that never came."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        target = targets.by_pid(double.pid)
        session = stack.enter_context(Session(open_backend("libbpf"), [target], 0.005))
        session.start()
        pins = stack.enter_context(contextlib.closing(Controller(Mode.AUTO, Path(folder, "journal"))))
        plan, harmed = "", 0.0
        told: list[Event] = []
        for reading in readings(session, target, seconds):
            told += pins.observe(reading)
            if not plan and (plan := harm(told)):
                harmed = time.monotonic()
            elif plan and states(double.pid) == before:
                return plan, time.monotonic() - harmed
    raise BarError("; ".join(event.text for event in told) or "no plan was made")


def crowded(seconds: float) -> tuple[str, float]:
    def applied(events: list[Event]) -> str:
        return next((str(e.detail["plan"]) for e in events if e.kind == "apply"), "")

    with launcher("--worker", "--threads", "2", cpu=None) as victim, thief(DUTY, CPUS[-1]):
        return act(victim, seconds, applied, states(victim.pid))


def followed(seconds: float) -> tuple[str, float]:
    with contextlib.ExitStack() as stack:
        victim = stack.enter_context(launcher("--worker", cpu=None))
        neighbours = [stack.enter_context(thief(DUTY, cpu)) for cpu in CPUS]
        before = states(victim.pid)

        def follow(events: list[Event]) -> str:
            kept = next((e for e in events if e.kind == "keep"), None)
            if kept is None:
                return ""
            here = {stat.cpu for tid in before if (stat := proc.read_stat(victim.pid, tid))}
            for one in neighbours:
                os.sched_setaffinity(one.pid, here)
                os.setpriority(os.PRIO_PROCESS, one.pid, HEAVY)
            return str(kept.detail["result"]["plan"])

        return act(victim, seconds, follow, before)


HARMS = {CROWDED: crowded, FOLLOWED: followed}


def collect(runs: int, seconds: float) -> list[Row]:
    if len(CPUS) < 2:
        raise BarError("needs two CPUs")
    rows = []
    for run in range(runs):
        for name, harm in HARMS.items():
            plan, took = harm(seconds)
            rows.append(Row(run, name, plan, took))
            progress(f"run {run + 1} of {runs}, {name}: {plan} undone after {took:.1f} s")
    return rows


def conclude(rows: Sequence[Row]) -> Outcome:
    figures, table = [], []
    for harm in HARMS:
        times = sorted(row.seconds for row in rows if row.harm == harm)
        figures.append(f"{harm} {times[-1]:.1f} s")
        plans = sorted({row.plan for row in rows if row.harm == harm})
        table.append([harm, ", ".join(plans), f"{times[len(times) // 2]:.1f}", f"{times[-1]:.1f}"])
    return Outcome(
        met=all(row.seconds <= LIMIT_S for row in rows),
        figure=f"slowest of {len(rows)}: " + ", ".join(figures),
        columns=("harm", "plans", "median, s", "slowest, s"),
        rows=table,
        raw=[asdict(row) for row in rows],
    )


BAR = Bar(
    "pin-rollback",
    "a plan that hurts, from the first or since an offender followed onto its CPU, is undone within 5 s",
    5,
    120,
    lambda runs, seconds: conclude(collect(runs, seconds)),
)
