"""Scenarios in which something of ours breaks: the engine must serve on, in vLLM's order, with one line in
the log.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.vllm_suite.engine import Engine
from tests.vllm_suite.kit import LOG, SMALL, Oracle, by_first, finished, hint, make

from quietcore.scheduler.bench.modelless import EngineShape
from quietcore.scheduler.vllm.telemetry import PERIOD_S


def broken(where: str) -> Any:
    """The estimator raises in the middle of the work."""
    oracle = Oracle()
    engine = make(estimator=oracle, slots=2)
    for number in range(10):
        engine.add(f"before{number}", 30 - number, **hint(30 - number))
    for _ in range(10):
        engine.step()
    oracle.fail_at = where
    for number in range(10):
        engine.add(f"after{number}", 3 + number % 2, **hint(3 + number % 2))
    engine.drain()
    return {
        "finished": finished(engine),
        "warnings": list(LOG.lines),
        "starts": [engine.outcomes[f"after{number}"].first for number in range(10)],
        "active": engine.scheduler._control is not None,
    }


def _served(engine: Engine) -> dict[str, Any]:
    return {
        "finished": finished(engine),
        "order": by_first(engine.outcomes),
        "warnings": list(LOG.lines),
    }


def broken_queue() -> Any:
    engine = make(estimator=Oracle(), slots=2)
    for number in range(6):
        engine.add(f"r{number}", 5, **hint(9 - number))
    engine.scheduler.waiting.jobs._ordinary = None
    engine.drain()
    return _served(engine)


def broken_priority() -> Any:
    """With ``--scheduling-policy priority``, vLLM's order is by priority, then by arrival."""
    from quietcore.scheduler.vllm import DriftScheduler

    LOG.lines.clear()
    config = {"quietcore": {"page_dir": "off"}}
    shape = EngineShape(**{**SMALL, "slots": 1}, policy="priority", additional_config=config)
    engine = Engine(DriftScheduler, shape)
    for number in range(6):
        engine.add(f"r{number}", 5, priority=(5 - number) // 2)
    engine.scheduler.waiting.jobs._ordinary = None
    engine.step()
    engine.add("late", 5, priority=-1)
    engine.drain()
    return _served(engine)


def broken_pop() -> Any:
    """The queue raises when vLLM takes the request that it was shown, and has prepared."""
    engine = make(estimator=Oracle(), slots=2)
    pool = engine.scheduler.kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()
    for number in range(6):
        engine.add(f"r{number}", 5, prompt=20 + number, **hint(60 - 10 * number))
    engine.scheduler.waiting.jobs._charge = None
    engine.drain()
    return {
        "order": by_first(engine.outcomes),
        "lengths": [len(outcome.tokens) for outcome in engine.outcomes.values()],
        "leaked": free - pool.get_num_free_blocks(),
        "warnings": list(LOG.lines),
    }


def broken_removal() -> Any:
    """The queue raises while requests are aborted."""
    engine = make(estimator=Oracle(), slots=2)
    for number in range(6):
        engine.add(f"r{number}", 5, **hint(9 - number))
    engine.scheduler.waiting.jobs._tiers.waiting.clear()
    engine.abort("r2", "r3")
    engine.drain()
    return _served(engine)


class Remembering(Oracle):
    """Keeps its state in a file of one word."""

    closed = False

    def close(self) -> None:
        self.closed = True

    def load(self, path: Path) -> None:
        if path.read_text("utf-8") != "sound":
            raise ValueError("no state of an estimator")

    def snapshot(self) -> Any:
        return SimpleNamespace(write=lambda path: path.write_text("sound", "utf-8"))


def damaged_state() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        path.write_bytes(b"\x00garbage\xff" * 100)
        engine = make(estimator=Remembering(), state=str(path), slots=1, bounded=False)
        for length in (9, 3):
            engine.add(f"r{length}", length, **hint(length))
        engine.drain()
        warnings = list(LOG.lines)
        engine.scheduler.shutdown()
        later = make(estimator=Remembering(), state=str(path))
        again = list(LOG.lines)
        path.unlink()
        path.mkdir()
        later.scheduler.shutdown()
        return {"order": by_first(engine.outcomes), "warnings": warnings, "again": again}


def after_failure(where: str) -> Any:
    """What becomes of the page and of the state, where only the queue breaks or the estimator does."""
    from quietcore.scheduler.page import read_engine_page

    with tempfile.TemporaryDirectory() as folder:
        estimator = Remembering()
        state = Path(folder) / "state"
        engine = make(estimator=estimator, page_dir=folder, state=str(state), slots=1)
        for number in range(9):
            engine.add(f"r{number}", 5, **hint(5))
        engine.step()
        (path,) = Path(folder).glob("*.page")
        if where == "queue":
            engine.scheduler.waiting.jobs._ordinary = None
        estimator.fail_at = where
        for _ in range(10):
            engine.step()
        pages = [read_engine_page(path)]
        for _ in range(2):
            time.sleep(1.5 * PERIOD_S)
            engine.step()
            pages.append(read_engine_page(path))
        engine.drain()
        engine.scheduler.shutdown()
        return {
            "degraded": [page is not None and page.degraded for page in pages],
            "waiting": [dict(page.waiting) for page in pages if page is not None],
            "writes": len({page.sequence for page in pages if page is not None}),
            "left": sorted(each.name for each in Path(folder).iterdir()),
            "closed": estimator.closed,
            "finished": finished(engine),
            "warnings": list(LOG.lines),
        }


def no_estimator() -> Any:
    """As when the file of the shipped model is damaged: nothing can be built."""
    from quietcore.scheduler.vllm import DriftScheduler

    class Broken(DriftScheduler):  # type: ignore[misc]
        def _make_estimator(self, settings: Any) -> Any:
            raise OSError("the prior is damaged")

    LOG.lines.clear()
    engine = Engine(Broken, EngineShape(**SMALL))
    for number in range(20):
        engine.add(f"r{number:02}", 20 - number)
    engine.drain()
    return {
        "finished": finished(engine),
        "starts": [engine.outcomes[f"r{number:02}"].first for number in range(20)],
        "warnings": list(LOG.lines),
    }


def unwritable_page() -> Any:
    engine = make(estimator=Oracle(), page_dir="/proc/nowhere", slots=1, bounded=False)
    for length in (9, 3):
        engine.add(f"r{length}", length, **hint(length))
    engine.drain()
    return {"order": by_first(engine.outcomes), "warnings": list(LOG.lines)}


def clock_jumps() -> Any:
    found = []
    for jump in (-1e6, 1e6):
        clock = [1000.0]
        engine = make(slots=2, now=lambda clock=clock: clock[0])  # type: ignore[misc]
        for number in range(20):
            engine.add(str(number), 5 + number)
            engine.step()
            clock[0] += 0.01
        clock[0] += jump
        engine.drain()
        found.append(finished(engine))
    return {"finished": found, "warnings": list(LOG.lines)}
