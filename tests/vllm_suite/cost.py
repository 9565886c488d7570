"""Times steps of vLLM's scheduler and of ours, in turn, in one process; prints JSON for tests/bars.

Ours reads a feedback page that is written ten times a second, as beside an agent.

python cost.py SECONDS      in vLLM's environment
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path
from statistics import fmean, median
from time import monotonic, perf_counter
from typing import Any

from tests.vllm_suite.engine import Engine

from quietcore.scheduler.bench.modelless import EngineShape, import_vllm
from quietcore.scheduler.page import Feedback, FeedbackPageWriter, ProcessIdentity

SLOTS = 64
MANY, FEW = 10_000, 100
WARM_STEPS = 400  # the step-time model learns from each of the first 300
WINDOW_NS = 100_000_000  # of the agent
LENGTH = 200  # so that every third step or so one ends and another is admitted


class _Agent:
    """Writes its page when it is time; nothing is disturbed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer = FeedbackPageWriter(path)
        self._feedback = Feedback(ProcessIdentity.own(), WINDOW_NS, host_slowdown=1.01)
        self._next = 0.0

    def pass_(self) -> None:
        if monotonic() >= self._next:
            self._next = monotonic() + WINDOW_NS / 1e9
            self._writer.publish([self._feedback])


def _fill(cls: Any, waiting: int, policy: str, agent: _Agent) -> Any:
    config = {"quietcore": {"feedback": str(agent.path)}}
    shape = EngineShape(slots=SLOTS, kv_tokens=SLOTS * 1024, policy=policy, additional_config=config)
    engine = Engine(cls, shape)
    for number in range(waiting + SLOTS):
        engine.add(f"r{number}", 1 + (number * 7919) % (2 * LENGTH), prompt=32)
    for _ in range(WARM_STEPS):
        agent.pass_()
        engine.step()
    return engine


def _timed_step(engine: Any, number: int) -> float:
    """Microseconds of one step; as many arrive as have ended, so the queue keeps its length."""
    scheduler = engine.scheduler
    left = len(scheduler.requests)
    begun = perf_counter()
    engine.step()
    seconds = perf_counter() - begun
    for extra in range(left - len(scheduler.requests)):
        engine.add(f"n{number}-{extra}", 1 + (number * 7919) % (2 * LENGTH), prompt=32)
    return seconds * 1e6


def _own_us(engine: Any, steps: int, agent: _Agent) -> tuple[float, float]:
    """Microseconds of a step in what is ours: median, and mean with the ends of requests in it."""
    from quietcore.scheduler.vllm.control import Control

    spent = 0.0

    def timed(method: Any) -> Any:
        def call(*args: Any) -> Any:
            nonlocal spent
            begun = perf_counter()
            try:
                return method(*args)
            finally:
                spent += perf_counter() - begun

        return call

    names = ("before_schedule", "after_schedule", "before_update", "after_update", "ended")
    originals = {name: getattr(Control, name) for name in names}
    samples = []
    try:
        for name, method in originals.items():
            setattr(Control, name, timed(method))
        for number in range(steps):
            agent.pass_()
            spent = 0.0
            _timed_step(engine, number)
            samples.append(spent * 1e6)
    finally:
        for name, method in originals.items():
            setattr(Control, name, method)
    return median(samples), fmean(samples)


def main(seconds: float, agent: _Agent) -> None:
    """Measures and prints JSON."""
    version = import_vllm()
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    from quietcore.scheduler.vllm import DriftScheduler

    # First, as an engine with few requests has no many beside it.
    few = _fill(DriftScheduler, FEW, "fcfs", agent)
    own, own_mean = _own_us(few, 3000, agent)
    few_waiting = len(few.scheduler.waiting)
    del few
    engines = {
        "stock": _fill(AsyncScheduler, MANY, "priority", agent),
        "ours": _fill(DriftScheduler, MANY, "fcfs", agent),
    }
    gc.collect()
    gc.freeze()
    samples: dict[str, list[float]] = {name: [] for name in engines}
    end = monotonic() + seconds
    number = 0
    while monotonic() < end:
        number += 1
        agent.pass_()
        for name in ("stock", "ours") if number % 2 else ("ours", "stock"):
            samples[name].append(_timed_step(engines[name], number))
    assert engines["ours"].scheduler._control is not None, "ours has failed"
    assert engines["ours"].scheduler._slowdown._reader.read() is not None, "the page was not read"
    print(
        json.dumps(
            {
                "version": version,
                "steps": number,
                "waiting": {name: len(engine.scheduler.waiting) for name, engine in engines.items()},
                "median_us": {name: median(each) for name, each in samples.items()},
                "mean_us": {name: fmean(each) for name, each in samples.items()},
                "own_us": own,
                "own_mean_us": own_mean,
                "few_waiting": few_waiting,
            }
        )
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(float(sys.argv[1]), _Agent(Path(folder) / "feedback"))
