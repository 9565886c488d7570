"""The bcc backend on the running kernel: exact counts, sums, blame, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.cpu_cgroup import controller_root, cpu_cgroup
from tests.integration.doubles import launcher

from quietcore.agent import targets
from quietcore.agent.diagnosis import diagnose
from quietcore.agent.session import Session
from quietcore.agent.verdict import Outcome
from quietcore.probes import bcc_toolchain as toolchain
from quietcore.probes import layout, proc
from quietcore.probes.backend import Probe, ProgramStatus, open_backend
from quietcore.probes.bcc import BccBackend
from quietcore.probes.cuda_libs import API_CLASSES, API_SYMBOLS, CudaLibrary, find_libraries, probe_sites
from quietcore.probes.durations import Theft
from quietcore.probes.governor import calibrate
from quietcore.probes.readings import Window

LAUNCHER = Path(__file__).resolve().parents[2] / "agent" / "_built" / "launcher"
BPF_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
LAUNCHES = 600_011  # a prime: some 5 s against a competitor
# Nothing here makes the kernel send these: one goes to several CPUs at once, the other defers work of NMIs.
SELDOM = ("tp_call_function_entry", "tp_call_function_exit", "tp_irq_work_")

pytestmark = [pytest.mark.bcc, pytest.mark.root]


@pytest.fixture(scope="module")
def backend() -> Iterator[BccBackend]:
    """As on a host without headers of its own kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolchain, "MODULES", Path("/nonexistent"))
        patch.setattr(toolchain, "KHEADERS", Path("/nonexistent"))
        started = BccBackend()
        started.start()
    yield started
    started.close()


def list_probes(library: CudaLibrary) -> list[Probe]:
    return [
        Probe(
            site.file_offset,
            site.api_id,
            API_CLASSES.index(API_SYMBOLS[site.symbol].api_class),
            site.point.return_safe,
        )
        for site in probe_sites(library, ["launch", "sync"])
        if not site.symbol.endswith("_ptsz")
    ]


def attach_driver(backend: BccBackend, pid: int) -> Any:
    (driver,) = (library for library in find_libraries(pid) if library.primary)
    return backend.attach_cuda(pid, driver.open_path, list_probes(driver))


@dataclass
class Measured:
    """A launcher of two threads on CPU 1, with a competitor, from its first launch to its last."""

    pid: int
    result: dict[str, Any]
    window: Window
    schedstat: dict[int, int]
    hits: int
    programs: list[ProgramStatus]


def read_run_delays(pid: int) -> dict[int, int]:
    read = {tid: proc.read_schedstat(pid, tid) for tid in proc.thread_ids(pid)}
    return {tid: stat.run_delay_ns for tid, stat in read.items() if stat}


