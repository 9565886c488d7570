"""What our scheduling costs beside vLLM's own, step by step in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "tests" / "vllm_suite"

SLOTS = 64
MANY, FEW = 10_000, 100
MOST_RATIO = 1.2
MOST_OWN_US = 20.0
WARM_STEPS = 100
LENGTH = 200  # so that every third step or so one ends and another is admitted


def measure(runs: int, seconds: float) -> Any:
    """``runs`` times, each for about ``seconds``, in vLLM's environment (``QUIETCORE_VLLM_VENV``)."""
    from tests.bars.bar import BarError, Outcome

    venv = Path(os.environ.get("QUIETCORE_VLLM_VENV", ROOT / ".venv-vllm"))
    python = venv / "bin" / "python"
    if not python.exists():
        raise BarError(f"no vLLM in {venv}: run tests/vllm_server/install.sh {venv}")
    found = []
    for _ in range(runs):
        command = [str(python), __file__, str(seconds)]
        environ = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "QUIETCORE_PAGE_DIR": ""}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BarError((done.stderr.strip().splitlines() or ["no message"])[-1])
        found.append(json.loads(done.stdout.splitlines()[-1]))
    ratios = [run["median_us"]["ours"] / run["median_us"]["stock"] for run in found]
    means = [run["mean_us"]["ours"] / run["mean_us"]["stock"] for run in found]
    own = [run["own_us"] for run in found]
    rows = [
        [
            str(number + 1),
            f"{run['median_us']['stock']:.0f}",
            f"{run['median_us']['ours']:.0f}",
            f"{ratios[number]:.3f}",
            f"{means[number]:.3f}",
            f"{own[number]:.1f}",
        ]
        for number, run in enumerate(found)
    ]
    return Outcome(
        met=max(ratios) <= MOST_RATIO and max(own) <= MOST_OWN_US,
        figure=f"ratio {max(ratios):.3f}, own {max(own):.1f} us (worst of {runs})",
        columns=("run", "stock us", "ours us", "ratio", "of means", "own us"),
        rows=rows,
        remarks=(f"{SLOTS} running; vLLM {found[0]['version']}; a step is schedule and update_from_output",),
        raw=found,
    )


def bar() -> Any:
    """The bar, for the runner of bars."""
    from tests.bars.bar import Bar

    promise = (
        f"a step with {MANY} waiting <= {MOST_RATIO} x vLLM's priority queue, own part with {FEW} < 20 us"
    )
    return Bar("scheduling cost", promise, runs=3, seconds=10.0, measure=measure)


# --- in vLLM's environment ---


def _fill(cls: Any, waiting: int, policy: str) -> Any:
    from engine import Engine  # type: ignore[import-not-found]

    from quietcore.scheduler.bench.modelless import EngineShape

    shape = EngineShape(slots=SLOTS, kv_tokens=SLOTS * 1024, policy=policy)
    engine = Engine(cls, shape)
    for number in range(waiting + SLOTS):
        engine.add(f"r{number}", 1 + (number * 7919) % (2 * LENGTH), prompt=32)
    for _ in range(WARM_STEPS):
        engine.step()
    return engine


def _timed_step(engine: Any, number: int) -> float:
    """Microseconds of one step; as many arrive as have ended, so the queue keeps its length."""
    from time import perf_counter

    before = sum(1 for _ in engine.scheduler.running)
    begun = perf_counter()
    engine.step()
    seconds = perf_counter() - begun
    for extra in range(before - len(engine.scheduler.running)):
        engine.add(f"n{number}-{extra}", 1 + (number * 7919) % (2 * LENGTH), prompt=32)
    return seconds * 1e6


def _own_us(engine: Any, steps: int) -> float:
    """Median microseconds of a step in what is ours."""
    from statistics import median
    from time import perf_counter

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
            spent = 0.0
            _timed_step(engine, number)
            samples.append(spent * 1e6)
    finally:
        for name, method in originals.items():
            setattr(Control, name, method)
    return median(samples)


def main(seconds: float) -> None:
    """Measures and prints JSON."""
    import gc
    from statistics import fmean, median
    from time import monotonic

    sys.path.insert(0, str(SUITE))
    from quietcore.scheduler.bench.modelless import import_vllm

    version = import_vllm()
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    from quietcore.scheduler.vllm import DriftScheduler

    engines = {"stock": _fill(AsyncScheduler, MANY, "priority"), "ours": _fill(DriftScheduler, MANY, "fcfs")}
    few = _fill(DriftScheduler, FEW, "fcfs")
    gc.collect()
    gc.freeze()
    samples: dict[str, list[float]] = {name: [] for name in engines}
    end = monotonic() + seconds
    number = 0
    while monotonic() < end:
        number += 1
        for name in ("stock", "ours") if number % 2 else ("ours", "stock"):
            samples[name].append(_timed_step(engines[name], number))
    assert engines["ours"].scheduler._control is not None, "ours has failed"
    print(
        json.dumps(
            {
                "version": version,
                "steps": number,
                "waiting": {name: len(engine.scheduler.waiting) for name, engine in engines.items()},
                "median_us": {name: median(each) for name, each in samples.items()},
                "mean_us": {name: fmean(each) for name, each in samples.items()},
                "own_us": _own_us(few, 2000),
                "few_waiting": len(few.scheduler.waiting),
            }
        )
    )


if __name__ == "__main__":
    main(float(sys.argv[1]))
