"""How long steps take, told from the times at which vLLM calls its scheduler."""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import Any, NamedTuple

_DEPTH = 64
_RECOUNT = 32


class TimedStep(NamedTuple):
    """A step that has ended: its shape, its seconds, and the CPU's part of them in the scheduler itself."""

    prefill_tokens: int
    decode_seqs: int
    context_tokens: int
    seconds: float
    host_seconds: float


class _Pending(NamedTuple):
    output: Any
    begun: float
    scheduled: float
    prefill_tokens: int
    decode_seqs: int
    context_tokens: int


class StepClock:
    """Pairs each scheduled step with its output, which vLLM hands back in the same order.

    An engine that waits for each step takes the time from the end of ``update_from_output`` to the next end,
    or from the beginning of ``schedule`` if there was no work in between. One that schedules ahead is paced
    by the interval between two outputs, provided that the second step was already scheduled when the first
    came back: else the device had nothing to do meanwhile.
    """

    def __init__(self) -> None:
        self._pending: deque[_Pending] = deque(maxlen=_DEPTH)
        self._begun = 0.0
        self._last_entry = 0.0
        self._last_exit = 0.0
        self._entry = 0.0
        self._busy = 0.0
        self._has_more = False
        self._context = 0
        self._steps = 0

    def begin(self) -> None:
        """Before ``schedule``."""
        self._begun = perf_counter()

    def scheduled(self, output: Any, running: list[Any]) -> None:
        """After ``schedule``, with what it returned and the engine's running requests."""
        now = perf_counter()
        self._busy += now - self._begun
        total = output.total_num_scheduled_tokens
        if total <= 0:
            return
        counts = output.num_scheduled_tokens
        decode = len(counts)
        if total != decode:
            decode = list(counts.values()).count(1)
            speculative = output.scheduled_spec_decode_tokens
            if speculative:
                decode += len(speculative)
                total -= sum(len(tokens) for tokens in speculative.values())
        if self._steps % _RECOUNT == 0:
            self._context = sum(request.num_computed_tokens for request in running)
        else:
            self._context += total
        self._steps += 1
        self._pending.append(
            _Pending(output, self._begun, now, max(total - decode, 0), decode, self._context)
        )

    def finished(self, computed_tokens: int) -> None:
        """A running request with so many tokens in the cache has ended."""
        self._context = max(self._context - computed_tokens, 0)

    def returned(self) -> None:
        """Before ``update_from_output``."""
        self._entry = perf_counter()

    def updated(self, output: Any, has_more: bool) -> TimedStep | None:
        """After ``update_from_output`` of that step; ``None`` if its time can't be told from idleness.

        ``has_more``: whether the engine has requests left.
        """
        entry, last_entry, last_exit, had_more = (
            self._entry,
            self._last_entry,
            self._last_exit,
            self._has_more,
        )
        now = perf_counter()
        self._busy += now - entry
        self._last_entry, self._last_exit, self._has_more = entry, now, has_more
        step = self._take(output)
        busy, self._busy = self._busy, 0.0
        if step is None:
            return None
        if step.scheduled <= last_entry:
            seconds = entry - last_entry
        elif step.begun >= last_exit:
            seconds = now - (last_exit if had_more else step.begun)
        else:
            return None
        return TimedStep(
            step.prefill_tokens, step.decode_seqs, step.context_tokens, seconds, min(busy, seconds)
        )

    def _take(self, output: Any) -> _Pending | None:
        while self._pending:
            step = self._pending.popleft()
            if step.output is output:
                return step
        return None
