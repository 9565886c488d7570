"""A Kalman filter of the four coefficients that make a step's time.

A step is taken to cost ``base + prefill x tokens + seq x sequences + context x tokens`` seconds. The state is
not these coefficients but their ratio to a prior, and what is filtered is the relative error, so that a
prefill of a second and a decode step of ten milliseconds teach alike, on hardware of any speed.

Forgetting is process noise, not a discount: a direction that no step excites for an hour grows no
uncertainty beyond the prior's, and so cannot blow up when it comes back (the usual fault of
recursive least squares with a forgetting factor, "wind-up").
"""

from __future__ import annotations

FORGETTING = 2e-7  # variance that a coefficient gains a step, as a share of its prior variance
MAX_RATIO = 1e4  # of a coefficient to its prior: beyond it the prior's scale was not a scale

Four = tuple[float, float, float, float]


class Coefficients:
    """Non-negative ``(base, prefill, seq, context)`` in seconds, learned from ratios of actual to predicted.

    ``spread`` is the prior's standard deviation of each, as a ratio to ``prior``.
    """

    __slots__ = ("_p", "_prior", "_spread", "values")

    def __init__(self, prior: Four, spread: Four) -> None:
        self._prior = prior
        self._spread = tuple(deviation**2 for deviation in spread)
        self.values: Four = prior
        self._p = self._open()

    def rescale(self, factor: float) -> None:
        """All costs by a factor: prior and state, the relative uncertainty stays."""
        self._prior = _scaled(self._prior, factor)
        self.values = _scaled(self.values, factor)

    def reopen(self) -> None:
        """Keep the values but trust them no more than a prior: the next steps weigh in full."""
        self._p = self._open()

    def _open(self) -> list[float]:
        base, prefill, seq, context = self._spread
        return [base, 0.0, 0.0, 0.0, prefill, 0.0, 0.0, seq, 0.0, context]  # upper triangle, row by row

    def update(
        self, prefill: float, seqs: float, context: float, predicted: float, ratio: float, noise: float
    ) -> None:
        """Learn from a step predicted at ``predicted`` seconds (> 0) that took ``ratio`` times as long.

        ``noise`` is the variance of such ratios. Written out for four, as it runs in every step of the engine
        and loops would double its 2.5 us.
        """
        p00, p01, p02, p03, p11, p12, p13, p22, p23, p33 = self._p
        prior0, prior1, prior2, prior3 = self._prior
        x0 = prior0 / predicted
        x1 = prior1 * prefill / predicted
        x2 = prior2 * seqs / predicted
        x3 = prior3 * context / predicted
        g0 = p00 * x0 + p01 * x1 + p02 * x2 + p03 * x3
        g1 = p01 * x0 + p11 * x1 + p12 * x2 + p13 * x3
        g2 = p02 * x0 + p12 * x1 + p22 * x2 + p23 * x3
        g3 = p03 * x0 + p13 * x1 + p23 * x2 + p33 * x3
        variance = x0 * g0 + x1 * g1 + x2 * g2 + x3 * g3 + noise
        step = (ratio - 1.0) / variance
        value0, value1, value2, value3 = self.values
        value0 += prior0 * g0 * step
        value1 += prior1 * g1 * step
        value2 += prior2 * g2 * step
        value3 += prior3 * g3 * step
        open0, open1, open2, open3 = self._spread
        k0, k1, k2, k3 = g0 / variance, g1 / variance, g2 / variance, g3 / variance
        self._p = [
            min(p00 - k0 * g0 + FORGETTING * open0, open0),
            p01 - k0 * g1,
            p02 - k0 * g2,
            p03 - k0 * g3,
            min(p11 - k1 * g1 + FORGETTING * open1, open1),
            p12 - k1 * g2,
            p13 - k1 * g3,
            min(p22 - k2 * g2 + FORGETTING * open2, open2),
            p23 - k2 * g3,
            min(p33 - k3 * g3 + FORGETTING * open3, open3),
        ]
        if value0 < 0.0 or value1 < 0.0 or value2 < 0.0 or value3 < 0.0:
            self.values = self._project([value0 / prior0, value1 / prior1, value2 / prior2, value3 / prior3])
        elif max(value0 / prior0, value1 / prior1, value2 / prior2, value3 / prior3) > MAX_RATIO:
            self.values = (
                min(value0, prior0 * MAX_RATIO),
                min(value1, prior1 * MAX_RATIO),
                min(value2, prior2 * MAX_RATIO),
                min(value3, prior3 * MAX_RATIO),
            )
        else:
            self.values = (value0, value1, value2, value3)

    def _project(self, ratios: list[float]) -> Four:
        """The likeliest coefficients without a negative one.

        Setting one to zero shifts the others by their covariance with it. Without that, where all steps are
        alike and only the sum of two coefficients is known, each step would raise one for a fall of the other
        that does not take place.
        """
        p00, p01, p02, p03, p11, p12, p13, p22, p23, p33 = self._p
        rows = ((p00, p01, p02, p03), (p01, p11, p12, p13), (p02, p12, p22, p23), (p03, p13, p23, p33))
        zero: set[int] = set()
        while (lowest := min(range(4), key=ratios.__getitem__)) not in zero and ratios[lowest] < 0.0:
            zero.add(lowest)
            row, excess = rows[lowest], ratios[lowest]
            if row[lowest] > 0.0:
                ratios = [ratio - row[i] / row[lowest] * excess for i, ratio in enumerate(ratios)]
        base, prefill, seq, context = (min(max(ratio, 0.0), MAX_RATIO) for ratio in ratios)
        prior0, prior1, prior2, prior3 = self._prior
        return base * prior0, prefill * prior1, seq * prior2, context * prior3


def _scaled(four: Four, factor: float) -> Four:
    base, prefill, seq, context = four
    return base * factor, prefill * factor, seq * factor, context * factor
