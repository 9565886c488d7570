"""The cost model against requests that a real vLLM served on GPUs (where that trace is at hand)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from quietcore.scheduler.cost import CostModel, StepShape, StepTimeModel

DATA = Path(os.environ.get("QUIETCORE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
TRACE = DATA / "traces" / "vllm_measured_llmservingsim.parquet"
WINDOW = 0.5  # seconds

Row = dict[str, Any]


def engines() -> dict[tuple[str, str], list[Row]]:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, of the [bench] extra")
    if not TRACE.exists():
        pytest.skip(f"needs {TRACE} (QUIETCORE_DATA names the folder)")
    found = defaultdict(list)
    for row in parquet.read_table(TRACE).to_pylist():
        row["first"] = row["arrival_s"] + row["ttft_s"]
        row["rate"] = (row["output_tokens"] - 1) / row["decode_s"]
        found[row["hw"], row["model"]].append(row)
    return found


def overlap(begin: float, end: float, first: float, last: float) -> float:
    return max(0.0, min(end, last) - max(begin, first))


def windows(rows: list[Row]) -> Iterator[tuple[float, StepShape, float]]:
    """End, mean shape and mean step time of each half second, from what single requests tell of it."""
    end = max(row["first"] + row["decode_s"] for row in rows)
    for i in range(int(end / WINDOW)):
        begin, until = i * WINDOW, (i + 1) * WINDOW
        prefill = seqs = context = tokens = 0.0
        for row in rows:
            admitted = row["arrival_s"] + row["queue_s"]
            share = overlap(begin, until, admitted, row["first"]) / (row["first"] - admitted)
            prefill += share * row["prompt_tokens"]
            running = overlap(begin, until, row["first"], row["first"] + row["decode_s"])
            if running:
                seqs += running / WINDOW
                tokens += running * row["rate"]
                produced = row["rate"] * max(0.0, (begin + until) / 2 - row["first"])
                context += running / WINDOW * (row["prompt_tokens"] + produced)
        if tokens:
            step = seqs * WINDOW / tokens
            yield until, StepShape(prefill * step / WINDOW, seqs, context), step


def test_step_and_service_times_of_real_gpus_are_predicted() -> None:
    for engine, rows in engines().items():
        step_time = StepTimeModel()
        cost = CostModel(256, step_time)
        errors, services = [], []
        todo = sorted(rows, key=lambda row: row["first"])
        for until, shape, step in windows(rows):
            errors.append(abs(step_time.predict(shape) / step - 1))
            for _ in range(round(WINDOW / step)):
                step_time.observe(shape, step)
            while todo and todo[0]["first"] < until:
                row = todo.pop(0)
                if step_time.steps > 300:
                    predicted = cost.service(0, row["output_tokens"] - 1)
                    services.append(abs(predicted / row["decode_s"] - 1))
        assert len(services) > 100, engine
        assert median(errors[10:]) < 0.03, engine
        assert median(services) < 0.3, engine
