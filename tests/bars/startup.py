"""How long ``quietcore diagnose`` takes until it measures, and how much memory it takes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bars.bar import Bar, BarError, Outcome, progress
from tests.integration.doubles import CLI, launcher

SECONDS_LIMIT, MEMORY_LIMIT = 1.0, 64 * 2**20
LIBRARIES = ("system", "bundled")
"""libbpf: the distribution's, and the copy in the wheel."""
POLL_S = 0.005


@dataclass(frozen=True)
class Row:
    """One run of the command.

    ``measuring`` is when it says that its first window began, ``attached`` when the kernel last gave it a
    link before that; seconds since the process was started. ``peak`` is its largest resident size, bytes.
    """

    run: int
    libbpf: str
    links: int
    attached: float
    measuring: float
    peak: int

    @property
    def seconds(self) -> float:
        return max(self.attached, self.measuring)


def collect(runs: int, seconds: float) -> list[Row]:
    """Diagnose a launcher with probes that are attached from the start (no budget)."""
    rows = []
    with launcher("--worker", "--tokens-per-second", "20") as victim:
        for run in range(runs):
            for libbpf in LIBRARIES:
                rows.append(one_run(run, libbpf, victim.pid, seconds))
                row = rows[-1]
                peak = f"{row.peak / 2**20:.0f} MiB"
                progress(f"run {run + 1} of {runs}, {libbpf} libbpf: {row.seconds:.2f} s, {peak}")
    return rows


def one_run(run: int, libbpf: str, pid: int, seconds: float) -> Row:
    arguments = ["diagnose", "--pid", str(pid), "--duration", str(seconds), "--json"]
    arguments += ["--backend", "libbpf", "--overhead-budget", "off"]
    environment = {**os.environ, "QUIETCORE_LIBBPF": libbpf}
    links, peak, arrivals = 0, 0, []
    began = time.monotonic()
    with subprocess.Popen(
        [*CLI, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                now = count_links(process.pid)
                if now > links:
                    arrivals.append(time.monotonic() - began)
                links = max(links, now)
                peak = max(peak, peak_resident(process.pid))
            time.sleep(POLL_S)
        output, error = process.communicate()
    if not output:
        raise BarError(error.strip() or f"quietcore diagnose ended with {process.returncode}")
    first_window = json.loads(output)["targets"][0]["steps"][0]["start"]
    return Row(run, libbpf, links, max(arrivals, default=0.0), first_window - began, peak)


def count_links(pid: int) -> int:
    """BPF links that a process holds, perf events included (uprobes of kernels before 6.10)."""
    held = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            held += os.readlink(descriptor).removeprefix("anon_inode:").strip("[]") in (
                "bpf_link",
                "perf_event",
            )
    return held


def peak_resident(pid: int) -> int:
    """Bytes; VmHWM, which exec resets, unlike getrusage's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def conclude(rows: Sequence[Row]) -> Outcome:
    slowest, largest = max(row.seconds for row in rows), max(row.peak for row in rows)
    attached = all(row.links for row in rows)
    return Outcome(
        met=slowest < SECONDS_LIMIT and largest < MEMORY_LIMIT and attached,
        figure=f"slowest of {len(rows)} {slowest:.2f} s, largest {largest / 2**20:.0f} MiB",
        columns=("run", "links", "last link, s", "first window, s", "peak MiB"),
        rows=[
            [
                f"{row.run + 1} {row.libbpf} libbpf",
                str(row.links),
                f"{row.attached:.3f}",
                f"{row.measuring:.3f}",
                f"{row.peak / 2**20:.1f}",
            ]
            for row in rows
        ],
        raw=[asdict(row) for row in rows],
    )


BAR = Bar(
    "startup",
    "diagnose: under 1 s from start to attached with libbpf, under 64 MiB resident",
    10,
    2,
    lambda runs, seconds: conclude(collect(runs, seconds)),
)
