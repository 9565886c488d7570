"""Who is named in a verdict, and how: many small processes stand together."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.factories import MS, SECOND, make_account

from quietcore.agent.attribution import Account, Culprit
from quietcore.agent.culprits import named, ranked
from quietcore.agent.verdict import Verdict, culprit_name, judge
from quietcore.probes import cgroups

ROOT, OURS, NGINX = 1, 20, 30
PATHS = {ROOT: "/", OURS: "/docker/engine", NGINX: "/system.slice/nginx.service"}


@pytest.fixture(autouse=True)
def known_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "path_of", PATHS.get)


def make_process(pid: int, comm: str, ms: int, cgroup: int = 0, kind: str = "process") -> Culprit:
    return Culprit(kind, comm, ms * MS, pid, cgroup, {(pid, comm): ms * MS})


def make_whole(*culprits: Culprit) -> Account:
    taken = sum(culprit.ns for culprit in culprits)
    return replace(
        make_account(wall=10 * SECOND, run_delay=taken, culprits=culprits), own_cgroups=frozenset({OURS})
    )


def names(whole: Account) -> list[str]:
    return [culprit_name(culprit) for culprit in named(whole)]


def test_a_dozen_of_one_kind_are_named_together() -> None:
    whole = make_whole(*(make_process(pid, "stress-ng-cpu", 400) for pid in range(100, 112)))
    (group,) = ranked(whole)
    assert (group.ns, group.count, group.pid) == (4800 * MS, 12, 0)
    assert len(group.threads) == 12
    found: Verdict = judge(whole, [whole] * 10)
    assert str(found).endswith("by stress-ng-cpu x12")


def test_short_lived_processes_are_named_by_what_they_are() -> None:
    compilers = [make_process(100 + i, "cc1", 20) for i in range(40)]
    assemblers = [make_process(200 + i, "as", 5) for i in range(40)]
    assert names(make_whole(*compilers, *assemblers)) == ["cc1 x40", "as x40"]


def test_a_cgroup_stands_for_its_processes() -> None:
    mixed = [make_process(100 + i, f"worker{i}", 50, NGINX) for i in range(20)]
    assert names(make_whole(*mixed)) == ["nginx.service (20 processes)"]


def test_of_one_kind_in_one_cgroup_both_are_kept() -> None:
    (group,) = ranked(make_whole(*(make_process(100 + i, "nginx", 50, NGINX) for i in range(20))))
    assert (culprit_name(group), group.cgroup) == ("nginx x20", NGINX)


@pytest.mark.parametrize("cgroup", [0, ROOT, OURS, 999])
def test_the_root_and_its_own_cgroup_say_nothing(cgroup: int) -> None:
    processes = [make_process(100 + i, ("cc1", "as")[i % 2], 50, cgroup) for i in range(24)]
    assert names(make_whole(*processes)) == ["cc1 x12", "as x12"]


def test_kernel_threads_of_a_kind_stand_together() -> None:
    workers = [make_process(10 + i, f"kworker/{i}:0-events", 50, ROOT, "kernel thread") for i in range(20)]
    assert names(make_whole(*workers)) == ["kworker x20"]


def test_processes_that_ended_before_they_were_known() -> None:
    assert names(make_whole(*(make_process(100 + i, "?", 50) for i in range(20)))) == ["ended process x20"]


def test_who_took_a_tenth_stands_for_itself() -> None:
    small = [make_process(100 + i, "cc1", 20) for i in range(20)]
    whole = make_whole(make_process(50, "cc1", 600), make_process(51, "backup", 1000), *small)
    assert names(whole) == ["backup [51]", "cc1 [50]", "cc1 x20"]
    assert [c.ns for c in ranked(whole)] == [1000 * MS, 600 * MS, 400 * MS]


def test_at_most_three_are_named_and_minor_ones_are_not() -> None:
    many = [make_process(50 + i, f"thief{i}", 200) for i in range(4)]
    assert len(names(make_whole(*many))) == 3
    assert names(make_whole(make_process(50, "thief", 1000), make_process(51, "cron", 50))) == ["thief [50]"]


def test_where_nobody_took_a_tenth_the_largest_are_named() -> None:
    strangers = [make_process(50 + i, f"stranger{i}", 50 + i) for i in range(20)]
    assert names(make_whole(*strangers)) == ["stranger19 [69]", "stranger18 [68]", "stranger17 [67]"]
