"""The backend without root against live processes, with /proc itself as the witness."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quietcore.probes import proc, procfs
from quietcore.probes.backend import Backend, open_backend
from quietcore.probes.cgroups import CpuCgroups, cgroup_id
from quietcore.probes.errors import BackendUnavailableError, MeasureError, TargetGoneError
from quietcore.probes.procfs import ProcfsBackend
from quietcore.probes.readings import Snapshot, ThreadTotals, Window

MS = 1_000_000
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

SERVANT = Path(__file__).parents[1] / "fixtures" / "servant.py"


class Servant:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", SERVANT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid
        self._answer()

    def do(self, command: str) -> int:
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def end(self) -> None:
        """Leaves a zombie."""
        self.process.kill()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)


@pytest.fixture
def new_servant() -> Iterator[Callable[[], Servant]]:
    servants: list[Servant] = []

    def make() -> Servant:
        servants.append(Servant())
        return servants[-1]

    yield make
    for servant in servants:
        for child in proc.children(servant.pid):
            os.kill(child, 9)
        servant.process.kill()
        servant.process.communicate()


@pytest.fixture
def servant(new_servant: Callable[[], Servant]) -> Servant:
    return new_servant()


@pytest.fixture
def backend() -> Iterator[ProcfsBackend]:
    backend = ProcfsBackend()
    backend.start()
    yield backend
    backend.close()


def account(pid: int, tid: int | None = None) -> proc.SchedStat:
    found = proc.read_schedstat(pid, tid or pid)
    assert found
    return found


def wait_until_gone(pid: int, tid: int) -> None:
    """Python's join returns before the kernel's thread has ended."""
    while Path(f"/proc/{pid}/task/{tid}").exists():
        time.sleep(0.001)


def only(snapshot: Snapshot, tid: int) -> ThreadTotals:
    return snapshot.threads[tid]


def test_a_window_holds_what_schedstat_counted(backend: ProcfsBackend, servant: Servant) -> None:
    servant.do("spin(0.05)")  # before our time
    backend.add_process(servant.pid)
    a = account(servant.pid)
    first = backend.snapshot()
    b = account(servant.pid)
    spun_from = servant.do("time.thread_time_ns()")
    spun_to = servant.do("spin(0.3)")
    servant.do("sleep(0.2)")
    c = account(servant.pid)
    last = backend.snapshot()
    d = account(servant.pid)
    window = last.since(first).threads[servant.pid]
    assert only(first, servant.pid).split.on_cpu == pytest.approx(0, abs=20 * MS)
    assert window.split.on_cpu is not None
    assert window.split.run_delay is not None
    assert c.on_cpu_ns - b.on_cpu_ns <= window.split.on_cpu <= d.on_cpu_ns - a.on_cpu_ns
    assert c.run_delay_ns - b.run_delay_ns <= window.split.run_delay <= d.run_delay_ns - a.run_delay_ns
    # the thread's own clock says the same
    assert window.split.on_cpu == pytest.approx(spun_to - spun_from, abs=30 * MS)
    assert 500 * MS <= window.wall_ns <= last.time - first.time + 5 * MS
    assert window.split.on_cpu + window.split.run_delay < window.wall_ns - 150 * MS
    assert window.voluntary
    assert window.voluntary >= 1


def test_what_it_cannot_tell_is_none(backend: ProcfsBackend, servant: Servant) -> None:
    backend.add_process(servant.pid)
    snapshot = backend.snapshot()
    split = only(snapshot, servant.pid).split
    parts = (
        split.runqueue_wait,
        split.preempted,
        split.throttled,
        split.sleeping,
        split.blocked,
        split.total,
    )
    assert parts == (None,) * 6
    assert only(snapshot, servant.pid).irq_ns is None
    assert only(snapshot, servant.pid).migrations is None
    views = (snapshot.blames, snapshot.wakes, snapshot.irqs, snapshot.irq_totals, snapshot.launchers)
    assert views == (None,) * 5
    assert snapshot.steal_ns is not None
    assert set(snapshot.steal_ns) >= os.sched_getaffinity(0)
    for word in ("CPU quota", "blocking", "who ran", "interrupts", "CUDA"):
        assert any(word in text for text in backend.missing)


def test_follows_a_thread_from_birth_to_end(backend: ProcfsBackend, servant: Servant) -> None:
    backend.add_process(servant.pid)
    windows: list[Window] = []
    snapshots = [backend.snapshot()]

    def step() -> None:
        snapshots.append(backend.snapshot())
        windows.append(snapshots[-1].since(snapshots[-2]))

    before = time.monotonic_ns()
    tid = servant.do("thread(0.1)")
    after = time.monotonic_ns()
    counted = account(servant.pid, tid)
    step()
    totals = only(snapshots[-1], tid)
    assert totals.born
    assert before - TICK_NS <= totals.began <= after
    assert totals.tgid == servant.pid
    assert totals.split.on_cpu == pytest.approx(counted.on_cpu_ns, abs=20 * MS)
    assert windows[-1].threads[tid].wall_ns >= 95 * MS
    servant.do("join()")
    wait_until_gone(servant.pid, tid)
    step()
    assert only(snapshots[-1], tid).ended
    assert only(snapshots[-1], tid).split == totals.split
    assert windows[-1].threads[tid].ended
    step()
    assert tid not in windows[-1].threads  # told once
    whole = snapshots[-1].since(snapshots[0]).threads[tid]
    assert whole.split.on_cpu == totals.split.on_cpu
    assert not only(snapshots[-1], servant.pid).ended


def test_a_thread_between_two_snapshots_leaves_no_trace(backend: ProcfsBackend, servant: Servant) -> None:
    backend.add_process(servant.pid)
    backend.snapshot()
    tid = servant.do("thread(0.001)")
    servant.do("join()")
    wait_until_gone(servant.pid, tid)
    assert set(backend.snapshot().threads) == {servant.pid}
    assert tid != servant.pid
    assert any("between two snapshots" in text for text in backend.missing)


def test_threads_of_the_beginning_are_not_born(backend: ProcfsBackend, servant: Servant) -> None:
    tid = servant.do("thread(0.05)")
    before = time.monotonic_ns()
    backend.add_process(servant.pid)
    totals = only(backend.snapshot(), tid)
    assert not totals.born
    assert totals.began >= before
    assert totals.split.on_cpu == pytest.approx(0, abs=20 * MS)


def test_follows_children_and_theirs(backend: ProcfsBackend, servant: Servant) -> None:
    older = servant.do("fork(0)")
    backend.add_process(servant.pid)
    backend.snapshot()
    child = servant.do("fork(0.05)")
    time.sleep(0.1)
    snapshot = backend.snapshot()
    assert set(snapshot.threads) == {servant.pid, child}  # as with BPF: forks from now on
    assert only(snapshot, child).born
    assert older not in snapshot.threads
    assert [(event.kind, event.tgid) for event in backend.events().processes] == [("fork", child)]
    assert backend.events().processes == []
    servant.do("kill()")  # nobody waits for it: a zombie
    assert only(backend.snapshot(), child).ended
    assert [(event.kind, event.tgid) for event in backend.events().processes] == [("exit", child)]
    first = backend.snapshot()
    assert child not in backend.snapshot().since(first).threads
    assert backend.events().processes == []


def test_a_removed_process_stays_away(backend: ProcfsBackend, servant: Servant) -> None:
    backend.add_process(servant.pid)
    child = servant.do("fork(0)")
    assert child in backend.snapshot().threads
    backend.remove_process(child)
    assert set(backend.snapshot().threads) == {servant.pid}
    backend.add_process(child)
    assert set(backend.snapshot().threads) == {servant.pid, child}


@pytest.mark.parametrize("reaped", [True, False])
def test_a_process_that_ends(backend: ProcfsBackend, servant: Servant, reaped: bool) -> None:
    backend.add_process(servant.pid)
    servant.do("spin(0.05)")
    before = backend.snapshot()
    servant.end()
    if reaped:
        servant.process.wait()
    snapshot = backend.snapshot()
    assert only(snapshot, servant.pid).ended
    on_cpu = only(snapshot, servant.pid).split.on_cpu
    assert on_cpu is not None
    assert on_cpu >= (only(before, servant.pid).split.on_cpu or 0) >= 45 * MS
    assert [(event.kind, event.tgid) for event in backend.events().processes] == [("exit", servant.pid)]
    with pytest.raises(TargetGoneError, match="does not exist" if reaped else "waits for its parent"):
        backend.add_process(servant.pid)
    backend.remove_process(servant.pid)
    assert backend.snapshot().threads == {}


def test_exec_by_another_thread_gives_no_negative_time(backend: ProcfsBackend, servant: Servant) -> None:
    servant.do("spin(0.1)")
    backend.add_process(servant.pid)
    servant.do("spin(0.1)")
    first = backend.snapshot()
    servant.do("exec_from_thread()")
    window = backend.snapshot().since(first).threads[servant.pid]
    assert window.split.on_cpu is not None
    assert 0 <= window.split.on_cpu <= window.wall_ns + 15 * MS


def test_says_that_a_process_may_be_hidden(backend: ProcfsBackend) -> None:
    with pytest.raises(TargetGoneError, match=r"process 4194305 does not exist; .*hidepid"):
        backend.add_process(4_194_305)  # above the largest pid_max


@pytest.mark.nobody
@pytest.mark.root
def test_of_a_process_that_hidepid_hides() -> None:
    # at its own mount, in a mount namespace of its own, as nobody
    script = (
        "mount -t proc -o hidepid=2 proc /proc && "
        f"exec setpriv --reuid 65534 --regid 65534 --clear-groups {sys.executable} -c '"
        "from quietcore.probes.backend import open_backend\n"
        'backend = open_backend("procfs")\n'
        "try: backend.add_process(1)\n"
        "except Exception as e: print(type(e).__name__, e)'"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.stdout.startswith("TargetGoneError process 1 does not exist"), done.stderr
    assert "hidepid" in done.stdout


@pytest.mark.nobody
@pytest.mark.root
def test_other_users_processes_can_be_read(servant: Servant) -> None:
    script = (
        "from quietcore.probes.backend import open_backend\n"
        'backend = open_backend("procfs")\n'
        f"backend.add_process({servant.pid})\n"
        "print(len(backend.snapshot().threads))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, user=65534
    )
    assert done.stdout == "1\n", done.stderr


def test_unreadable_schedstat(
    backend: ProcfsBackend, servant: Servant, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.add_process(servant.pid)

    def refuse(pid: int, tid: int) -> proc.SchedStat | None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(proc, "read_schedstat", refuse)
    assert backend.snapshot().losses["unreadable_threads"] == 1
    with pytest.raises(MeasureError, match=r"schedstat cannot be read; run as the user"):
        backend.add_process(os.getpid())


@pytest.mark.parametrize(("own", "word"), [(None, "missing"), (proc.SchedStat(0, 0, 0), "all zeros")])
def test_a_kernel_that_keeps_no_account(
    own: proc.SchedStat | None, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "read_schedstat", lambda pid, tid: own)
    with pytest.raises(BackendUnavailableError, match=f"is {word}; use a kernel with CONFIG_SCHED_INFO"):
        open_backend("procfs")


def test_finds_children_without_the_kernels_list(
    backend: ProcfsBackend, servant: Servant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(procfs, "_has_children_file", lambda: False)
    backend.add_process(servant.pid)
    child = servant.do("fork(0)")
    assert set(backend.snapshot().threads) == {servant.pid, child}


def test_memory_is_bounded(backend: ProcfsBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "_MAX_ENDED", 2)
    backend.add_process(os.getpid())
    for _ in range(4):
        held = threading.Event()
        thread = threading.Thread(target=held.wait)
        thread.start()
        backend.snapshot()
        held.set()
        thread.join()
        wait_until_gone(os.getpid(), thread.native_id or 0)
    snapshot = backend.snapshot()
    assert sum(totals.ended for totals in snapshot.threads.values()) == 2
    assert snapshot.losses["ended_threads"] == 2


def test_has_no_probes() -> None:
    backend: Backend = open_backend("procfs")
    with pytest.raises(BackendUnavailableError, match="CUDA calls cannot be seen"):
        backend.attach_cuda(os.getpid(), "/lib/libcuda.so.1", [])
    backend.count_launches(True)
    assert (backend.probe_hits(), backend.event_fd(), backend.programs()) == ({}, None, [])
    assert backend.name == backend.snapshot().backend == "procfs"
    backend.close()
    backend.close()


@pytest.fixture
def cgroup() -> Iterator[Path]:
    directory = CpuCgroups.find().mount / f"quietcore-test-{os.getpid()}"
    directory.mkdir()
    yield directory
    for pid in (directory / "cgroup.procs").read_text().split():
        (directory.parent / "cgroup.procs").write_text(pid)
    directory.rmdir()


@pytest.mark.root
def test_follows_a_cgroup(backend: ProcfsBackend, new_servant: Callable[[], Servant], cgroup: Path) -> None:
    inside, moved = new_servant(), new_servant()
    (cgroup / "cgroup.procs").write_text(str(inside.pid))
    moved.do("spin(0.05)")
    backend.add_cgroup(cgroup_id(cgroup))
    assert backend.snapshot().threads == {}  # those of before are the caller's to add
    child = inside.do("fork(0)")
    (cgroup / "cgroup.procs").write_text(str(moved.pid))
    snapshot = backend.snapshot()
    assert set(snapshot.threads) == {child, moved.pid}
    assert only(snapshot, child).born
    assert not only(snapshot, moved.pid).born
    assert only(snapshot, moved.pid).split.on_cpu == pytest.approx(0, abs=20 * MS)


@pytest.mark.root
def test_an_unknown_cgroup(backend: ProcfsBackend) -> None:
    with pytest.raises(MeasureError, match="has the id 12345678901"):
        backend.add_cgroup(12_345_678_901)
