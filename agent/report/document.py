"""The JSON document of a diagnosis. Times are seconds, shares are ratios; absent means not seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quietcore import __version__
from quietcore.agent.attribution import Account, Culprit
from quietcore.agent.diagnosis import Diagnosis
from quietcore.agent.launches import Durations, LaunchReport, Pairs
from quietcore.agent.verdict import ThreadShare, culprit_name
from quietcore.probes import cgroups
from quietcore.probes.readings import State, ThreadWindow

SCHEMA = "quietcore.diagnosis/1"


def diagnoses(found: Sequence[Diagnosis]) -> dict[str, Any]:
    """All targets of one run."""
    return {"schema": SCHEMA, "version": __version__, "targets": [_diagnosis(d) for d in found]}


def _diagnosis(d: Diagnosis) -> dict[str, Any]:
    whole = d.whole
    return _known(
        {
            "target": d.target.name,
            "processes": sorted({*d.target.processes, *d.target.ended}),
            "verdict": _known(
                {
                    "outcome": d.verdict.outcome.name.lower(),
                    "text": str(d.verdict),
                    "share": d.verdict.share,
                    "margin": d.verdict.margin,
                    "reason": d.verdict.reason or None,
                    "culprits": [culprit_name(c) for c in d.verdict.culprits],
                    "worst_thread": _worst(d.verdict.worst) if d.verdict.worst else None,
                }
            ),
            "seconds": (whole.end - whole.start) / 1e9,
            "backend": whole.backend,
            "critical_by": whole.critical_by,
            "shares": _shares(whole),
            "culprits": [_culprit(c, whole) for c in whole.culprits],
            "throttled_cgroups": {path: ns / 1e9 for path, ns in whole.quotas.items()} or None,
            "threads": [_thread(t, t.tid in whole.critical) for t in whole.threads.values()],
            "launches": _launches(d.launches) if d.launches else None,
            "uprobes": _known({"seen_share": d.seen_share, "overhead": d.overhead})
            if d.seen_share is not None
            else None,
            "steal_seconds": _seconds(whole.steal_ns),
            "warm_up_steps": list(d.warm_up),
            "steps": [
                {"start": s.start / 1e9, "end": s.end / 1e9, "interference": s.share(s.interference)}
                for s in d.steps
            ],
            "outliers": [
                {
                    "time": o.time / 1e9,
                    "tid": o.tid,
                    "comm": o.comm,
                    "api": o.api,
                    "interval_seconds": o.interval_ns / 1e9,
                    "stolen_seconds": {cause: ns / 1e9 for cause, ns in o.stolen.items()},
                    "offender_tid": o.offender,
                }
                for o in d.outliers
            ],
            "losses": d.losses,
            "missing": list(d.missing),
            "notes": list(d.notes),
        }
    )


def _worst(thread: ThreadShare) -> dict[str, Any]:
    return _known({"tid": thread.tid, "comm": thread.comm, "share": thread.share, "margin": thread.margin})


def _shares(whole: Account) -> dict[str, float]:
    parts = {
        "stolen": whole.stolen,
        "interference": whole.interference,
        "on_cpu": whole.on_cpu,
        "run_delay": whole.run_delay,
        "throttled": whole.throttled,
        "irq": whole.irq,
        "softirq": whole.softirq,
        "self_contention": whole.self_contention,
        "wakeup_latency": whole.wakeup_latency,
        "tick": whole.tick,
        "unattributed": whole.unattributed,
    }
    for state in (State.RUNQUEUE_WAIT, State.PREEMPTED, State.SLEEPING, State.BLOCKED):
        seen = [getattr(whole.threads[tid].split, state.value) for tid in whole.critical]
        parts[state.value] = None if None in seen else sum(seen)
    return {name: share for name, ns in parts.items() if (share := whole.share(ns)) is not None}


def _culprit(culprit: Culprit, whole: Account) -> dict[str, Any]:
    return _known(
        {
            "kind": culprit.kind,
            "name": culprit_name(culprit),
            "comm": culprit.name,
            "pid": culprit.pid or None,
            "cgroup": cgroups.path_of(culprit.cgroup) if culprit.cgroup else None,
            "seconds": culprit.ns / 1e9,
            "share": whole.share(culprit.ns),
            "threads": [
                {"tid": tid, "comm": comm, "seconds": ns / 1e9} for (tid, comm), ns in culprit.threads.items()
            ]
            or None,
        }
    )


def _thread(thread: ThreadWindow, critical: bool) -> dict[str, Any]:
    split = thread.split
    return _known(
        {
            "tid": thread.tid,
            "pid": thread.tgid,
            "comm": thread.comm,
            "critical": critical,
            "ended": thread.ended,
            "wall_seconds": thread.wall_ns / 1e9,
            **{f"{name}_seconds": _seconds(getattr(split, name)) for name in split.__slots__},
            "irq_seconds": _seconds(thread.irq_ns),
            "softirq_seconds": _seconds(thread.softirq_ns),
            "irqs": thread.irqs,
            "softirqs": thread.softirqs,
            "voluntary_switches": thread.voluntary,
            "involuntary_switches": thread.involuntary,
            "migrations": thread.migrations,
        }
    )


def _launches(report: LaunchReport) -> dict[str, Any]:
    return _known(
        {
            "seen": report.seen,
            "estimate": report.estimate,
            "margin": report.margin,
            "by_api": report.by_api,
            "interval": _durations(report.interval),
            "latency": _durations(report.latency),
            "pairs": {
                "clean": _pairs(report.clean),
                "voluntary_switch": _pairs(report.voluntary),
                "involuntary_switch": _pairs(report.involuntary),
            },
            "per_1000": {
                "involuntary_switches": report.rates.involuntary,
                "voluntary_switches": report.rates.voluntary,
                "interrupts": report.rates.interrupts,
            },
            "tails": [
                {
                    "quantile": t.quantile,
                    "threshold_seconds": t.threshold_ns / 1e9,
                    "count": t.count,
                    "involuntary_switch": t.involuntary,
                    "voluntary_switch": t.voluntary,
                }
                for t in report.tails
            ],
        }
    )


def _durations(d: Durations | None) -> dict[str, Any] | None:
    if d is None:
        return None
    return {
        "count": d.count,
        "p50_seconds": d.p50_ns / 1e9,
        "p99_seconds": d.p99_ns / 1e9,
        "mean_seconds": d.mean_ns / 1e9,
        "stolen_seconds": {cause.value: ns / 1e9 for cause, ns in d.stolen_ns.items()},
        "stolen_share": d.stolen_share,
    }


def _pairs(pairs: Pairs) -> dict[str, Any]:
    return _known(
        {"count": pairs.count, "p50_seconds": _seconds(pairs.p50_ns), "p99_seconds": _seconds(pairs.p99_ns)}
    )


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e9


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """What was not seen is left out: a null would be read as a value."""
    return {name: value for name, value in values.items() if value is not None}
