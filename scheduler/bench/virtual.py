"""Virtual time: a real scheduler class of vLLM is driven step by step; no model runs and nothing waits.

A step lasts what `StepTime` says. Outputs are made up so that every request ends after its recorded length.
Times are whole nanoseconds, so that runs are equal or not, never nearly equal.

While nothing can happen between two steps (every running request decodes, and no other could be admitted
before the next one ends or arrives), the steps in between are not computed one by one: the requests are
advanced by their tokens at once. The tests hold both ways against each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quietcore.scheduler.bench import BenchError

MS = 1_000_000  # nanoseconds
_TOKEN, _STOP = 1, 2
_EVERY = 100  # finished requests between two calls of `progress`


@dataclass(frozen=True, slots=True)
class StepTime:
    """Duration of an engine step, nanoseconds: base + per sequence + per token of prefill."""

    base_ns: int = 12 * MS
    sequence_ns: int = MS // 10
    prefill_token_ns: int = MS * 8 // 100

    def of(self, sequences: int, prefill_tokens: int) -> int:
        return self.base_ns + self.sequence_ns * sequences + self.prefill_token_ns * prefill_tokens

    def shared_s(self, prompt_tokens: int, output_tokens: int, slots: int) -> float:
        """Seconds of the engine that a request uses up while all slots are busy."""
        ns = self.prefill_token_ns * prompt_tokens + output_tokens * (self.base_ns / slots + self.sequence_ns)
        return ns / 1e9


@dataclass(frozen=True, slots=True)
class VirtualRequest:
    """A request to come.

    Attributes:
        arrival_ns: virtual time.
        hints: as a client gives them in ``vllm_xargs``.
    """

    key: str
    arrival_ns: int
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    hints: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(slots=True)
class Timeline:
    """What became of a request, in virtual nanoseconds; -1: has not happened."""

    key: str
    arrival_ns: int
    admitted_ns: int = -1
    first_token_ns: int = -1
    finished_ns: int = -1


class Clock:
    """The time that a scheduler under test is shown."""

    def __init__(self) -> None:
        self.now_ns = 0

    def seconds(self) -> float:
        return self.now_ns / 1e9


@dataclass(slots=True)
class _Step:
    output: Any
    sampled: dict[str, list[int]]
    end_ns: int


class VirtualEngine:
    """Does to a scheduler what an engine does, in virtual time.

    Args:
        scheduler: as of `modelless.build_scheduler`.
        clock: shown to the scheduler by whoever built it.
        depth: steps in flight: 1 is vLLM's synchronous engine, 2 the asynchronous one.
        skip: advance over steps in which nothing can happen; only at depth 1.
    """

    def __init__(
        self, scheduler: Any, clock: Clock, step_time: StepTime, *, depth: int = 1, skip: bool = True
    ) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._step_time = step_time
        self._depth = depth
        self._skip = skip and depth == 1
        self._slots: int = scheduler.scheduler_config.max_num_seqs
        self._arrivals: deque[VirtualRequest] = deque()
        self._timelines: dict[str, Timeline] = {}
        self._length: dict[str, int] = {}
        self._emitted: dict[str, int] = {}
        self._open = 0  # added and not finished
        self._device_free_ns = 0
        self.steps = 0  # computed ones

    def run(
        self, requests: Sequence[VirtualRequest], progress: Callable[[int], None] = lambda done: None
    ) -> list[Timeline]:
        """Serve all requests, given in order of arrival.

        Raises:
            BenchError: the scheduler leaves requests lying although nothing else is to come.
        """
        self._arrivals = deque(requests)
        flight: deque[_Step] = deque()
        reported = 0
        while self._arrivals or self._open or flight:
            self._admit()
            step = self._schedule() if len(flight) < self._depth and self._open else None
            if step is not None:
                flight.append(step)
                if len(flight) < self._depth:
                    continue
            if flight:
                self._finish(flight.popleft())
            elif self._arrivals:
                self._clock.now_ns = max(self._clock.now_ns, self._arrivals[0].arrival_ns)
            elif self._open:
                raise BenchError(f"the scheduler left {self._open} requests lying")
            done = len(self._timelines) - self._open
            if done - reported >= _EVERY:
                progress(done - reported)
                reported = done
        progress(len(self._timelines) - reported)
        return [self._timelines[request.key] for request in requests]

    def _admit(self) -> None:
        while self._arrivals and self._arrivals[0].arrival_ns <= self._clock.now_ns:
            self._add(self._arrivals.popleft())

    def _add(self, request: VirtualRequest) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        parameters = SamplingParams(
            max_tokens=request.output_tokens + 1,
            stop_token_ids=[_STOP],
            detokenize=False,
            extra_args=dict(request.hints) or None,
        )
        self._timelines[request.key] = Timeline(request.key, request.arrival_ns)
        self._length[request.key] = max(request.output_tokens, 1)
        self._emitted[request.key] = 0
        self._open += 1
        self._scheduler.add_request(
            Request(
                request_id=request.key,
                prompt_token_ids=[_TOKEN] * max(request.prompt_tokens, 1),
                sampling_params=parameters,
                pooling_params=None,
                arrival_time=request.arrival_ns / 1e9,
                priority=request.priority,
            )
        )

    def _schedule(self) -> _Step | None:
        """One step of the scheduler, or several equal ones; None if it schedules nothing."""
        begin = self._clock.now_ns
        output = self._scheduler.schedule()
        tokens: dict[str, int] = output.num_scheduled_tokens
        if not tokens:
            self._scheduler.update_from_output(output, _model_output({}))
            return None
        self.steps += 1
        for new in output.scheduled_new_reqs:
            timeline = self._timelines[new.req_id]
            if timeline.admitted_ns < 0:
                timeline.admitted_ns = begin
        prefill = sum(count for key, count in tokens.items() if count > 1 or not self._emitted[key])
        duration = self._step_time.of(len(tokens), prefill)
        steps = self._count_equal_steps(begin, duration, len(tokens)) if self._skip and not prefill else 1
        begin = max(begin, self._device_free_ns)
        self._device_free_ns = begin + steps * duration
        if steps > 1:
            self._advance(tokens, begin, duration, steps)
        sampled = {}
        for key in tokens:
            request = self._scheduler.requests[key]
            sampled[key] = (
                self._sample(key, steps) if request.num_computed_tokens >= request.num_tokens else []
            )
        return _Step(output, sampled, self._device_free_ns)

    def _count_equal_steps(self, begin: int, duration: int, running: int) -> int:
        """How many steps like this one, itself included, pass before anything can be decided."""
        full = running == self._slots
        if not full and running != self._open:
            return 1
        steps = min(self._length[r.request_id] - self._emitted[r.request_id] for r in self._scheduler.running)
        if self._arrivals and not full:
            steps = min(steps, -(-(self._arrivals[0].arrival_ns - begin) // duration))
        return max(steps, 1)

    def _advance(self, tokens: Mapping[str, int], begin: int, duration: int, steps: int) -> None:
        """Let all but the last of equal steps pass: requests arrive, running ones compute tokens."""
        for key in tokens:
            request = self._scheduler.requests[key]
            request.num_computed_tokens += steps - 1
            if getattr(request, "num_output_placeholders", 0):
                request.num_output_placeholders += steps - 1
        while self._arrivals:
            passed = -(-(self._arrivals[0].arrival_ns - begin) // duration)
            if passed >= steps:
                return
            self._clock.now_ns = begin + passed * duration
            self._add(self._arrivals.popleft())

    def _sample(self, key: str, count: int) -> list[int]:
        emitted = self._emitted[key] = self._emitted[key] + count
        # async engines sample once more before they see that a request has ended
        return [_TOKEN] * (count - 1) + [_STOP if emitted >= self._length[key] else _TOKEN]

    def _finish(self, step: _Step) -> None:
        self._clock.now_ns = max(self._clock.now_ns, step.end_ns)
        for key, sampled in step.sampled.items():
            timeline = self._timelines[key]
            if sampled and timeline.first_token_ns < 0:
                timeline.first_token_ns = step.end_ns
            if sampled and sampled[-1] == _STOP and timeline.finished_ns < 0:
                timeline.finished_ns = step.end_ns
                self._open -= 1
        self._scheduler.update_from_output(step.output, _model_output(step.sampled))


def _model_output(sampled: Mapping[str, list[int]]) -> Any:
    from vllm.v1.outputs import ModelRunnerOutput

    keys = list(sampled)
    return ModelRunnerOutput(
        req_ids=keys,
        req_id_to_index={key: i for i, key in enumerate(keys)},
        sampled_token_ids=list(sampled.values()),
        logprobs=None,
        prompt_logprobs_dict={},
        pooler_output=None,
    )
