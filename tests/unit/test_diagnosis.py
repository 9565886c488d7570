"""A diagnosis of scripted readings: what of the whole session reaches which target."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.factories import MS, SECOND, SilentBackend, make_launcher, make_snapshot, make_totals

from quietcore.agent import targets
from quietcore.agent.diagnosis import diagnose
from quietcore.agent.session import Session
from quietcore.agent.verdict import Outcome
from quietcore.probes import cgroups
from quietcore.probes.cgroups import ThrottleStats
from quietcore.probes.readings import BlameTotals, Snapshot


@pytest.fixture
def pids() -> Iterator[list[int]]:
    """Two processes to be targets; what they do is scripted."""
    sleepers = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    yield [sleeper.pid for sleeper in sleepers]
    for sleeper in sleepers:
        sleeper.kill()
        sleeper.wait()


class ThrottledBackend(SilentBackend):
    """Each snapshot is a second after the one before; quotas deny the processes so much of each."""

    def __init__(self, denied: dict[int, int]) -> None:
        self.denied = denied
        self.seconds = itertools.count()

    def snapshot(self) -> Snapshot:
        now = next(self.seconds)
        threads = [
            make_totals(pid, now * SECOND, on_cpu=now * 500 * MS, throttled=now * ns)
            for pid, ns in self.denied.items()
        ]
        return make_snapshot(now * SECOND, threads, blames={}, launchers=[])


def test_each_target_has_its_own_quota(pids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    home = {pids[0]: Path("/top/greedy"), pids[1]: Path("/top/modest")}
    ticks = itertools.count()

    def throttle_stats(directory: str) -> ThrottleStats:
        per_read = {"/top": 0, "/top/greedy": 400 * MS, "/top/modest": 150 * MS}[directory]
        return ThrottleStats(1, 1, next(ticks) * per_read)

    monkeypatch.setattr(cgroups, "cpu_cgroup", home.get)
    monkeypatch.setattr(cgroups, "with_ancestors", lambda directory: iter((directory, directory.parent)))
    monkeypatch.setattr(cgroups, "throttle_stats", throttle_stats)
    backend = ThrottledBackend({pids[0]: 400 * MS, pids[1]: 150 * MS})
    both = [targets.by_pid(pid) for pid in pids]
    with Session(backend, both, None) as session:
        session.start()
        found = diagnose(session, 1)
    assert [d.verdict.outcome for d in found] == [Outcome.INTERFERENCE] * 2
    assert [d.verdict.culprits[0].name for d in found] == ["/top/greedy", "/top/modest"]
    assert [set(d.whole.quotas) for d in found] == [{"/top/greedy"}, {"/top/modest"}]


class RanksBackend(SilentBackend):
    """Eight launching threads of one process, of which a thief disturbs the last."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.seconds = itertools.count()

    def snapshot(self) -> Snapshot:
        now = next(self.seconds)
        tids = [self.pid, *range(5_000_001, 5_000_008)]
        threads = [
            make_totals(tid, now * SECOND, tgid=self.pid, on_cpu=now * 800 * MS, preempted=now * taken)
            for tid, taken in zip(tids, [0] * 7 + [120 * MS], strict=True)
        ]
        blames = {(tids[-1], 5_000_099): BlameTotals(now * 120 * MS, now, 5_000_099, "thief", 0)}
        launchers = [make_launcher(tid, self.pid, {"cuLaunchKernel": now * 1000}) for tid in tids]
        return make_snapshot(now * SECOND, threads, blames=blames, launchers=launchers)


def test_one_disturbed_rank_of_eight_is_interference(pids: list[int]) -> None:
    with Session(RanksBackend(pids[0]), [targets.by_pid(pids[0])], None) as session:
        session.start()
        (found,) = diagnose(session, 1)
    assert found.whole.share(found.whole.interference) == pytest.approx(0.015)
    assert found.verdict.outcome is Outcome.INTERFERENCE
    assert found.verdict.worst is not None
    assert found.verdict.worst.tid == 5_000_007
    assert found.verdict.worst.share == pytest.approx(0.12)
    assert found.verdict.culprits[0].name == "thief"
