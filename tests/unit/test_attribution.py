"""What was stolen from a target's critical threads, and by whom."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.unit.factories import (
    MS,
    SECOND,
    make_blame,
    make_launcher,
    make_split,
    make_target,
    make_thread,
    make_window,
)

from quietcore.agent import attribution
from quietcore.agent.attribution import (
    HELD_BACK,
    IDLE,
    TICK_HZ,
    Account,
    Culprit,
    account,
    cgroups_of,
    find_critical,
    launching_threads,
)
from quietcore.probes.readings import Count, IrqSource, ThreadWindow, TimeSplit, Window

SERVER, VICTIM, SIBLING = 5_000_007, 5_000_007, 5_000_008  # above any pid_max: nobody's
THIEF, OTHER = 5_000_099, 5_000_100
TARGET = make_target(SERVER)
QUOTA = "/sys/fs/cgroup/cpu/engine"


def account_of(window: Window, *critical: int, **options: Any) -> Account:
    return account(window, TARGET, critical=(frozenset(critical or {VICTIM}), "wake-ups"), **options)


def make_victim(**times: int) -> ThreadWindow:
    return make_thread(VICTIM, SERVER, split=make_split(SECOND, **times))


def by_kind(found: Account) -> dict[tuple[str, str], int]:
    return {(culprit.kind, culprit.name): culprit.ns for culprit in found.culprits}


class TestBlame:
    def test_goes_to_who_ran(self) -> None:
        window = make_window(
            make_victim(on_cpu=600 * MS, preempted=400 * MS),
            blames={
                (VICTIM, THIEF): make_blame(300 * MS, THIEF, "thief", cgroup=5),
                (VICTIM, THIEF + 50): make_blame(50 * MS, THIEF, "thief's help", cgroup=5),
                (VICTIM, OTHER): make_blame(40 * MS, OTHER, "other"),
            },
        )
        found = account_of(window)
        assert found.culprits == (
            Culprit(
                "process",
                "thief",
                350 * MS,
                THIEF,
                cgroup=5,
                threads={(THIEF, "thief"): 300 * MS, (THIEF + 50, "thief's help"): 50 * MS},
            ),
            Culprit("process", "other", 40 * MS, OTHER, threads={(OTHER, "other"): 40 * MS}),
        )
        assert (found.stolen, found.interference, found.unattributed) == (400 * MS, 390 * MS, 10 * MS)
        assert found.share(found.interference) == pytest.approx(0.39)

    def test_counts_the_waits_of_critical_threads_only(self) -> None:
        window = make_window(
            make_victim(on_cpu=SECOND),
            make_thread(SIBLING, SERVER, preempted=SECOND),
            blames={(SIBLING, THIEF): make_blame(SECOND, THIEF, "thief")},
        )
        found = account_of(window)
        assert (found.culprits, found.interference, found.wall) == ((), 0, SECOND)
        assert account_of(window, VICTIM, SIBLING).interference == SECOND

    def test_of_its_own_threads_is_self_contention(self) -> None:
        window = make_window(
            make_victim(on_cpu=500 * MS, preempted=500 * MS),
            blames={(VICTIM, SIBLING): make_blame(500 * MS, SERVER, "worker")},
        )
        found = account_of(window)
        assert (found.self_contention, found.interference, found.culprits) == (500 * MS, 0, ())

    def test_an_idle_cpu_that_wakes_up_is_nobodys_fault(self) -> None:
        window = make_window(
            make_victim(on_cpu=900 * MS, waiting=100 * MS), blames={(VICTIM, IDLE): make_blame(100 * MS)}
        )
        found = account_of(window)
        assert (found.wakeup_latency, found.interference, found.culprits) == (100 * MS, 0, ())

    def test_by_tid_alone_is_looked_up(self) -> None:
        window = make_window(
            make_victim(preempted=SECOND),
            make_thread(SIBLING, SERVER),
            blames={
                (VICTIM, SIBLING): make_blame(300 * MS),
                (VICTIM, os.getpid()): make_blame(200 * MS),
                (VICTIM, THIEF): make_blame(100 * MS),  # gone by now
            },
        )
        found = account_of(window)
        assert found.self_contention == 300 * MS
        assert [(c.pid, c.ns) for c in found.culprits] == [(os.getpid(), 200 * MS), (THIEF, 100 * MS)]
        assert found.culprits[1].name == "?"

    def test_without_it_nothing_is_told_apart(self) -> None:
        split = TimeSplit(on_cpu=500 * MS, run_delay=500 * MS)
        window = make_window(
            make_thread(VICTIM, SERVER, irq=None, softirq=None, split=split), sees_blame=False
        )
        found = account_of(window)
        assert (found.self_contention, found.wakeup_latency, found.tick) == (None, None, None)
        assert (found.run_delay, found.unattributed, found.culprits) == (500 * MS, 500 * MS, ())

    def test_a_kernel_thread_is_called_one(self) -> None:
        if not attribution.is_kernel_thread(2):
            pytest.skip("kthreadd is out of sight in this pid namespace")
        window = make_window(
            make_victim(preempted=SECOND), blames={(VICTIM, 2): make_blame(SECOND, 2, "kthreadd")}
        )
        assert by_kind(account_of(window)) == {("kernel thread", "kthreadd"): SECOND}

    def test_a_zombie_is_no_kernel_thread(self) -> None:
        with subprocess.Popen(["true"]) as ended:
            os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
            assert not attribution.is_kernel_thread(ended.pid)
        assert not attribution.is_kernel_thread(ended.pid)


class TestQuota:
    def test_is_named_where_the_kernel_shows_it(self) -> None:
        window = make_window(make_victim(on_cpu=400 * MS, throttled=600 * MS))
        found = account_of(window, throttled={QUOTA: 590 * MS, "/sys/fs/cgroup/cpu": 0})
        assert by_kind(found) == {("quota", QUOTA): 600 * MS}
        assert (found.interference, found.unattributed) == (600 * MS, 0)
        assert found.quotas == {QUOTA: 590 * MS}

    @pytest.mark.parametrize("split", ["preempted", "waiting"])
    def test_is_named_where_the_cpu_idled(self, split: str) -> None:
        """As bcc sees it, and a kernel before 6.18 whose thread woke in a throttled group."""
        window = make_window(
            make_victim(on_cpu=500 * MS, **{split: 500 * MS}),
            blames={(VICTIM, HELD_BACK): make_blame(499 * MS), (VICTIM, IDLE): make_blame(MS)},
        )
        # the last throttling was not over yet
        found = account_of(window, throttled={QUOTA: 450 * MS})
        assert by_kind(found) == {("quota", QUOTA): 499 * MS}
        assert (found.wakeup_latency, found.interference) == (MS, 499 * MS)

    def test_is_not_accused_of_more_than_it_denied(self) -> None:
        window = make_window(
            make_victim(on_cpu=500 * MS, waiting=500 * MS), blames={(VICTIM, HELD_BACK): make_blame(500 * MS)}
        )
        found = account_of(window, throttled={QUOTA: 20 * MS})
        assert by_kind(found) == {("idle CPU", "late to wake up"): 380 * MS, ("quota", QUOTA): 120 * MS}

    def test_without_one_the_wait_is_interference_all_the_same(self) -> None:
        window = make_window(
            make_victim(on_cpu=500 * MS, waiting=500 * MS), blames={(VICTIM, HELD_BACK): make_blame(500 * MS)}
        )
        found = account_of(window, throttled={QUOTA: 0})
        assert by_kind(found) == {("idle CPU", "late to wake up"): 500 * MS}
        assert (found.wakeup_latency, found.interference, found.quotas) == (0, 500 * MS, {})

    def test_adds_up_over_threads(self) -> None:
        window = make_window(
            make_victim(throttled=SECOND),
            make_thread(SIBLING, SERVER, waiting=SECOND),
            blames={(SIBLING, HELD_BACK): make_blame(SECOND)},
        )
        found = account_of(window, VICTIM, SIBLING, throttled={QUOTA: SECOND})
        assert by_kind(found) == {("quota", QUOTA): 2 * SECOND}


class TestInterrupts:
    def test_are_stolen_but_for_the_regular_tick(self) -> None:
        irqs = {
            (VICTIM, IrqSource("vector", "local_timer")): Count(2 * TICK_HZ * 1000, 2 * TICK_HZ),
            (VICTIM, IrqSource("softirq", "NET_RX")): Count(50 * MS, 900),
            (SIBLING, IrqSource("softirq", "NET_RX")): Count(70 * MS, 900),
        }
        irq = 2 * TICK_HZ * 1000
        victim = make_thread(VICTIM, SERVER, irq=irq, softirq=50 * MS, on_cpu=SECOND)
        found = account_of(make_window(victim, irqs=irqs))
        # it came twice as often as the kernel's tick does
        assert found.tick == irq // 2
        assert by_kind(found) == {("softirq", "NET_RX"): 50 * MS, ("vector", "local_timer"): irq // 2}
        assert (found.stolen, found.interference) == (irq + 50 * MS, irq // 2 + 50 * MS)


class TestCriticalThreads:
    def test_are_those_that_launch(self) -> None:
        window = make_window(
            make_victim(on_cpu=SECOND),
            make_thread(SIBLING, SERVER, on_cpu=SECOND),
            make_thread(OTHER, on_cpu=SECOND),
            launchers=[
                make_launcher(VICTIM, SERVER, {"cuLaunchKernel": 50, "cuStreamSynchronize": 9}),
                make_launcher(SIBLING, SERVER, {"cuStreamSynchronize": 9}),
                make_launcher(OTHER),
            ],
        )
        launching = launching_threads(window, TARGET)
        assert launching == {VICTIM}
        assert find_critical(window, TARGET, launching) == (frozenset({VICTIM}), "launches")

    def test_are_not_those_that_barely_launch(self) -> None:
        """One launch at start-up, by the thread that loads the model."""
        calls = {VICTIM: 10_000, SIBLING: 99, SIBLING + 1: 100}
        window = make_window(
            *(make_thread(tid, SERVER) for tid in calls),
            launchers=[make_launcher(tid, SERVER, {"cuLaunchKernel": n}) for tid, n in calls.items()],
        )
        assert launching_threads(window, TARGET) == {VICTIM, SIBLING + 1}

    def test_without_launches_are_found_by_demand(self) -> None:
        window = make_window(make_victim(on_cpu=SECOND), make_thread(SIBLING, SERVER, on_cpu=10 * MS))
        assert launching_threads(window, TARGET) == frozenset()
        assert find_critical(window, TARGET, frozenset()) == (frozenset({VICTIM}), "demand")


def test_its_cgroups_are_those_of_its_processes() -> None:
    target = make_target(os.getpid(), SERVER)
    target.cgroup_id = 4711
    found = cgroups_of(target)
    assert 4711 in found
    assert len(found) <= 2


def test_the_kernel_side_calls_it_the_same() -> None:
    source = (Path(__file__).parents[2] / "probes" / "bpf" / "account.h").read_text()
    assert re.findall(r"^#define HELD_BACK (\w+)", source, re.MULTILINE) == [hex(HELD_BACK)]