@pytest.fixture(scope="module")
def measured(backend: BccBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    gate = tmp_path_factory.mktemp("bcc") / "gate"
    before = BPF_STATS.read_text()
    BPF_STATS.write_text("1")
    command = f"{LAUNCHER} --cpu 1 --worker --threads 2 --total {LAUNCHES} --gate {gate} --linger 30"
    launcher = subprocess.Popen(command.split(), stdout=subprocess.PIPE, text=True)
    rival = subprocess.Popen(["stress-ng", "--quiet", "--cpu", "1", "--taskset", "1"])
    try:
        assert launcher.stdout is not None
        assert launcher.stdout.readline().startswith("ready")
        backend.add_process(launcher.pid)
        link = attach_driver(backend, launcher.pid)
        backend.count_launches(True)
        start, delays = backend.snapshot(), read_run_delays(launcher.pid)
        gate.touch()
        result = json.loads(launcher.stdout.readline())
        end, delays_after = backend.snapshot(), read_run_delays(launcher.pid)
        stir(launcher.pid, gate.parent)
        rival.terminate()  # later tests of this module want the CPU
        rival.wait()
        yield Measured(
            launcher.pid,
            result,
            end.since(start),
            {tid: ns - delays.get(tid, 0) for tid, ns in delays_after.items()},
            backend.probe_hits()[launcher.pid],
            backend.programs(),
        )
        link.close()
        backend.remove_process(launcher.pid)
        assert launcher.pid not in backend.probe_hits()
    finally:
        for process in (launcher, rival):
            process.send_signal(signal.SIGTERM)
            process.communicate()
        BPF_STATS.write_text(before)


def stir(pid: int, folder: Path) -> None:
    """Makes a migration, a disk interrupt, an exec and wake-ups across CPUs."""
    for cpus in ({0}, {1}):
        for tid in proc.thread_ids(pid):
            os.sched_setaffinity(tid, cpus)
        time.sleep(0.01)
    with open(folder / "written", "wb") as f:
        f.write(b"x" * 65536)
        os.fsync(f.fileno())
    subprocess.run(["true"], check=True)


def launchers_of(measured: Measured) -> dict[int, Any]:
    assert measured.window.launchers is not None
    return {tid: seen for tid, seen in measured.window.launchers.items() if seen.tgid == measured.pid}


def test_every_launch_is_counted_where_it_was_made(measured: Measured) -> None:
    made = {thread["tid"]: thread["launches"] for thread in measured.result["threads"]}
    seen = launchers_of(measured)
    assert measured.result["launches"] == LAUNCHES
    assert {tid: totals.calls["cuLaunchKernel"] for tid, totals in seen.items()} == made
    for totals in seen.values():
        launches = totals.calls["cuLaunchKernel"]
        assert totals.interval.count == launches - 1
        assert totals.launch.count == sum(totals.launch.histogram) == launches
        assert totals.sync.count == totals.calls["cuStreamSynchronize"] > 0
        assert Theft.THROTTLED not in totals.interval.stolen
    assert measured.hits == sum(totals.hits for totals in seen.values())


def test_the_split_sums_to_wall(measured: Measured) -> None:
    threads = measured.window.threads
    assert len([thread for thread in threads.values() if thread.tgid == measured.pid]) == 3
    for thread in threads.values():
        assert thread.split.throttled is None
        assert thread.split.total == pytest.approx(thread.wall_ns, rel=0.01)


def test_the_run_delay_is_that_of_the_kernel(measured: Measured) -> None:
    for tid in launchers_of(measured):
        split = measured.window.threads[tid].split
        assert split.run_delay == pytest.approx(measured.schedstat[tid], rel=0.03)
        assert measured.schedstat[tid] > 0.5 * measured.window.wall_ns


def test_the_rival_is_blamed_first(measured: Measured) -> None:
    assert measured.window.blames is not None
    for tid in launchers_of(measured):
        strangers: dict[str, int] = {}
        for (victim, _), blame in measured.window.blames.items():
            if victim == tid and blame.tgid != measured.pid:
                strangers[blame.comm] = strangers.get(blame.comm, 0) + blame.ns
        assert max(strangers, key=lambda comm: strangers[comm]) == "stress-ng-cpu"
        assert strangers["stress-ng-cpu"] > 0.15 * measured.window.wall_ns


def test_interrupts_are_taken_from_the_threads(measured: Measured) -> None:
    assert measured.window.irqs is not None
    for tid in launchers_of(measured):
        thread = measured.window.threads[tid]
        by_source = {
            str(source): spent for (who, source), spent in measured.window.irqs.items() if who == tid
        }
        assert by_source["vector local_timer"].count > 100
        assert thread.irq_ns is not None
        assert thread.softirq_ns is not None
        assert thread.irq_ns + thread.softirq_ns == sum(spent.ns for spent in by_source.values())


def test_nothing_is_lost_and_every_program_fires(measured: Measured) -> None:
    # a kernel that hides tasks from tracing hides their switches, too
    assert not any(n for name, n in measured.window.losses.items() if name != "switches")
    attached = {status.name for status in measured.programs if status.group != "cuda"}
    assert {"tp_sched_switch", "tp_irq_handler_exit", "tp_softirq_entry"} < attached
    idle = {status.name for status in measured.programs if not status.runs}
    fired = {"cuda_return", f"cuda_entry_{API_SYMBOLS['cuLaunchKernel'].api_id}"}
    assert not fired & idle
    assert [name for name in idle if not name.startswith((*SELDOM, "cuda_entry_"))] == []


def test_batches_and_single_keys_read_the_same(backend: BccBackend, measured: Measured) -> None:
    blames = backend._maps["blames"]
    first, second, third = (
        {(key.victim, key.offender) for key, _ in read(layout.BlameKey, layout.Blame)}
        for read in (blames._batches, blames._walk, blames._batches)
    )
    assert len(first) > 3
    assert first <= second <= third


def test_the_cost_of_probes_is_calibrated(backend: BccBackend) -> None:
    emulated, stepped = calibrate(backend), calibrate(backend, single_step=True)
    assert 100 < emulated < stepped < 1_000_000
    assert os.getpid() not in backend.probe_hits()


# Waits for a line, then forks a child that spins a while without giving up its CPU, starts a thread and
# executes another program.
PARENT = """
import os, sys, threading, time
print("ready", flush=True)
sys.stdin.readline()
child = os.fork()
if not child:
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        pass
    thread = threading.Thread(target=time.sleep, args=(0.5,))
    thread.start()
    print(os.getpid(), thread.native_id, flush=True)
    thread.join()
    os.execv("/bin/sleep", ["sleep", "0.5"])
os.waitpid(child, 0)
print("over", flush=True)
sys.stdin.readline()
"""


def test_forks_threads_execs_and_exits_are_followed(backend: BccBackend) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdout.readline()
        backend.add_process(parent.pid)
        assert [event for event in backend.events().processes if event.tgid == parent.pid] == []
        before = backend.snapshot()

        parent.stdin.write("\n")
        parent.stdin.flush()
        child, thread = map(int, parent.stdout.readline().split())
        seen = {(event.kind, event.tgid) for event in backend.events().processes}
        assert ("fork", child) in seen
        window = backend.snapshot().since(before)
        for tid in (child, thread):
            assert window.threads[tid].tgid == child
            assert window.threads[tid].split.total == pytest.approx(window.threads[tid].wall_ns, rel=0.01)
        spinning = window.threads[child].split
        assert spinning.on_cpu is not None
        assert spinning.run_delay is not None
        assert spinning.on_cpu + spinning.run_delay > 99e6

        time.sleep(0.7)  # the child sleeps as another program now
        assert [event.kind for event in backend.events().processes if event.tgid == child] == ["exec"]
        assert parent.stdout.readline() == "over\n"
        seen = {(event.kind, event.tgid) for event in backend.events().processes}
        assert ("exit", child) in seen
        assert ("exit", parent.pid) not in seen
        assert backend.snapshot().threads[thread].ended
        parent.communicate("\n")
    assert ("exit", parent.pid) in {(event.kind, event.tgid) for event in backend.events().processes}
    for pid in (child, parent.pid):
        backend.remove_process(pid)
    assert not {child, thread, parent.pid} & backend.snapshot().threads.keys()


def test_a_child_that_never_left_its_cpu_is_its_own_process(backend: BccBackend) -> None:
    """Whether it did is up to the scheduler: either way the answer is the same."""
    script = "import os\nos.read(0, 1)\nif not os.fork():\n  while True: pass"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        backend.add_process(parent.pid)
        parent.stdin.write(b"x")
        parent.stdin.flush()
        parent.wait()
    (child,) = (event.tgid for event in backend.events().processes if event.kind == "fork")
    try:
        assert backend.snapshot().threads[child].tgid == child
    finally:
        os.kill(child, signal.SIGKILL)
    for pid in (parent.pid, child):
        backend.remove_process(pid)


def test_a_quota_on_a_core_of_its_own_is_named() -> None:
    """Throttling cannot be seen: the launcher waits, and its CPU idles."""
    if controller_root() is None:
        pytest.skip("needs a cgroup hierarchy with the cpu controller")
    with cpu_cgroup() as cgroup, launcher("--worker", "--duration", "30") as victim:
        cgroup.limit(0.5)
        cgroup.join(victim.pid)
        with Session(open_backend("bcc"), [targets.by_pid(victim.pid)], 0.005) as session:
            session.start()
            found = diagnose(session, 4)[0]
    assert found.verdict.outcome is Outcome.INTERFERENCE
    # with strangers on the CPU it may be too small to be named in the verdict
    (quota,) = (culprit for culprit in found.whole.culprits if culprit.kind == "quota")
    assert cgroup.path.name in quota.name
    # who runs on this CPU meanwhile, is blamed for as long
    strangers = sum(culprit.ns for culprit in found.whole.culprits if culprit.pid)
    assert (quota.ns + strangers) / found.whole.wall == pytest.approx(0.5, abs=0.1)
    assert found.whole.throttled is None


def list_own_programs() -> set[int]:
    """Ids of the programs that this process holds."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            info = Path(f"/proc/self/fdinfo/{fd}").read_text()
        except FileNotFoundError:
            continue
        found |= {int(number) for number in re.findall(r"^prog_id:\s*(\d+)", info, re.MULTILINE)}
    return found


def bpftool(*arguments: str) -> Any:
    done = subprocess.run(["bpftool", "--json", *arguments], capture_output=True, check=True, text=True)
    return json.loads(done.stdout)


def count_attached() -> int:
    return sum(entry["pid"] == os.getpid() for entry in bpftool("perf", "list"))


def test_close_leaves_nothing_and_the_terminal_clean(capfd: pytest.CaptureFixture[str]) -> None:
    if shutil.which("bpftool") is None:
        pytest.skip("needs bpftool")
    held, attached, fds = list_own_programs(), count_attached(), len(os.listdir("/proc/self/fd"))
    headers = set(Path(tempfile.gettempdir()).glob("quietcore-headers-*"))
    backend = BccBackend()
    backend.start()
    with subprocess.Popen(
        [LAUNCHER, "--gate", "/nonexistent", "--duration", "1"], stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        launcher.stdout.readline()
        backend.add_process(launcher.pid)
        attach_driver(backend, launcher.pid)
        loaded = list_own_programs() - held
        assert len(loaded) == len(backend.programs())
        assert count_attached() - attached > len(loaded)
        backend.close()
        backend.close()
        launcher.kill()
    assert loaded.isdisjoint(program["id"] for program in bpftool("prog", "list"))
    assert (list_own_programs(), count_attached(), len(os.listdir("/proc/self/fd"))) == (held, attached, fds)
    assert set(Path(tempfile.gettempdir()).glob("quietcore-headers-*")) <= headers
    assert "BCC_KERNEL_SOURCE" not in os.environ
    assert capfd.readouterr() == ("", "")
