"""A session on a backend that sees nothing: what it attaches, follows, notes and leaves behind."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from tests.unit.probe_backend import FakeBackend

from quietcore.agent import session as module
from quietcore.agent.session import Session
from quietcore.agent.targets import Target, by_pid
from quietcore.probes import proc
from quietcore.probes.backend import ProcessEvent
from quietcore.probes.cuda_libs import CudaLibrary, ProbeSite
from quietcore.probes.errors import MeasureError, TargetGoneError
from quietcore.probes.governor import DEFAULT_COST_NS, STEP_FACTOR
from quietcore.probes.prologue import ProbePoint

SHORT = 0.05  # seconds of a step


@dataclass
class Cuda:
    """What processes have mapped, by pid, and what calibration says."""

    libraries: dict[int, list[CudaLibrary]] = field(default_factory=dict)
    stepped: bool = False
    costs: dict[bool, float] = field(default_factory=lambda: {False: 1_000.0, True: 15_000.0})

    def map(self, pid: int, path: str, inode: int = 1) -> None:
        library = CudaLibrary(1, inode, "driver", "/lib/libcuda.so.1", path, "", True, pid)
        self.libraries[pid] = [library]

    def sites(self, library: CudaLibrary, _: Sequence[str]) -> list[ProbeSite]:
        point = ProbePoint(0, "push rbp", "single-step" if self.stepped else "emulated", True)
        return [ProbeSite("cuLaunchKernel", 1, 0x10, point)]

    def calibrate(self, _: object, *, single_step: bool) -> float:
        if single_step not in self.costs:
            raise MeasureError("no self-test")
        return self.costs[single_step]


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    monkeypatch.setattr(module, "find_libraries", lambda pid: made.libraries.get(pid, []))
    monkeypatch.setattr(module, "probe_sites", made.sites)
    monkeypatch.setattr(module, "calibrate", made.calibrate)
    return made


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    while not proc.command_line(process.pid):  # a moment after the execution
        time.sleep(0.001)
    yield process
    process.kill()
    process.wait()


def started(backend: FakeBackend, *targets: Target, budget: float | None = None) -> Session:
    session = Session(backend, list(targets), budget)
    session.start()
    return session


def notes(session: Session) -> str:
    return "\n".join(text for _, text in session.notes)


def test_steps_come_in_time(backend: FakeBackend, server: subprocess.Popen[bytes]) -> None:
    passed: list[float] = []
    with started(backend, by_pid(server.pid)) as session:
        assert backend.processes == [server.pid]
        steps = list(session.run(0.2, passed.append, SHORT))
        assert 3 <= len(steps) <= 4
        assert len(passed) == len(steps)
        assert passed[-1] == pytest.approx(0.2, abs=0.05)
        assert session.whole.start == session.first.time
        assert session.whole.end == steps[-1].snapshot.time
        assert sum(step.window.wall_ns for step in steps) == session.whole.wall_ns


def test_the_target_is_gone_at_the_start(backend: FakeBackend) -> None:
    with pytest.raises(TargetGoneError, match="before anything was attached"):
        started(backend, Target("server [7]"))


def test_the_end_of_the_target_ends_the_run(backend: FakeBackend, server: subprocess.Popen[bytes]) -> None:
    session = started(backend, by_pid(server.pid))
    server.kill()
    server.wait()
    backend.pending.processes.append(ProcessEvent("exit", server.pid))
    began = time.monotonic()
    assert len(list(session.run(60))) == 1
    assert time.monotonic() - began < 5
    assert backend.over == [server.pid]


def test_what_is_forked_is_taken_in(backend: FakeBackend, server: subprocess.Popen[bytes]) -> None:
    ours = Target("us", {os.getpid(): 0})
    ours.processes.clear()
    ours.add(os.getpid())
    session = started(backend, ours)
    backend.pending.processes.append(ProcessEvent("fork", server.pid))
    list(session.run(SHORT, step=SHORT))
    assert backend.processes == [os.getpid(), server.pid]


def test_stopping_keeps_what_was_measured(backend: FakeBackend, server: subprocess.Popen[bytes]) -> None:
    session = started(backend, by_pid(server.pid))
    timer = threading.Timer(0.25, session.stop)
    timer.start()
    steps = list(session.run(60, step=0.2))
    timer.join()
    # a second step of some 50 ms would be a sliver; waking up may take until the next sweep
    assert 1 <= len(steps) <= 3
    assert session.whole.end == steps[-1].snapshot.time
    assert "stopped after 0." in notes(session)
    assert " of 60 s" in notes(session)


def test_stopping_at_once_gives_a_step(backend: FakeBackend, server: subprocess.Popen[bytes]) -> None:
    session = started(backend, by_pid(server.pid))
    session.stop()
    assert len(list(session.run(60))) == 1


def test_libraries_are_probed_once(backend: FakeBackend, server: subprocess.Popen[bytes], cuda: Cuda) -> None:
    cuda.map(server.pid, "range-1")
    session = started(backend, by_pid(server.pid), budget=0.005)
    session._find_cuda()
    assert backend.attempts == [(server.pid, "range-1")]
    assert session.governor.cost_ns == 1_000
    assert notes(session) == ""
    session.close()
    assert backend.attached == []


def test_launches_that_are_refused(backend: FakeBackend, server: subprocess.Popen[bytes], cuda: Cuda) -> None:
    """Kernels that load no CUDA program: everything else is measured, and nothing counts as seen."""
    cuda.map(server.pid, "range-1")
    cuda.costs.clear()
    backend.refused.add("range-1")
    with started(backend, by_pid(server.pid), budget=0.005) as session:
        (step,) = session.run(SHORT, step=SHORT)
        session._find_cuda()
        assert step.seen_ns == 0
        assert not session.governor.active
        assert session.governor.stretches == []
    assert backend.attempts == [(server.pid, "range-1")]
    # that the cost was assumed is no news where there is none
    assert notes(session) == "launches are not seen: libbpf: attach failed: no such mapping"


def lose(session: Session, backend: FakeBackend) -> None:
    """The end of a stretch, and the beginning of the next."""
    session.governor._switch_off()
    backend.refused.add("range-1")
    session.governor._switch_on()
    session._find_lost()


def test_a_library_that_was_mapped_anew(
    backend: FakeBackend, server: subprocess.Popen[bytes], cuda: Cuda
) -> None:
    """The same file elsewhere, after an exec or a second dlopen."""
    cuda.map(server.pid, "range-1")
    session = started(backend, by_pid(server.pid))
    cuda.map(server.pid, "range-2")
    lose(session, backend)
    assert backend.places == [(server.pid, "range-2")]
    assert backend.counting
    assert "may have been missed" in notes(session)
    assert "no such mapping" in notes(session)


def test_a_library_that_comes_back_later(
    backend: FakeBackend, server: subprocess.Popen[bytes], cuda: Cuda
) -> None:
    cuda.map(server.pid, "range-1")
    session = started(backend, by_pid(server.pid))
    cuda.libraries.clear()
    lose(session, backend)
    assert (backend.attached, backend.counting) == ([], False)
    cuda.map(server.pid, "range-2")
    session._find_cuda()
    assert (backend.places, backend.counting) == ([(server.pid, "range-2")], True)


def test_probes_lost_with_their_process_are_no_news(
    backend: FakeBackend, server: subprocess.Popen[bytes], cuda: Cuda
) -> None:
    cuda.map(server.pid, "range-1")
    session = started(backend, by_pid(server.pid))
    server.kill()
    server.wait()
    lose(session, backend)
    assert notes(session) == ""


def test_a_pid_used_again_is_probed_again(
    backend: FakeBackend, server: subprocess.Popen[bytes], cuda: Cuda
) -> None:
    cuda.map(server.pid, "range-1")
    target = by_pid(server.pid)
    session = started(backend, target)
    target.drop(server.pid)
    session._left(target, server.pid)
    assert (backend.attached, backend.over) == ([], [server.pid])
    target.add(server.pid)
    session._arrived(target, server.pid)
    assert backend.places == [(server.pid, "range-1")]


@pytest.mark.parametrize(
    ("known", "stepped", "assumed"),
    [
        ({}, False, DEFAULT_COST_NS),
        ({}, True, DEFAULT_COST_NS * STEP_FACTOR),
        ({False: 1_000.0}, False, None),
        ({True: 15_000.0}, True, None),
    ],
)
def test_the_cost_where_it_cannot_be_calibrated(
    backend: FakeBackend,
    server: subprocess.Popen[bytes],
    cuda: Cuda,
    known: dict[bool, float],
    stepped: bool,
    assumed: float | None,
) -> None:
    cuda.map(server.pid, "range-1")
    cuda.costs, cuda.stepped = known, stepped
    session = started(backend, by_pid(server.pid), budget=0.005)
    assert session.governor.cost_ns == assumed or known[stepped]
    told = f"probe cost not calibrated, {assumed:.0f} ns assumed" in notes(session) if assumed else None
    assert told is (True if assumed else None)
    assert ("step over" in notes(session)) is stepped


def test_stepped_sites_are_assumed_by_what_plain_ones_cost(
    backend: FakeBackend, server: subprocess.Popen[bytes], cuda: Cuda
) -> None:
    cuda.map(server.pid, "range-1")
    cuda.costs = {False: 1_000.0}
    session = started(backend, by_pid(server.pid), budget=0.005)
    cuda.stepped = True
    cuda.map(server.pid, "range-2", inode=2)
    session._find_cuda()
    assert session.governor.cost_ns == 1_000 * STEP_FACTOR


def test_losses_of_the_start_last(backend: FakeBackend, server: subprocess.Popen[bytes]) -> None:
    """Threads for which there was no room are missing throughout; interrupts cut by attaching are over."""
    backend.losses = {"threads": 12, "targets": 1, "irq_nesting": 3, "events": 2}
    with started(backend, by_pid(server.pid)) as session:
        (step,) = session.run(SHORT, step=SHORT)
    expected = {"threads": 12, "targets": 1, "irq_nesting": 0, "events": 0}
    assert session.whole.losses == step.window.losses == expected


def test_more_processes_than_there_is_room_for(backend: FakeBackend, server: subprocess.Popen[bytes]) -> None:
    backend.full = True
    with pytest.raises(MeasureError, match="too many processes; name fewer"):
        started(backend, by_pid(server.pid))


def test_room_runs_out_on_the_way(backend: FakeBackend, server: subprocess.Popen[bytes]) -> None:
    ours = Target("us")
    ours.add(os.getpid())
    session = started(backend, ours)
    backend.full = True
    backend.pending.processes.append(ProcessEvent("fork", server.pid))
    assert list(session.run(SHORT, step=SHORT))
    assert server.pid not in ours.processes
    assert "new processes are not followed: too many processes" in notes(session)


def test_notes_of_a_target(backend: FakeBackend, server: subprocess.Popen[bytes]) -> None:
    named, other = by_pid(server.pid), Target("other")
    named.note = "8 is a thread of it"
    session = started(backend, named, other)
    session.notes.append((None, "to all"))
    assert session.notes_on(named) == ("8 is a thread of it", "to all")
    assert session.notes_on(other) == ("to all",)


def test_a_process_without_its_main_thread_is_told_of(
    backend: FakeBackend, server: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = started(backend, by_pid(server.pid))
    # as of a zombie with other threads, whatever it does
    monkeypatch.setattr(proc, "OVER", "RSD")
    monkeypatch.setattr(proc, "has_ended", lambda *_: False)
    session._find_cuda()
    assert notes(session) == ""
    session._find_cuda()
    assert "main thread" in notes(session)
