"""What an account comes to: interference and by whom, not the CPU, not enough data, or cannot tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from tests.unit.factories import MS, SECOND, make_account, make_launcher, make_thread

from quietcore.agent.attribution import Account, Culprit
from quietcore.agent.verdict import (
    THRESHOLD,
    Outcome,
    Verdict,
    culprit_name,
    judge,
    judge_threads,
    margin_of,
)

THIEF = Culprit("process", "thief", 1500 * MS, pid=99)


def make_steps(*shares: float) -> list[Account]:
    """A step of one second for each share that others took."""
    return [make_account(wall=SECOND, seconds=1, run_delay=round(s * SECOND)) for s in shares]


def judge_shares(*shares: float, threshold: float = THRESHOLD) -> Verdict:
    """Of a thief that took these shares, second by second."""
    taken = round(sum(shares) * SECOND)
    whole = make_account(
        wall=len(shares) * SECOND,
        seconds=len(shares),
        run_delay=taken,
        culprits=[replace(THIEF, ns=taken)] if taken else [],
    )
    return judge(whole, make_steps(*shares), threshold)


class TestInterference:
    def test_a_steady_thief(self) -> None:
        found = judge_shares(*[0.1] * 10)
        assert found.outcome is Outcome.INTERFERENCE
        assert found.share == pytest.approx(0.1)
        assert found.margin == pytest.approx(0)
        assert str(found) == "interference 10.0% ± 0.0% by thief [99]"

    def test_half_of_the_core_in_three_seconds_of_ten(self) -> None:
        found = judge_shares(0.5, 0.5, 0.5, *[0.0] * 7)
        assert found.margin is not None
        # how unevenly it came is no doubt that it did
        assert found.margin > found.share
        assert found.outcome is Outcome.INTERFERENCE

    def test_twice_is_no_chance(self) -> None:
        assert judge_shares(0.15, *[0.0] * 6, 0.15, 0.0, 0.0).outcome is Outcome.INTERFERENCE

    @pytest.mark.parametrize("seconds", [1, 2, 3])
    def test_a_large_share_is_enough_in_any_time(self, seconds: int) -> None:
        assert judge_shares(*[0.3] * seconds).outcome is Outcome.INTERFERENCE

    def test_from_the_threshold_on(self) -> None:
        assert judge_shares(*[0.02] * 5).outcome is Outcome.INTERFERENCE
        assert judge_shares(*[0.019] * 5).outcome is Outcome.NOT_CPU

    def test_the_threshold_is_the_users(self) -> None:
        assert judge_shares(*[0.3] * 5, threshold=0.4).outcome is Outcome.NOT_CPU
        assert judge_shares(*[0.01] * 5, threshold=0.005).outcome is Outcome.INTERFERENCE


class TestSingleHiccup:
    @pytest.mark.parametrize("seconds", [3, 5, 10])
    def test_is_neither_interference_nor_its_absence(self, seconds: int) -> None:
        found = judge_shares(0.3 if seconds > 3 else 0.2, *[0.001] * (seconds - 1))
        assert found.share > THRESHOLD
        assert found.outcome is Outcome.NOT_ENOUGH_DATA
        assert "measure longer" in str(found)

    def test_two_seconds_do_not_decide_more_than_three(self) -> None:
        assert judge_shares(0.08, 0.0).outcome is Outcome.NOT_ENOUGH_DATA
        assert judge_shares(0.08, 0.0, 0.0).outcome is Outcome.NOT_ENOUGH_DATA

    def test_the_rest_at_the_end_is_no_second_one(self) -> None:
        """A stall of 70 ms on both sides of the last snapshot but one."""
        rest = make_account(wall=50 * MS, seconds=0.05, run_delay=30 * MS)
        whole = make_account(wall=2050 * MS, seconds=2.05, run_delay=70 * MS)
        assert judge(whole, [*make_steps(0.0, 0.04), rest]).outcome is Outcome.NOT_ENOUGH_DATA

    def test_below_the_threshold_it_is_not_the_cpu(self) -> None:
        assert judge_shares(0.1, *[0.0] * 9).outcome is Outcome.NOT_CPU


class TestNotTheCpu:
    def test_nothing_was_taken(self) -> None:
        found = judge_shares(*[0.001] * 10)
        assert found.outcome is Outcome.NOT_CPU
        assert str(found) == "not the CPU: others took 0.1% of the critical threads' time"

    def test_its_own_threads_took_it(self) -> None:
        whole = make_account(run_delay=5 * SECOND, own=5 * SECOND)
        found = judge(whole, [whole] * 10)
        assert found.outcome is Outcome.NOT_CPU
        assert "50.0% from each other (self-contention)" in found.reason

    def test_the_cpu_had_to_wake_up(self) -> None:
        whole = make_account(run_delay=SECOND, idle=SECOND)
        assert judge(whole, [whole] * 10).outcome is Outcome.NOT_CPU


class TestTooLittle:
    @pytest.mark.parametrize(
        ("whole", "says"),
        [
            (make_account(seconds=0.5, run_delay=5 * SECOND), "only 0.5 s were seen"),
            (make_account(critical=frozenset(), run_delay=5 * SECOND), "no thread of the target"),
            (make_account(on_cpu=10 * MS), "the target was idle"),
            (
                make_account(
                    critical_by="launches",
                    launchers={7: make_launcher(7, calls={"cuLaunchKernel": 99})},
                    run_delay=5 * SECOND,
                ),
                "only 99 launches were seen",
            ),
        ],
    )
    def test_says_of_what(self, whole: Account, says: str) -> None:
        found = judge(whole, [whole] * 10)
        assert found.outcome is Outcome.NOT_ENOUGH_DATA
        assert says in found.reason


class TestUnattributed:
    """Waits without a record of who ran: of more threads on one CPU than it has slots for."""

    def test_accuses_nobody(self) -> None:
        whole = replace(make_account(run_delay=9 * SECOND), unattributed=9 * SECOND)
        found = judge(whole, [whole] * 10)
        assert found.outcome is Outcome.CANNOT_TELL
        assert "waited 90.0% of their time without a record of who ran instead" in found.reason
        assert "fewer threads" in found.reason

    def test_is_left_out_of_what_others_took(self) -> None:
        whole = replace(make_account(run_delay=9 * SECOND, culprits=[THIEF]), unattributed=7500 * MS)
        found = judge(whole, [whole] * 10)
        assert found.outcome is Outcome.INTERFERENCE
        assert found.share == pytest.approx(0.15)

    def test_a_murmur_of_it_changes_nothing(self) -> None:
        whole = replace(make_account(run_delay=150 * MS), unattributed=150 * MS)
        assert judge(whole, [whole] * 10).outcome is Outcome.NOT_CPU


class TestWithoutBlame:
    """/proc tells how long a thread waited, and not for whom."""

    def test_waiting_alone_accuses_nobody(self) -> None:
        whole = make_account(run_delay=5 * SECOND, own=None, idle=None)
        found = judge(whole, [whole] * 10)
        assert found.outcome is Outcome.CANNOT_TELL
        assert str(found).startswith("cannot tell: the critical threads waited 50.0% of their time for a CPU")
        assert "needs eBPF: root in the host's pid namespace" in found.reason

    def test_a_quota_that_was_at_work_is_mentioned(self) -> None:
        whole = make_account(run_delay=5 * SECOND, own=None, idle=None)
        whole = replace(whole, quotas={"/sys/fs/cgroup/cpu/engine": 4_900 * MS, "/sys/fs/cgroup/cpu": MS})
        found = judge(whole, [whole] * 10)
        assert found.outcome is Outcome.CANNOT_TELL
        assert "(the CPU quota of /engine held threads back for 4.9 s)" in found.reason

    def test_hardly_any_waiting_is_not_the_cpu(self) -> None:
        whole = make_account(run_delay=100 * MS, own=None, idle=None)
        found = judge(whole, [whole] * 10)
        assert found.outcome is Outcome.NOT_CPU
        assert found.reason == "the critical threads waited 1.0% of their time for a CPU"


def make_threads(**shares: float) -> Mapping[int, Account]:
    """The accounts of launch threads, each alone; by name what a thief took of ten seconds."""
    threads = {tid: make_thread(tid, 7, name, wall=10 * SECOND) for tid, name in enumerate(shares, 7)}
    launchers = {tid: make_launcher(tid, 7) for tid in threads}
    return {
        tid: make_account(
            run_delay=round(shares[thread.comm] * 10 * SECOND),
            culprits=[replace(THIEF, name=f"thief of {thread.comm}")],
            critical=frozenset({tid}),
            critical_by="launches",
            launchers=launchers,
            threads=threads,
        )
        for tid, thread in threads.items()
    }


def judge_ranks(
    threads: Mapping[int, Account], steps: Mapping[int, Sequence[float]] | None = None
) -> Verdict:
    """Of all threads together and then by the worst; steady, but for those with ``steps``."""
    taken = sum(a.run_delay for a in threads.values())
    some = next(iter(threads.values()))
    whole = replace(
        some, wall=len(threads) * 10 * SECOND, run_delay=taken, critical=frozenset(threads), culprits=(THIEF,)
    )
    mean = judge(whole, make_steps(*[taken / whole.wall] * 10))

    def steps_of(tid: int) -> Sequence[Account]:
        share = threads[tid].run_delay / threads[tid].wall
        return make_steps(*(steps or {}).get(tid, [share] * 10))

    return judge_threads(mean, threads, steps_of)


RANKS = {f"rank{i}": 0.0 for i in range(8)}


class TestTheSlowestRank:
    def test_speaks_for_all_where_the_mean_hides_it(self) -> None:
        found = judge_ranks(make_threads(**{**RANKS, "rank3": 0.1}))
        assert found.outcome is Outcome.INTERFERENCE
        assert found.share == pytest.approx(0.0125)
        assert found.worst is not None
        assert (found.worst.tid, found.worst.comm) == (10, "rank3")
        assert found.worst.share == pytest.approx(0.1)
        assert str(found) == (
            "interference 10.0% ± 0.0% in rank3 10 by thief of rank3 [99] (all critical threads: 1.2%)"
        )

    def test_is_not_looked_for_where_all_lost_the_same(self) -> None:
        found = judge_ranks(make_threads(**dict.fromkeys(RANKS, 0.1)))
        assert found.outcome is Outcome.INTERFERENCE
        assert found.worst is None
        assert str(found) == "interference 10.0% ± 0.0% by thief [99]"

    def test_below_the_threshold_is_no_matter(self) -> None:
        found = judge_ranks(make_threads(**{**RANKS, "rank3": 0.015}))
        assert (found.outcome, found.worst) == (Outcome.NOT_CPU, None)

    def test_with_a_single_hiccup_needs_more_data(self) -> None:
        threads = make_threads(**{**RANKS, "rank3": 0.05})
        found = judge_ranks(threads, {10: [0.5, *[0.0] * 9]})
        assert found.outcome is Outcome.NOT_ENOUGH_DATA
        assert "rank3 10" in found.reason

    def test_with_a_single_hiccup_hides_no_other(self) -> None:
        threads = make_threads(**{**RANKS, "rank3": 0.05, "rank5": 0.04})
        found = judge_ranks(threads, {10: [0.5, *[0.0] * 9]})
        assert found.outcome is Outcome.INTERFERENCE
        assert found.worst is not None
        assert found.worst.comm == "rank5"

    def test_that_lived_for_a_moment_is_left_out(self) -> None:
        threads = dict(make_threads(**RANKS))
        threads[10] = replace(threads[10], wall=100 * MS, run_delay=50 * MS, on_cpu=50 * MS)
        assert judge_ranks(threads).outcome is Outcome.NOT_CPU


def test_the_margin_is_that_of_the_mean() -> None:
    assert margin_of([0.1, 0.2]) is None
    # t of two degrees of freedom, times the standard error
    assert margin_of([0.1, 0.2, 0.3]) == pytest.approx(4.30 * 0.1 / 3**0.5)
    assert margin_of([0.1, 0.3] * 50) == pytest.approx(1.96 * 0.1005 / 10, rel=1e-3)


@pytest.mark.parametrize(
    ("culprit", "name"),
    [
        (Culprit("process", "make", 1, pid=5), "make [5]"),
        (Culprit("kernel thread", "ksoftirqd/1", 1, pid=5), "ksoftirqd/1 [5]"),
        (Culprit("processes", "cc1", 1, count=40), "cc1 x40"),
        (Culprit("cgroup", "nginx.service", 1, count=12), "nginx.service (12 processes)"),
        (Culprit("softirq", "NET_RX", 1), "softirq NET_RX"),
        (Culprit("quota", "/engine", 1), "CPU quota of /engine"),
        (Culprit("quota", f"/sys/fs/cgroup/cpu/docker/{'5e' * 32}", 1), "CPU quota of docker 5e5e5e5e5e5e"),
        (Culprit("quota", "", 1), "CPU quota"),
    ],
)
def test_culprits_by_name(culprit: Culprit, name: str) -> None:
    assert culprit_name(culprit) == name
