"""What the scenarios share: an estimator that knows, the log, and an engine with our class."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from tests.vllm_suite.engine import Engine, Outcome

from quietcore.scheduler.bench.modelless import EngineShape
from quietcore.scheduler.estimate import End, Estimate, RequestFacts

SMALL: dict[str, Any] = {"slots": 8, "kv_tokens": 2048, "step_tokens": 256, "prefix_caching": False}


class Oracle:
    """Knows lengths, given as category; remembers what it is told in the end."""

    name = "oracle"
    fail_at = ""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, str]] = []
        self.facts: dict[str, RequestFacts] = {}

    def estimate(self, facts: RequestFacts) -> Estimate:
        self._maybe_fail("estimate")
        self.facts[facts.key] = facts
        length = float(facts.category or 50)
        return Estimate(length, length, length)

    def remaining(self, facts: RequestFacts, first: Estimate, produced: int) -> Estimate:
        self._maybe_fail("remaining")
        left = max(first.mean - produced, 1.0)
        return Estimate(left, left, left)

    def observe(self, facts: RequestFacts, first: Estimate, produced: int, end: End) -> None:
        self._maybe_fail("observe")
        self.seen.append((facts.key, produced, end.value))

    def _maybe_fail(self, where: str) -> None:
        if where == self.fail_at:
            raise RuntimeError(f"the estimator broke in {where}")


class Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


LOG = Log()


def make(
    *,
    sync: bool = False,
    estimator: Any = None,
    depth: int = 1,
    now: Callable[[], float] | None = None,
    **settings: Any,
) -> Engine:
    """An engine with our class; ``settings`` of it and of the engine's shape."""
    from quietcore.scheduler.vllm import DriftScheduler, SyncDriftScheduler

    base = SyncDriftScheduler if sync else DriftScheduler

    class Scheduler(base):  # type: ignore[misc, valid-type]
        def _make_estimator(self, settings: Any) -> Any:
            return estimator if estimator is not None else super()._make_estimator(settings)

        def _now(self) -> float:
            return now() if now is not None else float(super()._now())

    shape = {**SMALL, **{name: settings.pop(name) for name in tuple(settings) if name in SMALL}}
    config = {"quietcore": {"page_dir": "off", "feedback": "off", **settings}}
    LOG.lines.clear()
    return Engine(Scheduler, EngineShape(**shape, additional_config=config), depth=depth)


def by_first(outcomes: dict[str, Outcome]) -> list[str]:
    return sorted(outcomes, key=lambda key: (outcomes[key].first, outcomes[key].last))


def finished(engine: Engine) -> int:
    """How many requests ended by themselves."""
    return sum(outcome.reason == "stop" for outcome in engine.outcomes.values())


def hint(length: int, **more: Any) -> dict[str, Any]:
    return {"extra_args": {"category": str(length), **more}}
