"""How soon step times are foreseen right when noise begins or ends: in virtual time, the truth being known.

An engine takes steps; noise on its host multiplies the host's work by a known factor, and comes and goes.
Three cost models see the same steps, and each foretells every step before it is taken:

    none        what it learned in a quiet time, and nothing else
    self-timed  follows the steps alone
    page        also hears an agent, which measures in windows and tells later than it happens

Nothing here is measured on a machine. It tells what the models make of such an agent, not what the agent sees
of a real engine, nor what that one does.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from quietcore.scheduler.bench import BenchError
from quietcore.scheduler.cost import CostModel, MeasuredSlowdown, StepShape, StepTimeModel
from quietcore.scheduler.cost.model import STATIC_LESSONS
from quietcore.scheduler.page import Feedback, ProcessIdentity

CORRECTIONS = ("none", "self-timed", "page")
NONE, SELF_TIMED, PAGE = range(3)
AFTER_S = 2.0
"""Seconds of work after a change of noise in which predictions are judged."""
BACK_S = 0.5
"""Seconds after which they should be as good as before when noise has ended."""
RIGHT = 0.1
"""Relative error of a prediction that counts as right."""
FACTORS = (1.3, 1.6, 2.2)
"""How many times as long the host takes in noise."""

_SLOTS = 64
_QUIET_S = 40.0  # before the first noise
_SCATTER, _NOISY_SCATTER = 0.05, 0.11  # standard deviation of the log of a step's time
_WINDOW_S = 0.1
_QUIET_SHARE_SCATTER, _SHARE_SCATTER = 0.003, 0.03  # of the stolen share of one window
_IDENTITY = ProcessIdentity(1, 1, 1)

_Cost = Callable[[StepShape], float]


def _ms(base: float, prefill: float = 0.0, seq: float = 0.0, context: float = 0.0) -> _Cost:
    return lambda shape: (base + prefill * shape[0] + seq * shape[1] + context * shape[2]) / 1e3


@dataclass(frozen=True)
class Make:
    """An engine by what a step costs, in seconds: host work that its scheduler sees, host work that it does
    not see, and the device's.
    """

    name: str
    overlap: bool
    seen: _Cost = field(repr=False)
    unseen: _Cost = field(repr=False)
    device: _Cost = field(repr=False)

    def seconds(self, shape: StepShape, factor: float) -> tuple[float, float]:
        """Of a step, and of what the scheduler sees of it, with host work times ``factor``."""
        seen = self.seen(shape) * factor
        host, device = seen + self.unseen(shape) * factor, self.device(shape)
        return (max(host, device) if self.overlap else host + device), seen


MAKES = (
    Make("in turn", False, _ms(0.5, seq=0.02), _ms(3, 0.001, 0.06), _ms(5, 0.02, 0.05, 4e-5)),
    Make("overlapping", True, _ms(0.5, seq=0.02), _ms(3, 0.001, 0.06), _ms(6, 0.02, 0.05, 4e-5)),
    Make("host only", False, _ms(0.5, seq=0.02), _ms(6, 0.03, 0.25, 8e-5), _ms(0)),
)
"""Host and device one after the other; at the same time, the device the longer by a little; a CPU backend."""


class Mix(NamedTuple):
    """A workload: sequences that run, share of steps with a prefill, its tokens, and context a sequence."""

    seqs: float = 16.0
    prefills: float = 0.15
    prompt: float = 300.0
    context: float = 600.0


MIXES = (Mix(), Mix(40.0, 0.05, 200.0, 1200.0), Mix(8.0, 0.4, 900.0, 400.0))


@dataclass(frozen=True)
class Scenario:
    """What else happens when noise begins or ends.

    Attributes:
        idle_s: the engine has nothing to do for so long around that moment.
        changes_mix: the workload becomes another.
        late_s: by so much later than usual the agent tells what it has measured.
        seen_share: of what the host loses, the agent sees so much.
        false_alarms: share of windows in which it sees a fifth of the host's time lost that is not.
    """

    name: str
    idle_s: float = 0.0
    changes_mix: bool = False
    late_s: float = 0.0
    seen_share: float = 1.0
    false_alarms: float = 0.0


SCENARIOS = (
    Scenario("busy"),
    Scenario("idle gap", idle_s=2.0),
    Scenario("new mix", changes_mix=True),
    Scenario("new mix after a gap", idle_s=2.0, changes_mix=True),
    Scenario("a late agent", late_s=0.3),
    Scenario("a short-sighted agent", seen_share=0.5),
    Scenario("a nervous agent", false_alarms=0.1),
)


class Sample(NamedTuple):
    """A step, and how it was foretold, by correction.

    Attributes:
        change: which beginning or end of noise was the last.
        ago: seconds since then, or since the end of idleness if that was later.
        seen: relative errors against what the step took.
        expected: against what such a step takes on average.
    """

    change: int
    ago: float
    noisy: bool
    seen: tuple[float, ...]
    expected: tuple[float, ...]


class _Agent:
    """Tells what it has measured over a window up to as much time after its end; read like a page."""

    def __init__(self, scenario: Scenario, rng: random.Random) -> None:
        self._scenario = scenario
        self._rng = rng
        self._now = 0.0
        self._end = _WINDOW_S
        self._lost = 0.0
        self._coming: deque[tuple[float, Feedback]] = deque()
        self._told: Feedback | None = None

    def watch(self, until: float, factor: float) -> None:
        """Time passes, in which host work takes ``factor`` times as long."""
        share = 1.0 - 1.0 / factor
        while until >= self._end:
            self._lost += (self._end - self._now) * share
            self._conclude()
            self._now, self._end = self._end, self._end + _WINDOW_S
        self._lost += (until - self._now) * share
        self._now = until
        while self._coming and self._coming[0][0] <= until:
            self._told = self._coming.popleft()[1]

    def _conclude(self) -> None:
        scatter = _SHARE_SCATTER if self._lost else _QUIET_SHARE_SCATTER
        share = self._rng.gauss(self._lost / _WINDOW_S * self._scenario.seen_share, scatter)
        if self._rng.random() < self._scenario.false_alarms:
            share += 0.2
        self._lost = 0.0
        slowdown = 1.0 / (1.0 - min(max(share, 0.0), 0.95))
        record = Feedback(_IDENTITY, round(_WINDOW_S * 1e9), host_slowdown=slowdown)
        delay = self._scenario.late_s + self._rng.uniform(0.0, _WINDOW_S)
        self._coming.append((self._end + delay, record))

    def read(self) -> Feedback | None:
        return self._told

    def close(self) -> None: ...


class _Change(NamedTuple):
    at: float
    factor: float
    mix: Mix


def _plan(scenario: Scenario, changes: int, rng: random.Random) -> Iterator[_Change]:
    at, mix = _QUIET_S, MIXES[0]
    for number in range(changes):
        if scenario.changes_mix:
            mix = rng.choice([each for each in MIXES if each != mix])
        yield _Change(at, 1.0 if number % 2 else rng.choice(FACTORS), mix)
        at += rng.uniform(3.0, 6.0) + scenario.idle_s


class _Run:
    """One engine in virtual time, and the models that watch it."""

    def __init__(self, make: Make, scenario: Scenario, seed: int) -> None:
        self.rng = random.Random(f"{make.name} {scenario.name} {seed}")
        self.make = make
        self.now = 0.0
        self.factor = 1.0
        self.mix, self.seqs = MIXES[0], MIXES[0].seqs
        self.agent = _Agent(scenario, self.rng)
        overlap = make.overlap
        self.models = (
            CostModel(_SLOTS, StepTimeModel(overlap=overlap, lessons=STATIC_LESSONS)),
            CostModel(_SLOTS, StepTimeModel(overlap=overlap)),
            CostModel(_SLOTS, StepTimeModel(overlap=overlap), MeasuredSlowdown(self.agent)),
        )

    def change(self, change: _Change, idle_s: float) -> None:
        """Noise begins or ends, somewhere in a time without work of ``idle_s``."""
        before = self.rng.uniform(0.1, 0.9) * idle_s
        self.now += before
        self.agent.watch(self.now, self.factor)
        self.factor = change.factor
        self.now += idle_s - before
        self.agent.watch(self.now, self.factor)
        if change.mix != self.mix:
            self.mix, self.seqs = change.mix, change.mix.seqs

    def step(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """A step of the engine; see `Sample`."""
        rng, mix = self.rng, self.mix
        self.seqs = min(max(self.seqs + rng.gauss(0.0, 0.5) + 0.02 * (mix.seqs - self.seqs), 1.0), _SLOTS)
        prefill = rng.randint(16, round(2 * mix.prompt)) if rng.random() < mix.prefills else 0
        context = round(self.seqs * mix.context * rng.uniform(0.9, 1.1))
        shape = StepShape(prefill, round(self.seqs), context)
        expected, host = self.make.seconds(shape, self.factor)
        seconds = expected * rng.lognormvariate(0.0, _NOISY_SCATTER if self.factor > 1.0 else _SCATTER)
        host *= rng.lognormvariate(0.0, 0.1)
        told = []
        for model in self.models:
            model.refresh()
            told.append(model.step_time.predict(shape, model.slowdown))
        self.now += seconds
        self.agent.watch(self.now, self.factor)
        for model in self.models:
            model.learn(*shape, seconds, host)
        return _errors(told, seconds), _errors(told, expected)


def _errors(told: Iterable[float], true: float) -> tuple[float, ...]:
    return tuple(abs(each / true - 1.0) for each in told)


def run(make: Make, scenario: Scenario, *, changes: int = 20, seed: int = 0) -> list[Sample]:
    """Every step from the first noise on, as it was foretold; noise begins or ends ``changes`` times."""
    engine = _Run(make, scenario, seed)
    coming = deque(_plan(scenario, changes, engine.rng))
    samples: list[Sample] = []
    done, since = 0, 0.0
    while coming or engine.now < since + 2.0 * AFTER_S:
        if coming and engine.now >= coming[0].at:
            engine.change(coming.popleft(), scenario.idle_s)
            done, since = done + 1, engine.now
        ago = engine.now - since
        seen, expected = engine.step()
        if done:
            samples.append(Sample(done, ago, engine.factor > 1.0, seen, expected))
    return samples


@dataclass(frozen=True)
class Row:
    """What came out of a scenario with one make of engine; figures by correction, as in ``CORRECTIONS``.

    Attributes:
        error: mean relative error in the two seconds of work after a change, the scatter of single steps
            left out: what a request of many steps feels.
        ratio: of ``error`` with the page to that of self-timed: mean over the seeds, and upper 95 % bound.
        corrected_s: median seconds from the beginning of noise, or from the end of idleness, to the first
            step that is foretold within a tenth; infinite where most are not within two seconds.
        clean: mean relative error against single steps, without noise and two seconds after it at least.
        back: the same from half a second to two seconds after noise has ended.
    """

    make: str
    scenario: str
    error: tuple[float, ...]
    ratio: tuple[float, float]
    corrected_s: tuple[float, ...]
    clean: tuple[float, ...]
    back: tuple[float, ...]


def compare(make: Make, scenario: Scenario, *, seeds: int = 20, changes: int = 20) -> Row:
    """As many runs, added up."""
    runs = [run(make, scenario, changes=changes, seed=seed) for seed in range(seeds)]
    errors = [_mean(sample.expected for sample in samples if sample.ago < AFTER_S) for samples in runs]
    quiet = [sample for samples in runs for sample in samples if not sample.noisy]
    return Row(
        make.name,
        scenario.name,
        error=_mean(errors),
        ratio=_upper_bound([error[PAGE] / error[SELF_TIMED] for error in errors]),
        corrected_s=tuple(_corrected(runs, index) for index in range(len(CORRECTIONS))),
        clean=_mean(sample.seen for sample in quiet if sample.ago >= AFTER_S),
        back=_mean(sample.seen for sample in quiet if BACK_S <= sample.ago < AFTER_S),
    )


def compare_task(task: tuple[int, Scenario], *, seeds: int, changes: int) -> Row:
    """`compare` for another process: a make by its place among `MAKES`, as its costs cannot be sent there."""
    make, scenario = task
    return compare(MAKES[make], scenario, seeds=seeds, changes=changes)


def _mean(errors: Iterable[Sequence[float]]) -> tuple[float, ...]:
    return tuple(statistics.fmean(each) for each in zip(*errors, strict=True))


def _upper_bound(ratios: Sequence[float]) -> tuple[float, float]:
    """Mean, and the upper end of its two-sided 95 % interval by Student's t."""
    try:
        from scipy import stats
    except ImportError as e:
        raise BenchError("scipy is not installed", "pip install 'quietcore[bench]'") from e
    mean = statistics.fmean(ratios)
    if len(ratios) < 2:
        return mean, math.inf
    quantile = float(stats.t.ppf(0.975, len(ratios) - 1))
    return mean, mean + quantile * statistics.stdev(ratios) / math.sqrt(len(ratios))


def _corrected(runs: Sequence[Sequence[Sample]], index: int) -> float:
    times: list[float] = []
    for samples in runs:
        first: dict[int, float] = {}
        for sample in samples:
            if sample.noisy and sample.ago < AFTER_S:
                right = sample.ago if sample.expected[index] < RIGHT else math.inf
                first[sample.change] = min(first.get(sample.change, math.inf), right)
        times += first.values()
    return statistics.median(times)
