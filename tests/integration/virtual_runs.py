"""Drives scheduler classes in virtual time as standard input says; runs in the environment of vLLM.

    VENV/bin/python virtual_runs.py < RUNS.json

RUNS is a list of {"scheduler", "requests", "slots", "step_tokens", "kv_tokens", "policy", "depth", "skip"};
a request is the fields of a `VirtualRequest`. The answer is a list of {"timelines", "steps"}.
"""

from __future__ import annotations

import json
import sys
from dataclasses import astuple
from typing import Any

from quietcore.scheduler.bench import modelless
from quietcore.scheduler.bench.virtual import Clock, StepTime, VirtualEngine, VirtualRequest


def scheduler_class(name: str) -> Any:
    if name == "async":
        return modelless.stock_class()
    if name == "sync":
        from vllm.v1.core.sched.scheduler import Scheduler

        return Scheduler
    raise ValueError(name)


def run(job: dict[str, Any]) -> dict[str, Any]:
    shape = modelless.EngineShape(
        job["slots"], job.get("step_tokens", 8192), job.get("kv_tokens", 1 << 20), job.get("policy", "fcfs")
    )
    clock = Clock()
    scheduler = modelless.build_scheduler(scheduler_class(job["scheduler"]), shape)
    engine = VirtualEngine(
        scheduler, clock, StepTime(), depth=job.get("depth", 1), skip=job.get("skip", True)
    )
    timelines = engine.run([VirtualRequest(**request) for request in job["requests"]])
    return {"timelines": [astuple(timeline) for timeline in timelines], "steps": engine.steps}


if __name__ == "__main__":
    modelless.import_vllm()
    print(json.dumps([run(job) for job in json.load(sys.stdin)]))
