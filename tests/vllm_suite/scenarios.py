"""Scenarios of the plug-in in vLLM's own scheduler, without a model; prints what came out as JSON.

Run in vLLM's environment by tests/integration/test_vllm_scheduler.py, all at once since importing vLLM takes
seconds.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vllm_suite import blocked, feedback, stalls, survival
from tests.vllm_suite.engine import Engine
from tests.vllm_suite.kit import LOG, SMALL, Oracle, by_first, finished, hint, make

from quietcore.scheduler.bench.modelless import EngineShape, import_vllm


def shortest_first() -> Any:
    engine = make(estimator=Oracle(), slots=1, bounded=False)
    for length in (60, 3, 5, 10, 25, 1):
        engine.add(f"r{length}", length, **hint(length))
    engine.drain()
    return by_first(engine.outcomes)


def tiers_and_priorities() -> Any:
    engine = make(estimator=Oracle(), slots=1, bounded=False)
    engine.add("batch", 20, **hint(20, qos="batch"))
    engine.add("standard", 20, **hint(20))
    engine.add("premium", 20, **hint(20, qos="premium"))
    engine.add("early", 21, priority=-1, **hint(21))
    engine.drain()
    return by_first(engine.outcomes)


def nonsense_hints() -> Any:
    engine = make(estimator=Oracle(), slots=4)
    nonsense = [
        {"qos": "gold"},
        {"qos": ["x"]},
        {"tenant": 1.5},
        {"deadline_ms": "soon"},
        {"deadline_ms": -1},
        {"x": 1},
    ]
    for number, each in enumerate(nonsense):
        engine.add(str(number), 3, extra_args=each)
    engine.drain()
    control = engine.scheduler._control
    return {
        "finished": finished(engine),
        "ignored": control.ledger.ignored_hints,
        "warnings": list(LOG.lines),
    }


def every_end_is_learnt_as_what_it_is() -> Any:
    oracle = Oracle()
    engine = make(estimator=oracle, slots=8)
    engine.add("stops", 5)
    engine.add("capped", 99, max_tokens=4)
    engine.add("leaves", 99)
    engine.add("stop-string", 99, stop=["x"], detokenize=True)
    engine.add("never-ran", 99, prompt=3000)
    for _ in range(8):
        engine.step()
    engine.abort("leaves", "stop-string", "never-ran")
    engine.drain()
    return {"seen": sorted(oracle.seen), "left": len(engine.scheduler._control.ledger)}


def cached_prefix() -> Any:
    """Of two long prompts the one goes first whose beginning has been computed before."""
    engine = make(estimator=Oracle(), slots=1, kv_tokens=8192, bounded=False, prefix_caching=True)
    prompt = list(range(100, 1108))
    cached = {}

    def add(key: str, prompt_ids: list[int]) -> None:
        engine.add(key, 5, prompt_ids=prompt_ids, **hint(5))
        cached[key] = engine.scheduler._control.ledger.get(key).cached

    add("first", prompt)
    engine.drain()
    engine.add("runs", 30, **hint(30))
    engine.step()
    add("other", [number + 5000 for number in prompt[:900]])
    add("again", [*prompt, 9])
    engine.drain()
    return {"order": by_first(engine.outcomes), "cached": cached}


def fixed_lengths() -> Any:
    """What ends at its cap only is ranked by it, whatever the estimator thinks."""
    oracle = Oracle()
    engine = make(estimator=oracle, slots=1, bounded=False)
    for length in (80, 30, 5):
        engine.add(
            f"r{length}", length, max_tokens=length, ignore_eos=True, stop_token_ids=[], **hint(100 - length)
        )
    engine.drain()
    return {"order": by_first(engine.outcomes), "asked": sorted(oracle.facts), "seen": oracle.seen}


def deadlines() -> Any:
    """Two that end by themselves and one that leaves, all with time left; one is late."""
    clock = [0.0]
    engine = make(slots=8, now=lambda: clock[0])
    for key, length, cap in (("stops", 3, 99), ("capped", 99, 3), ("leaves", 99, 99), ("late", 20, 99)):
        engine.add(key, length, max_tokens=cap, **hint(length, deadline_ms=10_000))
    for _ in range(8):
        engine.step()
    engine.abort("leaves")
    clock[0] += 60.0
    engine.drain()
    telemetry = engine.scheduler._control.telemetry
    return [telemetry.deadlines_met, telemetry.deadlines_missed]


def idle_times() -> Any:
    """Whether the state may be saved without delaying anybody, as told after each step."""
    engine = make(estimator=Oracle(), slots=1)
    for number in range(3):
        engine.add(str(number), 4)
    told: list[bool] = []
    engine.scheduler._state.save_at_times = lambda estimator, idle: told.append(idle)
    engine.drain()
    return told


def victims_have_the_least_computed() -> Any:
    """Two requests outgrow the memory; the one that was there first has computed less."""
    engine = make(estimator=Oracle(), slots=2, kv_tokens=448, step_tokens=512, bounded=False)
    engine.add("small", 300, prompt=30, **hint(300))
    engine.step()
    engine.add("large", 300, prompt=200, **hint(300))
    preempted: list[str] = []
    while engine.step():
        for request in engine.scheduler.waiting:
            if request.num_preemptions:
                preempted.append(request.request_id)
    return {"preempted": sorted(set(preempted)), "finished": finished(engine)}


def slots(preempt: bool) -> Any:
    engine = make(estimator=Oracle(), slots=2, preempt_slots=preempt, bounded=False)
    for number in range(2):
        engine.add(f"batch{number}", 200, **hint(200, qos="batch"))
    for _ in range(20):
        engine.step()
    came = engine.steps
    for number in range(3):
        engine.add(f"premium{number}", 5, **hint(5, qos="premium"))
    engine.drain()
    return {
        "waits": [engine.outcomes[f"premium{number}"].first - came for number in range(3)],
        "lengths": [len(outcome.tokens) for outcome in engine.outcomes.values()],
        "preempted": engine.scheduler._control.telemetry.preempted_voluntary,
    }


def stress() -> Any:
    """Little memory, tiers, slot preemption, random aborts: nothing may be lost, leaked or left."""
    found = []
    for sync, depth in ((True, 1), (False, 1), (False, 2)):
        for seed in range(3):
            rng = random.Random(seed)
            engine = make(sync=sync, depth=depth, preempt_slots=True, fair_tenants=seed == 2)
            pool = engine.scheduler.kv_cache_manager.block_pool
            free = pool.get_num_free_blocks()
            aborted: set[str] = set()
            for number in range(300):
                engine.add(
                    str(number),
                    rng.randint(1, 60),
                    prompt=rng.randint(1, 400),
                    priority=rng.choice([-1, 0, 1]),
                    extra_args={
                        "tenant": f"t{rng.randint(0, 3)}",
                        "qos": rng.choice(["premium", "standard", "batch", "?"]),
                        "deadline_ms": rng.choice([1, 50, 5000]),
                    },
                )
                if rng.random() < 0.1:
                    gone = str(rng.randint(0, number))
                    if engine.outcomes[gone].last < 0:
                        aborted.add(gone)
                        engine.abort(gone)
                for _ in range(rng.randint(0, 5)):
                    engine.step()
            engine.drain()
            telemetry = engine.scheduler._control.telemetry
            found.append(
                {
                    "wrong": [
                        key
                        for key, outcome in engine.outcomes.items()
                        if key not in aborted and len(outcome.tokens) != engine.length(key)
                    ],
                    "leaked": free - pool.get_num_free_blocks(),
                    "left": len(engine.scheduler.requests) + len(engine.scheduler._control.ledger),
                    "voluntary": telemetry.preempted_voluntary,
                    "warnings": list(LOG.lines),
                }
            )
    return found


def overdue_go_first() -> Any:
    """With a bound of ten steps, a long request among ever new short ones."""
    clock = [0.0]
    engine = make(
        estimator=Oracle(), slots=1, now=lambda: clock[0], stretch=1.0, usual_wait=0.0, wait_floor=10.0
    )
    engine.add("first", 3, **hint(3))
    engine.add("long", 30, **hint(30))
    for number in range(60):
        engine.add(f"short{number}", 2, **hint(2))
        engine.step()
        clock[0] += 1.0
        if engine.outcomes["long"].first >= 0:
            break
    return {"waited": clock[0], "overtaken": sum(each.first >= 0 for each in engine.outcomes.values()) - 2}


def page() -> Any:
    from quietcore.scheduler.page import read_engine_page

    with tempfile.TemporaryDirectory() as folder:
        engine = make(estimator=Oracle(), page_dir=folder, slots=2)
        for number in range(6):
            tier = "premium" if number % 2 else "batch"
            engine.add(f"r{number}", 5, **hint(7, qos=tier, deadline_ms="soon"))
        for _ in range(3):
            engine.step()
        engine.scheduler._control.publish(engine.scheduler, degraded=False)
        (path,) = Path(folder).iterdir()
        middle = read_engine_page(path)
        engine.drain()
        engine.scheduler._control.publish(engine.scheduler, degraded=False)
        end = read_engine_page(path)
        engine.scheduler.shutdown()
        assert middle is not None
        assert end is not None
        return {
            "waiting": dict(middle.waiting),
            "running": middle.running,
            "tokens": list(end.tokens),
            "admitted": end.decisions.admitted,
            "ignored": end.ignored_hints,
            "gone": not path.exists(),
        }


def off_is_stock() -> Any:
    """The same steps, request by request, as vLLM's class, under pressure."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    def run(engine: Engine) -> Any:
        rng = random.Random(7)
        for number in range(120):
            engine.add(
                str(number), rng.randint(1, 80), prompt=rng.randint(1, 300), priority=rng.randint(-1, 1)
            )
            for _ in range(rng.randint(0, 6)):
                engine.step()
        engine.drain()
        return {key: (each.first, each.last) for key, each in engine.outcomes.items()}

    stock = run(Engine(AsyncScheduler, EngineShape(**SMALL)))
    off = make(policy="off")
    return {
        "same": run(off) == stock,
        "queue": type(off.scheduler.waiting).__name__,
        "on differs": run(make()) != stock,
    }


