"""Estimators as the experiment needs them: told words instead of tokens, or nothing, and remembered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from quietcore.scheduler.bench.driftsched.workload import WorkRequest
from quietcore.scheduler.drift import build
from quietcore.scheduler.estimate import End, Estimate, Estimator, RequestFacts

Unit = Literal["words", "tokens"]
PUBLISHED = "ema-keyword"


def length(request: WorkRequest, unit: Unit) -> int:
    """What an estimator is told of an answer."""
    return request.output_words if unit == "words" else request.output_tokens


class Recording:
    """Passes on to an estimator, with lengths in ``unit``, and keeps what it said at admission."""

    def __init__(self, name: str, requests: Mapping[str, WorkRequest], unit: Unit) -> None:
        self._estimator: Estimator = build(name, background=False)
        self._requests = requests
        self._unit = unit
        self.name = name
        self.admitted: dict[str, Estimate] = {}

    @property
    def revision(self) -> int:
        """Goes up when waiting requests had better be estimated anew."""
        return getattr(self._estimator, "revision", 0)

    def estimate(self, facts: RequestFacts) -> Estimate:
        estimate = self._estimator.estimate(facts)
        self.admitted.setdefault(facts.key, estimate)
        return estimate

    def remaining(self, facts: RequestFacts, first: Estimate, produced: int) -> Estimate:
        return self._estimator.remaining(facts, first, produced)

    def observe(self, facts: RequestFacts, first: Estimate, produced: int, end: End) -> None:
        self._estimator.observe(facts, first, length(self._requests[facts.key], self._unit), End.STOPPED)


def static_budgets(requests: Mapping[str, WorkRequest]) -> dict[str, Estimate]:
    """What the published estimator says with its bias off: budget x safety x growth with the prompt."""
    untold = build(PUBLISHED)
    return {key: untold.estimate(request.facts) for key, request in requests.items()}
