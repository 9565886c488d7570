"""The plug-in's scheduler with another estimator or prior, for the live bar and its tests.

--scheduler-cls watched_schedulers.OracleScheduler | .RecordingScheduler | .LeftOutScheduler
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from known_lengths import KnownLengths

from quietcore.scheduler import drift
from quietcore.scheduler.drift import prior
from quietcore.scheduler.estimate import End, Estimate, Estimator, RequestFacts
from quietcore.scheduler.vllm.scheduler import DriftScheduler

ESTIMATES = "QUIETCORE_TEST_ESTIMATES"
PRIOR = "QUIETCORE_TEST_PRIOR"


class Oracle:
    """Knows every length: how much there is to gain."""

    name = "oracle"

    def __init__(self) -> None:
        self.lengths: dict[str, int] = {}

    def estimate(self, facts: RequestFacts) -> Estimate:
        length = float(self.lengths[facts.key])
        return Estimate(length, length, length)

    def remaining(self, facts: RequestFacts, first: Estimate, produced: int) -> Estimate:
        left = max(self.lengths[facts.key] - produced, 1.0)
        return Estimate(left, left, left)

    def observe(self, facts: RequestFacts, first: Estimate, produced: int, end: End) -> None:
        self.lengths.pop(facts.key, None)


class OracleScheduler(DriftScheduler):
    """Ranks by the lengths in the file."""

    def _make_estimator(self, settings: Any) -> Estimator:
        self._oracle, self._known = Oracle(), KnownLengths()
        return self._oracle

    def _facts(self, request: Any) -> RequestFacts:
        facts = super()._facts(request)
        self._oracle.lengths[facts.key] = self._known.of(request.sampling_params.extra_args) or 1
        return facts


class Recorder:
    """Writes down each estimate at admission, as a line of JSON."""

    def __init__(self, inner: Estimator, path: Path) -> None:
        self._inner = inner
        self._file = path.open("a", buffering=1)
        self.names: dict[str, str] = {}
        self.name = inner.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def estimate(self, facts: RequestFacts) -> Estimate:
        found = self._inner.estimate(facts)
        line = {"request": self.names.pop(facts.key, ""), "estimate": [found.mean, found.p50, found.p90]}
        self._file.write(json.dumps(line) + "\n")
        return found


class RecordingScheduler(DriftScheduler):
    """The scheduler as it is; what it expects goes to the file that QUIETCORE_TEST_ESTIMATES names."""

    def _make_estimator(self, settings: Any) -> Estimator:
        self._recorder = Recorder(super()._make_estimator(settings), Path(os.environ[ESTIMATES]))
        return self._recorder

    def _facts(self, request: Any) -> RequestFacts:
        facts = super()._facts(request)
        names = request.sampling_params.extra_args or {}
        self._recorder.names[facts.key] = f"{names.get('run')}/{names.get('request')}"
        return facts


class LeftOutScheduler(DriftScheduler):
    """The scheduler as it is, but for what its estimator knows at first: the file of QUIETCORE_TEST_PRIOR.

    The prior that is shipped was trained on the prompts that the live bar sends.
    """

    def _make_estimator(self, settings: Any) -> Estimator:
        path = Path(os.environ[PRIOR])
        prior.load(path)  # the estimator would do without a damaged one
        return drift.build(settings.estimator, prior=path, seed=settings.seed)
