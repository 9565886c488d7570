"""What several modules of unit tests need."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.unit.boards import Board
from tests.unit.cuda_programs import Build

from quietcore.agent.pin.registry import LEVERS


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def compile_(path: Path, source: str, *flags: str, shared: bool = True) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        code = tmp_path / "code.c"
        code.write_text(source)
        kind = ["-shared", "-fPIC"] if shared else []
        subprocess.run(["gcc", "-O0", *kind, *flags, "-o", str(path), str(code)], check=True)
        return path

    return compile_


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    lever = Board()
    monkeypatch.setitem(LEVERS, "board", lever)
    return lever
