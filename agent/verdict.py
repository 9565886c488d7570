"""The verdict: interference X % ± Y by whom, not the CPU, not enough data, or cannot tell."""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from quietcore.agent.attribution import Account, Culprit, heaviest
from quietcore.agent.culprits import named
from quietcore.probes import cgroups
from quietcore.probes.layout import WAITERS_PER_CPU

THRESHOLD = 0.02
"""Interference from here on; below it is the normal murmur of a host."""
MIN_WALL_S = 0.9
MIN_DEMAND = 0.005
"""A target that wanted a CPU for a smaller part of the time was idle: nothing to lose."""
MIN_LAUNCHES = 100
RECURS = 2
"""Whole steps that must reach the threshold by themselves: one may hold a single hiccup."""
LARGE = 0.1
"""No hiccup takes this much of a measurement: one step is enough."""
STANDS_OUT = 1.5
"""A launch thread speaks for its target when it lost this many times the mean of all."""
# Student's t, two-sided 95 %, for 1..30 degrees of freedom; 1.96 beyond
_T95 = (
    12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13,
    2.12, 2.11, 2.10, 2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05, 2.04,
)  # fmt: skip


class Outcome(enum.Enum):
    """What a diagnosis comes to."""

    INTERFERENCE = "interference"
    NOT_CPU = "not the CPU"
    NOT_ENOUGH_DATA = "not enough data"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True, slots=True)
class ThreadShare:
    """The launch thread that lost most: share and margin as in :class:`Verdict`, of its own wall time."""

    tid: int
    comm: str
    share: float
    margin: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome with its numbers.

    Attributes:
        share: estimated loss of launch or step rate: time that others took from the critical
            threads, as a part of their wall time (an upper bound where the work has slack).
        margin: half the 95 % confidence interval of ``share``, from the scatter of the steps;
            ``None`` with fewer than three steps.
            Scheduling is accounted for completely: it says how theft varied, not how well it was seen.
        culprits: the major ones; of ``worst`` alone where that is given.
        reason: one sentence, for all outcomes but interference.
        worst: the launch thread that the verdict is about where one stands out: the slowest rank
            paces all.
    """

    outcome: Outcome
    share: float
    margin: float | None
    culprits: tuple[Culprit, ...]
    reason: str = ""
    worst: ThreadShare | None = None

    def __str__(self) -> str:
        if self.outcome is not Outcome.INTERFERENCE:
            return f"{self.outcome.value}: {self.reason}" if self.reason else self.outcome.value
        found = self.worst or self
        margin = f" ± {found.margin:.1%}" if found.margin is not None else ""
        where = f" in {self.worst.comm} {self.worst.tid}" if self.worst else ""
        mean = f" (all critical threads: {self.share:.1%})" if self.worst else ""
        return f"interference {found.share:.1%}{margin}{where} by {_names(self.culprits)}{mean}"


def _names(culprits: Sequence[Culprit]) -> str:
    return ", ".join(culprit_name(c) for c in culprits) or "unknown"


def culprit_name(culprit: Culprit) -> str:
    """For people: ``stress-ng-cpu [4711]``, ``cc1 x40``, ``softirq NET_RX``, ``CPU quota of /engine``."""
    if culprit.kind == "quota":
        return f"CPU quota of {cgroups.short_name(culprit.name)}" if culprit.name else "CPU quota"
    if culprit.kind in ("process", "kernel thread"):
        return f"{culprit.name} [{culprit.pid}]"
    if culprit.kind in ("processes", "kernel threads"):
        return f"{culprit.name} x{culprit.count}"
    if culprit.kind == "cgroup":
        return f"{culprit.name} ({culprit.count} processes)"
    return f"{culprit.kind} {culprit.name}"


def margin_of(shares: Sequence[float]) -> float | None:
    """Half the 95 % confidence interval of the mean of the steps' shares."""
    if len(shares) < 3:
        return None
    degrees = len(shares) - 1
    t = _T95[degrees - 1] if degrees <= len(_T95) else 1.96
    return t * statistics.stdev(shares) / math.sqrt(len(shares))


