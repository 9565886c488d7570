"""Scenarios with requests that wait for something before they can be started, as for a compiled grammar."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.vllm_suite.engine import Engine
from tests.vllm_suite.kit import Oracle, by_first, hint, make


class _Grammars:
    """Of an engine whose grammars are compiled by the time they are asked for and allow any token."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        engine.scheduler.structured_output_manager = SimpleNamespace(
            should_advance=lambda request: False,
            should_fill_bitmask=lambda request: False,
            accept_tokens=lambda *args, **kwargs: True,
        )

    def add(self, key: str, length: int) -> None:
        """A request with a grammar."""
        from vllm.v1.request import RequestStatus

        scheduler = self._engine.scheduler
        enqueue = scheduler._enqueue_waiting_request

        def block(request: Any) -> None:
            request.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
            request.structured_output_request = SimpleNamespace(grammar=object(), structured_output_key=None)
            enqueue(request)

        scheduler._enqueue_waiting_request = block
        try:
            self._engine.add(key, length, **hint(length))
        finally:
            scheduler._enqueue_waiting_request = enqueue


def grammars_are_no_way_to_the_front() -> Any:
    """A long request with a grammar and a short one without, in a queue that goes by cost."""
    engine = make(estimator=Oracle(), slots=1, bounded=False)
    grammars = _Grammars(engine)
    engine.add("runs", 3, **hint(3))
    engine.step()
    engine.add("short", 2, **hint(2))
    grammars.add("long", 60)
    engine.drain()
    return by_first(engine.outcomes)


def grammars_overtake_nobody_overdue() -> Any:
    """How long a request without a grammar waits among ever new ones with one, the bound being ten steps."""
    clock = [0.0]
    engine = make(
        estimator=Oracle(), slots=1, now=lambda: clock[0], stretch=1.0, usual_wait=0.0, wait_floor=10.0
    )
    grammars = _Grammars(engine)
    engine.add("first", 3, **hint(3))
    engine.add("plain", 3, **hint(3))
    for number in range(60):
        grammars.add(f"grammar{number}", 2)
        engine.step()
        clock[0] += 1.0
        if engine.outcomes["plain"].first >= 0:
            break
    return clock[0]
