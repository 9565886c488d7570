"""How good estimates were: order, size and time."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from quietcore.scheduler.bench import BenchError
from quietcore.scheduler.estimate import Estimate


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Estimates against what came. Order, RMSE and bias are of the mean; MAE and APE of the median estimate.

    Attributes:
        tau: Kendall's tau-b; 0 where all estimates are equal.
        pair_accuracy: share of the pairs of different length that are in the right order, ties half.
        mae, rmse: tokens.
        bias: estimated over actual sum, less one.
        median_ape: median of absolute error / actual.
        mae_vs_static, rmse_vs_static: over that of the static budgets, less one.
        tau_after_swap: in the requests after a change of models, None where there is none.
        scoring_median_us, scoring_p99_us: time of an estimate, microseconds.
    """

    requests: int
    tau: float
    pair_accuracy: float
    mae: float
    rmse: float
    bias: float
    median_ape: float
    scoring_median_us: float
    scoring_p99_us: float
    mae_vs_static: float | None = None
    rmse_vs_static: float | None = None
    tau_after_swap: float | None = None

    def against(self, static: Accuracy) -> Accuracy:
        return replace(
            self,
            mae_vs_static=self.mae / static.mae - 1 if static.mae else None,
            rmse_vs_static=self.rmse / static.rmse - 1 if static.rmse else None,
        )

    def after_swap(self, tau: float) -> Accuracy:
        return replace(self, tau_after_swap=tau)


def judge(estimates: Sequence[Estimate], actual: Sequence[int], scoring_ns: Sequence[int]) -> Accuracy:
    """The figures of one estimator on one stream.

    Raises:
        BenchError: scipy is not installed.
    """
    means = [estimate.mean for estimate in estimates]
    tau, pairs = rank_agreement(means, actual)
    absolute = [abs(e.p50 - a) for e, a in zip(estimates, actual, strict=True)]
    squares = [(m - a) ** 2 for m, a in zip(means, actual, strict=True)]
    return Accuracy(
        requests=len(actual),
        tau=tau,
        pair_accuracy=pairs,
        mae=statistics.fmean(absolute),
        rmse=math.sqrt(statistics.fmean(squares)),
        bias=math.fsum(means) / math.fsum(actual) - 1 if any(actual) else 0.0,
        median_ape=statistics.median(e / max(a, 1) for e, a in zip(absolute, actual, strict=True)),
        scoring_median_us=quantile(scoring_ns, 0.5) / 1e3,
        scoring_p99_us=quantile(scoring_ns, 0.99) / 1e3,
    )


def average(found: Sequence[Accuracy]) -> Accuracy:
    """The mean of each figure over streams; that of the bias is of its size, whatever the sign."""
    fields: dict[str, Any] = {}
    for name in asdict(found[0]):
        values = [value for each in found if (value := getattr(each, name)) is not None]
        if name == "bias":
            values = [abs(value) for value in values]
        fields[name] = statistics.fmean(values) if values else None
    return Accuracy(**{**fields, "requests": sum(each.requests for each in found)})


def rank_agreement(estimated: Sequence[float], actual: Sequence[float]) -> tuple[float, float]:
    """Kendall's tau-b, and the share of pairs in the right order, ties half; (0, .5) without an order."""
    try:
        from scipy.stats import kendalltau
    except ImportError as e:
        raise BenchError("the figures of bench drift need scipy", "pip install 'quietcore[bench]'") from e
    differ_estimated, differ_actual = _unequal_pairs(estimated), _unequal_pairs(actual)
    if not differ_estimated or not differ_actual:
        return 0.0, 0.5
    tau = float(kendalltau(estimated, actual).statistic)
    # tau-b = (concordant - discordant) / sqrt(pairs that differ in the one x in the other)
    surplus = tau * math.sqrt(differ_estimated) * math.sqrt(differ_actual)
    return tau, 0.5 + surplus / (2 * differ_actual)


def _unequal_pairs(values: Sequence[float]) -> int:
    return math.comb(len(values), 2) - sum(math.comb(count, 2) for count in Counter(values).values())


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
