"""What our scheduling costs beside vLLM's own, step by step in one process."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.bars.bar import Bar, BarError, Outcome
from tests.bars.vllm_environment import vllm_environment

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "vllm_suite" / "cost.py"

MOST_RATIO = 1.2
MOST_OWN_US = 20.0


def measure(runs: int, seconds: float) -> Outcome:
    """``runs`` times, each for about ``seconds``, in vLLM's environment (``QUIETCORE_VLLM_VENV``)."""
    python = vllm_environment() / "bin" / "python"
    found = []
    for _ in range(runs):
        command = [str(python), str(SCRIPT), str(seconds)]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
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
            f"{run['own_mean_us']:.1f}",
        ]
        for number, run in enumerate(found)
    ]
    return Outcome(
        met=max(ratios) <= MOST_RATIO and max(own) <= MOST_OWN_US,
        figure=f"ratio {max(ratios):.3f}, own {max(own):.1f} us (worst of {runs})",
        columns=("run", "stock us", "ours us", "ratio", "of means", "own us", "own mean"),
        rows=rows,
        remarks=(f"64 running; vLLM {found[0]['version']}; a step is schedule and update_from_output",),
        raw=found,
    )


BAR = Bar(
    "scheduling-cost",
    "a step with 10,000 waiting at most 1.2 x vLLM's priority queue, our part with 100 under 20 us",
    runs=3,
    seconds=8.0,
    measure=measure,
)
