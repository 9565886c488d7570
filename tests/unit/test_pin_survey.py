"""Whose weight counts against whom, by cgroup and session; who is where."""

from __future__ import annotations

from pathlib import Path

import pytest

from quietcore.agent.attribution import Culprit
from quietcore.agent.pin import survey as module
from quietcore.agent.pin.survey import weights
from quietcore.agent.pin.things import Autogroup
from quietcore.probes import cgroups, proc
from quietcore.probes.topology import Irq

OURS, PARENT, NEIGHBOUR, FAR = 10, 5, 20, 30


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[str, str]]:
    """Cgroup and session of each process; sessions are weighed in the root cgroup, "/"."""
    places = {OURS: ("/", "s1"), NEIGHBOUR: ("/", "s1"), FAR: ("/", "s2")}

    def cgroup(pid: int) -> Path:
        return Path("/sys/fs/cgroup", places[pid][0].lstrip("/"))

    monkeypatch.setattr(cgroups, "cpu_cgroup", cgroup)
    monkeypatch.setattr(module, "autogroup_of", lambda pid: places.get(pid, ("", ""))[1])
    monkeypatch.setattr(module, "_has_autogroups", lambda pids: all(places[pid][0] == "/" for pid in pids))
    monkeypatch.setattr(module, "is_kernel_thread", lambda pid: pid == 2)
    monkeypatch.setattr(proc, "process_ids", lambda: [1, PARENT, *places])
    parents = {OURS: PARENT, PARENT: 1}

    def stat(pid: int, tid: int | None = None) -> proc.TaskStat | None:
        return (
            proc.TaskStat(pid, "x", "S", parents.get(pid, 0), 1, 0) if pid in (1, PARENT, *places) else None
        )

    monkeypatch.setattr(proc, "read_stat", stat)
    return places


def test_within_a_session_nice_counts(host: object) -> None:
    assert weights([OURS], [NEIGHBOUR]) == (True, None)


def test_kernel_threads_do_not_decide(host: object) -> None:
    assert weights([OURS], [2]) == (True, None)


def test_against_another_session_its_own_nice_counts(host: dict[int, tuple[str, str]]) -> None:
    # a stranger shares it: weighing it as a whole would help him, too
    assert weights([OURS], [FAR]) == (False, None)
    host[NEIGHBOUR] = ("/", "s3")
    host[PARENT] = ("/", "s1")  # who started it may be in it
    assert weights([OURS], [FAR]) == (False, Autogroup("s1", OURS))


def test_culprits_within_and_without(host: dict[int, tuple[str, str]]) -> None:
    host[40] = ("/", "s1")
    assert weights([OURS, NEIGHBOUR, 40], [40, FAR]) == (True, Autogroup("s1", OURS))


def test_against_another_cgroup_nothing_counts(host: dict[int, tuple[str, str]]) -> None:
    host[FAR] = ("/pod", "")
    assert weights([OURS], [FAR]) == (False, None)


def test_within_a_cgroup_sessions_do_not_matter(host: dict[int, tuple[str, str]]) -> None:
    host[OURS], host[FAR] = ("/pod", "s1"), ("/pod", "s2")
    assert weights([OURS], [FAR]) == (True, None)


def test_where_culprits_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "read_stat", lambda tid: proc.TaskStat(tid, "x", "R", 1, 1, 0, cpu=tid % 4))
    irqs = {36: Irq(36, "eth0", {}, frozenset({0, 1}), frozenset({1}), managed=False)}
    cpus = module._cpus_of
    assert cpus(Culprit("process", "x", 1, 9, 0, {(9, "x"): 1, (10, "x"): 1}), irqs) == {1, 2}
    assert cpus(Culprit("irq", "36 eth0", 1), irqs) == {1}
    assert cpus(Culprit("irq", "37 gone", 1), irqs) == frozenset()
    assert cpus(Culprit("softirq", "NET_RX", 1), irqs) == frozenset()


def test_small_culprits_do_not_say_where_not_to_be() -> None:
    large, small = Culprit("process", "a", 95), Culprit("process", "b", 5)
    assert module._major([large, small]) == [large]
    assert module._major([]) == []
