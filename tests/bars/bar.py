"""What a bar is: a promise, a way to measure it, and the line that says whether it is kept."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any


class BarError(Exception):
    """The bar could not be measured here; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """One measurement of a bar: ``figure`` for people, ``rows`` as a table, ``raw`` for JSON."""

    met: bool
    figure: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    remarks: Sequence[str] = ()
    raw: Any = None


@dataclass(frozen=True)
class Bar:
    """A promise and its measurement, by number of runs and seconds of each."""

    name: str
    promise: str
    runs: int
    seconds: float
    measure: Callable[[int, float], Outcome] = field(repr=False)

    def line(self, outcome: Outcome) -> str:
        return f"BAR {self.name}: {self.promise} | {outcome.figure} | {'met' if outcome.met else 'MISSED'}"


def progress(text: str) -> None:
    """For who waits."""
    print(f"  {text}", file=sys.stderr, flush=True)


def percent(share: float, digits: int = 1) -> str:
    return f"{share:.{digits}%}"


def ms(ns: float) -> str:
    return f"{ns / 1e6:.1f}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned text, first column to the left."""
    lines = [list(columns), *map(list, rows)]
    if not columns:
        return ""
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    aligned = (
        [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        for line in lines
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def describe_machine() -> dict[str, Any]:
    """What a figure depends on; no name of the machine."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), "?")
    guest = any("hypervisor" in line.split() for line in info if line.startswith("flags"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": date.today().isoformat(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": model,
        "cpus": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "guest": guest,
        "load_average": os.getloadavg()[0],
    }
