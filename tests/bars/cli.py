"""The product as a user calls it: a new process, its JSON and its exit code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.bars.bar import BarError
from tests.integration.doubles import quietcore


@dataclass(frozen=True)
class Answer:
    """What ``quietcore diagnose --json`` said of its one target."""

    code: int
    target: dict[str, Any]

    @property
    def outcome(self) -> str:
        outcome: str = self.target["verdict"]["outcome"]
        return outcome

    @property
    def text(self) -> str:
        text: str = self.target["verdict"]["text"]
        return text


def diagnose(pid: int, seconds: float, *options: str) -> Answer:
    """Diagnose one process. Raises BarError when it cannot be measured."""
    arguments = ("diagnose", "--pid", str(pid), "--duration", str(seconds), "--json", *options)
    done = quietcore(*arguments, timeout=seconds + 60)
    if not done.stdout:
        raise BarError(done.stderr.strip() or f"quietcore diagnose ended with {done.returncode}")
    return Answer(done.returncode, json.loads(done.stdout)["targets"][0])
