"""The published estimators, kept as baselines: static budgets, moving averages, running medians.

Static budgets and the moving average follow DriftSched (arXiv 2606.02982). They answer one number;
its quantiles are that number too.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, ItemsView
from typing import Generic, TypeVar

from quietcore.scheduler.estimate import End, Estimate, RequestFacts

_Group = TypeVar("_Group")

BUDGETS = {"short_qa": 64, "summary": 256, "technical": 384, "report": 512}
"""Tokens by job type, as DriftSched sets them."""

_WORDS = (
    ("summary", ("summarize", "summary")),
    ("report", ("detailed", "report", "comprehensive")),
    ("technical", ("architecture", "code", "technical")),
)
_SAFETY = {"premium": 1.2, "standard": 1.0, "batch": 0.8}
_UNKNOWN_BUDGET = 256  # tokens, for a category that is no job type


def classify(prompt: str) -> str:
    """The job type whose words the prompt holds most often, ``short_qa`` if it holds none."""
    text = prompt.lower()
    best, most = "short_qa", 0
    for job_type, words in _WORDS:
        count = sum(text.count(word) for word in words)
        if count > most:
            best, most = job_type, count
    return best


def subtract(first: Estimate, produced: int) -> Estimate:
    """What is left when an estimate is taken at its word: the difference, at least one token."""
    produced = max(produced, 0)
    return Estimate(*(max(1.0, value - produced) for value in (first.mean, first.p50, first.p90)))


class Groups(Generic[_Group]):
    """One record a group; the longest unused is forgotten when there are too many (clients name them)."""

    def __init__(self, make: Callable[[], _Group], most: int = 4096) -> None:
        self._make = make
        self._most = most
        self._records: OrderedDict[Hashable, _Group] = OrderedDict()

    def items(self) -> ItemsView[Hashable, _Group]:
        """The longest unused first."""
        return self._records.items()

    def find(self, key: Hashable) -> _Group | None:
        return self._records.get(key)

    def touch(self, key: Hashable) -> _Group:
        """The group's record, made where there is none."""
        record = self._records.get(key)
        if record is None:
            record = self._records[key] = self._make()
            if len(self._records) > self._most:
                self._records.popitem(last=False)
        else:
            self._records.move_to_end(key)
        return record


class StaticBudgets:
    """The budget of the job type that the keyword classifier finds; learns nothing."""

    name = "static"

    def estimate(self, facts: RequestFacts) -> Estimate:
        budget = float(BUDGETS[classify(facts.prompt)])
        return Estimate(budget, budget, budget)

    def remaining(self, facts: RequestFacts, first: Estimate, produced: int) -> Estimate:
        return subtract(first, produced)

    def observe(self, facts: RequestFacts, first: Estimate, produced: int, end: End) -> None:
        return None


class _Bias:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 1.0


class EmaBudgets:
    """DriftSched's estimate: budget x learned bias x safety of the tier x growth with the prompt.

    The bias of a class moves by a tenth towards actual / budget, clamped to 0.25 .. 3. Censored
    lengths are taken as they are: the published rule knows no others.
    """

    def __init__(self, name: str, classify: Callable[[RequestFacts], str]) -> None:
        self.name = name
        self._classify = classify
        self._biases: Groups[_Bias] = Groups(_Bias)

    def estimate(self, facts: RequestFacts) -> Estimate:
        group = self._classify(facts)
        bias = self._biases.find(group)
        growth = min(1.5, 1 + max(facts.prompt_tokens, 0) / 1000)
        tokens = BUDGETS.get(group, _UNKNOWN_BUDGET) * (bias.value if bias else 1.0)
        tokens = max(1.0, float(int(tokens * _SAFETY.get(facts.tenant, 1.0) * growth)))
        return Estimate(tokens, tokens, tokens)

    def remaining(self, facts: RequestFacts, first: Estimate, produced: int) -> Estimate:
        return subtract(first, produced)

    def observe(self, facts: RequestFacts, first: Estimate, produced: int, end: End) -> None:
        if produced <= 0:
            return
        group = self._classify(facts)
        bias = self._biases.touch(group)
        ratio = produced / BUDGETS.get(group, _UNKNOWN_BUDGET)
        bias.value = 0.9 * bias.value + 0.1 * min(3.0, max(0.25, ratio))


class Window:
    """The last lengths of a group, kept in order."""

    __slots__ = ("_arrived", "_size", "_sorted")

    def __init__(self, size: int = 1024) -> None:
        self._size = size
        self._arrived: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, value: float) -> None:
        if len(self._arrived) == self._size:
            del self._sorted[bisect_left(self._sorted, self._arrived.popleft())]
        self._arrived.append(value)
        insort(self._sorted, value)

    def latest(self, most: int) -> list[float]:
        """The last lengths, oldest first."""
        return list(self._arrived)[-most:]

    def quantile(self, share: float) -> float:
        """The smallest value that at least ``share`` of the window does not exceed."""
        return self._sorted[max(0, math.ceil(share * len(self._sorted)) - 1)]


class RunningMedian:
    """Median of the last 1,024 lengths of the category and tenant; of the last 4,096 while those are few."""

    name = "median"
    _ENOUGH = 5

    def __init__(self) -> None:
        self.all = Window(4096)
        self.groups: Groups[Window] = Groups(Window, most=1024)

    def estimate(self, facts: RequestFacts) -> Estimate:
        window = self.groups.find((facts.category, facts.tenant))
        if window is None or len(window) < self._ENOUGH:
            window = self.all
        if not len(window):
            return Estimate(*[float(_UNKNOWN_BUDGET)] * 3)
        median = window.quantile(0.5)
        return Estimate(median, median, window.quantile(0.9))

    def remaining(self, facts: RequestFacts, first: Estimate, produced: int) -> Estimate:
        return subtract(first, produced)

    def observe(self, facts: RequestFacts, first: Estimate, produced: int, end: End) -> None:
        if end is End.ABORTED:
            return
        length = float(max(produced, 0))
        self.all.add(length)
        self.groups.touch((facts.category, facts.tenant)).add(length)
