"""A diagnosis: measure a target for a while, account, judge."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quietcore.agent.attribution import Account, account, cgroups_of, find_critical, launching_threads
from quietcore.agent.launches import LaunchReport, report_launches
from quietcore.agent.session import Session, Step
from quietcore.agent.targets import Target
from quietcore.agent.verdict import THRESHOLD, Verdict, judge, judge_threads
from quietcore.probes.errors import TargetGoneError
from quietcore.probes.readings import Outlier, Window

WARM_UP_FACTOR = 3.0
"""Launch calls that take this many times the median step's, nothing of it stolen: first use of modules."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found for one target.

    Attributes:
        whole: all steps together, warm-up steps included.
        steps: the account of each step.
        warm_up: indices of steps that were warm-up; they do not count for the verdict.
        seen_share: part of the time in which CUDA probes counted, ``None`` without any.
        overhead: share of one core that the probes are estimated to have cost the target.
    """

    target: Target
    verdict: Verdict
    whole: Account
    steps: tuple[Account, ...]
    warm_up: tuple[int, ...]
    launches: LaunchReport | None
    seen_share: float | None
    overhead: float | None
    outliers: tuple[Outlier, ...]
    losses: dict[str, int]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def diagnose(
    session: Session,
    seconds: float,
    *,
    threshold: float = THRESHOLD,
    progress: Callable[[float], None] | None = None,
) -> list[Diagnosis]:
    """Run a started session and judge each of its targets.

    Raises:
        TargetGoneError: all targets ended before anything could be said.
    """
    steps = list(session.run(seconds, progress))
    found = [_conclude(session, target, steps, threshold) for target in session.targets]
    if all(not target.alive for target in session.targets):
        lived = session.whole.wall_ns / 1e9
        for target in session.targets:
            if not any(d.whole.threads for d in found if d.target is target):
                raise TargetGoneError(f"{target.name} ended after {lived:.1f} s, before anything was seen")
        session.notes.append((None, f"the target ended after {lived:.1f} s of {seconds:g} s"))
        found = [_conclude(session, target, steps, threshold) for target in session.targets]
    return found


def _conclude(session: Session, target: Target, steps: Sequence[Step], threshold: float) -> Diagnosis:
    window = session.whole
    critical = find_critical(window, target, launching_threads(window, target))
    # the quotas that hold for these threads: another target has its own
    groups = session.cgroups_above(window.threads[tid].tgid for tid in critical[0])
    ours = cgroups_of(target)

    def of(part: Window, during: Sequence[Step], tids: frozenset[int] = critical[0]) -> Account:
        throttled = {path: sum(step.throttled.get(path, 0) for step in during) for path in groups}
        chosen = (tids, critical[1])
        return account(part, target, critical=chosen, throttled=throttled, own_cgroups=ours)

    whole = of(window, steps)
    accounts = [of(step.window, [step]) for step in steps]
    warm_up = _warm_up(accounts)
    settled = [step for i, step in enumerate(steps) if i not in warm_up]
    rest = session.last.since(steps[warm_up[-1]].snapshot) if warm_up else window
    base = of(rest, settled) if warm_up else whole
    verdict = judge(base, [a for i, a in enumerate(accounts) if i not in warm_up], threshold)
    # found by wake-ups, the one that others wait for is critical by itself
    if critical[1] == "launches" and len(base.critical) > 1:
        verdict = judge_threads(
            verdict,
            {tid: of(rest, settled, frozenset({tid})) for tid in base.critical},
            lambda tid: [of(step.window, [step], frozenset({tid})) for step in settled],
            threshold,
        )
    seen = sum(step.seen_ns for step in steps)
    probed = session.governor.active or bool(session.governor.stretches)
    return Diagnosis(
        target=target,
        verdict=verdict,
        whole=whole,
        steps=tuple(accounts),
        warm_up=warm_up,
        launches=report_launches(whole, [(a, s.seen_ns) for a, s in zip(accounts, steps, strict=True)], seen),
        seen_share=min(seen / window.wall_ns, 1.0) if probed and window.wall_ns else None,
        overhead=session.governor.overhead() if probed else None,
        outliers=tuple(o for o in session.outliers if target.owns(o.tgid)),
        losses={name: n for name, n in window.losses.items() if n},
        missing=tuple(session.backend.missing),
        notes=session.notes_on(target),
    )


def _warm_up(accounts: Sequence[Account]) -> tuple[int, ...]:
    """Steps at the beginning whose launch calls were slow by themselves: module loading, graph capture."""
    own = []
    for a in accounts:
        launch = a.durations("launch")
        own.append((launch.sum_ns - launch.stolen_ns) / launch.count if launch.count else None)
    known = [ns for ns in own if ns is not None]
    if len(known) < 4:
        return ()
    usual = statistics.median(known)
    slow = []
    for i, ns in enumerate(own[: len(own) // 3]):
        if ns is None:
            continue
        if ns <= WARM_UP_FACTOR * usual:
            break
        slow.append(i)
    return tuple(slow)
