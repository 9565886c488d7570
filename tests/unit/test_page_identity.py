"""Whose page it is, and what becomes of pages whose writer is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quietcore.scheduler.page import (
    EnginePageWriter,
    EngineStats,
    ProcessIdentity,
    engine_page_name,
    remove_abandoned_pages,
)
from quietcore.scheduler.vllm.telemetry import Telemetry

SOURCE = Path(__file__).resolve().parents[2] / "src"
ENGINE = """
import sys
from pathlib import Path
from quietcore.scheduler.vllm.telemetry import Telemetry
telemetry = Telemetry(sys.argv[1], 4, sys.exit)
print("ready", flush=True)
sys.stdin.read()
"""


def start_engine(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(folder)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_page_of_a_killed_engine_goes_with_the_next_start(tmp_path: Path) -> None:
    with start_engine(tmp_path) as killed:
        killed.kill()
    assert len(list(tmp_path.iterdir())) == 1
    with start_engine(tmp_path) as living:
        own = Telemetry(str(tmp_path), 4, pytest.fail)
        identity = ProcessIdentity.of(living.pid)
        assert identity is not None
        names = {engine_page_name(each) for each in (identity, ProcessIdentity.own())}
        assert {path.name for path in tmp_path.iterdir()} == names
        own.close()
        living.kill()


def test_only_what_is_surely_abandoned_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ProcessIdentity.own()
    gone = own._replace(start_ticks=own.start_ticks + 1)
    EnginePageWriter(tmp_path / engine_page_name(own)).write(EngineStats())
    kept = {
        engine_page_name(own),
        engine_page_name(gone._replace(pid_ns=own.pid_ns + 1)),  # another container's
        f"{engine_page_name(gone)}.txt",
        "engine-1-2.page",
        "state",
    }
    abandoned = {engine_page_name(gone), f".{engine_page_name(gone)}.{gone.pid}"}
    for name in (kept | abandoned) - {engine_page_name(own)}:
        (tmp_path / name).write_bytes(b"")
    folder = tmp_path / engine_page_name(gone._replace(start_ticks=1))
    folder.mkdir()
    with monkeypatch.context() as patch:
        user = os.geteuid()
        patch.setattr(os, "geteuid", lambda: user + 1)
        remove_abandoned_pages(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept | abandoned | {folder.name}
    remove_abandoned_pages(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept | {folder.name}
    remove_abandoned_pages(tmp_path / "nowhere")


def test_a_process_that_cannot_be_seen_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ProcessIdentity.own()
    assert not own.is_gone()
    assert own._replace(pid=2**22 + 1).is_gone()
    assert not ProcessIdentity(pid=2**22 + 1).is_gone()

    def refuse(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not own._replace(start_ticks=1).is_gone()


def test_identities_tell_processes_apart() -> None:
    own = ProcessIdentity.own()
    assert own.pid == os.getpid()
    assert own.pid_ns > 0
    assert own.start_ticks > 0
    assert ProcessIdentity.of(os.getpid()) == own
    parent = ProcessIdentity.of(os.getppid())
    assert parent is not None
    assert parent != own
    assert ProcessIdentity.of(2**22 + 1) is None
    assert engine_page_name(own) != engine_page_name(parent)


def test_a_name_full_of_brackets_hides_nothing(tmp_path: Path) -> None:
    process = tmp_path / "77"
    (process / "ns").mkdir(parents=True)
    (process / "ns" / "pid").write_text("")
    (process / "stat").write_text("77 (a) b (c) S " + " ".join(str(i) for i in range(1, 40)))
    (process / "status").write_text("Name:\ta\nNSpid:\t77\t5\n")
    found = ProcessIdentity.of(77, proc=str(tmp_path))
    assert found is not None
    assert found[1:] == (5, 19)
