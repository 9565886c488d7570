"""What doctor says where it cannot look, and its exit codes: no program is loaded here."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.unit.probe_backend import FakeBackend

from quietcore.agent.cli import cli
from quietcore.agent.cli import doctor as module
from quietcore.agent.cli.doctor import exit_code
from quietcore.probes import backend, proc, selftest
from quietcore.probes.bcc import BccBackend
from quietcore.probes.core import CoreBackend
from quietcore.probes.errors import BackendUnavailableError
from quietcore.probes.host import Finding
from quietcore.probes.selftest import BackendCheck, check_backends


def never(*_: object) -> None:
    raise AssertionError("a backend was started")


def test_in_a_containers_namespace_no_bpf_backend_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for diagnose, which refuses there: BPF programs see the host's process ids."""
    monkeypatch.setattr(proc, "in_first_pid_namespace", lambda: False)
    for kind in (CoreBackend, BccBackend):
        monkeypatch.setattr(kind, "start", never)
    checks = list(check_backends())
    assert {(c.backend, c.step) for c in checks} == {
        ("libbpf", "namespace"),
        ("bcc", "namespace"),
        ("procfs", "ok"),
    }
    assert exit_code(checks, []) == 3
    for name in ("libbpf", "bcc"):
        with pytest.raises(BackendUnavailableError, match="pid namespace"):
            backend.open_backend(name)


@pytest.fixture
def no_statistics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A kernel before 5.8, with /proc/sys as in a container."""
    monkeypatch.setattr(selftest, "_enable_statistics", lambda: None)
    switch = tmp_path / "bpf_stats_enabled"
    monkeypatch.setattr(selftest, "_STATS_SWITCH", switch)
    return switch


def test_statistics_that_cannot_be_switched_on(no_statistics: Path) -> None:
    check = selftest._check(FakeBackend, "libbpf", "btf")
    assert (check.ok, check.step) == (False, "fire")
    assert f"{no_statistics}: No such file" in check.detail
    assert "/proc/sys writable" in check.remedy


def test_a_system_call_that_fails_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def fire(_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(selftest, "_fire", fire)
    check = selftest._check(FakeBackend, "libbpf", "btf")
    assert (check.ok, check.step, check.detail) == (False, "fire", "[Errno 24] Too many open files")


def test_statistics_are_left_as_they_were(no_statistics: Path) -> None:
    no_statistics.write_text("0\n")
    with selftest._statistics():
        assert no_statistics.read_text() == "1"
    assert no_statistics.read_text() == "0\n"


@pytest.mark.root
def test_statistics_by_a_descriptor_end_with_us() -> None:
    before = selftest._STATS_SWITCH.read_text()
    descriptors = len(os.listdir("/proc/self/fd"))
    with selftest._statistics():
        assert len(os.listdir("/proc/self/fd")) == descriptors + 1
        assert selftest._STATS_SWITCH.read_text() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors


def check(name: str, ok: bool) -> BackendCheck:
    return BackendCheck(name, "", ok, "ok" if ok else "load", "", "", 0.1, ())


@pytest.mark.parametrize(
    ("works", "status", "code"),
    [
        (("libbpf", "bcc", "procfs"), "ok", 0),
        (("libbpf", "procfs"), "warn", 0),  # a warning, also one with a remedy, is no failure
        (("libbpf", "procfs"), "unknown", 0),
        (("libbpf", "procfs"), "fail", 1),
        (("bcc", "procfs"), "ok", 1),
        (("libbpf", "bcc"), "ok", 1),
        (("procfs",), "ok", 3),
    ],
)
def test_exit_codes(works: tuple[str, ...], status: Any, code: int) -> None:
    checks = [check(name, name in works) for name in backend.NAMES]
    assert exit_code(checks, [Finding("swap", status, "", "swapoff -a")]) == code


def test_the_number_of_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "check_backends", lambda: iter([]))
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        done = CliRunner().invoke(cli, ["doctor", "--json", "--pid", str(thread.native_id)])
    finally:
        over.set()
        thread.join()
    assert f"{thread.native_id} is a thread of" in done.stderr
    assert json.loads(done.stdout)["schema"] == module.SCHEMA