def judge(whole: Account, steps: Sequence[Account], threshold: float = THRESHOLD) -> Verdict:
    """Judge a target from its account of the whole measurement and of its steps."""
    share = whole.share(whole.interference) or 0.0
    shares = [s.share(s.interference) or 0.0 for s in steps if s.wall]
    verdict = Verdict(Outcome.NOT_CPU, share, margin_of(shares), named(whole))
    if reason := _too_little(whole):
        return replace(verdict, outcome=Outcome.NOT_ENOUGH_DATA, reason=reason)
    unknown = whole.share(whole.unknown) or 0.0
    if share < threshold <= share + unknown:
        return replace(verdict, outcome=Outcome.CANNOT_TELL, reason=_unknown(unknown))
    if share < threshold:
        return replace(verdict, reason=_not_cpu(whole, share, threshold))
    if whole.self_contention is None:
        return replace(verdict, outcome=Outcome.CANNOT_TELL, reason=_cannot_tell(whole, share))
    if share < LARGE and _disturbed(steps, threshold) < RECURS:
        reason = f"others took {share:.1%} of the critical threads' time, but in one moment: measure longer"
        return replace(verdict, outcome=Outcome.NOT_ENOUGH_DATA, reason=reason)
    return replace(verdict, outcome=Outcome.INTERFERENCE)


def judge_threads(
    mean: Verdict,
    threads: Mapping[int, Account],
    steps_of: Callable[[int], Sequence[Account]],
    threshold: float = THRESHOLD,
) -> Verdict:
    """Judge again by the launch thread that lost most, if it stands out: a mean hides one slow rank.

    Args:
        mean: the verdict on all critical threads together.
        threads: by tid, the account of each alone.
        steps_of: its steps; called only for a thread that lost more than the threshold.
    """
    longest = max((a.end - a.start for a in threads.values()), default=0)
    shares = {
        tid: a.share(a.interference) or 0.0
        for tid, a in threads.items()
        # of a thread that was there for a moment, a moment is all there is
        if not _too_little(a) and a.wall >= longest / 2
    }
    least = max(threshold, STANDS_OUT * mean.share)
    for tid in sorted(shares, key=lambda tid: -shares[tid]):
        if shares[tid] < least:
            break
        found = judge(threads[tid], steps_of(tid), threshold)
        worst = ThreadShare(tid, threads[tid].threads[tid].comm, found.share, found.margin)
        if found.outcome is Outcome.INTERFERENCE:
            return replace(
                mean, outcome=Outcome.INTERFERENCE, culprits=found.culprits, reason="", worst=worst
            )
        if mean.outcome is Outcome.NOT_CPU:
            reason = f"{worst.comm} {tid}: {found.reason}"
            mean = replace(mean, outcome=Outcome.NOT_ENOUGH_DATA, reason=reason, worst=worst)
    return mean


def _disturbed(steps: Sequence[Account], threshold: float) -> int:
    """Steps that are interference by themselves; the short rest at the end may be all hiccup."""
    longest = max((s.end - s.start for s in steps), default=0)
    whole = [s for s in steps if s.end - s.start >= longest / 2]
    return sum((s.share(s.interference) or 0.0) >= threshold for s in whole)


def _too_little(whole: Account) -> str:
    seconds = (whole.end - whole.start) / 1e9
    if seconds < MIN_WALL_S:
        return f"only {seconds:.1f} s were seen"
    if not whole.critical:
        return "no thread of the target did anything that paces its work"
    if (whole.on_cpu + whole.run_delay) < MIN_DEMAND * whole.wall:
        return "the target was idle"
    if whole.critical_by == "launches" and (whole.launches or 0) < MIN_LAUNCHES:
        return f"only {whole.launches} launches were seen"
    return ""


def _not_cpu(whole: Account, share: float, threshold: float) -> str:
    if whole.self_contention is None:
        return f"the critical threads waited {share:.1%} of their time for a CPU"
    text = f"others took {share:.1%} of the critical threads' time"
    own = whole.share(whole.self_contention) or 0.0
    if own >= threshold:
        text += f"; its own threads took {own:.1%} from each other (self-contention)"
    return text


def _unknown(share: float) -> str:
    """For waits without a culprit: the target's own threads may have taken all of it, and often have."""
    return (
        f"the critical threads waited {share:.1%} of their time without a record of who ran instead, "
        f"as where more than {WAITERS_PER_CPU} threads wait on one CPU: "
        "give the target more CPUs, or fewer threads"
    )


def _cannot_tell(whole: Account, share: float) -> str:
    """For a backend that does not see who runs: the target's own threads may have taken all of it."""
    text = (
        f"the critical threads waited {share:.1%} of their time for a CPU; "
        "to see who ran instead, others or their own process, needs eBPF: root in the host's pid namespace"
    )
    if whole.quotas:
        path = heaviest(whole.quotas)
        seconds = whole.quotas[path] / 1e9
        text += f" (the CPU quota of {cgroups.short_name(path)} held threads back for {seconds:.1f} s)"
    return text
