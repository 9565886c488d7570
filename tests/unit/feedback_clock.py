"""CLOCK_MONOTONIC as writer and reader of the feedback page are shown it."""

from __future__ import annotations

import pytest

from quietcore.scheduler.page import feedback

_START_NS = 1_000_000_000_000


class Clock:
    """Stands still but for `pass_`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = _START_NS
        monkeypatch.setattr(feedback, "monotonic_ns", lambda: self.now_ns)

    def pass_(self, ns: int) -> None:
        self.now_ns += ns
