"""The published experiment, smaller, on live vLLM servers that differ only in who orders their queue."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bars.bar import Bar, BarError, Outcome, progress
from tests.bars.live_order import SLOTS, STEP_MS, TOKENS_PER_S
from tests.bars.noise import TOOL_CPU, on_cpu
from tests.bars.vllm_environment import vllm_environment
from tests.integration.doubles import CPU
from tests.vllm_server.guarded import VllmError
from tests.vllm_server.policies import policy_server

from quietcore.scheduler.bench import BenchError
from quietcore.scheduler.bench.driftsched.live import REQUESTS, LiveOptions, run_live

FCFS = "fcfs"  # vLLM's own
OURS = ("priority", "weighted", "aging", "sjf", "drift")
TOKEN_SCALE = 0.25  # of the budgets
TOKENS_PER_REQUEST = 70  # about, at that scale
FIGURES = ("median", "mean", "p99")


@dataclass(frozen=True)
class Row:
    """Latency of a phase in seconds."""

    run: int
    policy: str
    phase: str
    median: float
    mean: float
    p99: float
    failed: int


def collect(runs: int, seconds: float) -> list[Row]:
    """Each policy on a fresh server; by turns in the other order."""
    venv, policies = vllm_environment(), (FCFS, *OURS)
    requests = max(30, min(REQUESTS, round(seconds * TOKENS_PER_S / TOKENS_PER_REQUEST)))
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory(prefix="quietcore-bars-", ignore_cleanup_errors=True) as name:
            for run in range(runs):
                for policy in policies[:: -1 if run % 2 else 1]:
                    progress(f"run {run + 1} of {runs}, {policy}: starting vLLM")
                    rows += measure(venv, Path(name) / f"{run}-{policy}", run, policy, requests)
    except (VllmError, BenchError) as error:
        raise BarError(str(error)) from error
    return rows


def measure(venv: Path, folder: Path, run: int, policy: str, requests: int) -> list[Row]:
    settings = ("--additional-config", json.dumps({"quietcore": {"policy": policy}}))
    folder.mkdir()
    lengths = folder / "lengths.json"
    lengths.write_text("{}")  # every answer fills its max_tokens
    with (
        on_cpu(TOOL_CPU),
        policy_server(
            venv,
            folder / "server",
            FCFS if policy == FCFS else "drift",
            lengths,
            cpus=(CPU, TOOL_CPU),
            slots=SLOTS,
            extra=() if policy == FCFS else settings,
            step_ms=STEP_MS,
        ) as server,
    ):
        found = run_live(LiveOptions(server.url, requests=requests, token_scale=TOKEN_SCALE, seed=run))
    rows = []
    for phase, result in found.phases.items():
        document = result.to_json()
        latency = document["all"]["latency"] or {}
        median, mean, p99 = (latency.get(name, math.nan) for name in ("p50", "mean", "p99"))
        rows.append(Row(run, policy, phase, median, mean, p99, document["failed"]))
    return rows


def conclude(rows: Sequence[Row]) -> Outcome:
    """Changes against vLLM's own order, run by run; the mean over runs."""
    fcfs = {(row.run, row.phase): row for row in rows if row.policy == FCFS}
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.phase, row.policy].append(row)
    table, changes = [], {}
    for (phase, policy), group in sorted(groups.items(), key=lambda item: item[0][0]):
        cells = []
        for name in FIGURES:
            change = statistics.fmean(getattr(r, name) / getattr(fcfs[r.run, phase], name) - 1 for r in group)
            changes[phase, policy, name] = change
            cells += [f"{statistics.fmean(getattr(r, name) for r in group):.2f}", f"{change:+.1%}"]
        table.append([f"{phase} {policy}", *cells, str(sum(r.failed for r in group))])
    failed = sum(row.failed for row in rows)
    said = ", ".join(
        f"{policy} median {changes['stress', policy, 'median']:+.1%}, mean "
        f"{changes['stress', policy, 'mean']:+.1%}, P99 {changes['stress', policy, 'p99']:+.1%}"
        for policy in ("sjf", "drift")
    )
    return Outcome(
        met=not failed,
        figure=f"stress phase against fcfs: {said}; {failed} failed",
        columns=("phase, policy", "median s", "", "mean s", "", "P99 s", "", "failed"),
        rows=table,
        raw=[asdict(row) for row in rows],
    )


BAR = Bar(
    "driftsched-live",
    "the published experiment on a live vLLM server, as it comes out, and no request fails",
    2,
    15,
    lambda runs, seconds: conclude(collect(runs, seconds)),
)
