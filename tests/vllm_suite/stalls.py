"""Scenarios in which the first request is not admitted: because it does not fit, or because vLLM never looked
at it.
"""

from __future__ import annotations

from typing import Any

from tests.vllm_suite.engine import Engine
from tests.vllm_suite.kit import Oracle, hint, make


class _Stalls:
    """Counts the steps in which the first request was taken for one that does not fit."""

    def __init__(self, engine: Engine) -> None:
        self.count = 0
        jobs = engine.scheduler.waiting.jobs
        self._stall = jobs.stall
        jobs.stall = self

    def __call__(self) -> bool:
        self.count += 1
        return bool(self._stall())


def misfit() -> Any:
    """The first does not fit into what memory is left: smaller ones go on before it."""
    engine = make(estimator=Oracle(), slots=3, bounded=False)
    engine.add("runs", 60, prompt=2100, **hint(60))
    while engine.outcomes["runs"].first < 0 or engine.scheduler.running[0].num_computed_tokens < 2100:
        engine.step()
    stalls = _Stalls(engine)
    engine.add("big", 5, prompt=1500, **hint(5, qos="premium"))
    engine.add("small", 400, **hint(400, qos="batch"))
    for _ in range(10):
        engine.step()
    admitted = engine.outcomes["small"].first >= 0
    engine.drain()
    return {"stalls": stalls.count, "admitted": admitted}


def saturated() -> Any:
    """More slots than requests may be active (``--max-num-active-seqs``, vLLM 0.31); None before that."""
    engine = make(estimator=Oracle(), slots=4, bounded=False)
    if not hasattr(engine.scheduler, "max_num_active_reqs"):
        return None
    engine.scheduler.max_num_active_reqs = 2
    stalls = _Stalls(engine)
    for number in range(6):
        engine.add(f"r{number}", 50, **hint(50 + number))
    for _ in range(40):
        engine.step()
    return {"stalls": stalls.count, "running": len(engine.scheduler.running)}


def paused() -> Any:
    """New requests are held back while one runs on."""
    from vllm.v1.core.sched.interface import PauseState

    engine = make(estimator=Oracle(), slots=4, bounded=False)
    engine.add("runs", 50, **hint(50))
    engine.step()
    engine.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    stalls = _Stalls(engine)
    for number in range(3):
        engine.add(f"r{number}", 5, **hint(5 + number))
    for _ in range(20):
        engine.step()
    return {"stalls": stalls.count, "waiting": len(engine.scheduler.waiting)}


def preempting() -> Any:
    """Requests outgrow the memory: the steps in which one was preempted, and the stalls counted in those."""
    engine = make(estimator=Oracle(), slots=6, kv_tokens=448, step_tokens=512, bounded=False)
    requests = [engine.add(f"r{number}", 150, prompt=100, **hint(150)) for number in range(8)]
    stalls = _Stalls(engine)
    steps = counted = before = 0
    while engine.step():
        preemptions = sum(request.num_preemptions for request in requests)
        if preemptions > before:
            steps += 1
            counted += stalls.count
        before, stalls.count = preemptions, 0
    return {"steps": steps, "counted": counted}
