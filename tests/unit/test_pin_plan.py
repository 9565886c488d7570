"""Which plans are made, in which order, on machines of every kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.machines import hybrid, plant, two_sockets, with_offline

from quietcore.agent.pin.owners import PLACING, Owner
from quietcore.agent.pin.plan import (
    LONG_SLICE_NS,
    NICE,
    SHORT_SLICE_NS,
    Plan,
    Setting,
    candidates,
    place,
    propose,
)
from quietcore.agent.pin.situation import CpusetFacts, Offender, Situation, ThreadFacts
from quietcore.agent.pin.things import Autogroup, Balancer, CpusetDir, IrqLine, Thread
from quietcore.probes.topology import Cpu, Irq, Topology, read_topology


def small(cpus: int = 2) -> Topology:
    """So many cores without SMT."""
    online = frozenset(range(cpus))
    listed = {cpu: Cpu(cpu, frozenset({cpu}), online, 0, False) for cpu in range(cpus)}
    return Topology(listed, online, frozenset(), frozenset(), {0: online})


def facts(tid: int = 10, cpu: int = 1, allowed: Iterable[int] = (0, 1), **more: bool | int) -> ThreadFacts:
    thread = Thread(1, 100, tid, 100 + tid)
    return ThreadFacts(thread, "launch", frozenset(allowed), cpu, **more)  # type: ignore[arg-type]


def situation(topology: Topology | None = None, *threads: ThreadFacts, **more: object) -> Situation:
    made = Situation("server [1]", threads or (facts(),), topology or small(), {}, {}, {})
    return replace(made, **more)  # type: ignore[arg-type]


def names(s: Situation) -> list[str]:
    return [plan.name for plan in candidates(s)]


def plan_of(s: Situation, name: str) -> Plan:
    return next(plan for plan in candidates(s) if plan.name == name)


@pytest.fixture
def sockets(tmp_path: Path) -> Topology:
    return read_topology(plant(tmp_path, two_sockets()))


def test_an_offender_on_one_core_and_the_other_free() -> None:
    s = situation(others={1: 0.5, 0: 0.02}, culprit_cpus=frozenset({1}))
    first = next(candidates(s))
    assert first.name == "affinity"
    assert first.settings == (Setting("affinity", facts().thread, "0"),)
    assert first.cpus == {0}


def test_the_gentlest_comes_first() -> None:
    s = situation(
        small(4),
        facts(allowed=range(4)),
        others={1: 0.9},
        culprit_cpus=frozenset({1}),
        irqs={9: irq(9, {0})},
        irq_rates={9: 5000.0},
        slices=True,
        cpuset=CpusetFacts(CpusetDir("/c", 1), frozenset(range(4))),
        offenders=(Offender("stress [7]", (facts(7, 1, (1, 2)),)),),
    )
    assert names(s) == [
        "affinity",
        "nice",
        "affinity+nice",
        "affinity+nice+slice",
        "cpuset",
        "affinity+offenders",
    ]
    # CPU 0 takes interrupts: 2 is quieter still
    assert plan_of(s, "affinity").cpus == {2}


def irq(number: int, effective: set[int], affinity: Iterable[int] = (0, 1), managed: bool = False) -> Irq:
    return Irq(number, f"dev{number}", {}, frozenset(affinity), frozenset(effective), managed)


def test_never_outside_of_the_allowed_mask(sockets: Topology) -> None:
    s = situation(sockets, facts(cpu=3, allowed={3, 4}), others={3: 0.8}, culprit_cpus=frozenset({3}))
    assert plan_of(s, "affinity").cpus == {4}
    for plan in candidates(s):
        for setting in plan.settings:
            if setting.lever == "affinity":
                assert str(setting.value) in ("3", "4")


def test_a_single_allowed_cpu_leaves_no_place() -> None:
    s = situation(None, facts(allowed={1}), others={1: 0.9}, culprit_cpus=frozenset({1}))
    assert place(s) is None
    assert not any("affinity" in name for name in names(s))
    assert "nice" in names(s)


def test_siblings_of_busy_cpus_are_avoided(sockets: Topology) -> None:
    # 17 is the sibling of 1, where the offender spins; 2 is the next whole core
    s = situation(sockets, facts(cpu=1, allowed={1, 17, 2}), others={1: 0.9}, culprit_cpus=frozenset({1}))
    assert plan_of(s, "affinity").cpus == {2}
    # nothing else is allowed: better than the offender's own CPU
    s = situation(sockets, facts(cpu=1, allowed={1, 17}), others={1: 0.9}, culprit_cpus=frozenset({1}))
    assert plan_of(s, "affinity").cpus == {17}


def test_two_critical_threads_do_not_share_a_core(sockets: Topology) -> None:
    threads = (facts(10, 1, {1, 2, 18, 3}), facts(11, 1, {1, 2, 18, 3}))
    s = situation(sockets, *threads, others={1: 0.9}, culprit_cpus=frozenset({1}))
    spread = place(s)
    assert spread is not None
    assert sorted(map(sorted, spread.values())) == [[2], [3]]


def test_too_few_quiet_cpus_are_shared(sockets: Topology) -> None:
    threads = tuple(facts(tid, 1, {1, 2, 3}) for tid in (10, 11, 12))
    s = situation(sockets, *threads, others={1: 0.9}, culprit_cpus=frozenset({1}))
    spread = place(s)
    assert spread is not None
    assert set(spread.values()) == {frozenset({2, 3})}


def test_near_the_gpu_then_node_then_cache(tmp_path: Path) -> None:
    tree = {name: text for name, text in two_sockets().items() if "0000:17" not in name}
    near_node_1 = read_topology(plant(tmp_path / "gpu", tree))
    busy = {cpu: 0.9 for cpu in (0, 8)}
    s = situation(near_node_1, facts(cpu=0, allowed={0, 1, 9}), others=busy, culprit_cpus=frozenset({0}))
    assert plan_of(s, "affinity").cpus == {9}
    both = read_topology(plant(tmp_path / "both", two_sockets()))
    s = situation(both, facts(cpu=0, allowed={0, 5, 9}), others=busy, culprit_cpus=frozenset({0}))
    assert plan_of(s, "affinity").cpus == {5}  # the same node
    s = situation(both, facts(cpu=0, allowed={0, 3, 5}), others=busy, culprit_cpus=frozenset({0}))
    assert plan_of(s, "affinity").cpus == {3}  # the same cache


def test_large_cores_before_small_ones(tmp_path: Path) -> None:
    topology = read_topology(plant(tmp_path, hybrid()))
    s = situation(topology, facts(cpu=0, allowed=range(8)), others={0: 0.9}, culprit_cpus=frozenset({0}))
    assert plan_of(s, "affinity").cpus <= {2, 3}


def test_isolated_and_avoided_and_offline_cpus_are_not_chosen(tmp_path: Path) -> None:
    topology = read_topology(plant(tmp_path, with_offline()))  # 1 is offline, 3 isolated
    s = situation(topology, facts(cpu=0, allowed=range(4)), others={0: 0.9}, culprit_cpus=frozenset({0}))
    assert plan_of(s, "affinity").cpus == {2}
    assert place(replace(s, avoid=frozenset({2}))) is None


def test_nothing_changes_where_it_is_quiet_already() -> None:
    s = situation(None, facts(cpu=0, allowed={0}), others={1: 0.9}, culprit_cpus=frozenset({1}))
    assert place(s) is None


def test_no_critical_thread_no_plan() -> None:
    assert not list(candidates(replace(situation(), threads=())))


def test_interrupts_leave_the_chosen_cpu() -> None:
    s = situation(
        others={1: 0.6},
        culprit_cpus=frozenset({1}),
        irqs={8: irq(8, {0}), 9: irq(9, {0}, {0}), 10: irq(10, {0}, managed=True), 11: irq(11, {0})},
        irq_rates={8: 500.0, 9: 900.0, 10: 9e4, 11: 3.0},
    )
    plan = plan_of(s, "affinity+irq")
    moved = {setting.thing: setting.value for setting in plan.settings if setting.lever == "irq"}
    # 8 keeps what remains of its mask, 9 has to go somewhere else; 11 is too seldom to matter
    assert moved == {IrqLine(8, "dev8"): "1", IrqLine(9, "dev9"): "1"}
    assert "managed, cannot be moved: 10 (dev10)" in plan.why


def test_interrupts_alone_where_the_thread_cannot_move() -> None:
    s = situation(
        None,
        facts(cpu=1, allowed={1}),
        culprit_cpus=frozenset({1}),
        irqs={8: irq(8, {1})},
        irq_rates={8: 500.0},
        nice_counts=False,
    )
    assert names(s) == ["irq"]


def test_an_irq_goes_to_a_near_and_idle_cpu(sockets: Topology) -> None:
    s = situation(
        sockets,
        facts(cpu=9, allowed={9}),
        others={cpu: 0.5 for cpu in (8, 10, 11)},
        irqs={8: irq(8, {9}, {9})},
        irq_rates={8: 500.0},
    )
    assert plan_of(s, "irq").settings[0].value == "12"


def test_irqbalance_is_told_before_an_interrupt_is_moved() -> None:
    balancer = Balancer(77, 5)
    s = situation(
        None,
        facts(cpu=1, allowed={1}),
        irqs={8: irq(8, {1})},
        irq_rates={8: 500.0},
        balancer=balancer,
        banned="3",
    )
    plan = plan_of(s, "irq")
    assert plan.settings[0] == Setting("irqbalance", balancer, "3 8")
    assert plan.settings[1].lever == "irq"


def test_both_cores_loaded() -> None:
    s = situation(others={0: 0.95, 1: 0.9}, culprit_cpus=frozenset({0, 1}), slices=True)
    assert names(s) == ["nice", "affinity+nice", "affinity+nice+slice"]
    assert plan_of(s, "nice").nice == NICE
    assert plan_of(s, "affinity+nice").cpus == {1}  # about as busy, and its cache is warm
    assert plan_of(s, "affinity+nice+slice").slice_ns == LONG_SLICE_NS


def test_a_thread_that_sleeps_gets_a_short_slice() -> None:
    s = situation(None, facts(pushed=False), others={0: 0.9, 1: 0.9}, slices=True)
    assert plan_of(s, "affinity+nice+slice").slice_ns == SHORT_SLICE_NS


def test_weights_that_do_not_count_are_not_tried() -> None:
    s = situation(others={0: 0.9, 1: 0.9}, nice_counts=False)
    assert not any("nice" in name for name in names(s))
    session = Autogroup("/autogroup-7", 1)
    plan = plan_of(replace(s, session=session), "nice")
    assert Setting("session-nice", session, NICE) in plan.settings


def test_realtime_threads_keep_their_weight() -> None:
    s = situation(None, facts(fair=False), others={0: 0.9, 1: 0.9}, slices=True)
    assert not any("nice" in name or "slice" in name for name in names(s))


def test_what_is_nice_enough_stays() -> None:
    s = situation(None, facts(nice=-15), others={0: 0.9, 1: 0.9})
    assert not any("nice" in name for name in names(s))


def test_the_cpuset_loses_loud_cpus() -> None:
    thing = CpusetDir("/sys/fs/cgroup/cpuset/x", 5)
    s = situation(
        small(4),
        facts(allowed=range(4)),
        others={1: 0.9, 2: 0.4},
        culprit_cpus=frozenset({1}),
        cpuset=CpusetFacts(thing, frozenset(range(4))),
    )
    assert plan_of(s, "cpuset").settings == (Setting("cpuset", thing, "0,3"),)
    loud = replace(s, others=dict.fromkeys(range(4), 0.9))
    assert "cpuset" not in names(loud)


def test_offenders_leave_the_chosen_cpus() -> None:
    stress = Offender("stress [7]", (facts(7, 1, {0, 1}), facts(8, 1, {1})))
    s = situation(others={1: 0.9}, culprit_cpus=frozenset({1}), offenders=(stress,))
    plan = plan_of(s, "affinity+offenders")
    assert Setting("affinity", stress.threads[0].thread, "1") in plan.settings
    assert "stress [7] away from CPUs 0" in plan.why
    # who may be nowhere else stays
    stuck = Offender("stuck [8]", (facts(8, 0, {0}),))
    assert "affinity+offenders" not in names(replace(s, offenders=(stuck,)))


def test_an_offender_in_a_cpuset_of_its_own_is_moved_as_a_whole() -> None:
    thing = CpusetDir("/c", 9)
    stress = Offender("stress [7]", (facts(7),), CpusetFacts(thing, frozenset({0, 1})))
    s = situation(others={1: 0.9}, culprit_cpus=frozenset({1}), offenders=(stress,))
    assert Setting("cpuset", thing, "1") in plan_of(s, "affinity+offenders").settings


def test_what_others_own_is_shown_but_not_tried() -> None:
    owner = Owner("kubelet", PLACING, "kubelet places it", "")
    s = situation(others={1: 0.6}, culprit_cpus=frozenset({1}), owners=(owner,))
    proposal = propose(s)
    assert [plan.name for plan in proposal.plans] == ["nice"]
    assert [plan.name for plan in proposal.blocked] == ["affinity", "affinity+nice"]
    assert proposal.owners == (owner,)


def test_a_later_critical_thread_gets_the_same() -> None:
    s = situation(others={1: 0.6}, culprit_cpus=frozenset({1}))
    thread = Thread(1, 100, 99, 500)
    plan = plan_of(s, "affinity+nice")
    assert plan.settings_for(thread) == [Setting("affinity", thread, "0"), Setting("nice", thread, NICE)]
