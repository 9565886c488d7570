"""A share of the engine's time for work that comes in slices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.unit.step_clock import Time

from quietcore.scheduler.vllm import budget
from quietcore.scheduler.vllm.budget import TimeShare

SHARE, MOST_S = 0.01, 0.0005


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(budget, "perf_counter", time)
    return time


class Work:
    """So many slices, each of some seconds."""

    def __init__(self, clock: Time, slices: int, seconds: float) -> None:
        self.left = slices
        self.done = 0
        self._clock = clock
        self._seconds = seconds

    def __call__(self) -> bool:
        self._clock.now += self._seconds
        self.left -= 1
        self.done += 1
        return self.left > 0


def steps(clock: Time, share: TimeShare, work: Callable[[], bool], count: int, seconds: float) -> None:
    for _ in range(count):
        clock.now += seconds
        share.spend(work)


def test_what_is_little_is_done_at_once(clock: Time) -> None:
    work = Work(clock, 3, 50e-6)
    TimeShare(SHARE, MOST_S).spend(work)
    assert (work.left, work.done) == (0, 3)


@pytest.mark.parametrize("step_s", [0.5e-3, 20e-3, 0.2])
@pytest.mark.parametrize("slice_s", [5e-6, 40e-6, 0.3e-3])
def test_in_the_long_run_it_is_the_share_however_long_steps_and_slices_are(
    clock: Time, step_s: float, slice_s: float
) -> None:
    share = TimeShare(SHARE, MOST_S)
    work = Work(clock, 10**9, slice_s)
    begun = clock.now
    steps(clock, share, work, 3000, step_s)
    spent = work.done * slice_s
    earned = SHARE * (clock.now - begun)
    assert 0.9 * min(earned, 3000 * MOST_S) - slice_s < spent < 1.02 * earned + MOST_S + slice_s


def test_no_step_is_held_up_for_longer_than_allowed_and_a_slice(clock: Time) -> None:
    share = TimeShare(SHARE, MOST_S)
    work = Work(clock, 10**9, 40e-6)
    for _ in range(100):
        clock.now += 3600.0
        done = work.done
        share.spend(work)
        assert 0 < (work.done - done) * 40e-6 <= MOST_S + 40e-6


def test_after_a_stall_it_goes_on_within_half_a_second(clock: Time) -> None:
    share = TimeShare(SHARE, MOST_S)
    share.spend(Work(clock, 10, 5.0))
    work = Work(clock, 10**9, 40e-6)
    steps(clock, share, work, 20, 20e-3)
    assert work.done == 0
    steps(clock, share, work, 10, 20e-3)
    assert work.done > 0


def test_a_clock_that_goes_back_earns_nothing(clock: Time) -> None:
    share = TimeShare(SHARE, MOST_S)
    share.spend(Work(clock, 10**9, 40e-6))
    clock.now -= 50.0
    work = Work(clock, 10**9, 40e-6)
    share.spend(work)
    assert work.done <= 1
