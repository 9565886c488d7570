"""When probes are on and off, and what counts as seen: with a clock and a backend made here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.unit.probe_backend import FakeBackend

from quietcore.probes import governor as module
from quietcore.probes.errors import MeasureError
from quietcore.probes.governor import MAX_OFF_S, MIN_ON_S, Governor, Site, Stretch

S = 1_000_000_000


class Clock:
    """Stands still but for ``passed`` seconds."""

    def __init__(self) -> None:
        self.ns = 100 * S

    def monotonic(self) -> float:
        return self.ns / S

    def monotonic_ns(self) -> int:
        return self.ns

    def passed(self, seconds: float) -> None:
        self.ns += round(seconds * S)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


def site(path: str = "a", pid: int = 7) -> Site:
    return Site(f"server [{pid}]", pid, path, [])


def until_off(governor: Governor, backend: FakeBackend, clock: Clock, pid: int = 7) -> None:
    """The end of a stretch in which one target paid a tenth of a core."""
    while backend.attached:
        wait = max(governor.deadline - clock.monotonic(), 0)
        clock.passed(wait)
        backend.hits[pid] = backend.hits.get(pid, 0) + round(wait * 0.1 * S / governor.cost_ns)
        governor.tick()


def test_without_a_budget_probes_stay_on(backend: FakeBackend, clock: Clock) -> None:
    governor = Governor(backend, None)
    assert not governor.active
    assert governor.deadline == float("inf")
    governor.add(site())
    governor.add(site())
    start = clock.ns
    for _ in range(10):
        clock.passed(1)
        governor.tick()
    assert backend.attempts == [(7, "a")]
    assert (governor.active, backend.counting) == (True, True)
    assert governor.seen_ns(start, clock.ns) == 10 * S
    governor.close()
    assert (backend.attached, backend.counting) == ([], False)
    assert governor.stretches == [Stretch(start, start + 10 * S)]


def test_the_budget_is_earned_before_the_next_stretch(backend: FakeBackend, clock: Clock) -> None:
    governor = Governor(backend, 0.005)
    start = clock.ns
    governor.add(site())
    until_off(governor, backend, clock)
    assert (backend.places, backend.counting) == ([], False)
    seen = governor.seen_ns(start, clock.ns)
    assert seen == clock.ns - start == governor.stretches[0].ns
    assert seen >= MIN_ON_S * S
    pause = governor.deadline - clock.monotonic()
    assert 0 < pause <= MAX_OFF_S * 1.2
    clock.passed(pause / 2)
    governor.tick()
    assert backend.attached == []
    clock.passed(pause / 2 + 0.001)
    governor.tick()
    assert (backend.places, backend.counting) == ([(7, "a")], True)
    # what is paid by the end of the second stretch fits the budget, but for the jitter of the pause
    until_off(governor, backend, clock)
    assert governor.overhead() < 0.005 * 1.3


def test_what_is_refused_is_not_counted_as_seen(backend: FakeBackend, clock: Clock) -> None:
    """The kernel may refuse the very programs: nothing is switched on, and no stretch opened."""
    governor, start = Governor(backend, None), clock.ns
    backend.refused.add("a")
    with pytest.raises(MeasureError, match="no such mapping"):
        governor.add(site())
    clock.passed(5)
    governor.tick()
    assert (governor.active, governor.seen_ns(start, clock.ns)) == (False, 0)
    governor.close()
    assert governor.stretches == []
    assert backend.attempts == [(7, "a")]
    assert governor.take_lost() == []


def test_a_refusal_leaves_the_others_on(backend: FakeBackend, clock: Clock) -> None:
    governor = Governor(backend, None)
    governor.add(site())
    backend.refused.add("b")
    backend.counting = False  # a calibration has come to its end
    with pytest.raises(MeasureError):
        governor.add(site("b"))
    assert (backend.places, backend.counting) == ([(7, "a")], True)


def test_probes_that_cannot_be_set_again_are_told(backend: FakeBackend, clock: Clock) -> None:
    """The target executed itself anew, or closed its library: the mapping that was the path is gone."""
    governor = Governor(backend, 0.005)
    governor.add(site())
    until_off(governor, backend, clock)
    backend.refused.add("a")
    off = clock.ns
    clock.passed(governor.deadline - clock.monotonic() + 0.001)
    governor.tick()
    assert not backend.counting
    assert governor.seen_ns(off, clock.ns) == 0
    assert governor.deadline == float("inf")
    assert [(lost.path, str(error)) for lost, error in governor.take_lost()] == [
        ("a", "libbpf: attach failed: no such mapping")
    ]
    assert governor.take_lost() == []
    # found at its new place
    governor.add(site("a2"))
    assert (backend.places, backend.counting) == ([(7, "a2")], True)


def test_another_file_in_the_place_of_the_library(backend: FakeBackend, clock: Clock, tmp_path: Path) -> None:
    """Offsets are of one file: in another one, a trap could fall between instructions."""
    library, other = tmp_path / "library", tmp_path / "other"
    library.touch()
    other.touch()
    governor = Governor(backend, 0.005)
    governor.add(site(str(library)))
    until_off(governor, backend, clock)
    os.replace(other, library)
    clock.passed(governor.deadline - clock.monotonic() + 0.001)
    governor.tick()
    assert backend.attempts == [(7, str(library))]
    ((lost, error),) = governor.take_lost()
    assert (lost.path, str(error)) == (str(library), f"another file is now at {library}")
    # looked up again, it is probed by its own offsets
    governor.add(site(str(library)))
    assert backend.places == [(7, str(library))]


def test_one_of_two_is_lost(backend: FakeBackend, clock: Clock) -> None:
    governor = Governor(backend, 0.005)
    governor.add(site())
    governor.add(site("b"))
    until_off(governor, backend, clock)
    backend.refused.add("a")
    clock.passed(governor.deadline - clock.monotonic() + 0.001)
    governor.tick()
    assert (backend.places, backend.counting) == ([(7, "b")], True)
    assert [lost.path for lost, _ in governor.take_lost()] == ["a"]


def test_the_last_process_ends_the_stretch(backend: FakeBackend, clock: Clock) -> None:
    governor, start = Governor(backend, None), clock.ns
    governor.add(site())
    governor.add(site("a", pid=8))
    clock.passed(1)
    governor.remove(7)
    assert (backend.places, backend.counting) == ([(8, "a")], True)
    clock.passed(1)
    governor.remove(8)
    clock.passed(1)
    assert not backend.counting
    assert governor.seen_ns(start, clock.ns) == 2 * S


def test_processes_that_come_and_go_buy_no_stretch_each(backend: FakeBackend, clock: Clock) -> None:
    """What one that ended has paid counts, and the next one's probes wait until it is earned."""
    governor = Governor(backend, 0.005)
    start = clock.ns
    for pid in range(10, 60):
        governor.add(Site("server [7]", pid, "a", []))
        for _ in range(10):
            clock.passed(0.02)
            if backend.attached:  # a fifth of a core
                backend.hits[pid] = backend.hits.get(pid, 0) + round(0.02 * 0.2 * S / governor.cost_ns)
            if clock.monotonic() >= governor.deadline:
                governor.tick()
        governor.remove(pid)
    assert 0.001 < governor.overhead() < 0.008
    assert 0 < governor.seen_ns(start, clock.ns) < 0.05 * (clock.ns - start)
