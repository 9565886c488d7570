"""Which processes make up a target, and following them: on processes started here."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quietcore.agent import targets
from quietcore.agent.targets import Follower, Target
from quietcore.probes import cgroups, decode, proc
from quietcore.probes.errors import TargetGoneError

SRC = Path(__file__).resolve().parents[2] / "src"
# The main thread ends by itself, as after pthread_exit; the other one goes on.
HEADLESS = """
import ctypes, platform, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
"""
RENAMED = r"""
import time
with open("/proc/self/comm", "wb") as f:
    f.write(b"\x1b[31ma)\nb\xff")
print(flush=True)
time.sleep(60)
"""
WITH_CHILD = "import subprocess, sys\nwith subprocess.Popen(['sleep', '60']): pass"


@contextlib.contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(condition: str, pid: int) -> None:
    """``condition``: a state letter of the main thread, or ``child``."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        stat = proc.read_stat(pid)
        if (condition == "child" and proc.children(pid)) or (stat and stat.state == condition):
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} never came to {condition}")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with running("sleep", "60") as process:
        # the arguments appear a moment after the execution
        while not proc.command_line(process.pid):
            time.sleep(0.001)
        yield process


def start_of(pid: int) -> int:
    stat = proc.read_stat(pid)
    assert stat is not None
    return stat.started


class Log:
    """Notes down what a follower tells."""

    def __init__(self, *followed: Target) -> None:
        self.lines: list[tuple[str, int]] = []
        self.follower = Follower(
            list(followed),
            lambda _, pid: self.lines.append(("came", pid)),
            lambda _, pid: self.lines.append(("went", pid)),
        )


def test_a_process_comes_with_its_descendants() -> None:
    with running(sys.executable, "-c", WITH_CHILD) as parent:
        wait_until("child", parent.pid)
        (child,) = proc.children(parent.pid)
        target = targets.by_pid(parent.pid)
        assert target.processes == {pid: start_of(pid) for pid in (parent.pid, child)}
        assert target.name.endswith(f"[{parent.pid}]")
        assert target.note == ""
        assert target.alive
        os.kill(child, 9)


def test_a_thread_stands_for_its_process() -> None:
    """What ``top -H`` shows: the kernel's filter goes by process."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        target = targets.by_pid(thread.native_id)
    finally:
        over.set()
        thread.join()
    assert next(iter(target.processes)) == os.getpid()
    assert thread.native_id not in target.processes
    assert target.name == f"{proc.comm(os.getpid())} [{os.getpid()}]"
    assert target.note.startswith(f"{thread.native_id} is a thread of {target.name}")


def test_a_name_cannot_play_with_the_terminal() -> None:
    """Any user's process may be called so, and root looks at it."""
    with subprocess.Popen([sys.executable, "-c", RENAMED], stdout=subprocess.PIPE) as named:
        try:
            assert named.stdout is not None
            named.stdout.readline()
            assert proc.comm(named.pid) == "?[31ma)?b\ufffd"
            assert targets.by_pid(named.pid).name == f"?[31ma)?b\ufffd [{named.pid}]"
        finally:
            named.kill()
    assert decode.text(b"\x1b]0;x\x07") == "?]0;x?"
    assert cgroups.short_name("/a\\x1b[31m.service") == "a?[31m.service"


def test_a_zombie_has_ended() -> None:
    process = subprocess.Popen(["true"])
    try:
        wait_until("Z", process.pid)
        assert proc.has_ended(process.pid)
        with pytest.raises(TargetGoneError, match="has ended"):
            targets.by_pid(process.pid)
        assert not Target("t").add(process.pid)
    finally:
        process.wait()
    assert proc.has_ended(process.pid)
    with pytest.raises(TargetGoneError, match="does not exist"):
        targets.by_pid(process.pid)


def test_a_process_lives_on_without_its_main_thread() -> None:
    with running(sys.executable, "-c", HEADLESS) as process:
        wait_until("Z", process.pid)
        assert not proc.has_ended(process.pid)
        target = targets.by_pid(process.pid)
        assert list(target.processes) == [process.pid]
        log = Log(target)
        log.follower.ended(process.pid)
        log.follower.sweep()
        assert log.lines == []
        process.kill()
        process.wait()
        log.follower.sweep()
    assert log.lines == [("went", process.pid)]
    assert not target.alive


def test_matches_by_command_line_and_not_oneself(sleeper: subprocess.Popen[bytes]) -> None:
    (target,) = (t for t in targets.by_match(re.compile(r"^sleep 60$")) if sleeper.pid in t.processes)
    assert target.name == f"sleep [{sleeper.pid}]"
    with pytest.raises(TargetGoneError, match="no process matches"):
        targets.by_match(re.compile("no-such-" + "server-71"))