def strict_priority() -> Any:
    from quietcore.scheduler.vllm import DriftScheduler

    shape = EngineShape(**SMALL, policy="priority", additional_config={"quietcore": {"page_dir": "off"}})
    engine = Engine(DriftScheduler, EngineShape(**{**_fields(shape), "slots": 1}))
    for key, priority, length in (("c", 2, 1), ("b", 1, 9), ("a", 0, 60)):
        engine.add(key, length, priority=priority)
    engine.drain()
    return by_first(engine.outcomes)


def _fields(shape: EngineShape) -> dict[str, Any]:
    return {name: getattr(shape, name) for name in EngineShape.__dataclass_fields__}


def main() -> None:
    """Runs those named on the command line, or all, and prints their results as JSON."""
    version = import_vllm()
    logger = logging.getLogger("vllm.quietcore")
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(LOG)
    scenarios: dict[str, Callable[[], Any]] = {
        "shortest first": shortest_first,
        "tiers and priorities": tiers_and_priorities,
        "strict priority": strict_priority,
        "nonsense hints": nonsense_hints,
        "ends": every_end_is_learnt_as_what_it_is,
        "cached prefix": cached_prefix,
        "fixed lengths": fixed_lengths,
        "deadlines": deadlines,
        "idle times": idle_times,
        "victims": victims_have_the_least_computed,
        "slots kept": lambda: slots(False),
        "slots freed": lambda: slots(True),
        "misfit": stalls.misfit,
        "saturated": stalls.saturated,
        "paused": stalls.paused,
        "preempting": stalls.preempting,
        "stress": stress,
        "overdue": overdue_go_first,
        "grammars": blocked.grammars_are_no_way_to_the_front,
        "overdue beside grammars": blocked.grammars_overtake_nobody_overdue,
        "page": page,
        "broken estimate": lambda: survival.broken("estimate"),
        "broken observe": lambda: survival.broken("observe"),
        "broken queue": survival.broken_queue,
        "after broken queue": lambda: survival.after_failure("queue"),
        "after broken observe": lambda: survival.after_failure("observe"),
        "broken priority": survival.broken_priority,
        "broken pop": survival.broken_pop,
        "broken removal": survival.broken_removal,
        "damaged state": survival.damaged_state,
        "no estimator": survival.no_estimator,
        "unwritable page": survival.unwritable_page,
        "clock jumps": survival.clock_jumps,
        "feedback costs": feedback.costs,
        "feedback deadlines": feedback.deadlines,
        "feedback idle": feedback.idle,
        "feedback hostile": feedback.hostile,
        "feedback restarted": feedback.restarted,
        "feedback unheard": feedback.unheard,
        "off": off_is_stock,
    }
    found = {name: run() for name, run in scenarios.items() if name in sys.argv[1:] or len(sys.argv) == 1}
    print(json.dumps({"version": version, **found}))


if __name__ == "__main__":
    main()
