"""What several modules of integration tests need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.pin_victims import Crowd, crowd

from quietcore.agent.pin.actuate import undo
from quietcore.agent.pin.journal import Journal


@pytest.fixture
def victim() -> Iterator[Crowd]:
    with crowd(3) as made:
        yield made


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """What is still in force at the end is put back."""
    with Journal.open(tmp_path / "pin.journal") as opened:
        yield opened
        undo(opened)