def test_a_match_below_another_belongs_to_it() -> None:
    with running(sys.executable, "-c", WITH_CHILD + "  # lone-marker sleep") as parent:
        wait_until("child", parent.pid)
        (child,) = proc.children(parent.pid)
        found = targets.by_match(re.compile("lone-marker|^sleep 60$"))
        (target,) = (t for t in found if parent.pid in t.processes)
        assert child in target.processes
        assert [t for t in found if child in t.processes] == [target]
        os.kill(child, 9)


@pytest.fixture
def cgroup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """A cgroup that holds the processes in this list."""
    inside: list[int] = []
    monkeypatch.setattr(cgroups, "resolve_cgroup_argument", lambda _: tmp_path)
    monkeypatch.setattr(cgroups, "cgroup_id", lambda _: 5)
    monkeypatch.setattr(cgroups, "processes", lambda _: list(inside))
    return inside


def test_a_cgroup_is_filled_again(cgroup: list[int], sleeper: subprocess.Popen[bytes]) -> None:
    with pytest.raises(TargetGoneError, match="no process in cgroup"):
        targets.by_cgroup("pod")
    cgroup.append(sleeper.pid)
    target = targets.by_cgroup("pod")
    assert (target.cgroup_id, list(target.processes)) == (5, [sleeper.pid])
    log = Log(target)
    with running("sleep", "60") as second:
        cgroup.append(second.pid)
        sleeper.kill()
        sleeper.wait()
        log.follower.sweep()
        assert target.alive
    assert log.lines == [("went", sleeper.pid), ("came", second.pid)]


def test_a_fork_and_an_end_are_followed(sleeper: subprocess.Popen[bytes]) -> None:
    target = Target("us", {os.getpid(): start_of(os.getpid())})
    log = Log(target)
    log.follower.forked(sleeper.pid)
    log.follower.forked(sleeper.pid)
    log.follower.forked(1)  # not a child of ours
    log.follower.ended(sleeper.pid)  # too early: it lives
    sleeper.kill()
    wait_until("Z", sleeper.pid)
    log.follower.ended(sleeper.pid)
    assert log.lines == [("came", sleeper.pid), ("went", sleeper.pid)]
    assert target.owns(sleeper.pid)
    log.follower.sweep()
    assert len(log.lines) == 2  # a zombie among the children does not come again


def test_the_sweep_finds_a_child_of_which_no_event_told(sleeper: subprocess.Popen[bytes]) -> None:
    log = Log(Target("us", {os.getpid(): start_of(os.getpid())}))
    log.follower.sweep()
    assert ("came", sleeper.pid) in log.lines


def test_a_pid_used_again_by_a_stranger(sleeper: subprocess.Popen[bytes]) -> None:
    """As if ``sleeper`` had got the number of a process that began earlier."""
    target = Target("server", {1: start_of(1), sleeper.pid: start_of(sleeper.pid) - 1})
    log = Log(target)
    log.follower.ended(sleeper.pid)
    assert log.lines == [("went", sleeper.pid)]
    assert not target.owns(sleeper.pid)
    assert target.owns(1)
    # once all of the target has ended, what the number stands for in the readings is the target's
    target.drop(1)
    assert target.owns(sleeper.pid)


def test_a_pid_used_again_by_one_of_ours(sleeper: subprocess.Popen[bytes]) -> None:
    parent, earlier = start_of(os.getpid()), start_of(sleeper.pid) - 1
    target = Target("us", {os.getpid(): parent, sleeper.pid: earlier})
    log = Log(target)
    log.follower.forked(sleeper.pid)
    assert log.lines == [("went", sleeper.pid), ("came", sleeper.pid)]
    assert target.ended == {sleeper.pid: earlier}
    assert target.owns(sleeper.pid)


def as_nobody_with_hidepid(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, in a mount namespace of its own."""
    command = f"{sys.executable} -m quietcore.agent.cli {' '.join(arguments)}"
    script = (
        "mount -t proc -o hidepid=1 proc /proc && "
        f"exec setpriv --reuid 65534 --regid 65534 --clear-groups {command}"
    )
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SRC)},
        check=False,
    )


@pytest.mark.nobody
@pytest.mark.root
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--pid", "1"), "process 1 may not be looked into"),
        (("--match", "no-such-server-71"), "no process matches"),
        ((), "no process on this host uses CUDA"),
    ],
)
def test_processes_that_hidepid_hides(arguments: tuple[str, ...], words: str) -> None:
    done = as_nobody_with_hidepid("diagnose", "--duration", "1", *arguments)
    assert done.returncode == 3, done
    assert done.stderr.startswith(f"quietcore: {words}")
    assert done.stderr.count("\n") == 1
