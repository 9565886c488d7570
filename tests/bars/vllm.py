"""A real vLLM server under load: clean, beside stress-ng, under a CPU quota, under packets."""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bars.bar import Bar, BarError, Outcome, percent, progress
from tests.bars.noise import TOOL_CPU, long_softirq_load, on_cpu, softirq_load, stress
from tests.bars.truth import Both, CpuCounters, TaskCounters, cpu_counters, measure_with, task_counters
from tests.bars.vllm_environment import vllm_environment
from tests.integration.doubles import CPU
from tests.vllm_server.guarded import VllmError
from tests.vllm_server.serve import VllmServer

from quietcore.agent import targets, verdict
from quietcore.agent.attribution import Culprit
from quietcore.probes.readings import IrqKind, IrqSource

SHARE_LIMIT = 0.02
COUNT_LIMIT = 0.01
CLEAN, NEIGHBOUR, QUOTA = "a clean", "b stress-ng", "c quota"
SHORT, LONG = "d iperf3", "d long packets"
QUOTA_CPUS = 0.5
RECEIVE = IrqSource(IrqKind.SOFT.value, "NET_RX")
MEGABITS, LONG_PACKETS = 20, 30_000


@dataclass(frozen=True)
class Row:
    """One diagnosis of the engine.

    ``ours`` and ``truth`` are the shares that a case compares (of the critical threads' wall time; of the
    engine's CPU in the last case); ``faults`` is what should have been otherwise.
    """

    run: int
    case: str
    verdict: str
    first: str
    compared: str
    ours: float
    truth: float
    faults: tuple[str, ...]


def collect(runs: int, seconds: float) -> list[Row]:
    """All cases on one server, ``runs`` times."""
    venv = vllm_environment()
    rows = []
    try:
        with (
            tempfile.TemporaryDirectory(prefix="quietcore-bars-", ignore_cleanup_errors=True) as folder,
            VllmServer(venv, Path(folder), engine_cpu=CPU, client_cpu=TOOL_CPU) as server,
        ):
            progress(f"vLLM was ready after {server.seconds_to_ready:.0f} s")
            with server.load() as load, on_cpu(TOOL_CPU):
                for run in range(runs):
                    for case, disturbance in disturbances(server).items():
                        rows.append(one_run(run, case, disturbance, server, seconds))
                        row = rows[-1]
                        progress(f"run {run + 1} of {runs}, {case}: {row.verdict}")
                if not load.running():
                    raise BarError("the load ended before the measurement did")
    except VllmError as error:
        raise BarError(str(error)) from error
    return rows


def disturbances(server: VllmServer) -> Mapping[str, AbstractContextManager[object]]:
    return {
        CLEAN: contextlib.nullcontext(),
        NEIGHBOUR: stress("--cpu", "1", cpu=server.engine_cpu),
        QUOTA: engine_quota(server),
        SHORT: softirq_load(MEGABITS, cpu=server.engine_cpu),
        LONG: long_softirq_load(LONG_PACKETS, cpu=server.engine_cpu),
    }


@contextlib.contextmanager
def engine_quota(server: VllmServer) -> Iterator[None]:
    if server.engine_group is None:
        raise BarError("no cgroup hierarchy with the cpu controller")
    server.engine_group.limit(QUOTA_CPUS)
    try:
        yield
    finally:
        server.engine_group.limit(None)


def one_run(
    run: int, case: str, disturbance: AbstractContextManager[object], server: VllmServer, seconds: float
) -> Row:
    def read() -> tuple[dict[int, TaskCounters], CpuCounters]:
        return task_counters(server.engine_pid), cpu_counters(server.engine_cpu)

    with disturbance:
        time.sleep(1)
        (target,) = targets.by_match(re.compile("EngineCore"))
        both = measure_with(target, seconds, read)
    if case in (SHORT, LONG):
        return compare_softirqs(run, case, both, server.engine_cpu)
    return compare_waits(run, case, both, server.engine_group.path.name if server.engine_group else "")


