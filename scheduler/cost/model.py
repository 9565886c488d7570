"""What a request costs, in seconds of engine time."""

from __future__ import annotations

from collections.abc import Callable

from quietcore.scheduler.cost.slowdown import NEUTRAL, Slowdown, read
from quietcore.scheduler.cost.steps import StepShape, StepTimeModel

MOST_TOKENS = 1e8
# Lessons, or seconds of engine time, between two looks at what was learned of step times.
REFRESH, REFRESH_S = 8, 0.1
# Change of a rate below which costs stay as they are, so that keys compare: in general, when the measured
# slowdown has changed, and when a disturbance has begun or ended.
HYSTERESIS, HYSTERESIS_SLOWDOWN, HYSTERESIS_BEGIN = 0.1, 0.05, 0.02
# Learning from a step costs more than all else that is done in it. The first ones all teach, then one after
# so many steps or seconds of them, whichever comes first.
LEARN_FROM_ALL = 300
LEARN_AFTER_STEPS = 8
LEARN_AFTER_S = 0.05
# What is learned where step times are not to be corrected: of 600 steps, the first 20 s or so of work.
STATIC_LESSONS = 600


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
        self._steps = 0
        self._untaught = 0
        self._untaught_s = 0.0
        self._unseen_s = 0.0
        self._seen = -1
        self._read = self._slowdown = NEUTRAL
        self._prefill_token_s = self._shared_token_s = self._own_token_s = 0.0
        self.refresh()

    @classmethod
    def fixed(cls, slots: int, step_s: float, per_seq_s: float, prefill_token_s: float) -> CostModel:
        """One with given step times, for benchmarks: all slots busy, nothing learned."""
        return cls(slots, StepTimeModel.fixed(step_s, per_seq_s, prefill_token_s))

    def shared(self, prompt_tokens: float, remaining_tokens: float) -> float:
        """Seconds of the engine that a request uses up: its prefill, and its share of the steps to come.

        A step that serves n sequences is charged to each by an n-th: what a request takes from the others,
        and a better ranking than its own service time wherever prompts are long. ``prompt_tokens``: those
        still to be computed. The rates behind it change by a tenth or not at all, by less if that is
        measured; :attr:`revision` then goes up, and keys made before are better made anew.
        """
        self.refresh()
        return _tokens(prompt_tokens) * self._prefill_token_s + max(_tokens(remaining_tokens), 1.0) * (
            self._shared_token_s
        )

    def service(self, prompt_tokens: float, remaining_tokens: float) -> float:
        """Seconds from admission to the last token, at the present batch and rate of prefills."""
        self.refresh()
        return _tokens(prompt_tokens) * self._prefill_token_s + max(_tokens(remaining_tokens), 1.0) * (
            self._own_token_s
        )

    @property
    def slowdown(self) -> Slowdown:
        """The one that the present rates stand for."""
        return self._slowdown

    def learn(
        self,
        prefill_tokens: float,
        decode_seqs: float,
        context_tokens: float,
        seconds: float,
        host_seconds: float | None = None,
    ) -> None:
        """A step has just ended: see :meth:`StepTimeModel.observe`, which gets to see some of them."""
        self._steps += 1
        self._untaught += 1
        self._untaught_s += seconds
        self._unseen_s += seconds
        if (
            self._steps > LEARN_FROM_ALL
            and self._untaught < LEARN_AFTER_STEPS
            and self._untaught_s < LEARN_AFTER_S
        ):
            return
        self.step_time.observe(
            StepShape(prefill_tokens, decode_seqs, context_tokens),
            seconds,
            host_seconds=host_seconds,
            slowdown=read(self._source),
            elapsed=self._untaught_s,
        )
        self._untaught, self._untaught_s = 0, 0.0

    def batch(self) -> float:
        """Sequences that share a step while requests wait: of late, or the slots before any step was seen."""
        typical = self.step_time.typical.decode_seqs
        return min(max(typical, 1.0), float(self.slots)) if self.step_time.steps else float(self.slots)

    def refresh(self) -> None:
        """Take note of what is measured now, whether steps have taught anything since or not.

        Also done whenever a cost is asked for, so the first request after idleness is told the present ones.
        """
        steps = self.step_time.steps
        slowdown = read(self._source)
        news = steps - self._seen
        if (
            slowdown == self._read
            and (not news or (news < REFRESH and self._unseen_s < REFRESH_S))
            and self._seen >= 0
        ):
            return
        self._seen, self._read, self._unseen_s = steps, slowdown, 0.0
        batch = self.batch()
        typical = self.step_time.typical
        context = typical.context_tokens * batch / typical.decode_seqs if typical.decode_seqs > 0 else 0.0
        decode = self.step_time.predict(StepShape(0, batch, context), slowdown)
        # At the size that prefills have, as the fixed part of a step is the decoding sequences' anyway.
        chunk = max(typical.prefill_tokens, 256.0)
        mixed = self.step_time.predict(StepShape(chunk, batch, context), slowdown)
        prefill = max((mixed - decode) / chunk, 1e-12)
        new = prefill, decode / batch, decode + typical.prefill_tokens * prefill
        hysteresis = self._hysteresis(slowdown)
        self._slowdown = slowdown
        old = self._prefill_token_s, self._shared_token_s, self._own_token_s
        if any(abs(after - before) > hysteresis * before for before, after in zip(old, new, strict=True)):
            self.revision += 1
            self._prefill_token_s, self._shared_token_s, self._own_token_s = new

    def _hysteresis(self, slowdown: Slowdown) -> float:
        if slowdown == self._slowdown:
            return HYSTERESIS
        if slowdown.negligible != self._slowdown.negligible:
            return HYSTERESIS_BEGIN
        return HYSTERESIS_SLOWDOWN


def _tokens(count: float) -> float:
    return min(max(count, 0.0), MOST_TOKENS) if count == count else 0.0
