"""How long a step of the engine takes, learned from the steps it took."""

from __future__ import annotations

from typing import NamedTuple

from quietcore.scheduler.cost.filter import Coefficients, Four
from quietcore.scheduler.cost.pace import Pace
from quietcore.scheduler.cost.slowdown import NEUTRAL, Slowdown, bounded

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


class StepTimeModel:
    """Step time in seconds as a function of a step's shape, with a host part and a device part.

    With ``overlap`` (async scheduling) the host prepares the next step while the device computes this one,
    and the longer of the two paces the engine; without it they add up. The parts can be told apart only
    where ``host_seconds`` is given to :meth:`observe`; until then the host's is taken as 30 % of the step.

    What is learned in the long run are the coefficients, from undisturbed steps. On top of them a *pace*
    follows what the last steps say, so an unexplained change is met within some ten steps; when it stays,
    it is taken for a change of the workload or the hardware and the coefficients are learned anew.
    """

    def __init__(self, *, overlap: bool = True) -> None:
        self.overlap = overlap
        self.steps = 0
        self.frozen = False
        self._device = Coefficients(DEVICE_PRIOR, SPREAD)
        self._host = Coefficients(HOST_PRIOR, SPREAD)
        self._host_steps = 0
        self._pace = Pace()
        self._scales: list[float] = []
        self._clean = 0
        self._typical = StepShape(0.0, 0.0, 0.0)

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
        seconds = self._unpaced(shape, slowdown) * self._pace.now(slowdown.negligible)
        return min(max(seconds, SHORTEST), LONGEST) if seconds == seconds else LONGEST

    def observe(
        self,
        shape: StepShape,
        seconds: float,
        *,
        host_seconds: float | None = None,
        slowdown: Slowdown = NEUTRAL,
    ) -> None:
        """Learn from a step that took ``seconds``: with ``overlap`` the interval from step to step.

        ``host_seconds`` is the CPU's part of it, as far as it was measured. ``slowdown`` is what was known
        while it ran: a disturbed step tells how far that explains it, and teaches no coefficient
        once the model is warm. An interval that cannot be a step's (no number, negative, ten minutes) is
        ignored.
        """
        if not SHORTEST <= seconds <= LONGEST or not _possible(shape) or self.frozen:
            return
        slowdown = bounded(slowdown)
        clean = slowdown.negligible
        self.steps += 1
        self._see(shape)
        if host_seconds is not None and 0.0 < host_seconds <= LONGEST:
            self._learn_host(shape, host_seconds / slowdown.host, clean)
        predicted = self._unpaced(shape, slowdown)
        if len(self._scales) < SCALING:
            self._set_scale(seconds / predicted)
            return
        ratio = self._pace.observe(seconds / predicted, seconds, clean)
        if clean and self._pace.changed():
            level = self._pace.fold()
            self._device.rescale(level)
            self._device.reopen()
            predicted *= level
            ratio /= level
        if clean or self._clean < WARM:
            self._clean += clean
            self._learn_device(shape, predicted * ratio, slowdown)

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

    def _unpaced(self, shape: StepShape, slowdown: Slowdown) -> float:
        device = max(_cost(self._device.values, shape), SHORTEST)
        if self._host_steps:
            host = _cost(self._host.values, shape)
        elif self.overlap:
            host = UNMEASURED_HOST_SHARE * device
        else:
            host = UNMEASURED_HOST_SHARE / (1.0 - UNMEASURED_HOST_SHARE) * device
        host *= slowdown.host
        device *= slowdown.device
        return max(host, device) if self.overlap else host + device

    def _set_scale(self, ratio: float) -> None:
        """Bring the prediction to the median of the first steps."""
        before = sorted(self._scales)[len(self._scales) // 2] if self._scales else 1.0
        self._scales.append(ratio * before)
        after = sorted(self._scales)[len(self._scales) // 2]
        self._device.rescale(after / before)

    def _learn_host(self, shape: StepShape, seconds: float, clean: bool) -> None:
        self._host_steps += 1
        predicted = max(_cost(self._host.values, shape), SHORTEST)
        if self._host_steps == 1:
            self._host.rescale(seconds / predicted)
        elif clean or self._clean < WARM:
            # Outliers are cut at the double; a host that slows down for good is followed all the same.
            ratio = min(seconds / predicted, 2.0)
            self._host.update(*shape, predicted, ratio, self._pace.noise)

    def _learn_device(self, shape: StepShape, seconds: float, slowdown: Slowdown) -> None:
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


def _cost(values: Four, shape: StepShape) -> float:
    base, prefill, seq, context = values
    return base + prefill * shape[0] + seq * shape[1] + context * shape[2]


def _possible(shape: StepShape) -> bool:
    prefill, seqs, context = shape
    return 0 <= prefill < MOST and 0 <= seqs < MOST and 0 <= context < MOST and prefill + seqs > 0
