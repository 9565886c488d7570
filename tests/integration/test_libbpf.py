"""The default backend on live processes: finding them, following them, losing nothing silently."""

from __future__ import annotations

import contextlib
import ctypes as ct
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.bars.noise import TOOL_CPU, on_cpu
from tests.cpu_cgroup import CpuCgroup, controller_root, cpu_cgroup
from tests.integration.doubles import (
    BUILT,
    CPU,
    attached_programs,
    gated_launcher,
    launcher,
    quietcore,
    running,
    sleepy_server,
    thief,
)

from quietcore.agent import targets
from quietcore.agent.attribution import launch_count
from quietcore.agent.diagnosis import Diagnosis, diagnose
from quietcore.agent.session import Session
from quietcore.agent.verdict import Outcome
from quietcore.probes import decode, layout
from quietcore.probes.backend import open_backend
from quietcore.probes.core import CoreBackend
from quietcore.probes.readings import State

pytestmark = pytest.mark.root


def measure(target: targets.Target, seconds: float, budget: float | None = None) -> Diagnosis:
    with Session(open_backend("libbpf"), [target], budget) as session:
        session.start()
        return diagnose(session, seconds)[0]


def seen(diagnosis: Diagnosis) -> int:
    return sum(launch_count(la) for la in (diagnosis.whole.launchers or {}).values())


