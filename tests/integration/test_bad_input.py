"""Bad input: one clear line, a documented exit code, nothing left attached."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.doubles import BUILT, CLI, attached_programs, launcher, quietcore, running

pytestmark = pytest.mark.root
NOBODY = 65534


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before = attached_programs()
    yield
    deadline = time.monotonic() + 5
    # the kernel frees programs a moment after the last reference
    while attached_programs() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not attached_programs() - before


def assert_one_line(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert result.returncode == code, result
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("quietcore: ")
    for word in words:
        assert word in lines[0]


def dead_pid() -> int:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    return process.pid


def test_dead_pid() -> None:
    assert_one_line(quietcore("diagnose", "--pid", str(dead_pid())), 3, "does not exist")


def test_zombie() -> None:
    process = subprocess.Popen(["/bin/true"])
    time.sleep(0.2)
    try:
        assert_one_line(quietcore("diagnose", "--pid", str(process.pid)), 3, "has ended")
    finally:
        process.wait()


def test_no_match() -> None:
    # the pattern stands in our own command line, which must not count
    assert_one_line(quietcore("diagnose", "--match", "no-such-server-71"), 3, "no process matches")


def test_unknown_cgroup() -> None:
    assert_one_line(quietcore("diagnose", "--cgroup", "/no/such/group"), 3, "/no/such/group")


def test_container_pid_namespace() -> None:
    inside = [*CLI, "diagnose", "--pid", "1", "--backend", "libbpf"]
    result = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *inside], capture_output=True, text=True, check=False
    )
    assert_one_line(result, 3, "pid namespace")


def test_foreign_pid_namespace() -> None:
    with launcher("--duration", "20") as victim:
        inside = [*CLI, "diagnose", "--pid", str(victim.pid)]
        result = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", *inside],
            capture_output=True,
            text=True,
            check=False,
        )
    assert_one_line(result, 3, "does not exist in this pid namespace")


def doctor_in(*unshared: str, before: str = ":") -> tuple[int, dict[str, Any]]:
    """Exit code of doctor in namespaces of its own, and what it says of each backend."""
    script = f"{before} && exec {sys.executable} -m quietcore.agent.cli doctor --json"
    result = subprocess.run(
        ["unshare", *unshared, "sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert result.stderr == ""
    return result.returncode, {
        f"{check['backend']} {check['flavour']}".strip(): check
        for check in json.loads(result.stdout)["backends"]
    }


def test_doctor_in_a_container_pid_namespace() -> None:
    code, checks = doctor_in("--pid", "--fork", "--mount-proc")
    assert code == 3
    assert {name for name, check in checks.items() if check["step"] == "namespace"} == checks.keys() - {
        "procfs"
    }


def test_doctor_where_proc_sys_is_read_only() -> None:
    _, checks = doctor_in(
        "--mount", before="mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys"
    )
    assert checks["libbpf btf"]["ok"], checks["libbpf btf"]


@pytest.mark.nobody
def test_no_permission() -> None:
    if not os.access(sys.executable, os.X_OK) or _home_is_private():
        pytest.skip("the environment lies in a folder that only root may enter")
    with launcher("--duration", "20") as victim:
        result = quietcore("diagnose", "--pid", str(victim.pid), "--backend", "libbpf", user=NOBODY)
    assert_one_line(result, 3, "run as root")


@pytest.mark.nobody
def test_without_root_procfs_still_works() -> None:
    if _home_is_private():
        pytest.skip("the environment lies in a folder that only root may enter")
    with running("/bin/sh", "-c", "while :; do :; done") as busy:
        time.sleep(0.2)
        result = quietcore("diagnose", "--pid", str(busy.pid), "--duration", "1.5", user=NOBODY)
    # who took what it waited for, if it did, is not seen
    assert result.returncode in (0, 3), result
    assert "procfs" in result.stdout
    assert "run as root" in result.stdout


@pytest.mark.nobody
def test_without_root_the_demo_says_what_it_lacks() -> None:
    if _home_is_private():
        pytest.skip("the environment lies in a folder that only root may enter")
    assert_one_line(quietcore("demo", "--duration", "2", user=NOBODY), 3, "run as root")


def _home_is_private() -> bool:
    return subprocess.run(
        [sys.executable, "-c", "import quietcore.probes"],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        check=False,
    ).returncode != 0  # fmt: skip


def test_kernel_without_btf(tmp_path: Path) -> None:
    empty = tmp_path / "vmlinux"
    empty.touch()
    with launcher("--duration", "20") as victim:
        hidden = (
            f"mount --bind {empty} /sys/kernel/btf/vmlinux && exec {sys.executable} -m quietcore.agent.cli "
            f"diagnose --backend libbpf --pid {victim.pid}"
        )
        result = subprocess.run(
            ["unshare", "--mount", "sh", "-c", hidden], capture_output=True, text=True, check=False
        )
    assert_one_line(result, 3, "BTF", "bcc")


def test_library_without_symbols(tmp_path: Path) -> None:
    source = tmp_path / "empty.c"
    source.write_text("int nothing(void) { return 0; }\n")
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    child = f"import ctypes, time; ctypes.CDLL({str(library)!r}); print('ready', flush=True); time.sleep(60)"
    with running(sys.executable, "-c", child) as process:
        assert process.process.stdout is not None
        process.process.stdout.readline()
        result = quietcore("diagnose", "--pid", str(process.pid), "--duration", "1")
    # everything but launches can still be measured
    assert result.returncode == 3, result
    assert "launches are not seen" in result.stdout
    assert "not enough data" in result.stdout


def test_target_exits_midway() -> None:
    with launcher("--duration", "600") as victim:
        timer = threading.Timer(3.5, victim.process.terminate)
        timer.start()
        began = time.monotonic()
        result = quietcore("diagnose", "--pid", str(victim.pid), "--duration", "30")
        timer.join()
    assert time.monotonic() - began < 15
    assert result.returncode in (0, 1), result
    assert "the target ended after" in result.stdout


def test_target_killed_at_once() -> None:
    with launcher("--duration", "600") as victim:
        timer = threading.Timer(0.6, victim.process.kill)
        timer.start()
        result = quietcore("diagnose", "--pid", str(victim.pid), "--duration", "30")
        timer.join()
    assert result.returncode == 3, result
    assert "Traceback" not in result.stderr


def interrupted(after: float) -> tuple[int, str, str]:
    """Exit code, output and errors of a diagnosis that meets Ctrl-C."""
    with launcher("--duration", "600") as victim:
        process = subprocess.Popen(
            [*CLI, "diagnose", "--pid", str(victim.pid), "--duration", "60"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=10)
    return process.returncode, output, errors


def test_interrupted_by_the_user() -> None:
    code, output, errors = interrupted(after=5)
    assert errors == ""
    # what else ran on a shared machine decides which verdict it is; Ctrl-C must not
    verdicts = {"not the CPU": 0, "interference": 1, "not enough data": 3}
    assert [code == expected for said, expected in verdicts.items() if f"\n{said}" in output] == [True]
    assert "critical threads" in output
    assert re.search(r"stopped after \d\.\d s of 60 s", output)


def test_output_that_nobody_reads() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with launcher("--duration", "600") as victim:
        command = [*CLI, "diagnose", "--pid", str(victim.pid), "--duration", "1", "--json"]
        result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert_one_line(result, 3, "closed")


def test_killed_agent_leaves_nothing() -> None:
    with launcher("--duration", "600") as victim:
        process = subprocess.Popen(
            [*CLI, "diagnose", "--pid", str(victim.pid), "--duration", "60"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(2)
        process.kill()
        process.wait()
        # the victim goes on undisturbed
        time.sleep(0.3)
        assert victim.process.poll() is None


def test_library_gone_from_disk(tmp_path: Path) -> None:
    for name in ("launcher", "libcuda.so.1", "libcudart.so.12"):
        shutil.copy(BUILT / name, tmp_path / name)
    with running(tmp_path / "launcher", "--worker", "--duration", "20") as victim:
        time.sleep(0.5)
        (tmp_path / "libcuda.so.1").unlink()
        result = quietcore(
            "diagnose", "--pid", str(victim.pid), "--duration", "2", "--json", "--overhead-budget", "off"
        )
    assert result.returncode in (0, 1), result
    assert '"seen"' in result.stdout
