"""The last correction of a prediction: scale, median, spread, and how far the model is trusted at all."""

from __future__ import annotations

import math

from quietcore.scheduler.drift.local import LocalMedian
from quietcore.scheduler.drift.spread import Spread

_HALF_LIFE = 200.0  # requests
_STRENGTH = 150.0  # requests by which the scale is held to 1
_TRUST = (0.0, 0.25, 0.5, 0.75, 1.0)
_FADE = 0.997
_KEPT = 15  # requests, after a change
_MARGIN = 0.01  # of its loss, by which full trust is favoured: an equal model also ranks


class Scale:
    """Tokens that came over tokens that were predicted, with forgetting."""

    def __init__(self) -> None:
        self._came = self._predicted = self._weight = 0.0
        self.value = 1.0

    def add(self, predicted: float, came: float, weight: float) -> None:
        fade = 0.5 ** (1 / _HALF_LIFE)
        self._came = fade * self._came + weight * came
        self._predicted = fade * self._predicted + weight * predicted
        self._weight = fade * self._weight + weight
        held = _STRENGTH * self._predicted / self._weight
        self.value = (self._came + held) / (self._predicted + held) if self._predicted else 1.0

    def state(self) -> list[float]:
        return [self._came, self._predicted, self._weight, self.value]

    def restore(self, state: list[float]) -> None:
        self._came, self._predicted, self._weight, self.value = map(float, state)

    def keep(self, weight: float) -> None:
        """Forgets all but so many requests' worth."""
        if self._weight > weight:
            factor = weight / self._weight
            self._came, self._predicted, self._weight = (
                self._came * factor,
                self._predicted * factor,
                weight,
            )


class Trust:
    """Share of the model in the median: that of `_TRUST` which lost the fewest tokens of late.

    On traffic that nothing predicts, a running median cannot be beaten, only matched.
    """

    def __init__(self) -> None:
        self._losses = [0.0] * len(_TRUST)
        self.share = 1.0

    def state(self) -> list[float]:
        return [self.share, *self._losses]

    def restore(self, state: list[float]) -> None:
        self.share, *self._losses = map(float, state)
        if self.share not in _TRUST or len(self._losses) != len(_TRUST):
            raise ValueError("not a state of trust")

    def blend(self, known: float, model: float) -> float:
        return blend(known, model, self.share)

    def add(self, known: float, model: float, came: float) -> None:
        best, least = 1.0, math.inf
        for index, share in enumerate(_TRUST):
            loss = _FADE * self._losses[index] + abs(blend(known, model, share) - came)
            self._losses[index] = loss
            loss *= 1 - _MARGIN * share
            if loss <= least:
                best, least = share, loss
        self.share = best


def blend(known: float, model: float, share: float) -> float:
    """Geometric mean, ``share`` of the model."""
    if share == 1.0:
        return model
    return known ** (1 - share) * model**share if known > 0 and model > 0 else known


class Calibration:
    """All of them, as one."""

    def __init__(self) -> None:
        self.spread = Spread()
        self.local = LocalMedian()
        self.scale = Scale()
        self.trust = Trust()

    def forget(self) -> None:
        """After a change."""
        self.spread.keep(_KEPT)
        self.local.keep(_KEPT)
        self.scale.keep(_KEPT)
