"""The step-time model against engines whose step times are known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from quietcore.scheduler.cost import NEUTRAL, Slowdown, StepShape, StepTimeModel
from quietcore.scheduler.cost.steps import LONGEST, SHORTEST

NOISE = 0.05
DECODE = StepShape(0, 32, 32 * 600)


def device(shape: StepShape) -> float:
    return 5e-3 + 2e-4 * shape.prefill_tokens + 5e-4 * shape.decode_seqs + 4e-7 * shape.context_tokens


def host(shape: StepShape) -> float:
    return 4e-3 + 2e-4 * shape.decode_seqs


class Engine:
    """Runs steps of random shapes whose true time is ``cost``, and lets a model watch."""

    def __init__(
        self, model: StepTimeModel, cost: Callable[[StepShape], float] = device, seed: int = 0
    ) -> None:
        self.model = model
        self.cost = cost
        self.rng = random.Random(seed)

    def shape(self) -> StepShape:
        seqs = self.rng.randint(1, 64)
        prefill = self.rng.randint(16, 1024) if self.rng.random() < 0.2 else 0
        return StepShape(prefill, seqs, seqs * self.rng.randint(100, 1500))

    def run(
        self,
        steps: int,
        *,
        factor: float = 1.0,
        announced: Slowdown = NEUTRAL,
        stall_share: float = 0.0,
        stall: float = 10.0,
        measured: bool = False,
        shape: StepShape | None = None,
    ) -> float:
        """Mean relative error of the predictions of these steps, each made before the step is seen."""
        errors = []
        for _ in range(steps):
            now = shape or self.shape()
            true = self.cost(now) * factor
            errors.append(abs(self.model.predict(now, announced) / true - 1))
            seen = true * self.rng.lognormvariate(0, NOISE)
            if self.rng.random() < stall_share:
                seen *= stall
            self.model.observe(now, seen, host_seconds=host(now) if measured else None, slowdown=announced)
        return sum(errors) / len(errors)


@pytest.mark.parametrize("speed", [0.01, 1.0, 100.0])
def test_learns_an_engine_of_any_speed(speed: float) -> None:
    engine = Engine(StepTimeModel(), lambda shape: device(shape) * speed)
    engine.run(200)
    assert engine.run(300) < 0.03


def test_coefficients_are_found_again() -> None:
    engine = Engine(StepTimeModel())
    engine.run(2000)
    base, prefill, seq, context = engine.model.state.device
    assert (base, prefill, seq, context) == pytest.approx((5e-3, 2e-4, 5e-4, 4e-7), rel=0.2)


def test_single_stalls_teach_nothing() -> None:
    engine = Engine(StepTimeModel())
    engine.run(500)
    assert engine.run(1000, stall_share=0.01) < 0.04


def test_stalls_that_recur_count() -> None:
    engine = Engine(StepTimeModel())
    engine.run(500)
    before = engine.model.predict(DECODE)
    engine.run(400, stall_share=0.3, stall=4.0)
    # on average 1.9 times as long
    assert 1.4 < engine.model.predict(DECODE) / before < 2.4


def test_an_unexplained_change_is_followed_in_some_ten_steps() -> None:
    engine = Engine(StepTimeModel())
    engine.run(1000)
    engine.run(20, factor=1.8)
    assert engine.run(30, factor=1.8) < 0.08


def test_a_lasting_change_becomes_the_baseline() -> None:
    engine = Engine(StepTimeModel())
    engine.run(1000)
    engine.run(500, factor=2.5)
    assert engine.model.state.pace == pytest.approx(1.0, abs=0.1)
    assert engine.model.state.device[2] == pytest.approx(2.5 * 5e-4, rel=0.2)


def test_a_change_of_one_coefficient_is_learned() -> None:
    engine = Engine(StepTimeModel())
    engine.run(1000)
    engine.cost = lambda shape: device(shape) + 1e-3 * shape.decode_seqs
    engine.run(600)
    assert engine.run(200) < 0.05
    assert engine.model.state.device[2] == pytest.approx(1.5e-3, rel=0.2)


@pytest.mark.parametrize("overlap", [True, False])
def test_steps_that_are_nearly_alike_leave_the_parts_in_their_bounds(overlap: bool) -> None:
    """Only the sum of two coefficients shows; one at its bound must not drive the other away."""
    model = StepTimeModel(overlap=overlap)
    rng = random.Random(8)
    seqs, errors = 16.0, []
    for _ in range(1500):
        seqs += rng.gauss(0.0, 0.5) + 0.02 * (16 - seqs)
        prefill = rng.randint(16, 600) if rng.random() < 0.15 else 0
        shape = StepShape(prefill, round(seqs), round(seqs * 600 * rng.uniform(0.9, 1.1)))
        own = 0.5e-3 + 2e-5 * shape.decode_seqs
        rest = 8e-3 + 2e-5 * prefill + 1.1e-4 * shape.decode_seqs + 4e-8 * shape.context_tokens
        true = rest if overlap else own + rest
        errors.append(abs(model.predict(shape) / true - 1))
        seconds = true * rng.lognormvariate(0, NOISE)
        model.observe(shape, seconds, host_seconds=own * rng.lognormvariate(0, 0.1))
    assert max(errors[100:]) < 0.2
    assert sum(errors[100:]) / len(errors[100:]) < 0.03
    base, _, seq, _ = model.state.host
    assert base + 16 * seq == pytest.approx(0.82e-3, rel=0.05)


def test_hours_of_one_shape_do_not_spoil_the_others() -> None:
    engine = Engine(StepTimeModel())
    engine.run(1000)
    engine.run(50_000, shape=DECODE)
    base, prefill, *_ = engine.model.state.device
    assert base >= 0
    assert prefill == pytest.approx(2e-4, rel=0.2)
    assert engine.run(1) < 0.3


def test_an_announced_slowdown_teaches_no_baseline() -> None:
    engine = Engine(StepTimeModel())
    engine.run(1000)
    before = engine.model.state.device, engine.model.state.pace
    announced = Slowdown(host=2.0, device=2.0)
    assert engine.run(1000, factor=2.0, announced=announced) < 0.05
    assert engine.model.state.device == before[0]
    assert engine.run(5) < 0.06, "when it ends, the old baseline holds at once"


def test_what_the_announcement_fails_to_explain_is_followed_and_forgotten() -> None:
    engine = Engine(StepTimeModel())
    engine.run(1000)
    announced = Slowdown(host=1.5, device=1.5)
    engine.run(30, factor=3.0, announced=announced)
    assert engine.run(100, factor=3.0, announced=announced) < 0.08
    assert engine.run(5) < 0.06


def test_steps_before_a_late_announcement_are_taken_back() -> None:
    engine = Engine(StepTimeModel())
    engine.run(1000)
    late = 10  # some 0.4 s of engine time
    engine.run(late, factor=2.0)
    engine.run(200, factor=2.0, announced=Slowdown(2.0, 2.0))
    assert engine.run(5) < 0.08


def test_a_cold_start_under_a_slowdown_is_freed_of_it() -> None:
    engine = Engine(StepTimeModel())
    engine.run(300, factor=2.0, announced=Slowdown(2.0, 2.0))
    assert engine.run(5) < 0.08


def test_a_wrong_announcement_at_a_cold_start_is_mended_by_undisturbed_steps() -> None:
    engine = Engine(StepTimeModel())
    engine.run(300, factor=1.0, announced=Slowdown(3.0, 3.0))
    engine.run(200)
    assert engine.run(200) < 0.04


def test_parts_add_up_without_overlap() -> None:
    engine = Engine(StepTimeModel(overlap=False), lambda shape: device(shape) + host(shape))
    engine.run(1500, measured=True)
    plain = device(DECODE) + host(DECODE)
    assert engine.model.predict(DECODE) == pytest.approx(plain, rel=0.05)
    doubled = device(DECODE) + 2 * host(DECODE)
    assert engine.model.predict(DECODE, Slowdown(host=2.0)) == pytest.approx(doubled, rel=0.08)
    clocked = 1.5 * device(DECODE) + host(DECODE)
    assert engine.model.predict(DECODE, Slowdown(device=1.5)) == pytest.approx(clocked, rel=0.08)


def test_the_longer_part_paces_with_overlap() -> None:
    engine = Engine(StepTimeModel(overlap=True), lambda shape: max(device(shape), host(shape)))
    engine.run(1500, measured=True)
    assert engine.model.predict(DECODE) == pytest.approx(device(DECODE), rel=0.05)
    hidden = Slowdown(host=1.5)
    assert engine.model.predict(DECODE, hidden) == pytest.approx(device(DECODE), rel=0.05)
    pacing = Slowdown(host=5.0)
    assert engine.model.predict(DECODE, pacing) == pytest.approx(5 * host(DECODE), rel=0.08)


def test_a_host_that_paces_is_found() -> None:
    def slow_host(shape: StepShape) -> float:
        return 3.0 * (4e-3 + 2e-4 * shape.decode_seqs)

    engine = Engine(StepTimeModel(overlap=True), slow_host)
    for _ in range(800):
        shape = StepShape(0, engine.rng.randint(1, 8), 0)
        engine.model.observe(shape, slow_host(shape), host_seconds=slow_host(shape))
    shape = StepShape(0, 4, 0)
    assert engine.model.predict(shape, Slowdown(host=2.0)) == pytest.approx(2 * slow_host(shape), rel=0.1)
    assert engine.model.predict(shape, Slowdown(device=1.05)) == pytest.approx(slow_host(shape), rel=0.1)


def test_an_unmeasured_host_is_a_share() -> None:
    model = StepTimeModel(overlap=False)
    Engine(model).run(500)
    share = (model.predict(DECODE, Slowdown(host=2.0)) / model.predict(DECODE)) - 1
    assert share == pytest.approx(0.3, abs=0.03)


def test_sane_before_anything_was_learned() -> None:
    model = StepTimeModel()
    assert 1e-3 < model.predict(DECODE) < 0.1
    assert model.predict(StepShape(2048, 0)) > model.predict(StepShape(16, 0))


NONSENSE = [0.0, -1.0, 1e308, -1e308, math.nan, math.inf, -math.inf, 1e-30, 3.0]


def test_nonsense_is_survived() -> None:
    model = StepTimeModel()
    rng = random.Random(5)

    def odd() -> float:
        return rng.choice(NONSENSE)

    for i in range(20_000):
        slowdown = Slowdown(odd(), odd()) if i % 3 else NEUTRAL
        model.observe(StepShape(odd(), odd(), odd()), odd(), host_seconds=odd(), slowdown=slowdown)
        seconds = model.predict(StepShape(odd(), odd(), odd()), Slowdown(odd(), odd()))
        assert SHORTEST <= seconds <= LONGEST
    Engine(model, seed=1).run(1000)
    assert Engine(model, seed=2).run(300) < 0.1


def test_wild_step_times_stay_bounded() -> None:
    model = StepTimeModel()
    rng = random.Random(6)
    for _ in range(20_000):
        model.observe(StepShape(rng.randint(0, 9), rng.randint(1, 9)), 10 ** rng.uniform(-6, 2.5))
        assert SHORTEST <= model.predict(DECODE) <= LONGEST
    assert all(value >= 0 and math.isfinite(value) for value in model.state.device)


def test_fixed_model_does_not_learn() -> None:
    model = StepTimeModel.fixed(12e-3, 1e-4, 8e-5)
    model.observe(DECODE, 5.0)
    assert model.predict(StepShape(1000, 32, 5e4)) == pytest.approx(12e-3 + 32e-4 + 80e-3)
