"""Requests with lengths that their texts tell, in part, made up from a seed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence

from quietcore.scheduler.estimate import End, Estimate, Estimator, RequestFacts

TOPICS = ("rivers", "engines", "poetry", "salt", "glass", "bridges", "clocks", "maps", "wool", "copper")
TASKS = {"List three words on": 12, "Explain briefly": 60, "Write an essay about": 600, "Translate": 30}


def make_traffic(count: int, seed: int = 1, factor: float = 1.0) -> list[tuple[RequestFacts, int]]:
    draw = random.Random(seed)
    traffic = []
    for number in range(count):
        task = draw.choice(list(TASKS))
        prompt = f"{task} {draw.choice(TOPICS)} and {draw.choice(TOPICS)}."
        length = max(1, round(factor * TASKS[task] * draw.lognormvariate(0, 0.3)))
        traffic.append((RequestFacts(f"{seed}-{number}", float(number), 12, prompt), length))
    return traffic


def play(
    estimator: Estimator,
    traffic: Sequence[tuple[RequestFacts, int]],
    delay: int = 20,
    end: Callable[[int], End] = lambda number: End.STOPPED,
) -> list[Estimate]:
    """Each request's estimate; its length is told when ``delay`` more have been estimated."""
    running: deque[tuple[int, RequestFacts, Estimate, int]] = deque()
    estimates = []
    for number, (facts, length) in enumerate(traffic):
        if len(running) >= delay:
            first_number, first_facts, first, produced = running.popleft()
            estimator.observe(first_facts, first, produced, end(first_number))
        estimates.append(estimator.estimate(facts))
        running.append((number, facts, estimates[-1], length))
    return estimates


def mean_error(estimates: Sequence[Estimate], traffic: Sequence[tuple[RequestFacts, int]]) -> float:
    """Mean absolute error of the medians, tokens."""
    pairs = zip(estimates, traffic, strict=True)
    return sum(abs(estimate.p50 - length) for estimate, (_, length) in pairs) / len(traffic)
