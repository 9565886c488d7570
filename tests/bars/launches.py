"""Launches counted against the launcher's own count, with the probes always attached."""

from __future__ import annotations

import json
import select
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bars.bar import Bar, BarError, Outcome, progress
from tests.bars.noise import TOOL_CPU, on_cpu
from tests.integration.doubles import Double, gated_launcher

from quietcore.agent import targets
from quietcore.agent.attribution import launch_count
from quietcore.agent.session import Session
from quietcore.probes.backend import open_backend
from quietcore.probes.readings import Window

PRIME = 1_000_003
CASES = (
    ("one worker", ("--worker", "--total", str(PRIME))),
    ("8 threads", ("--threads", "8", "--total", str(PRIME))),
    ("every entry point", ("--threads", "2", "--api", "mixed", "--total", "200003")),
    ("runtime over driver", ("--threads", "2", "--layer", "runtime", "--total", "200003")),
    ("504 short-lived threads", ("--short-lived", "--launches-per-token", "397", "--total", "200003")),
    ("more threads than slots", ("--short-lived", "--launches-per-token", "101", "--total", "200003")),
)
BACKENDS = ("libbpf", "bcc")


@dataclass(frozen=True)
class Row:
    """One launcher: its own count, ours, and the calls that we say we lost (launches and others)."""

    backend: str
    case: str
    launched: int
    seen: int
    calls: int
    calls_seen: int
    lost: int

    @property
    def exact(self) -> bool:
        """Nothing differs, or just what is reported as lost."""
        if not self.lost:
            return self.launched == self.seen
        return self.calls - self.calls_seen == self.lost and self.launched - self.seen <= self.lost


def collect(runs: int, seconds: float) -> list[Row]:
    """Every case with each backend; ``seconds`` is the most that a case may take."""
    rows = []
    with on_cpu(TOOL_CPU):
        for run in range(runs):
            for backend in BACKENDS:
                for name, options in CASES:
                    rows.append(count(backend, name, options, seconds))
                    row = rows[-1]
                    progress(f"run {run + 1} of {runs}, {backend}, {name}: {row.seen} of {row.launched}")
    return rows


def count(backend: str, name: str, options: Sequence[str], seconds: float) -> Row:
    """Attach to a launcher that waits, let it go, and compare when it says that it is done."""
    with tempfile.TemporaryDirectory() as folder:
        gate = Path(folder, "gate")
        with (
            gated_launcher(gate, *options, "--linger", "60") as victim,
            Session(open_backend(backend), [targets.by_pid(victim.pid)], None) as session,
        ):
            session.start()
            gate.touch()
            said, window = _until_done(session, victim, seconds)
    launchers = (window.launchers or {}).values()
    return Row(
        backend,
        name,
        said["launches"],
        sum(launch_count(la) for la in launchers),
        # a token ends with one copy and one synchronisation
        said["launches"] + 2 * said["tokens"],
        sum(n for la in launchers for n in la.calls.values()),
        window.losses.get("launchers", 0),
    )


def _until_done(session: Session, victim: Double, seconds: float) -> tuple[dict[str, Any], Window]:
    """What the launcher says once its last launch has returned, and all that we saw by then."""
    output = victim.process.stdout
    assert output is not None
    for _ in session.run(seconds):
        if select.select([output], [], [], 0)[0]:
            return json.loads(output.readline()), session.backend.snapshot().since(session.first)
    raise BarError(f"the launcher was not done after {seconds:g} s")


def conclude(rows: Sequence[Row]) -> Outcome:
    wrong = [row for row in rows if not row.exact]
    total = sum(row.launched for row in rows)
    off = sum(abs(row.launched - row.seen) for row in rows if not row.lost)
    reported = sum(row.lost for row in rows)
    return Outcome(
        met=not wrong,
        figure=f"{len(rows) - len(wrong)} of {len(rows)} exact; {off} of {total:,} launches off, "
        f"{reported:,} calls reported as lost where threads outnumber the slots",
        columns=("backend, launcher", "launched", "seen", "calls", "calls seen", "reported lost", "exact"),
        rows=[
            [
                f"{row.backend}, {row.case}",
                *(str(n) for n in (row.launched, row.seen, row.calls, row.calls_seen, row.lost)),
                "yes" if row.exact else "NO",
            ]
            for row in rows
        ],
        raw=[asdict(row) for row in rows],
    )


BAR = Bar(
    "launches",
    "equal to the launcher's own count with --overhead-budget off, or off by what the loss counter says",
    1,
    60,
    lambda runs, seconds: conclude(collect(runs, seconds)),
)
