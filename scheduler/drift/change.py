"""Tells when the model behind the lengths has changed, as after a swap of its weights."""

from __future__ import annotations

_SLACK = 0.3  # standard deviations a request that are not counted
_ALARM = 15.0  # one false alarm in tens of thousands of requests; a shift of one deviation is told in some 20
_CLIP = 3.0
_RATE = 0.01


class ChangeDetector:
    """Cumulative sums (Page, Biometrika 1954) of log errors: longer, shorter, or further off than before."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._scale = 0.6
        self._seen = 0
        self.reset()

    def reset(self) -> None:
        self._up = self._down = self._wide = 0.0

    def add(self, error: float) -> bool:
        """Takes log(actual / predicted); True where that is the alarm, after which it starts anew."""
        self._seen += 1
        z = max(-_CLIP, min(_CLIP, (error - self._mean) / self._scale))
        rate = max(_RATE, 1.0 / (self._seen + 10))
        self._mean += rate * (max(-2.0, min(2.0, error)) - self._mean)
        # a normal deviate's mean size is 0.8 of its deviation
        self._scale += rate * (min(abs(error - self._mean), 3.0) * 1.25 - self._scale)
        self._scale = max(self._scale, 0.05)
        self._up = max(0.0, self._up + z - _SLACK)
        self._down = max(0.0, self._down - z - _SLACK)
        self._wide = max(0.0, self._wide + abs(z) - 0.8 - _SLACK)
        if max(self._up, self._down, self._wide) < _ALARM:
            return False
        self.reset()
        return True
