"""The state of the estimator on disk: when it is saved, by whom, and what cannot go wrong with it."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quietcore.scheduler.config import Settings
from quietcore.scheduler.vllm.state import StateFile


class Savable:
    def __init__(self) -> None:
        self.loaded: Path | None = None

    def load(self, path: Path) -> None:
        if path.read_text() != "sound":
            raise ValueError("damaged")
        self.loaded = path

    def snapshot(self) -> Savable:
        return self

    def write(self, path: Path) -> None:
        path.write_text("sound")


ALONE = SimpleNamespace(data_parallel_size=1, data_parallel_rank=0)


def test_state_is_saved_and_restored(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "deep" / "state"
    state = StateFile(Settings(state=str(path)), ALONE, said.append)
    state.restore(Savable())
    state.save(Savable())
    estimator = Savable()
    state.restore(estimator)
    assert (estimator.loaded, said) == (path, [])


def test_state_is_saved_after_a_refit_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("quietcore.scheduler.vllm.state.monotonic", lambda: now[0])
    path = tmp_path / "state"
    state = StateFile(Settings(state=str(path)), ALONE, pytest.fail)
    estimator: Any = Savable()

    def saves(seconds: float, idle: bool) -> bool:
        path.unlink(missing_ok=True)
        now[0] += seconds
        state.save_at_times(estimator, idle)
        assert state.join(10.0)
        return path.exists()

    assert not saves(1000.0, True)
    estimator.revision = 1
    assert not saves(29.0, True)
    assert saves(2.0, True)
    assert not saves(1000.0, True)
    estimator.revision = 2
    assert not saves(599.0, False)
    assert saves(2.0, False)


class Slow(Savable):
    """Is written only when it may be."""

    def __init__(self) -> None:
        super().__init__()
        self.revision = 1
        self.may = threading.Event()
        self.snapshots = 0
        self.written_by: list[threading.Thread] = []

    def snapshot(self) -> Savable:
        assert threading.current_thread() is threading.main_thread()
        self.snapshots += 1
        return self

    def write(self, path: Path) -> None:
        assert self.may.wait(10.0)
        self.written_by.append(threading.current_thread())
        super().write(path)


def test_a_step_waits_for_no_file_and_one_is_written_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("quietcore.scheduler.vllm.state.monotonic", lambda: now[0])
    state = StateFile(Settings(state=str(tmp_path / "state")), ALONE, pytest.fail)
    estimator = Slow()
    for _ in range(3):
        now[0] += 1000.0
        estimator.revision += 1
        state.save_at_times(estimator, True)
    assert (estimator.snapshots, estimator.written_by) == (1, [])
    estimator.may.set()
    assert state.join(10.0)
    state.save_at_times(estimator, True)
    assert state.join(10.0)
    assert estimator.snapshots == len(estimator.written_by) == 2
    assert threading.main_thread() not in estimator.written_by


def test_the_end_waits_for_the_file_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    state = StateFile(Settings(state=str(tmp_path / "state")), ALONE, said.append)
    estimator = Slow()
    monkeypatch.setattr("quietcore.scheduler.vllm.state._SHUTDOWN_S", 0.05)
    state.save(estimator)
    state.save(estimator)
    assert (estimator.snapshots, len(said)) == (1, 2), "a second must not write while the first does"
    assert "0.05 s were not enough" in said[0]
    estimator.may.set()
    monkeypatch.undo()
    state.save(estimator)
    assert (estimator.snapshots, len(said)) == (2, 2)
    assert (tmp_path / "state").read_text() == "sound"


def test_engines_of_one_server_keep_apart(tmp_path: Path) -> None:
    for rank in (0, 1):
        parallel = SimpleNamespace(data_parallel_size=2, data_parallel_rank=rank)
        StateFile(Settings(state=str(tmp_path / "state.bin")), parallel, print).save(Savable())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-0.bin", "state-1.bin"]


def test_state_that_is_damaged_or_cannot_be_written_costs_a_line(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "state").write_text("rubbish")
    StateFile(Settings(state=str(tmp_path / "state")), ALONE, said.append).restore(Savable())
    StateFile(Settings(state=str(tmp_path / "state" / "below")), ALONE, said.append).save(Savable())
    assert len(said) == 2
    assert "ValueError: damaged; it starts anew" in said[0]
    assert "could not be saved" in said[1]


def test_an_estimator_without_state_is_left_alone(tmp_path: Path) -> None:
    state = StateFile(Settings(state=str(tmp_path / "state")), ALONE, pytest.fail)
    state.save(object())
    state.restore(object())
    StateFile(Settings(), ALONE, pytest.fail).save(Savable())
    assert list(tmp_path.iterdir()) == []