def test_counts_every_launch_of_a_worker_thread(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with (
        gated_launcher(gate, "--worker", "--total", "100003", "--linger", "3") as victim,
        Session(open_backend("libbpf"), [targets.by_pid(victim.pid)], None) as session,
    ):
        session.start()
        gate.touch()
        found = diagnose(session, 2)[0]
    assert seen(found) == 100003
    assert found.launches is not None
    assert found.launches.margin == 0
    assert found.whole.critical_by == "launches"


def test_follows_a_fork_and_its_exec(tmp_path: Path) -> None:
    """The agent is there first; the shell starts the server later."""
    gate = tmp_path / "gate"
    wait = f"while [ ! -e {gate} ]; do sleep 0.05; done"
    script = f"{wait}; {BUILT}/launcher --duration 4 --tokens-per-second 20; true"
    with running("/bin/sh", "-c", script) as shell:
        with Session(open_backend("libbpf"), [targets.by_pid(shell.pid)], None) as session:
            session.start()
            gate.touch()
            found = diagnose(session, 4)[0]
        shell.process.wait(10)
    # found at the exec or by the sweep half a second later: 80 tokens in all
    assert 60 * 950 < seen(found) <= 80 * 950
    assert any(t.comm == "launcher" for t in found.whole.threads.values())


def test_library_opened_late() -> None:
    with launcher("--dlopen-after", "1.5", "--duration", "6", "--tokens-per-second", "20") as victim:
        found = measure(targets.by_pid(victim.pid), 4)
    assert seen(found) > 10 * 950


def test_two_copies_of_the_library(tmp_path: Path) -> None:
    """Two virtual environments: two files, both probed."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("launcher", "libcuda.so.1", "libcudart.so.12"):
            shutil.copy(BUILT / file, tmp_path / name / file)
    options = ("--total", "20011", "--linger", "4", "--gate", tmp_path / "gate")
    with (
        running(tmp_path / "a" / "launcher", *options) as one,
        running(tmp_path / "b" / "launcher", *options) as two,
    ):
        for double in (one, two):
            assert double.process.stdout is not None
            double.process.stdout.readline()
        both = [targets.by_pid(one.pid), targets.by_pid(two.pid)]
        with Session(open_backend("libbpf"), both, None) as session:
            session.start()
            (tmp_path / "gate").touch()
            found = diagnose(session, 2)
    assert [seen(d) for d in found] == [20011, 20011]


def test_restarted_server_in_a_cgroup(tmp_path: Path, cgroup: CpuCgroup) -> None:
    first = subprocess.Popen([BUILT / "launcher", "--duration", "60"], stdout=subprocess.DEVNULL)
    try:
        cgroup.join(first.pid)
        with Session(open_backend("libbpf"), [targets.by_cgroup(str(cgroup.path))], None) as session:
            session.start()
            steps = session.run(5)
            next(steps)
            first.terminate()
            first.wait()
            move_then_run = f"echo $$ > {cgroup.path}/cgroup.procs; exec {BUILT}/launcher --duration 60"
            with running("/bin/sh", "-c", move_then_run) as second:
                list(steps)
                window = session.whole
                restarted = second.pid
    finally:
        first.kill()
        first.wait()
    launched = {la.tgid for la in (window.launchers or {}).values()}
    assert launched == {first.pid, restarted}


@pytest.fixture
def cgroup() -> Iterator[CpuCgroup]:
    if controller_root() is None:
        pytest.skip("needs a cgroup hierarchy with the cpu controller")
    with cpu_cgroup() as made:
        yield made


def test_quota_is_named(cgroup: CpuCgroup) -> None:
    cgroup.limit(0.4)
    with launcher("--worker", "--duration", "30") as victim:
        cgroup.join(victim.pid)
        found = measure(targets.by_cgroup(str(cgroup.path)), 4)
    assert found.verdict.outcome is Outcome.INTERFERENCE
    assert found.verdict.culprits[0].kind == "quota"
    assert cgroup.path.name in found.verdict.culprits[0].name
    # what others on this CPU take of the rest, the quota need not deny
    assert found.whole.share(found.whole.run_delay) == pytest.approx(0.6, abs=0.1)


def test_bundled_libbpf_needs_nothing_of_the_system() -> None:
    with launcher("--duration", "20") as victim:
        result = quietcore(
            "diagnose",
            "--pid",
            str(victim.pid),
            "--duration",
            "1.5",
            "--json",
            env={"QUIETCORE_LIBBPF": "bundled"},
        )
    assert result.returncode in (0, 1), result.stderr
    assert json.loads(result.stdout)["targets"][0]["backend"] == "libbpf"


def test_budget_is_kept() -> None:
    """A launch-bound thread: always attached, the probes would cost a third of the core."""
    with launcher("--duration", "60", "--worker") as victim:
        found = measure(targets.by_pid(victim.pid), 12, budget=0.005)
        rate = found.launches
    assert rate is not None
    assert found.seen_share is not None
    assert found.overhead is not None
    assert found.seen_share < 0.5
    assert found.overhead < 0.0075
    # probes that come and go wake the thread in odd moments: blame must not outgrow the waits
    waits = found.whole.run_delay - (found.whole.throttled or 0)
    assert sum(c.ns for c in found.whole.culprits if c.pid) <= waits * 1.01 + 1_000_000


def test_too_many_waiters_are_counted_as_lost() -> None:
    """Losses are forced: more threads wait on one CPU than its queue has slots for."""
    with launcher("--threads", "40", "--duration", "30", "--kernel-ns", "0") as victim:
        found = measure(targets.by_pid(victim.pid), 4, budget=0.005)
    assert found.losses.get("waiters", 0) > 0


def test_thief_is_named_with_its_share() -> None:
    with launcher("--worker", "--duration", "60") as victim, thief(0.3) as neighbour:
        found = measure(targets.by_pid(victim.pid), 5, budget=0.005)
    assert found.verdict.outcome is Outcome.INTERFERENCE
    assert found.verdict.culprits[0].pid == neighbour.pid
    # its own part: whatever else runs on the machine stands beside it
    assert found.verdict.culprits[0].ns / found.whole.wall == pytest.approx(0.3, abs=0.08)


def test_sleepy_api_server_is_not_interference() -> None:
    """The shape that misled a peer: seconds of sleep beside an engine that is well."""
    with sleepy_server() as server:
        time.sleep(0.5)
        found = measure(targets.by_pid(server.pid), 5, budget=0.005)
    sleeper = next(t for t in found.whole.threads.values() if t.tid == server.pid)
    assert sleeper.split.sleeping is not None
    assert sleeper.split.sleeping > 0.9 * sleeper.wall_ns
    assert sleeper.tid not in found.whole.critical
    assert found.verdict.share < 0.1


FORKING_SERVER = """
import os, time
for _ in range(40):
    if os.fork() == 0:
        time.sleep(0.02)
        os._exit(0)
    os.wait()
    time.sleep(0.05)
"""


def test_forked_python_child_is_followed() -> None:
    with running(sys.executable, "-c", FORKING_SERVER) as parent:
        time.sleep(0.3)
        found = measure(targets.by_pid(parent.pid), 2)
    born = {t.tgid for t in found.whole.threads.values()} - {parent.pid}
    assert len(born) >= 5


WITH_CHILD = """
import subprocess, time
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
child.wait()
print("reaped", flush=True)
time.sleep(60)
"""
# comes and goes with children of its own
STRANGER = ("/bin/sh", "-c", "while sleep 0.02; do :; done")


@contextlib.contextmanager
def running_as(pid: int, *command: str) -> Iterator[None]:
    """A process of our own that gets a certain number."""
    for _ in range(100):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        with running(*command) as process:
            if process.pid == pid:
                yield
                return
    pytest.skip(f"somebody else is always faster to get the number {pid}")


def test_a_stranger_with_the_pid_of_a_dead_process_is_no_target() -> None:
    if not Path("/proc/sys/kernel/ns_last_pid").exists():
        pytest.skip("needs a kernel with CONFIG_CHECKPOINT_RESTORE")
    with running(sys.executable, "-c", WITH_CHILD) as parent:
        assert parent.process.stdout is not None
        child = int(parent.process.stdout.readline())
        target = targets.by_pid(parent.pid)
        with Session(open_backend("libbpf"), [target], None) as session:
            session.start()
            assert set(target.processes) == {parent.pid, child}
            os.kill(child, signal.SIGKILL)
            assert parent.process.stdout.readline() == "reaped\n"
            # before user space has looked at any event
            with running_as(child, *STRANGER):
                list(session.run(2))
                assert set(target.processes) == {parent.pid}
                assert not target.owns(child)
                threads = session.whole.threads
    assert {t.tgid for t in threads.values()} <= {parent.pid, child}
    assert threads[child].ended
    assert threads[child].comm == "sleep"


# Sleeps with the library loaded, then becomes a launcher, in whose address space the library lies elsewhere.
SECOND_LIFE = f"""
import ctypes, os, time
library = ctypes.CDLL("{BUILT}/libcuda.so.1")
print("ready", flush=True)
time.sleep(2)
os.execv("{BUILT}/launcher", ["launcher", "--duration", "60", "--tokens-per-second", "20"])
"""


def test_a_server_that_executes_itself_anew_is_probed_again() -> None:
    """Within a budget: each stretch opens the library by its mapping, and the old one is gone."""
    with running(sys.executable, "-c", SECOND_LIFE) as server:
        assert server.process.stdout is not None
        server.process.stdout.readline()
        with Session(open_backend("libbpf"), [targets.by_pid(server.pid)], 0.005) as session:
            session.start()
            assert session.governor.active
            steps = list(session.run(12))
            assert session.governor.active
    late = [launch_count(la) for step in steps[-5:] for la in (step.window.launchers or {}).values()]
    assert sum(late) > 100
    assert any("may have been missed" in text for _, text in session.notes)


def test_nothing_is_left_attached() -> None:
    before = attached_programs()
    with launcher("--duration", "30") as victim:
        measure(targets.by_pid(victim.pid), 1.2)
    deadline = time.monotonic() + 5
    left: set[Any] = attached_programs() - before
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = attached_programs() - before
    assert not left


def timer_interrupts(cpu: int) -> int:
    header, *lines = Path("/proc/interrupts").read_text().splitlines()
    column = header.split().index(f"CPU{cpu}") + 1
    return next(int(line.split()[column]) for line in lines if line.split()[0] == "LOC:")


def test_no_interrupt_is_lost_on_a_cpu_without_switches() -> None:
    """Attaching interrupts the CPUs: entries seen before their exits were attached must not pile up."""
    spinner_on_its_core = running(BUILT / "thief", "--duty", "1", "--duration", "30", "--cpu", str(CPU))
    with spinner_on_its_core as spinner, on_cpu(TOOL_CPU):
        time.sleep(0.2)
        with Session(open_backend("libbpf"), [targets.by_pid(spinner.pid)], None) as session:
            session.start()
            interrupts, before = timer_interrupts(CPU), session.first
            time.sleep(1)
            window, interrupts = session.backend.snapshot().since(before), timer_interrupts(CPU) - interrupts
    assert window.losses["irq_nesting"] == 0
    seen = [count.count for (_, source), count in (window.irqs or {}).items() if source.name == "local_timer"]
    assert sum(seen) >= 0.9 * interrupts


def test_a_hidden_switch_is_healed_by_the_next_interrupt() -> None:
    """A kernel may hide a task from tracing, and with it that our thread took its place."""
    spinner_on_its_core = running(BUILT / "thief", "--duty", "1", "--duration", "30", "--cpu", str(CPU))
    with spinner_on_its_core as spinner, on_cpu(TOOL_CPU):
        time.sleep(0.2)
        backend = CoreBackend()
        backend.start()
        with Session(backend, [targets.by_pid(spinner.pid)], None) as session:
            session.start()
            before = backend.snapshot()
            threads, tid = backend._maps["threads"], ct.c_uint32(spinner.pid)
            for _ in range(5):
                time.sleep(0.1)
                forged = threads.lookup(tid, layout.Thread)
                assert forged is not None
                # as if it had been switched out now
                now = time.monotonic_ns()
                forged.ns[decode.STATES.index(State.ON_CPU)] += now - forged.since
                forged.since, forged.state = now, decode.STATES.index(State.PREEMPTED)
                threads.update(tid, forged)
            time.sleep(0.1)
            window = backend.snapshot().since(before)
    thread = window.threads[spinner.pid]
    assert window.losses["switches"] >= 1
    assert thread.split.preempted is not None
    # without healing: all of it
    assert thread.split.preempted < 0.5 * thread.wall_ns
