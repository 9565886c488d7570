"""Virtual time against a simulation of its own, and its short cut against the long way."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from quietcore.scheduler.bench.virtual import MS, StepTime, Timeline, VirtualRequest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

HERE = Path(__file__).parent
SLOTS, STEP_TOKENS = 8, 2048
GAPS = {"overload": 15 * MS, "near saturation": 250 * MS, "idle between": 3000 * MS, "burst": 0}


def drive(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    python = Path(os.environ["QUIETCORE_VLLM_VENV"]) / "bin" / "python"
    done = subprocess.run(
        [python, HERE / "virtual_runs.py"],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1] / "src")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    runs: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return [{**run, "timelines": [Timeline(*t) for t in run["timelines"]]} for run in runs]


def make_requests(gap_ns: int, count: int = 250, seed: int = 1) -> list[VirtualRequest]:
    """Also prompts longer than a step, answers of one token, and prompts of one."""
    rng = random.Random(seed)
    now = 0
    requests = []
    for i in range(count):
        now += int(rng.expovariate(1 / gap_ns)) if gap_ns else 0
        prompt = rng.choice([1, 7, 300, 1500, 5000])
        requests.append(VirtualRequest(f"r{i}", now, prompt, max(1, int(rng.lognormvariate(4, 1)))))
    return requests


def job(requests: list[VirtualRequest], **settings: Any) -> dict[str, Any]:
    defaults = {"scheduler": "async", "slots": SLOTS, "step_tokens": STEP_TOKENS}
    return {**defaults, "requests": [asdict(r) for r in requests], **settings}


def simulate(
    requests: list[VirtualRequest], key: Callable[[VirtualRequest], Any], step_time: StepTime | None = None
) -> list[Timeline]:
    """Continuous batching with chunked prefill, independent of vLLM: who waits is admitted by ``key``."""
    step_time = step_time or StepTime()
    timelines = {r.key: Timeline(r.key, r.arrival_ns) for r in requests}
    coming, waiting, running = deque(requests), list[VirtualRequest](), list[VirtualRequest]()
    prompt_left = {r.key: r.prompt_tokens for r in requests}
    output_left = {r.key: r.output_tokens for r in requests}
    now = 0
    while coming or waiting or running:
        while coming and coming[0].arrival_ns <= now:
            waiting.append(coming.popleft())
        if not waiting and not running:
            now = coming[0].arrival_ns
            continue
        waiting.sort(key=key)
        budget, prefill, stepped = STEP_TOKENS, 0, []
        for r in [*running, *waiting[: SLOTS - len(running)]]:
            if not budget:
                break
            if timelines[r.key].admitted_ns < 0:
                timelines[r.key].admitted_ns = now
                waiting.remove(r)
                running.append(r)
            tokens = min(prompt_left[r.key] or 1, budget)
            budget -= tokens
            if prompt_left[r.key]:
                prompt_left[r.key] -= tokens
                prefill += tokens
            stepped.append(r)
        now += step_time.of(len(stepped), prefill)
        for r in stepped:
            if prompt_left[r.key]:
                continue
            output_left[r.key] -= 1
            if timelines[r.key].first_token_ns < 0:
                timelines[r.key].first_token_ns = now
            if not output_left[r.key]:
                timelines[r.key].finished_ns = now
                running.remove(r)
    return [timelines[r.key] for r in requests]


@pytest.fixture(scope="module")
def runs() -> dict[tuple[str, str, bool], dict[str, Any]]:
    names = [
        (gap, scheduler, skip) for gap in GAPS for scheduler in ("async", "sync") for skip in (False, True)
    ]
    jobs = [job(make_requests(GAPS[gap]), scheduler=scheduler, skip=skip) for gap, scheduler, skip in names]
    return dict(zip(names, drive(jobs), strict=True))


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("scheduler", ["async", "sync"])
def test_the_short_cut_changes_nothing(
    runs: dict[tuple[str, str, bool], dict[str, Any]], scheduler: str, gap: str
) -> None:
    long_way, short_cut = runs[gap, scheduler, False], runs[gap, scheduler, True]
    assert short_cut["timelines"] == long_way["timelines"]
    assert short_cut["steps"] < long_way["steps"] / 2


@pytest.mark.parametrize("gap", GAPS)
def test_first_come_first_served_is_exact(
    runs: dict[tuple[str, str, bool], dict[str, Any]], gap: str
) -> None:
    expected = simulate(make_requests(GAPS[gap]), key=lambda r: r.arrival_ns)
    assert runs[gap, "async", True]["timelines"] == expected


def test_priorities_reach_the_scheduler() -> None:
    requests = [
        VirtualRequest(r.key, r.arrival_ns, r.prompt_tokens, r.output_tokens, priority=i % 3)
        for i, r in enumerate(make_requests(GAPS["overload"]))
    ]
    found, fcfs = drive([job(requests, policy="priority"), job(requests)])
    assert found["timelines"] == simulate(requests, key=lambda r: (r.priority, r.arrival_ns))
    assert found["timelines"] != fcfs["timelines"]


def test_two_steps_in_flight_cost_one_step_a_request() -> None:
    """Asynchronous scheduling sees the end of a request one step late: who waits is admitted later."""
    requests = make_requests(GAPS["overload"])
    one, two = drive([job(requests), job(requests, depth=2)])
    ends = [max(t.finished_ns for t in run["timelines"]) for run in (one, two)]
    assert all(t.finished_ns > t.arrival_ns for t in two["timelines"])
    assert ends[0] < ends[1] < 1.1 * ends[0]


def test_scarce_memory_preempts_and_still_serves_all() -> None:
    requests = make_requests(GAPS["overload"], count=100)
    (scarce,) = drive([job(requests, kv_tokens=12_000)])
    (ample,) = drive([job(requests)])
    assert all(t.finished_ns > t.first_token_ns - 1 for t in scarce["timelines"])
    assert max(t.finished_ns for t in scarce["timelines"]) > max(t.finished_ns for t in ample["timelines"])
