"""What a look at the feedback page costs an engine, and that none misleads it."""

from __future__ import annotations

import gc
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter_ns

from tests.bars.bar import Bar, Outcome, progress
from tests.hostile_pages import (
    OURS,
    Misled,
    look_again,
    make_feedback,
    try_hostile_engine_pages,
    try_hostile_pages,
)
from tests.torn_writes import try_torn_writes

from quietcore.scheduler.cost import MeasuredSlowdown
from quietcore.scheduler.page import MAX_SLOTS, FeedbackPageWriter, FeedbackReader

HOSTILE, TORN = 100_000, 10_000
MOST_NS = 1000.0
BATCH = 20
"""Reads that are timed together: the clock costs as much as a tenth of one."""
PAGE_FOLDER = Path("/run")
"""In memory, as the agent's page is by default."""


@dataclass(frozen=True)
class Cost:
    """Median nanoseconds of a read.

    Attributes:
        again: within a millisecond of the last look.
        unchanged: a look at a page where nothing is new.
        source: the same by the cost model's source, as in a step of the engine.
        changed: a look at a new record.
        absent: where there is no page.
    """

    again: float
    unchanged: float
    source: float
    changed: float
    absent: float


@dataclass(frozen=True)
class Run:
    """One measurement; ``misled`` says what a reader believed that it must not, or is empty.

    Attributes:
        hostile, hostile_engine: feedback pages shown to an engine, engine pages shown to an agent, by kind.
        torn: writes to the feedback page that broke off, each shown to two readers.
    """

    cost: Cost
    hostile: dict[str, int] = field(default_factory=dict)
    hostile_engine: dict[str, int] = field(default_factory=dict)
    torn: dict[str, int] = field(default_factory=dict)
    misled: str = ""


def time_reads(seconds: float) -> Cost:
    """In turn, so that all see the same machine, for about ``seconds``."""
    with tempfile.TemporaryDirectory(dir=PAGE_FOLDER) as folder:
        path = Path(folder) / "feedback"
        writer = FeedbackPageWriter(path)
        crowd = [make_feedback(1, OURS._replace(pid=pid)) for pid in range(5000, 5000 + MAX_SLOTS - 1)]
        writer.publish([*crowd, make_feedback(1)])
        reader = FeedbackReader(path, OURS)
        absent = FeedbackReader(path.with_name("absent"), OURS)
        source = MeasuredSlowdown(reader)

        def unchanged() -> None:
            reader._again_ns = 0
            reader.read()

        def sourced() -> None:
            reader._again_ns = 0
            source()

        def changed() -> None:
            reader._again_ns = 0
            reader._sequence = b""
            reader.read()

        acts: dict[str, Callable[[], object]] = {
            "again": reader.read,
            "unchanged": unchanged,
            "source": sourced,
            "changed": changed,
            "absent": absent.read,
        }
        samples: dict[str, list[float]] = {name: [] for name in acts}
        gc.disable()
        try:
            end = perf_counter_ns() + seconds * 1e9
            while perf_counter_ns() < end:
                look_again(reader)
                for name, act in acts.items():
                    samples[name].append(_time(act))
        finally:
            gc.enable()
        reader.close()
        writer.close()
    return Cost(**{name: median(each) for name, each in samples.items()})


def _time(act: Callable[[], object]) -> float:
    begun = perf_counter_ns()
    for _ in range(BATCH):
        act()
    return (perf_counter_ns() - begun) / BATCH


def collect(runs: int, seconds: float) -> list[Run]:
    found = []
    for number in range(runs):
        cost = time_reads(seconds)
        progress(f"run {number + 1} of {runs}: {cost.unchanged:.0f} ns; now hostile pages")
        try:
            with tempfile.TemporaryDirectory(dir=PAGE_FOLDER) as folder:
                torn = try_torn_writes(Path(folder), TORN, seed=number)
                hostile = try_hostile_pages(Path(folder), HOSTILE, seed=number)
                engines = try_hostile_engine_pages(Path(folder), HOSTILE, seed=number)
            found.append(Run(cost, _plain(hostile), _plain(engines), _plain(torn)))
        except Misled as error:
            found.append(Run(cost, misled=str(error)))
    return found


def _plain(seen: Counter[str]) -> dict[str, int]:
    return dict(sorted(seen.items()))


def conclude(runs: Sequence[Run]) -> Outcome:
    slowest = max(run.cost.unchanged for run in runs)
    misled = [run.misled for run in runs if run.misled]
    pages = sum(sum(run.hostile.values()) for run in runs)
    engines = sum(sum(run.hostile_engine.values()) for run in runs)
    writes = sum(n for run in runs for name, n in run.torn.items() if name.startswith("new"))
    believed = f"; misled: {misled[0]}" if misled else ", nobody misled"
    return Outcome(
        met=slowest < MOST_NS and not misled,
        figure=f"{slowest:.0f} ns (slowest median of {len(runs)}); {pages:,} hostile feedback pages, "
        f"{engines:,} engine pages, {writes:,} torn writes{believed}",
        columns=("run", "again ns", "unchanged ns", "by the source ns", "changed ns", "absent ns"),
        rows=[
            [str(number), *(f"{value:.0f}" for value in asdict(run.cost).values())]
            for number, run in enumerate(runs, 1)
        ],
        remarks=(
            "a step asks once or twice and is told from memory within a millisecond; a new record comes ten "
            "times a second",
        ),
        raw=[asdict(run) for run in runs],
    )


BAR = Bar(
    "feedback-page",
    "a read of the feedback page under 1 us; 100,000 hostile pages and 10,000 torn writes mislead nobody",
    runs=3,
    seconds=5.0,
    measure=lambda runs, seconds: conclude(collect(runs, seconds)),
)
