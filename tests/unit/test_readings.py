"""Windows as differences of snapshots: times add up, what was not seen stays unknown."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from tests.unit.factories import (
    MS,
    SECOND,
    make_blame,
    make_durations,
    make_launcher,
    make_snapshot,
    make_split,
    make_totals,
)

from quietcore.probes.readings import (
    Count,
    IrqSource,
    Snapshot,
    State,
    ThreadTotals,
    ThreadWindow,
    TimeSplit,
    Window,
)

NET_RX = IrqSource("softirq", "NET_RX")
ETH0 = IrqSource("irq", "29 eth0")
COUNTERS = ("irq_ns", "softirq_ns", "irqs", "softirqs", "voluntary", "involuntary", "migrations")


def between(before: ThreadTotals | None, now: ThreadTotals, start: int = 0) -> ThreadWindow | None:
    earlier = make_snapshot(before.read_at if before else start, [before] if before else [])
    return make_snapshot(now.read_at, [now]).since(earlier).threads.get(now.tid)


def seeded(read_at: int, pending: int, *, hint: State = State.SLEEPING, **known: int) -> ThreadTotals:
    """A thread that was seeded at 0 and of which no event has told the state yet."""
    split = make_split(read_at - pending, **known)
    return replace(make_totals(7, read_at, split), pending_ns=pending, hint=hint)


class TestTimeSplit:
    def test_total_is_the_sum_of_the_six_states(self) -> None:
        assert TimeSplit(1, 2, 4, 8, 16, 32, run_delay=14).total == 63

    @pytest.mark.parametrize("unseen", [s.value for s in State if s is not State.THROTTLED])
    def test_total_is_unknown_where_a_state_is(self, unseen: str) -> None:
        assert replace(TimeSplit(1, 2, 4, 8, 16, 32, 14), **{unseen: None}).total is None

    def test_a_backend_that_cannot_tell_throttling_has_it_in_preempted(self) -> None:
        assert TimeSplit(1, 2, 4, None, 16, 32, run_delay=6).total == 55

    @pytest.mark.parametrize("state", State)
    def test_plus_puts_time_into_one_state_and_into_the_run_delay_if_it_is_a_wait(self, state: State) -> None:
        before = TimeSplit(1, 2, 4, 8, 16, 32, run_delay=14)
        after = before.plus(state, 100)
        assert getattr(after, state.value) == getattr(before, state.value) + 100
        waits = state in (State.RUNQUEUE_WAIT, State.PREEMPTED, State.THROTTLED)
        assert after.run_delay == (114 if waits else 14)
        assert after.total == 163

    def test_difference_is_unknown_where_either_side_is(self) -> None:
        later, earlier = TimeSplit(on_cpu=9, run_delay=5), TimeSplit(on_cpu=4, sleeping=3, run_delay=None)
        assert later - earlier == TimeSplit(on_cpu=5)

    def test_difference_goes_field_by_field(self) -> None:
        later, earlier = TimeSplit(10, 20, 30, 40, 50, 60, 90), TimeSplit(1, 2, 3, 4, 5, 6, 9)
        assert later - earlier == TimeSplit(9, 18, 27, 36, 45, 54, 81)


class TestThreadInAWindow:
    def test_split_adds_up_to_the_wall_time(self) -> None:
        before = make_totals(7, 2 * SECOND, on_cpu=SECOND, waiting=MS)
        now = make_totals(7, 3 * SECOND, on_cpu=SECOND + 400 * MS, waiting=51 * MS, preempted=2 * MS)
        window = between(before, now)
        assert window
        assert window.wall_ns == SECOND == window.split.total
        assert window.split == make_split(SECOND, on_cpu=400 * MS, waiting=50 * MS, preempted=2 * MS)

    @pytest.mark.parametrize("hint", [State.SLEEPING, State.ON_CPU, State.BLOCKED])
    def test_never_resolved_puts_the_time_where_the_hint_says(self, hint: State) -> None:
        window = between(seeded(SECOND, SECOND, hint=hint), seeded(3 * SECOND, 3 * SECOND, hint=hint))
        assert window
        assert getattr(window.split, hint.value) == 2 * SECOND == window.split.total == window.wall_ns

    @pytest.mark.parametrize("was", [State.SLEEPING, State.ON_CPU, State.PREEMPTED, State.BLOCKED])
    def test_resolved_within_the_window_counts_the_part_within_only(self, was: State) -> None:
        # seeded at 0; at 1.5 s an event tells that it did `was` until then; it runs from there on
        before = seeded(SECOND, SECOND, hint=State.SLEEPING)
        split = TimeSplit(0, 0, 0, 0, 0, 0, 0).plus(was, 1500 * MS).plus(State.ON_CPU, 500 * MS)
        now = replace(make_totals(7, 2 * SECOND, split), resolved=was)
        window = between(before, now)
        assert window
        expected = TimeSplit(0, 0, 0, 0, 0, 0, 0).plus(was, 500 * MS).plus(State.ON_CPU, 500 * MS)
        assert window.split == expected
        assert window.split.total == window.wall_ns

    def test_resolved_before_the_window_changes_nothing(self) -> None:
        before = replace(make_totals(7, SECOND, on_cpu=SECOND), resolved=State.ON_CPU)
        now = replace(make_totals(7, 2 * SECOND, on_cpu=SECOND, blocked=300 * MS), resolved=State.ON_CPU)
        window = between(before, now)
        assert window
        assert window.split == make_split(SECOND, blocked=300 * MS)

    def test_resolved_in_two_windows_counts_each_part_once(self) -> None:
        first, second = seeded(SECOND, SECOND), seeded(2 * SECOND, 2 * SECOND)
        split = TimeSplit(0, 0, 0, 0, 0, 0, 0).plus(State.BLOCKED, 3 * SECOND)
        third = replace(make_totals(7, 3 * SECOND, split), resolved=State.BLOCKED)
        whole, last = between(first, third), between(second, third)
        assert whole
        assert last
        assert whole.split == make_split(2 * SECOND, blocked=2 * SECOND)
        assert last.split == make_split(SECOND, blocked=SECOND)

    def test_seeded_within_the_window_counts_from_there(self) -> None:
        now = make_totals(7, 3 * SECOND, began=2 * SECOND + 400 * MS, on_cpu=100 * MS)
        window = between(None, now, start=2 * SECOND)
        assert window
        assert window.wall_ns == 600 * MS == window.split.total
        assert not window.ended

    def test_born_within_the_window_counts_from_birth(self) -> None:
        now = make_totals(7, 3 * SECOND, began=2900 * MS, born=True, waiting=30 * MS, on_cpu=70 * MS)
        window = between(None, replace(now, involuntary=2, irq_ns=5), start=2 * SECOND)
        assert window
        assert window.split == make_split(100 * MS, waiting=30 * MS, on_cpu=70 * MS)
        assert (window.involuntary, window.irq_ns) == (2, 5)

    def test_ended_within_the_window_lived_as_long_as_its_split(self) -> None:
        before = make_totals(7, SECOND, on_cpu=SECOND)
        now = make_totals(7, 2 * SECOND, make_split(1300 * MS, on_cpu=1200 * MS), ended=True)
        window = between(before, now)
        assert window
        assert window.ended
        assert window.split == make_split(300 * MS, on_cpu=200 * MS)
        assert window.wall_ns == 300 * MS

    def test_ended_where_only_sums_are_seen_did_not_live_for_no_time(self) -> None:
        """The procfs backend knows neither sleep nor blocking: what it does know must not exceed the wall."""
        before = make_totals(7, SECOND, TimeSplit(on_cpu=100 * MS, run_delay=50 * MS))
        now = make_totals(7, 2 * SECOND, TimeSplit(on_cpu=400 * MS, run_delay=150 * MS), ended=True)
        window = between(before, now)
        assert window
        assert window.split == TimeSplit(on_cpu=300 * MS, run_delay=100 * MS)
        assert window.wall_ns >= 400 * MS

    def test_ended_before_the_window_is_not_in_it(self) -> None:
        over = make_totals(7, SECOND, on_cpu=SECOND, ended=True)
        assert between(over, replace(over, read_at=2 * SECOND)) is None

    def test_a_tid_that_is_used_again_starts_from_nothing(self) -> None:
        over = make_totals(7, SECOND, on_cpu=SECOND, ended=True)
        again = make_totals(7, 2 * SECOND, began=1600 * MS, born=True, on_cpu=50 * MS)
        window = between(over, again)
        assert window
        assert window.wall_ns == 400 * MS == window.split.total
        assert window.split.on_cpu == 50 * MS

    def test_a_tid_that_is_used_again_while_nobody_looked_starts_from_nothing(self) -> None:
        alive = replace(make_totals(7, SECOND, on_cpu=SECOND), voluntary=900)
        again = replace(make_totals(7, 2 * SECOND, began=1600 * MS, on_cpu=50 * MS), voluntary=3)
        window = between(alive, again)
        assert window
        assert (window.split.on_cpu, window.voluntary) == (50 * MS, 3)

    @pytest.mark.parametrize("counter", COUNTERS)
    def test_counters_are_differences_and_unknown_stays_unknown(self, counter: str) -> None:
        before, now = make_totals(7, SECOND), make_totals(7, 2 * SECOND)
        grown = between(replace(before, **{counter: 5}), replace(now, **{counter: 12}))  # type: ignore[arg-type]
        assert grown
        assert getattr(grown, counter) == 7
        assert [getattr(grown, other) for other in COUNTERS if other != counter] == [None] * 6
        # readable on one side only
        for one, other in ((None, 12), (5, None)):
            window = between(replace(before, **{counter: one}), replace(now, **{counter: other}))  # type: ignore[arg-type]
            assert window
            assert getattr(window, counter) is None

    def test_what_procfs_cannot_see_is_never_zero(self) -> None:
        before = make_totals(7, SECOND, TimeSplit(on_cpu=5, run_delay=1))
        window = between(before, make_totals(7, 2 * SECOND, TimeSplit(on_cpu=8, run_delay=3)))
        assert window
        assert window.split == TimeSplit(on_cpu=3, run_delay=2)
        assert window.wall_ns == SECOND


class TestSnapshot:
    def test_a_window_spans_the_two_moments(self) -> None:
        window = make_snapshot(3 * SECOND).since(make_snapshot(SECOND))
        assert (window.start, window.end, window.wall_ns) == (SECOND, 3 * SECOND, 2 * SECOND)
        assert window.backend == "libbpf"

    def test_blame_is_the_growth_of_each_pair(self) -> None:
        blames = {(7, 9): make_blame(5 * MS, 9, "noisy", 3), (7, 8): make_blame(MS, 8, "quiet")}
        later = {
            **blames,
            (7, 9): replace(blames[7, 9], ns=8 * MS, slices=4),
            (7, 10): make_blame(2, 10, "new"),
        }
        window = make_snapshot(2, blames=later).since(make_snapshot(1, blames=blames))
        assert window.blames == {
            (7, 9): replace(blames[7, 9], ns=3 * MS, slices=3),
            (7, 10): make_blame(2, 10, "new"),
        }

    def test_wakes_and_interrupts_are_the_growth_of_each_pair(self) -> None:
        earlier = replace(
            make_snapshot(1),
            wakes={(1, 2): Count(100, 1), (3, 2): Count(7, 7)},
            irqs={(7, NET_RX): Count(50, 5)},
            irq_totals={(0, ETH0): Count(10, 1), (1, ETH0): Count(20, 2)},
        )
        later = replace(
            make_snapshot(2),
            wakes={(1, 2): Count(400, 3), (3, 2): Count(7, 7)},
            irqs={(7, NET_RX): Count(50, 5), (7, ETH0): Count(0, 2)},
            irq_totals={(0, ETH0): Count(15, 2), (1, ETH0): Count(20, 2)},
        )
        window = later.since(earlier)
        assert window.wakes == {(1, 2): Count(300, 2)}
        # two interrupts too short for the clock are still two interrupts
        assert window.irqs == {(7, ETH0): Count(0, 2)}
        assert window.irq_totals == {(0, ETH0): Count(5, 1)}

    @pytest.mark.parametrize("name", ["blames", "wakes", "irqs", "irq_totals", "launchers", "steal_ns"])
    def test_what_the_backend_does_not_see_is_unknown_in_the_window(self, name: str) -> None:
        window = make_snapshot(2).since(make_snapshot(1))
        assert getattr(window, name) is None

    def test_launchers_are_differences_without_the_idle_ones(self) -> None:
        first = make_launcher(7, calls={"cuLaunchKernel": 10}, interval=make_durations([MS] * 9))
        idle = make_launcher(8)
        more = make_launcher(
            7, calls={"cuLaunchKernel": 15, "cuGraphLaunch": 2}, interval=make_durations([MS] * 16)
        )
        fresh = make_launcher(9, calls={"cuGraphLaunch": 3})
        earlier, later = (
            make_snapshot(1, launchers=[first, idle]),
            make_snapshot(2, launchers=[more, idle, fresh]),
        )
        window = later.since(earlier)
        assert window.launchers is not None
        assert set(window.launchers) == {7, 9}
        assert window.launchers[7].calls == {"cuLaunchKernel": 5, "cuGraphLaunch": 2}
        assert window.launchers[7].interval == make_durations([MS] * 7)
        assert window.launchers[9] == fresh

    def test_a_launchers_calls_that_did_not_grow_are_left_out(self) -> None:
        first = make_launcher(7, calls={"cuLaunchKernel": 10, "cuGraphLaunch": 4})
        more = make_launcher(7, calls={"cuLaunchKernel": 12, "cuGraphLaunch": 4})
        assert (more - first).calls == {"cuLaunchKernel": 2}
        assert (more - first).hits == 2

    def test_a_launching_tid_of_another_process_starts_from_nothing(self) -> None:
        before = make_launcher(7, 7, {"cuLaunchKernel": 500})
        after = make_launcher(7, 99, {"cuLaunchKernel": 3})
        window = make_snapshot(2, launchers=[after]).since(make_snapshot(1, launchers=[before]))
        assert window.launchers == {7: after}

    def test_launchers_appear_when_the_first_library_is_probed(self) -> None:
        launcher = make_launcher(7)
        assert make_snapshot(2, launchers=[launcher]).since(make_snapshot(1)).launchers == {7: launcher}

    def test_losses_are_differences(self) -> None:
        later = make_snapshot(2, losses={"waiters": 5, "events": 3, "threads": 1})
        window = later.since(make_snapshot(1, losses={"waiters": 5, "events": 1}))
        assert window.losses == {"waiters": 0, "events": 2, "threads": 1}

    def test_steal_is_by_cpu_and_a_cpu_that_came_online_has_none_yet(self) -> None:
        earlier, later = (
            replace(make_snapshot(1), steal_ns={0: 10}),
            replace(make_snapshot(2), steal_ns={0: 25}),
        )
        assert later.since(earlier).steal_ns == {0: 15}
        assert replace(later, steal_ns={0: 25, 1: 900}).since(earlier).steal_ns == {0: 15, 1: 0}

    def test_a_window_has_a_value_for_all_that_a_snapshot_has(self) -> None:
        assert {f.name for f in fields(Snapshot)} - {"time"} <= {f.name for f in fields(Window)}


def test_counts_add_and_subtract() -> None:
    assert Count(5, 2) + Count(7, 1) - Count(2, 3) == Count(10, 0)


def test_an_interrupt_reads_as_kind_and_name() -> None:
    assert (str(NET_RX), str(ETH0)) == ("softirq NET_RX", "irq 29 eth0")
