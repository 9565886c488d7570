"""What ``quietcore doctor --json`` says of the backends on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bars.bar import Bar, BarError, Outcome, progress
from tests.integration.doubles import quietcore

BPF = ("libbpf", "bcc")


def collect(runs: int, timeout: float) -> list[Mapping[str, Any]]:
    """The document of each run."""
    documents = []
    for run in range(runs):
        done = quietcore("doctor", "--json", timeout=timeout)
        if not done.stdout:
            raise BarError(done.stderr.strip() or f"quietcore doctor ended with {done.returncode}")
        documents.append(json.loads(done.stdout))
        progress(f"run {run + 1} of {runs}: exit code {done.returncode}")
    return documents


def conclude(documents: Sequence[Mapping[str, Any]]) -> Outcome:
    backends = [check for document in documents for check in document["backends"]]
    ran = {name: [c for c in backends if c["backend"] == name] for name in (*BPF, "procfs")}
    programs = [program for name in BPF for check in ran[name] for program in check["programs"]]
    # a flavour for older kernels is refused by a newer one: doctor names the step, another flavour serves
    refused = [check for name in BPF for check in ran[name] if not check["ok"]]
    works = all(any(c["ok"] for c in ran[name]) for name in BPF)
    silent = sorted({f"{p['program']}: {p['detail']}" for p in programs if p["outcome"] == "idle"})
    failed = [p for p in programs if p["outcome"] == "fail"]
    degraded = bool(ran["procfs"]) and all(
        c["ok"] and c["detail"].startswith("degraded") for c in ran["procfs"]
    )
    fired = sum(p["outcome"] == "ok" for p in programs)
    return Outcome(
        met=works and not failed and not refused and degraded,
        figure=f"{fired} of {len(programs)} programs fired, {len(programs) - fired - len(failed)} attached "
        f"whose event this machine does not have, {len(failed)} failed; "
        f"procfs {'degraded' if degraded else 'NOT reported as degraded'}",
        columns=("backend", "step", "fired", "no event here", "failed", "seconds"),
        rows=[_row(check) for check in backends],
        remarks=[
            *(f"{c['backend']} {c['flavour']}: {c['step']}: {c['detail']}" for c in refused),
            *(f"{p['backend']} {p['flavour']} {p['program']}: {p['detail']}" for p in failed),
            *silent,
        ],
        raw=[document["backends"] for document in documents],
    )


def _row(check: Mapping[str, Any]) -> list[str]:
    outcomes = [program["outcome"] for program in check["programs"]]
    counts = (str(outcomes.count(outcome)) for outcome in ("ok", "idle", "fail"))
    return [
        f"{check['backend']} {check['flavour']}".strip(),
        check["step"],
        *counts,
        f"{check['seconds']:.1f}",
    ]


BAR = Bar(
    "doctor",
    "every program loads, attaches and fires on libbpf (each flavour) and bcc, or its event cannot occur "
    "here; procfs degraded",
    1,
    120,
    lambda runs, seconds: conclude(collect(runs, seconds)),
)
