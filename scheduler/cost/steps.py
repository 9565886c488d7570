"""How long a step of the engine takes, learned from the steps it took."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from quietcore.scheduler.cost.coupling import Coupling
from quietcore.scheduler.cost.filter import Coefficients, Four
from quietcore.scheduler.cost.pace import LAG_S, Pace
from quietcore.scheduler.cost.slowdown import NEGLIGIBLE, NEUTRAL, Slowdown, bounded

SHORTEST, LONGEST = 1e-6, 600.0  # seconds of a step; beyond them an interval was not one step
MOST = 1e8  # tokens or sequences of a step

# An 8-billion-parameter model in 16 bits on a GPU that reads 2 to 3 TB/s and does some 200 TFLOP/s: weights
# are read once a step, a prefill token takes 16 GFLOP, a token of context is 128 KiB of KV cache to read.
# The first steps set the scale.
DEVICE_PRIOR: Four = (8e-3, 8e-5, 5e-5, 5e-8)
# About what vLLM's scheduler, input preparation and output handling take, most of it a sequence.
HOST_PRIOR: Four = (2e-3, 1e-6, 3e-5, 1e-10)
SPREAD: Four = (2.0, 5.0, 5.0, 5.0)

UNMEASURED_HOST_SHARE = 0.3  # of a step, while nobody measured it
SCALING = 5  # steps that only set the scale: the first ones compile and allocate
WARM = 100  # undisturbed steps after which disturbed ones teach no coefficient
MOST_HELD = 32  # lessons that wait for what the page will say of their time


class StepShape(NamedTuple):
    """What a step computes: prompt tokens, sequences that decode one token, and tokens these attend to."""

    prefill_tokens: float
    decode_seqs: float
    context_tokens: float = 0.0


class StepModelState(NamedTuple):
    """What was learned: seconds a step, a prefill token, a sequence and a token of context, by part."""

    device: Four
    host: Four
    pace: float
    error: float
    steps: int


class _Lesson(NamedTuple):
    """What a step told, until it is believed.

    Attributes:
        seconds: of it, as far as they were confirmed.
        host_seconds: of them, the CPU's, the slowdown taken out; 0 if not measured.
        elapsed: engine time since the last lesson.
    """

    shape: StepShape
    seconds: float
    host_seconds: float
    slowdown: Slowdown
    elapsed: float


class StepTimeModel:
    """Step time in seconds as a function of a step's shape, with a host part and a device part.

    With ``overlap`` (async scheduling) the host prepares the next step while the device computes this one,
    and the longer of the two paces the engine; without it they add up. The parts can be told apart only
    where ``host_seconds`` is given to :meth:`observe`; until then the host's is taken as 30 % of the step.

    What is learned in the long run are the coefficients, from undisturbed steps. On top of them a *pace*
    follows what the last steps say, so an unexplained change is met within some ten steps; when it stays,
    it is taken for a change of the workload or the hardware and the coefficients are learned anew.

    What the scheduler does not see of a step counts as the device's, though it holds the host's work of
    preparing inputs and launching kernels, too. How much of a slowdown it feels is learned from disturbed
    steps (`Coupling`), so that the next disturbance is foreseen in full as soon as it is announced.

    A disturbance is announced later than it begins, and so is its end. So a step teaches coefficients and
    couplings only half a second of engine time later, and not at all if disturbance has begun or ended by
    then (where it comes and goes faster than that, undisturbed steps teach all the same).

    ``lessons``: after so many steps neither coefficients nor pace change any more; 0 for never.
    """

    def __init__(self, *, overlap: bool = True, lessons: int = 0) -> None:
        self.overlap = overlap
        self.steps = 0
        self.frozen = False
        self._lessons = lessons
        self._device = Coefficients(DEVICE_PRIOR, SPREAD)
        self._host = Coefficients(HOST_PRIOR, SPREAD)
        self._host_steps = 0
        self._pace = Pace()
        self._scales: list[float] = []
        self._clean = 0
        self._typical = StepShape(0.0, 0.0, 0.0)
        self._felt_host = Coupling(0.0)
        self._felt_device = Coupling(1.0)
        self._held: deque[_Lesson] = deque()
        self._held_s = 0.0

    @classmethod
    def fixed(cls, step_s: float, per_seq_s: float, prefill_token_s: float) -> StepTimeModel:
        """One that knows and never learns, for benchmarks; all in seconds."""
        model = cls()
        model._device = Coefficients((step_s, prefill_token_s, per_seq_s, 0.0), SPREAD)
        model.frozen = True
        return model

    @property
    def typical(self) -> StepShape:
        """The shape of busy steps of late: sequences rise at once and fall slowly, the rest are averages."""
        return self._typical

    @property
    def state(self) -> StepModelState:
        host = self._host.values if self._host_steps else (0.0, 0.0, 0.0, 0.0)
        return StepModelState(self._device.values, host, self._pace.clean, self._pace.error, self.steps)

    def predict(self, shape: StepShape, slowdown: Slowdown = NEUTRAL) -> float:
        """Seconds of a step of this shape under a slowdown; from 1 us to 600 s, whatever was learned."""
        slowdown = bounded(slowdown)
        clean = slowdown.negligible
        seconds = self._unpaced(shape, slowdown)
        if clean or not self._pace.in_clean:
            pace = self._pace.now(clean)
        else:
            undisturbed, disturbed = self._pace.announced(*self._explained(shape, slowdown, seconds))
            pace = undisturbed * disturbed
        seconds *= pace
        return min(max(seconds, SHORTEST), LONGEST) if seconds == seconds else LONGEST

    def observe(
        self,
        shape: StepShape,
        seconds: float,
        *,
        host_seconds: float | None = None,
        slowdown: Slowdown = NEUTRAL,
        elapsed: float | None = None,
    ) -> None:
        """Learn from a step that took ``seconds``: with ``overlap`` the interval from step to step.

        ``host_seconds`` is the CPU's part of it, as far as it was measured. ``slowdown`` is what was known
        while it ran: a disturbed step tells how far that explains it, and teaches no coefficient
        once the model is warm. ``elapsed``: seconds of engine time since the last step that was observed, if
        there were others in between. An interval that cannot be a step's (no number, negative, ten minutes)
        is ignored.
        """
        if not SHORTEST <= seconds <= LONGEST or not _possible(shape) or self.frozen:
            return
        slowdown = bounded(slowdown)
        clean = slowdown.negligible
        elapsed = seconds if elapsed is None else elapsed
        self.steps += 1
        self._see(shape)
        if self._lessons and self.steps > self._lessons:
            return
        host_seconds = host_seconds / slowdown.host if host_seconds and 0.0 < host_seconds <= LONGEST else 0.0
        if host_seconds and self._clean < WARM:
            self._learn_host(shape, host_seconds)
        predicted = self._unpaced(shape, slowdown)
        if len(self._scales) < SCALING:
            self._set_scale(seconds / predicted)
            return
        if clean != self._pace.in_clean:
            self._take_back()
            self._pace.switch(clean, *self._explained(shape, slowdown, predicted))
        ratio = self._pace.observe(seconds / predicted, elapsed)
        if clean and self._pace.changed():
            level = self._pace.fold()
            self._device.rescale(level)
            self._device.reopen()
            predicted *= level
            ratio /= level
        lesson = _Lesson(shape, predicted * ratio, host_seconds, slowdown, elapsed)
        if self._clean < WARM:
            self._clean += clean
            self._learn_device(lesson)
        else:
            self._hold(lesson)
        if self.steps == self._lessons:
            self._pace = Pace()

    def _take_back(self) -> None:
        """Forget lessons from around the beginning or the end of a disturbance."""
        if self._pace.in_clean and not self._pace.settled:
            return
        kept = () if self._pace.in_clean else [each for each in self._held if each.slowdown.negligible]
        self._held = deque(kept)
        self._held_s = sum(each.elapsed for each in kept)

    def _hold(self, lesson: _Lesson) -> None:
        """Learn from those that are old enough."""
        self._held.append(lesson)
        self._held_s += lesson.elapsed
        while self._held_s > LAG_S or len(self._held) > MOST_HELD:
            oldest = self._held.popleft()
            self._held_s -= oldest.elapsed
            if not oldest.slowdown.negligible:
                self._learn_coupling(oldest)
                continue
            if oldest.host_seconds:
                self._learn_host(oldest.shape, oldest.host_seconds)
            self._learn_device(oldest)

    def _see(self, shape: StepShape) -> None:
        old = self._typical
        if self.steps == 1:
            self._typical = shape
            return
        rise = 0.1 if shape.decode_seqs > old.decode_seqs else 0.002
        self._typical = StepShape(
            old.prefill_tokens + 0.01 * (shape.prefill_tokens - old.prefill_tokens),
            old.decode_seqs + rise * (shape.decode_seqs - old.decode_seqs),
            old.context_tokens + rise * (shape.context_tokens - old.context_tokens),
        )

    def _parts(self, shape: StepShape) -> tuple[float, float]:
        """Seconds of the host's and of the device's part, undisturbed and without pace."""
        device = max(_cost(self._device.values, shape), SHORTEST)
        if self._host_steps:
            return _cost(self._host.values, shape), device
        share = UNMEASURED_HOST_SHARE
        return (share if self.overlap else share / (1.0 - share)) * device, device

    def _unpaced(self, shape: StepShape, slowdown: Slowdown) -> float:
        host, device = self._parts(shape)
        host *= slowdown.host
        device *= 1.0 + self._felt_device.value * (slowdown.device - 1.0)
        device *= 1.0 + self._felt_host.value * (slowdown.host - 1.0)
        return max(host, device) if self.overlap else host + device

    def _explained(self, shape: StepShape, slowdown: Slowdown, seconds: float) -> tuple[float, float]:
        """How many times as long a step of ``seconds`` takes by this slowdown, and how many times it may."""
        explained = seconds / max(self._unpaced(shape, NEUTRAL), SHORTEST)
        return explained, max(explained, slowdown.host, slowdown.device)

    def _set_scale(self, ratio: float) -> None:
        """Bring the prediction to the median of the first steps."""
        before = sorted(self._scales)[len(self._scales) // 2] if self._scales else 1.0
        self._scales.append(ratio * before)
        after = sorted(self._scales)[len(self._scales) // 2]
        self._device.rescale(after / before)

    def _learn_host(self, shape: StepShape, seconds: float) -> None:
        self._host_steps += 1
        predicted = max(_cost(self._host.values, shape), SHORTEST)
        if self._host_steps == 1:
            self._host.rescale(seconds / predicted)
            return
        # Outliers are cut at the double; a host that slows down for good is followed all the same.
        ratio = min(seconds / predicted, 2.0)
        self._host.update(*shape, predicted, ratio, self._pace.noise)

    def _learn_device(self, lesson: _Lesson) -> None:
        shape, seconds, _, slowdown, _ = lesson
        device = max(_cost(self._device.values, shape), SHORTEST)
        if not self._host_steps:
            whole = self._unpaced(shape, slowdown)
            self._device.update(*shape, device, seconds / whole, self._pace.noise)
            return
        host = _cost(self._host.values, shape) * slowdown.host
        if not self.overlap:
            seconds = max(seconds - host, 0.0)
        elif host >= seconds and device * slowdown.device <= seconds:
            return  # the host paced this step: the device took at most as long, which is no news
        self._device.update(*shape, device, seconds / slowdown.device / device, self._pace.noise)

    def _learn_coupling(self, lesson: _Lesson) -> None:
        """From a disturbed step; nothing where host and device are both slowed down, as either counts."""
        shape, seconds, _, slowdown, _ = lesson
        by_host = abs(slowdown.device - 1.0) <= NEGLIGIBLE
        if not by_host and abs(slowdown.host - 1.0) > NEGLIGIBLE:
            return
        host, device = self._parts(shape)
        host *= slowdown.host
        seconds /= self._pace.clean
        if not self.overlap:
            seconds -= host
        elif host >= seconds:
            return  # the host that the scheduler sees paced this step
        before = self._unpaced(shape, slowdown)
        if by_host:
            self._felt_host.observe(slowdown.host, seconds / device - 1.0, self._pace.noise)
        else:
            self._felt_device.observe(slowdown.device, seconds / device - 1.0, self._pace.noise)
        self._pace.hand_over(self._unpaced(shape, slowdown) / before)


def _cost(values: Four, shape: StepShape) -> float:
    base, prefill, seq, context = values
    return base + prefill * shape[0] + seq * shape[1] + context * shape[2]


def _possible(shape: StepShape) -> bool:
    prefill, seqs, context = shape
    return 0 <= prefill < MOST and 0 <= seqs < MOST and 0 <= context < MOST and prefill + seqs > 0
