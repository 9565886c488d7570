"""The drift model: predicts output lengths from prompts and history, and learns from what they became."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quietcore.scheduler.drift import history, state, text
from quietcore.scheduler.drift import prior as priors
from quietcore.scheduler.drift.change import ChangeDetector
from quietcore.scheduler.drift.history import History, Keys, Mean
from quietcore.scheduler.drift.refit import BackgroundRefitter, InlineRefitter, Refitter
from quietcore.scheduler.drift.state import Memory
from quietcore.scheduler.estimate import End, Estimate, RequestFacts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

FACTS = ("max tokens", "temperature", "top p", "n", "stops", "era", "number")
FEATURES = (*priors.FEATURES, *priors.NAMES, *FACTS, *history.NAMES)

_FIRST_FIT = 48  # finished requests
_LEAST_NEW = 48  # ... since the last fit, or a 32nd of those kept
_PENDING = 16384
_COLD_MEAN = 1.3  # mean over median of a log-normal of sigma 0.7
_LONGEST = 1 << 20  # tokens
_LEAST_WEIGHT = 0.05
_LEAST_MEAN = 0.7  # medians


@dataclass(slots=True)
class _Admission:
    """What was known and said when a request was admitted."""

    row: NDArray[np.float64]
    era: int
    words: NDArray[np.int64]
    keys: Keys
    base: float
    prior: float
    middle: float
    mean: float
    model: float
    known: float


class DriftEstimator:
    """The built-in estimator, an `estimate.Estimator`.

    A request's history and text give features; trees fitted in the background give a middling and a mean
    length; the errors of late give scale and quantiles, and say whether a running median is the better guess.
    """

    def __init__(self, name: str, prior: priors.Prior, *, trees: str, seed: int, background: bool) -> None:
        import numpy as np

        self.name = name
        self._np = np
        self._prior = prior
        self._seed = seed
        self._reader = text.Reader()
        self._memory = Memory(len(FEATURES))
        self._change = ChangeDetector()
        kind = BackgroundRefitter if background else InlineRefitter
        self._refitter: Refitter = kind(len(FEATURES), trees)
        self._next_fit = _FIRST_FIT
        self.revision = 0
        self._admitted: OrderedDict[str, _Admission] = OrderedDict()
        self._said_failed = False

    def estimate(self, facts: RequestFacts) -> Estimate:
        try:
            admission = self._admit(facts)
            self._admitted[facts.key] = admission
            if len(self._admitted) > _PENDING:
                self._admitted.popitem(last=False)
            return self._answer(facts, admission)
        except Exception as error:
            self._fail(error)
            return Estimate(256.0, 256.0, 256.0)

    def remaining(self, facts: RequestFacts, first: Estimate, produced: int) -> Estimate:
        """From the lengths of requests that came at least as far beyond their prediction."""
        try:
            spread = self._memory.calibration.spread
            admission = self._admitted.get(facts.key)
            middle = admission.middle if admission else max(first.p50, 1.0) / spread.p50
            produced = max(int(produced), 0)
            passed = produced / middle
            room = float(facts.max_tokens - produced) if facts.max_tokens > 0 else float(_LONGEST)
            left = [
                min(max(value * middle - produced, 1.0), max(room, 1.0))
                for value in (
                    spread.mean_beyond(passed),
                    spread.beyond(passed, 0.5),
                    spread.beyond(passed, 0.9),
                )
            ]
            return Estimate(left[0], left[1], max(left[1:]))
        except Exception as error:
            self._fail(error)
            return Estimate(*[max(1.0, value) for value in (first.mean, first.p50, first.p90)])

    def observe(self, facts: RequestFacts, first: Estimate, produced: int, end: End) -> None:
        try:
            admission = self._admitted.pop(facts.key, None)
            if produced <= 0:
                return
            admission = admission or self._admit(facts)
            # vLLM reports a stop string as an abort
            whole = end is End.STOPPED or (end is End.ABORTED and bool(facts.sampling.get("stop")))
            self._learn(facts, admission, min(max(int(produced), 0), _LONGEST), whole)
            self._refit()
        except Exception as error:
            self._fail(error)

    def snapshot(self) -> state.Snapshot:
        """What was learned until now, to be written for `load` after a restart of the engine."""
        return state.Snapshot(self._memory, FEATURES)

    def load(self, path: Path) -> None:
        """Takes up what a snapshot wrote; where that fails, nothing has changed.

        Raises:
            OSError: it cannot be read.
            DamagedError: it is damaged or of another version.
        """
        self._memory = state.load(path, FEATURES)
        self._admitted.clear()
        self._change = ChangeDetector()
        self._next_fit = self._memory.store.total + _LEAST_NEW
        self.revision += 1

    def close(self) -> None:
        """Ends the refit process, if there is one."""
        self._refitter.close()

    def _admit(self, facts: RequestFacts) -> _Admission:
        reading = self._reader.read(facts)
        keys = History.keys(facts, reading)
        past = self._memory.history.describe(keys)
        base = past[history.BASE]
        row = self._np.array(
            [
                *priors.start_row(reading, facts.prompt_tokens),
                *describe_sampling(facts),
                self._memory.era,
                self._memory.store.total,
                *past,
                0.0,
                0.0,
            ]
        )
        prior = self._prior.fill(row, reading)
        fitted = self._memory.fitted
        if fitted is None:
            middle = math.exp(self._guess(facts, prior))
            mean = middle * _COLD_MEAN
        else:
            middle, mean = fitted.score(row, reading.words, base)
        calibration = self._memory.calibration
        known = self._memory.median.estimate(facts).p50
        model = middle * calibration.local.factor(middle, (facts.category, facts.tenant))
        return _Admission(row, self._memory.era, reading.words, keys, base, prior, middle, mean, model, known)

    def _guess(self, facts: RequestFacts, prior: float) -> float:
        """Log length before the first fit: the prior, moved by what has finished."""
        total = self._memory.cold.find("all") or Mean()
        level = total.toward(self._prior.level, 5.0)
        category = self._memory.cold.find((facts.category, facts.tenant)) or Mean()
        return category.toward(level, 5.0) + prior

    def _answer(self, facts: RequestFacts, admission: _Admission) -> Estimate:
        calibration = self._memory.calibration
        spread = calibration.spread
        p50 = max(1.0, calibration.trust.blend(admission.known, admission.model))
        p90 = max(p50, admission.middle * spread.p90)
        # lengths lean to the right: a mean far below the median is a calibration gone astray
        mean = max(1.0, _LEAST_MEAN * p50, admission.mean * calibration.scale.value)
        if facts.max_tokens > 0:
            cap = float(facts.max_tokens)
            share = spread.mean_below(cap / admission.middle) / spread.mean_below(math.inf)
            mean = min(max(1.0, mean * share), cap)
            p50, p90 = min(p50, cap), min(p90, cap)
        return Estimate(mean, p50, p90)

    def _learn(self, facts: RequestFacts, admission: _Admission, produced: int, whole: bool) -> None:
        calibration, middle = self._memory.calibration, admission.middle
        length, weight = float(max(produced, 1)), 1.0
        ratio = seen = length / middle
        if not whole:
            # what it would have become, worth as much as the share of lengths that it has ruled out
            weight = calibration.spread.share_passed(ratio)
            length = max(length, middle * calibration.spread.mean_beyond(ratio))
            ratio = max(ratio, calibration.spread.beyond(ratio, 0.5))
        calibration.local.add(middle, ratio, (facts.category, facts.tenant))
        calibration.spread.add(seen, whole)
        if weight >= _LEAST_WEIGHT:
            log_length = math.log(length)
            self._memory.history.learn(admission.keys, log_length, admission.base, weight)
            for group in ("all", (facts.category, facts.tenant)):
                self._memory.cold.touch(group).add(log_length - admission.prior, weight)
            self._memory.store.add(admission.row[:-2], admission.words, length, weight, admission.base)
            if self._memory.fitted is not None:
                calibration.scale.add(admission.mean, length, weight)
        if whole:
            self._memory.median.observe(facts, Estimate(length, length, length), int(length), End.STOPPED)
            calibration.trust.add(admission.known, admission.model, length)
            current = admission.era == self._memory.era and self._memory.fitted is not None
            if current and self._change.add(math.log(ratio)):
                self._adapt()

    def _adapt(self) -> None:
        """After a change: what is old weighs less, and a refit is due."""
        self._memory.era += 1
        self._memory.calibration.forget()
        self._next_fit = min(self._next_fit, self._memory.store.total + 1)

    def _refit(self) -> None:
        total = self._memory.store.total
        if total >= self._next_fit:
            fits = self._memory.fits + 1
            if self._refitter.request(self._memory.store, self._seed + fits):
                self._memory.fits = fits
                self._next_fit = total + max(_LEAST_NEW, len(self._memory.store) // 32)
        fitted = self._refitter.take()
        if fitted is not None:
            self._memory.fitted = fitted
            self.revision += 1

    def _fail(self, error: Exception) -> None:
        if not self._said_failed:
            self._said_failed = True
            _log.warning("quietcore: an estimate failed (%s: %s)", type(error).__name__, error)


def describe_sampling(facts: RequestFacts) -> list[float]:
    """The first numbers of `FACTS`; what is unknown, no number or not finite is -1."""
    sampling = facts.sampling
    stop = sampling.get("stop")
    return [
        math.log1p(facts.max_tokens) if facts.max_tokens > 0 else -1.0,
        _number(sampling.get("temperature")),
        _number(sampling.get("top_p")),
        _number(sampling.get("n")),
        1.0 if stop else 0.0,
    ]


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return -1.0
    return min(max(float(value), -1.0), 1e6)
