"""Each lever on a real thread, interrupt, session or cgroup; everything is put back, whatever fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.pin_victims import SLICE_NS, Crowd, cpuset_cgroup, cpuset_root, movable_irqs, thread_state

from quietcore.agent.pin.actuate import Report, apply, undo
from quietcore.agent.pin.host_levers import Cpuset, IrqAffinity
from quietcore.agent.pin.journal import Change, Journal
from quietcore.agent.pin.levers import GoneError, Outcome, RefusedError, put, restore
from quietcore.agent.pin.plan import Setting
from quietcore.agent.pin.things import Autogroup, CpusetDir, IrqLine, find_thread
from quietcore.agent.pin.thread_levers import Affinity, Nice, SessionNice, Slice, autogroup_of, default_slice
from quietcore.probes import proc
from quietcore.probes.topology import read_interrupts

pytestmark = pytest.mark.root

CPUS = sorted(os.sched_getaffinity(0))
ALL = set(CPUS)
TARGET = "crowd"

needs_two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")
needs_cpusets = pytest.mark.skipif(
    cpuset_root() is None, reason="needs a hierarchy with the cpuset controller"
)
needs_slices = pytest.mark.skipif(not default_slice(), reason="needs threads that choose their slice (6.12)")
needs_sessions = pytest.mark.skipif(not autogroup_of(os.getpid()), reason="needs scheduling by session")


def cpus_of(tid: int) -> set[int]:
    return os.sched_getaffinity(tid)


def outcomes(report: Report) -> list[Outcome]:
    return [step.outcome for step in report.steps]


@needs_two_cpus
def test_affinity_is_set_and_put_back(victim: Crowd) -> None:
    thread, lever = victim.thread(0), Affinity()
    old = lever.read(thread)
    assert str(old).endswith("+")  # nobody bound it
    put(lever, thread, str(CPUS[0]))
    assert cpus_of(thread.tid) == {CPUS[0]}
    assert lever.read(thread) == str(CPUS[0])
    assert restore(lever, thread, old, [str(CPUS[0])]) == (Outcome.RESTORED, "")
    assert cpus_of(thread.tid) == ALL
    assert lever.read(thread) == old


@needs_two_cpus
@needs_cpusets
def test_a_thread_that_was_put_back_follows_its_cpuset_again(victim: Crowd) -> None:
    lever = Affinity()
    with cpuset_cgroup() as group:
        (group / "cgroup.procs").write_text(str(victim.pid))
        thread = victim.thread(0)
        (group / "cpuset.cpus").write_text(f"{CPUS[1]}\n")
        old = lever.read(thread)
        assert old == f"{CPUS[1]}+"
        (group / "cpuset.cpus").write_text("{},{}\n".format(*CPUS[:2]))
        put(lever, thread, str(CPUS[0]))
        # what its cpuset allowed at first is not what it allows now: it never was a wish of the thread's
        assert restore(lever, thread, old, [str(CPUS[0])])[0] is Outcome.RESTORED
        assert cpus_of(thread.tid) == set(CPUS[:2])


@needs_two_cpus
def test_a_choice_of_the_threads_own_comes_back_exactly(victim: Crowd) -> None:
    thread, lever = victim.thread(0), Affinity()
    os.sched_setaffinity(thread.tid, {CPUS[1]})
    old = lever.read(thread)
    assert old == str(CPUS[1])
    put(lever, thread, str(CPUS[0]))
    restore(lever, thread, old, [str(CPUS[0])])
    assert cpus_of(thread.tid) == {CPUS[1]}


def test_nice(victim: Crowd) -> None:
    thread, lever = victim.thread(0), Nice()
    put(lever, thread, -5)
    assert os.getpriority(os.PRIO_PROCESS, thread.tid) == -5
    assert os.getpriority(os.PRIO_PROCESS, victim.tids[1]) == 0
    assert restore(lever, thread, 0, [-5])[0] is Outcome.RESTORED
    assert os.getpriority(os.PRIO_PROCESS, thread.tid) == 0


@needs_slices
def test_slice(victim: Crowd) -> None:
    thread, lever = victim.thread(0), Slice()
    os.setpriority(os.PRIO_PROCESS, thread.tid, 3)
    assert lever.read(thread) == 0
    put(lever, thread, SLICE_NS)
    assert lever.read(thread) == SLICE_NS
    assert os.getpriority(os.PRIO_PROCESS, thread.tid) == 3
    assert restore(lever, thread, 0, [SLICE_NS])[0] is Outcome.RESTORED
    state = thread_state(victim.pid, thread.tid)
    assert state is not None
    assert state[1:] == (3, default_slice())


@needs_slices
def test_a_realtime_thread_has_no_slice(victim: Crowd) -> None:
    thread = victim.thread(0)
    os.sched_setscheduler(thread.tid, os.SCHED_FIFO, os.sched_param(1))
    with pytest.raises(RefusedError, match=r"policy \(1\) has no slice"):
        Slice().read(thread)


@needs_sessions
def test_the_nice_of_a_session() -> None:
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        thing = Autogroup(autogroup_of(process.pid), process.pid)
        lever = SessionNice()
        if thing.group == autogroup_of(os.getpid()):
            pytest.skip("this kernel gives new sessions no group of their own")
        put(lever, thing, -3)
        assert Path(f"/proc/{process.pid}/autogroup").read_text().split()[-1] == "-3"
        # found by any member, if the one that was noted has ended
        assert lever.read(thing._replace(pid=1 << 22)) == -3
        assert restore(lever, thing, 0, [-3])[0] is Outcome.RESTORED
    finally:
        process.kill()
        process.wait()
    with pytest.raises(GoneError):
        lever.read(thing)


@needs_two_cpus
def test_an_interrupt_is_moved_and_put_back() -> None:
    irqs = movable_irqs(1)
    if not irqs:
        pytest.skip("no interrupt of this machine may be moved")
    number, name = irqs[0].number, irqs[0].name
    path, thing, lever = Path(f"/proc/irq/{number}/smp_affinity_list"), IrqLine(number, name), IrqAffinity()
    before = path.read_text()
    try:
        old = lever.read(thing)
        elsewhere = next(str(cpu) for cpu in CPUS if str(cpu) != old)
        put(lever, thing, elsewhere)
        assert path.read_text().strip() == elsewhere
        assert restore(lever, thing, old, [elsewhere])[0] is Outcome.RESTORED
        assert path.read_text() == before
    finally:
        path.write_text(before)
    with pytest.raises(GoneError):
        lever.read(IrqLine(number, "another device"))


def test_a_managed_interrupt_is_refused() -> None:
    managed = [irq for irq in read_interrupts().values() if irq.managed and irq.name]
    if not managed:
        pytest.skip("this machine has no managed interrupt")
    thing = IrqLine(managed[0].number, managed[0].name)
    with pytest.raises(RefusedError, match="managed: the kernel itself places it"):
        put(IrqAffinity(), thing, str(CPUS[0]))


def test_a_kernel_thread_that_may_not_move_is_refused(journal: Journal) -> None:
    pid = next((pid for pid in proc.process_ids() if proc.comm(pid).startswith("ksoftirqd/")), None)
    if pid is None:
        pytest.skip("no kernel threads in this pid namespace")
    thread = find_thread(pid, pid)
    assert thread is not None
    before = os.sched_getaffinity(pid)
    (cpu,) = before
    other = next((n for n in CPUS if n != cpu), None)
    if other is None:
        pytest.skip("needs two CPUs")
    with pytest.raises(RefusedError):
        put(Affinity(), thread, str(other))
    assert os.sched_getaffinity(pid) == before
    # and by way of a plan it would not even be tried: the CPU is outside of what it may use
    report = apply(journal, [Setting("affinity", thread, str(other))], TARGET)
    assert outcomes(report) == [Outcome.REFUSED]


@needs_two_cpus
@needs_cpusets
def test_a_cpuset_is_narrowed_and_put_back(victim: Crowd, journal: Journal) -> None:
    with cpuset_cgroup() as group:
        (group / "cgroup.procs").write_text(str(victim.pid))
        before = (group / "cpuset.cpus").read_text()
        os.sched_setaffinity(victim.tids[1], {CPUS[1]})
        thing = CpusetDir(str(group), group.stat().st_ino)
        report = apply(journal, [Setting("cpuset", thing, str(CPUS[0]))], TARGET)
        assert outcomes(report) == [Outcome.SET]
        assert cpus_of(victim.tids[0]) == {CPUS[0]}
        undo(journal)
        assert (group / "cpuset.cpus").read_text() == before
        assert cpus_of(victim.tids[0]) == ALL
        assert cpus_of(victim.tids[1]) == {CPUS[1]}
    with pytest.raises(GoneError):
        put(Cpuset(), thing, str(CPUS[0]))


def test_a_thread_that_ended_is_gone(victim: Crowd, journal: Journal) -> None:
    thread = victim.thread_of(victim.tell("spawn 0"))
    apply(journal, [Setting("nice", thread, -5)], TARGET)
    victim.tell("end")
    assert outcomes(undo(journal)) == [Outcome.GONE]
    assert not journal.entries


@pytest.mark.parametrize("field", ["started", "thread_started"])
def test_a_number_that_is_anothers_by_now_is_not_touched(victim: Crowd, journal: Journal, field: str) -> None:
    thread = victim.thread(0)
    before = thread_state(victim.pid, thread.tid)
    former = thread._replace(**{field: getattr(thread, field) - 1})
    assert outcomes(apply(journal, [Setting("nice", former, -5)], TARGET)) == [Outcome.GONE]
    journal.record([Change("nice", former, 7, -9)], TARGET)
    assert outcomes(undo(journal)) == [Outcome.GONE]
    assert thread_state(victim.pid, thread.tid) == before