def compare_waits(run: int, case: str, both: Both, group: str) -> Row:
    """The stolen share against schedstat's, and whom the verdict names."""
    said, whole = both.found.verdict, both.found.whole
    first = said.culprits[0] if said.culprits else None
    faults = []
    expected = verdict.Outcome.NOT_CPU if case == CLEAN else verdict.Outcome.INTERFERENCE
    if said.outcome is not expected:
        faults.append(f"the verdict is not {expected.value!r}")
    if case == NEIGHBOUR and not (first and first.name.startswith("stress-ng")):
        faults.append("stress-ng is not named first")
    if case == QUOTA and not (first and first.kind == "quota" and group in first.name):
        faults.append("the quota is not named first")
    before, after = both.seen[0][0], both.seen[-1][0]
    kernel = sum(after[tid].run_delay - before[tid].run_delay for tid in whole.critical if tid in before)
    ours, truth = whole.share(whole.stolen) or 0.0, whole.share(kernel) or 0.0
    if case == NEIGHBOUR and abs(ours - truth) > SHARE_LIMIT:
        faults.append(f"the stolen share is {100 * (ours - truth):+.1f} points off schedstat's")
    name = verdict.culprit_name(first) if first and case != CLEAN else ""
    return Row(run, case, str(said), name, "stolen, schedstat", ours, truth, tuple(faults))


def compare_softirqs(run: int, case: str, both: Both, cpu: int) -> Row:
    """Softirqs on the engine's CPU: how many against /proc/softirqs; long ones also against /proc/stat."""
    said, whole = both.found.verdict, both.found.whole
    kernel: CpuCounters = both.seen[-1][1] - both.seen[0][1]
    totals = both.window.irq_totals or {}
    ours = {
        source.name: total
        for (of_cpu, source), total in totals.items()
        if of_cpu == cpu and source.kind == RECEIVE.kind
    }
    faults = []
    received, counted = kernel.softirqs[RECEIVE.name], ours[RECEIVE.name].count if RECEIVE.name in ours else 0
    if not received or abs(counted / received - 1) > COUNT_LIMIT:
        faults.append(f"{counted} NET_RX were counted, /proc/softirqs has {received}")
    wall = both.window.wall_ns
    share, truth = sum(total.ns for total in ours.values()) / wall, kernel.softirq / wall
    # the tick samples: of softirqs that last a few us it sees those that its own arrival lines up with
    if case == LONG and abs(share - truth) > SHARE_LIMIT:
        faults.append(f"softirq time is {100 * (share - truth):+.1f} points off /proc/stat's")
    stolen = sum(t.softirq_ns or 0 for t in whole.threads.values()) / wall
    # a snapshot reads one map after the other, some ms apart
    if stolen > share * (1 + COUNT_LIMIT):
        faults.append("the engine lost more to softirqs than its CPU had")
    first = said.culprits[0] if said.culprits else None
    if said.outcome is not verdict.Outcome.INTERFERENCE:
        faults.append("no verdict of interference")
    # what is too much for the interrupted thread goes to ksoftirqd, which is a thread
    if not first or not (_is_receive(first) or first.kind == "kernel thread"):
        faults.append("neither NET_RX nor ksoftirqd is named first")
    compared = (
        f"CPU's softirq, /proc/stat; {counted} of {received} NET_RX; {percent(stolen, 2)} from the engine"
    )
    name = verdict.culprit_name(first) if first else ""
    return Row(run, case, str(said), name, compared, share, truth, tuple(faults))


def _is_receive(culprit: Culprit) -> bool:
    return (culprit.kind, culprit.name) == (RECEIVE.kind, RECEIVE.name)


def conclude(rows: Sequence[Row]) -> Outcome:
    figures = []
    for case in dict.fromkeys(row.case for row in rows):
        of_case = [row for row in rows if row.case == case]
        right = sum(not row.faults for row in of_case)
        worst = max(of_case, key=lambda row: abs(row.ours - row.truth))
        figure = f"{case}: {right} of {len(of_case)} right"
        if case in (NEIGHBOUR, SHORT, LONG):
            figure += f" ({100 * (worst.ours - worst.truth):+.2f} points)"
        figures.append(figure)
    return Outcome(
        met=not any(row.faults for row in rows),
        figure="; ".join(figures),
        columns=("run", "ours", "truth", "compared", "named first"),
        rows=[
            [
                f"{row.run + 1} {row.case}",
                percent(row.ours, 2),
                percent(row.truth, 2),
                row.compared,
                row.first,
            ]
            for row in rows
        ],
        remarks=[
            *(f"run {row.run + 1} {row.case}: {row.verdict}" for row in rows),
            *(f"run {row.run + 1} {row.case}: FAULT: {fault}" for row in rows for fault in row.faults),
        ],
        raw=[asdict(row) for row in rows],
    )


BAR = Bar(
    "vllm",
    "a real vLLM engine under load: healthy when clean; stress-ng named, share within 2 points of "
    "schedstat's; quota named; softirqs as /proc/softirqs (1 %) and, where long, /proc/stat (2 points) "
    "have them",
    3,
    8,
    lambda runs, seconds: conclude(collect(runs, seconds)),
)
