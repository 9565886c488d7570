"""What a request costs, in seconds of engine time."""

from __future__ import annotations

from collections.abc import Callable

from quietcore.scheduler.cost.slowdown import NEUTRAL, Slowdown, read
from quietcore.scheduler.cost.steps import StepShape, StepTimeModel

MOST_TOKENS = 1e8
REFRESH = 8  # steps between two looks at the step time
HYSTERESIS = 0.1  # change of a rate below which costs stay as they are, so that keys compare


def neutral() -> Slowdown:
    """The source of slowdowns while nobody measures any."""
    return NEUTRAL


class CostModel:
    """Seconds of engine time of a request, for ranking and for deadlines.

    ``slots`` is the most sequences that the engine runs at once (``max_num_seqs``); ``slowdown`` is asked for
    the disturbance as it is now, and is neutral until somebody measures one.
    """

    def __init__(
        self, slots: int, step_time: StepTimeModel, slowdown: Callable[[], Slowdown] = neutral
    ) -> None:
        self.slots = max(int(slots), 1)
        self.step_time = step_time
        self.revision = 0
        self._source = slowdown
        self._seen = -1
        self._read = self._slowdown = NEUTRAL
        self._prefill_token_s = self._shared_token_s = self._own_token_s = 0.0
        self._refresh()

    @classmethod
    def fixed(cls, slots: int, step_s: float, per_seq_s: float, prefill_token_s: float) -> CostModel:
        """One with given step times, for benchmarks: all slots busy, nothing learned."""
        return cls(slots, StepTimeModel.fixed(step_s, per_seq_s, prefill_token_s))

    def shared(self, prompt_tokens: float, remaining_tokens: float) -> float:
        """Seconds of the engine that a request uses up: its prefill, and its share of the steps to come.

        A step that serves n sequences is charged to each by an n-th: what a request takes from the others,
        and a better ranking than its own service time wherever prompts are long. ``prompt_tokens``: those
        still to be computed. The rates behind it change by a tenth or not at all; :attr:`revision` then
        goes up, and keys made before are better made anew.
        """
        self._refresh()
        return _tokens(prompt_tokens) * self._prefill_token_s + max(_tokens(remaining_tokens), 1.0) * (
            self._shared_token_s
        )

    def service(self, prompt_tokens: float, remaining_tokens: float) -> float:
        """Seconds from admission to the last token, at the present batch and rate of prefills."""
        self._refresh()
        return _tokens(prompt_tokens) * self._prefill_token_s + max(_tokens(remaining_tokens), 1.0) * (
            self._own_token_s
        )

    @property
    def slowdown(self) -> Slowdown:
        """The one that the present rates stand for."""
        return self._slowdown

    def measured(self) -> Slowdown:
        """The disturbance as it is now: what a step has just run under."""
        return read(self._source)

    def batch(self) -> float:
        """Sequences that share a step while requests wait: of late, or the slots before any step was seen."""
        typical = self.step_time.typical.decode_seqs
        return min(max(typical, 1.0), float(self.slots)) if self.step_time.steps else float(self.slots)

    def _refresh(self) -> None:
        steps = self.step_time.steps
        slowdown = read(self._source)
        if steps < self._seen + REFRESH and slowdown == self._read and self._seen >= 0:
            return
        self._seen, self._read = steps, slowdown
        batch = self.batch()
        typical = self.step_time.typical
        context = typical.context_tokens * batch / typical.decode_seqs if typical.decode_seqs > 0 else 0.0
        decode = self.step_time.predict(StepShape(0, batch, context), slowdown)
        # At the size that prefills have, as the fixed part of a step is the decoding sequences' anyway.
        chunk = max(typical.prefill_tokens, 256.0)
        mixed = self.step_time.predict(StepShape(chunk, batch, context), slowdown)
        prefill = max((mixed - decode) / chunk, 1e-12)
        own = decode + typical.prefill_tokens * prefill
        if (
            self._changed(self._prefill_token_s, prefill)
            or self._changed(self._shared_token_s, decode / batch)
            or self._changed(self._own_token_s, own)
        ):
            self.revision += 1
            self._slowdown = slowdown
            self._prefill_token_s, self._shared_token_s, self._own_token_s = prefill, decode / batch, own

    @staticmethod
    def _changed(old: float, new: float) -> bool:
        return abs(new - old) > HYSTERESIS * old


def _tokens(count: float) -> float:
    return min(max(count, 0.0), MOST_TOKENS) if count == count else 0.0
