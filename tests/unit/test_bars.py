"""What the bars conclude from measurements: each can be met, and each can be missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.bars import clean, doctor, irq, launches, run_delay, split, startup, thief, vllm
from tests.bars.bar import BarError
from tests.bars.truth import Both, CpuCounters, TaskCounters
from tests.unit.factories import (
    MS,
    SECOND,
    make_account,
    make_diagnosis,
    make_thread,
    make_window,
)

from quietcore.agent.attribution import Culprit
from quietcore.agent.verdict import Outcome
from quietcore.probes.readings import Count, IrqSource

PID = 7


def counters(on_cpu: int = 0, run_delay: int = 0, involuntary: int = 0) -> TaskCounters:
    return TaskCounters(on_cpu, run_delay, 0, involuntary)


# --- run-delay ---


def delay_row(error: float) -> run_delay.Row:
    kernel = 10 * SECOND
    return run_delay.Row(0, "cpu", "0", "launch-0", 30 * SECOND, 0, round(kernel * (1 + error)), 0, kernel)


def test_run_delay_needs_a_good_median() -> None:
    assert run_delay.conclude([delay_row(0.005)] * 3).met
    assert not run_delay.conclude([delay_row(0.015)] * 3).met


def test_run_delay_needs_a_good_worst() -> None:
    rows = [delay_row(0.001)] * 9
    assert run_delay.conclude([*rows, delay_row(-0.02)]).met
    assert not run_delay.conclude([*rows, delay_row(-0.04)]).met


def test_run_delay_of_a_thread_that_never_waited_is_refused() -> None:
    with pytest.raises(BarError, match="never waited"):
        run_delay.conclude([replace(delay_row(0), kernel_run_delay=0)])


# --- split ---


def make_both(step: Any, before: TaskCounters, after: TaskCounters) -> Both:
    """One step of one thread, which is the whole."""
    account = make_account(threads={PID: step})
    found = make_diagnosis(account, steps=[account])
    return Both(found, make_window(step), [{PID: before}, {PID: after}])


def test_split_compares_sum_cpu_time_and_preemptions() -> None:
    thread = replace(make_thread(PID, wall=SECOND, on_cpu=600 * MS, preempted=100 * MS), involuntary=200)
    row = split.compare(0, "20", make_both(thread, counters(), counters(600 * MS, 100 * MS, 200)))
    assert (row.split_error, row.on_cpu_error, row.preemptions_error) == (0, 0, 0)
    assert split.conclude([row]).met


@pytest.mark.parametrize(
    ("change", "after"),
    [
        ({"wall_ns": 1020 * MS}, counters(600 * MS, 0, 200)),
        ({}, counters(580 * MS, 0, 200)),
        ({}, counters(600 * MS, 0, 210)),
    ],
    ids=["sum", "on-CPU", "preemptions"],
)
def test_split_misses(change: dict[str, Any], after: TaskCounters) -> None:
    thread = replace(make_thread(PID, wall=SECOND, on_cpu=600 * MS), involuntary=200, **change)
    assert not split.conclude([split.compare(0, "20", make_both(thread, counters(), after))]).met


# --- launches ---


def launch_row(seen: int = 1009, calls_seen: int = 1013, lost: int = 0) -> launches.Row:
    return launches.Row("libbpf", "one worker", 1009, seen, 1013, calls_seen, lost)


def test_launches_are_equal_or_reported_lost() -> None:
    assert launches.conclude([launch_row(), launch_row(1000, 1003, lost=10)]).met


@pytest.mark.parametrize(
    "row",
    [
        launch_row(seen=1008),
        launch_row(seen=1010),
        launch_row(1000, 1003, lost=9),
        launch_row(990, 1003, lost=10),
    ],
    ids=["one missing", "one too many", "loss too small", "more launches gone than calls"],
)
def test_launches_miss(row: launches.Row) -> None:
    assert not launches.conclude([launch_row(), row]).met


# --- clean ---


def clean_row(code: int, outcome: str) -> clean.Row:
    return clean.Row(0, "launcher", code, outcome, outcome, 0.01)


def test_clean_is_missed_by_one_verdict() -> None:
    healthy = [clean_row(0, "not_cpu")] * 39
    assert clean.conclude(healthy).met
    assert not clean.conclude([*healthy, clean_row(1, "interference")]).met


def test_clean_is_missed_without_an_answer() -> None:
    assert not clean.conclude([clean_row(3, "not_enough_data")]).met


# --- thief ---


def thief_row(**changes: Any) -> thief.Row:
    row = thief.Row(0, 0.3, True, True, 0.305, 0.30, "interference 30 % by thief")
    return replace(row, **changes)


def test_thief_is_met() -> None:
    assert thief.conclude([thief_row(), thief_row(duty=0.1, stolen=0.11, kernel_share=0.1)]).met


@pytest.mark.parametrize("change", [{"named": False}, {"interference": False}, {"stolen": 0.325}])
def test_thief_is_missed_by_one_run(change: dict[str, Any]) -> None:
    outcome = thief.conclude([thief_row()] * 19 + [thief_row(**change)])
    assert not outcome.met
    assert len(outcome.remarks) == 1


def test_thief_is_compared_over_the_critical_threads() -> None:
    account = make_account(
        wall=SECOND, seconds=1, run_delay=300 * MS, culprits=[Culprit("process", "thief", 300 * MS, pid=99)]
    )
    found = make_diagnosis(account, outcome=Outcome.INTERFERENCE)
    seen = [{PID: counters(), 8: counters()}, {PID: counters(0, 290 * MS), 8: counters(0, 500 * MS)}]
    row = thief.compare(0, 0.3, 99, Both(found, make_window(), seen))
    assert row.named
    assert row.interference
    assert row.error == pytest.approx(0.01)
    assert not thief.compare(0, 0.3, 98, Both(found, make_window(), seen)).named


# --- irq ---


def spins(
    *, short: float = 0.10, long: float = 0.15, control: float = 0.30, interrupts: int = 50_000
) -> list[irq.Row]:
    """A spin of 10 s per load; the load took 20 % with short packets, 15 % with long ones, 30 % as thief."""
    wall = 10 * SECOND
    return [
        irq.Row(0, irq.NO_LOAD, wall, 0.01, 2500, irq=0.005, softirq=0.001, off_cpu=0.001, interrupts=2500),
        irq.Row(
            0,
            irq.CONTROL,
            wall,
            0.31,
            3000,
            irq=0.005,
            softirq=0.001,
            off_cpu=0.001 + control,
            interrupts=2500,
        ),
        irq.Row(
            0, irq.LONG, wall, 0.16, 3500, irq=0.005, softirq=0.001 + long, off_cpu=0.001, interrupts=3500
        ),
        *(
            irq.Row(0, load, wall, 0.21, 250_000, 0, 0.005, 0.001 + short, 0.001, 2500 + interrupts)
            for load in (irq.SHORT, irq.DISK)
        ),
    ]


def test_irq_is_met_by_figures_within_the_limit() -> None:
    outcome = irq.conclude(spins(short=0.19, interrupts=50_000), [], guest=False)
    assert outcome.met
    assert "remainder" not in outcome.figure


def test_irq_remainder_is_stated_in_a_guest_only() -> None:
    # 10 % of 10 s over 250,000 interrupts: 4 us each
    rows = spins(interrupts=250_000)
    outcome = irq.conclude(rows, [], guest=True)
    assert outcome.met
    assert "4.0 and 4.0 us an interrupt" in outcome.figure
    assert not irq.conclude(rows, [], guest=False).met


@pytest.mark.parametrize(
    "rows",
    [
        spins(interrupts=50_000),
        spins(interrupts=250_000, long=0.12),
        spins(interrupts=250_000, control=0.26),
        spins(interrupts=250_000, short=0.25),
    ],
    ids=["dearer than delivery", "long handlers differ", "thief differs", "too much"],
)
def test_irq_misses(rows: Sequence[irq.Row]) -> None:
    assert not irq.conclude(rows, [], guest=True).met


def test_irq_states_our_own_cost() -> None:
    rows = spins(interrupts=250_000)
    bare = [irq.Row(0, irq.SHORT, 10 * SECOND, 0.19, 250_000)]
    assert irq.conclude(rows, bare, guest=True).remarks == [
        "our own part of that: short packets cost 8.4 us a gap with our programs attached, 7.6 without"
    ]


# --- startup ---


def start_row(**changes: Any) -> startup.Row:
    return replace(startup.Row(0, "system", 24, 0.2, 0.21, 30 * 2**20), **changes)


def test_startup_is_met() -> None:
    assert startup.conclude([start_row()] * 3).met


@pytest.mark.parametrize(
    "change", [{"attached": 1.1}, {"measuring": 1.0}, {"peak": 64 * 2**20}, {"links": 0}]
)
def test_startup_is_missed_by_one_run(change: dict[str, Any]) -> None:
    assert not startup.conclude([start_row(), start_row(**change)]).met


# --- doctor ---


def check(backend: str, *outcomes: str, ok: bool = True, detail: str = "") -> dict[str, Any]:
    programs = [
        {"backend": backend, "flavour": "", "program": f"sched/{i}", "outcome": outcome, "detail": "why"}
        for i, outcome in enumerate(outcomes)
    ]
    step = "ok" if ok else "load"
    return {
        "backend": backend,
        "flavour": "",
        "ok": ok,
        "step": step,
        "detail": detail,
        "seconds": 0.5,
        "programs": programs,
    }


DEGRADED = check("procfs", detail="degraded: does not see blame")


def test_doctor_is_met_and_names_what_has_no_event_here() -> None:
    document = {"backends": [check("libbpf", "ok", "idle"), check("bcc", "ok"), DEGRADED]}
    outcome = doctor.conclude([document])
    assert outcome.met
    assert outcome.figure.startswith("2 of 3 programs fired")
    assert outcome.remarks == ["sched/1: why"]


@pytest.mark.parametrize(
    "backends",
    [
        [check("libbpf", "ok", "fail"), check("bcc", "ok"), DEGRADED],
        [check("libbpf", "ok"), check("bcc", ok=False), DEGRADED],
        [check("libbpf", "ok"), DEGRADED],
        [check("libbpf", "ok"), check("bcc", "ok"), check("procfs", detail="sees all")],
        [check("libbpf", "ok"), check("bcc", "ok")],
    ],
    ids=["one program silent", "bcc refused", "bcc absent", "procfs not degraded", "procfs absent"],
)
def test_doctor_misses(backends: Sequence[dict[str, Any]]) -> None:
    assert not doctor.conclude([{"backends": backends}]).met


# --- vllm ---


def engine_both(run_delay_ns: int, culprit: Culprit | None, outcome: Outcome, truth_ns: int) -> Both:
    """One second of an engine whose one critical thread waited."""
    account = make_account(
        wall=SECOND, seconds=1, run_delay=run_delay_ns, culprits=[culprit] if culprit else []
    )
    idle = CpuCounters(0, 0, 0, {"NET_RX": 0})
    seen = [({PID: counters()}, idle), ({PID: counters(0, truth_ns)}, idle)]
    return Both(make_diagnosis(account, outcome=outcome), make_window(), seen)


STRESS = Culprit("process", "stress-ng-cpu", 400 * MS, pid=99)
LIMIT = Culprit("quota", "/sys/fs/cgroup/cpu/engine-1", 400 * MS)


@pytest.mark.parametrize(
    ("case", "both", "right"),
    [
        (vllm.CLEAN, engine_both(5 * MS, None, Outcome.NOT_CPU, 5 * MS), True),
        (vllm.CLEAN, engine_both(50 * MS, STRESS, Outcome.INTERFERENCE, 50 * MS), False),
        (vllm.CLEAN, engine_both(0, None, Outcome.NOT_ENOUGH_DATA, 0), False),
        (vllm.NEIGHBOUR, engine_both(400 * MS, STRESS, Outcome.INTERFERENCE, 385 * MS), True),
        (vllm.NEIGHBOUR, engine_both(400 * MS, STRESS, Outcome.INTERFERENCE, 375 * MS), False),
        (vllm.NEIGHBOUR, engine_both(400 * MS, LIMIT, Outcome.INTERFERENCE, 400 * MS), False),
        (vllm.QUOTA, engine_both(400 * MS, LIMIT, Outcome.INTERFERENCE, 400 * MS), True),
        (vllm.QUOTA, engine_both(400 * MS, STRESS, Outcome.INTERFERENCE, 400 * MS), False),
    ],
)
def test_vllm_waits(case: str, both: Both, right: bool) -> None:
    row = vllm.compare_waits(0, case, both, "engine-1")
    assert (not row.faults) == right
    assert vllm.conclude([row]).met == right


def softirq_both(
    *, counted: int = 5000, ours: int = 100 * MS, stat: int = 110 * MS, stolen: int = 90 * MS
) -> Both:
    """One second of an engine on CPU 1 that received 5000 packets there."""
    received = Culprit("softirq", "NET_RX", stolen)
    account = make_account(
        wall=SECOND, seconds=1, culprits=[received], threads={PID: make_thread(PID, softirq=stolen)}
    )
    source = IrqSource("softirq", "NET_RX")
    window = replace(
        make_window(), irq_totals={(1, source): Count(ours, counted), (0, source): Count(9 * SECOND, 9)}
    )
    none: dict[int, TaskCounters] = {}
    seen = [
        (none, CpuCounters(0, 0, 0, {"NET_RX": 0})),
        (none, CpuCounters(0, stat, 0, {"NET_RX": 5000})),
    ]
    return Both(make_diagnosis(account, outcome=Outcome.INTERFERENCE), window, seen)


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ({}, True),
        ({"counted": 4940}, False),
        ({"counted": 5060}, False),
        ({"stat": 125 * MS}, False),
        ({"stolen": 102 * MS}, False),
    ],
)
def test_vllm_softirqs(changes: dict[str, int], right: bool) -> None:
    row = vllm.compare_softirqs(0, vllm.LONG, softirq_both(**changes), 1)
    assert (not row.faults) == right, row.faults
    assert vllm.conclude([row]).met == right


def test_vllm_short_softirqs_are_not_judged_by_the_tick() -> None:
    both = softirq_both(stat=SECOND // 2)
    assert not vllm.compare_softirqs(0, vllm.SHORT, both, 1).faults
    assert vllm.compare_softirqs(0, vllm.SHORT, softirq_both(counted=4000), 1).faults


def test_vllm_softirqs_must_be_named() -> None:
    both = softirq_both()
    other = replace(both.found.verdict, culprits=(STRESS,))
    row = vllm.compare_softirqs(0, vllm.SHORT, replace(both, found=replace(both.found, verdict=other)), 1)
    assert row.faults
