"""The drift model: predicts output lengths from prompts and history, and learns from what they became."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quietcore.scheduler.drift import history, text
from quietcore.scheduler.drift import prior as priors
from quietcore.scheduler.drift.baselines import Groups, RunningMedian
from quietcore.scheduler.drift.calibration import Calibration
from quietcore.scheduler.drift.change import ChangeDetector
from quietcore.scheduler.drift.fitting import Fitted
from quietcore.scheduler.drift.history import History, Keys, Mean
from quietcore.scheduler.drift.refit import BackgroundRefitter, InlineRefitter, Refitter
from quietcore.scheduler.drift.rows import RowStore
from quietcore.scheduler.estimate import End, Estimate, RequestFacts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

FACTS = ("prompt tokens", "max tokens", "temperature", "top p", "n", "stops")
FEATURES = (*FACTS, *text.NAMES, *history.NAMES, *priors.NAMES)

_FIRST_FIT = 48  # finished requests
_LEAST_NEW = 48  # ... since the last fit, or a 32nd of all
_PENDING = 16384
_COLD_MEAN = 1.3  # mean over median of a log-normal of sigma 0.7
_LONGEST = 1 << 20  # tokens
_LEAST_WEIGHT = 0.05
_OLD_ROWS = 0.3  # what rows of before a change weigh after it


@dataclass(frozen=True, slots=True)
class _Admission:
    """What was known and said when a request was admitted."""

    features: list[float]
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
    length; the errors of late give scale and quantiles, and say whether to trust the model or a running median.
    """

    def __init__(self, name: str, prior: priors.Prior, *, trees: str, seed: int, background: bool) -> None:
        self.name = name
        self._prior = prior
        self._seed = seed
        self._reader = text.Reader()
        self._history = History()
        self._median = RunningMedian()
        self._cold: Groups[Mean] = Groups(Mean)
        self._calibration = Calibration()
        self._change = ChangeDetector()
        self._store = RowStore(len(FEATURES))
        kind = BackgroundRefitter if background else InlineRefitter
        self._refitter: Refitter = kind(len(FEATURES) , trees)
        self._fitted: Fitted | None = None
        self._fits = 0
        self._next_fit = _FIRST_FIT
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
            spread = self._calibration.spread
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
            admission = self._admitted.pop(facts.key, None) or self._admit(facts)
            # vLLM reports a stop string as an abort
            whole = end is End.STOPPED or (end is End.ABORTED and bool(facts.sampling.get("stop")))
            self._learn(facts, admission, min(max(int(produced), 0), _LONGEST), whole)
            self._refit()
        except Exception as error:
            self._fail(error)

    def close(self) -> None:
        """Ends the refit process, if there is one."""
        self._refitter.close()

    def _admit(self, facts: RequestFacts) -> _Admission:
        reading = self._reader.read(facts)
        keys = History.keys(facts, reading)
        past = self._history.describe(keys)
        base = past[history.BASE]
        by_words, prior = self._prior.score(reading, facts.prompt_tokens)
        features = [*describe_facts(facts), *reading.counts, *past, by_words, prior]
        fitted = self._fitted
        if fitted is None:
            middle = math.exp(self._guess(facts, prior))
            mean = middle * _COLD_MEAN
        else:
            middle, mean = fitted.score(features, reading.words, base)
        calibration = self._calibration
        known = self._median.estimate(facts).p50
        model = middle * calibration.spread.p50
        return _Admission(features, reading.words, keys, base, prior, middle, mean, model, known)

    def _guess(self, facts: RequestFacts, prior: float) -> float:
        """Log length before the first fit: the prior, moved by what has finished."""
        total = self._cold.find("all") or Mean()
        level = total.toward(self._prior.level, 5.0)
        category = self._cold.find((facts.category, facts.tenant)) or Mean()
        return category.toward(level, 5.0) + prior

    def _answer(self, facts: RequestFacts, admission: _Admission) -> Estimate:
        calibration = self._calibration
        spread = calibration.spread
        p50 = max(1.0, calibration.trust.blend(admission.known, admission.model))
        p90 = max(p50, admission.middle * spread.p90)
        mean = max(1.0, admission.mean * calibration.scale.value)
        if facts.max_tokens > 0:
            cap = float(facts.max_tokens)
            share = spread.mean_below(cap / admission.middle) / spread.mean_below(math.inf)
            mean = min(max(1.0, mean * share), cap)
            p50, p90 = min(p50, cap), min(p90, cap)
        return Estimate(mean, p50, p90)

    def _learn(self, facts: RequestFacts, admission: _Admission, produced: int, whole: bool) -> None:
        calibration, middle = self._calibration, admission.middle
        length, weight = float(max(produced, 1)), 1.0
        ratio = length / middle
        if not whole:
            # what it would have become, worth as much as the share of lengths that it has ruled out
            weight = calibration.spread.share_passed(ratio)
            length = max(length, middle * calibration.spread.mean_beyond(ratio))
        calibration.spread.add(ratio, whole)
        if weight >= _LEAST_WEIGHT:
            log_length = math.log(length)
            self._history.learn(admission.keys, log_length, admission.base, weight)
            for group in ("all", (facts.category, facts.tenant)):
                self._cold.touch(group).add(log_length - admission.prior, weight)
            self._store.add(admission.features, admission.words, length, weight, admission.base)
            if self._fitted is not None:
                calibration.scale.add(admission.mean, length, weight)
        if whole:
            self._median.observe(facts, Estimate(length, length, length), int(length), End.STOPPED)
            calibration.trust.add(admission.known, admission.model, length)
            if self._fitted is not None and self._change.add(math.log(ratio)):
                self._adapt()

    def _adapt(self) -> None:
        """After a change: what is old weighs less, and a refit is due."""
        self._history.weaken(20.0)
        self._calibration.forget()
        self._store.discount(_OLD_ROWS)
        self._next_fit = min(self._next_fit, self._store.total + 1)

    def _refit(self) -> None:
        total = self._store.total
        if total >= self._next_fit:
            self._next_fit = total + max(_LEAST_NEW, total // 32)
            self._fits += 1
            self._refitter.request(self._store, self._seed + self._fits)
        fitted = self._refitter.take()
        if fitted is not None:
            self._fitted = fitted

    def _fail(self, error: Exception) -> None:
        if not self._said_failed:
            self._said_failed = True
            _log.warning("quietcore: an estimate failed (%s: %s)", type(error).__name__, error)


def describe_facts(facts: RequestFacts) -> list[float]:
    """The numbers of `FACTS`; what is unknown, no number or not finite is -1."""
    sampling = facts.sampling
    stop = sampling.get("stop")
    return [
        math.log1p(max(facts.prompt_tokens, 0)),
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
