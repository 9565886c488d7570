"""What a request costs."""

from __future__ import annotations

import itertools
import math

import pytest

from quietcore.scheduler.cost import NEUTRAL, CostModel, Slowdown, StepShape, StepTimeModel


def test_fixed_costs_follow_the_formula() -> None:
    model = CostModel.fixed(32, 12e-3, 1e-4, 8e-5)
    step = 12e-3 + 32 * 1e-4
    assert model.shared(1000, 200) == pytest.approx(1000 * 8e-5 + 200 * step / 32, rel=1e-6)
    assert model.service(1000, 200) == pytest.approx(1000 * 8e-5 + 200 * step, rel=1e-6)


def test_costs_grow_with_the_work() -> None:
    model = CostModel(64, StepTimeModel())
    costs = [model.shared(prompt, tokens) for prompt, tokens in [(1, 1), (1, 50), (500, 50), (500, 5000)]]
    assert costs == sorted(set(costs))
    assert model.service(500, 50) > model.shared(500, 50)


def run_steps(step_time: StepTimeModel, shape: StepShape, seconds: float, steps: int = 400) -> None:
    for _ in range(steps):
        step_time.observe(shape, seconds)


def test_the_batch_is_the_one_that_runs() -> None:
    step_time = StepTimeModel()
    model = CostModel(256, step_time)
    assert model.batch() == 256
    run_steps(step_time, StepShape(0, 40, 40_000), 20e-3)
    assert model.batch() == pytest.approx(40)
    assert model.shared(0, 100) == pytest.approx(100 * 20e-3 / 40, rel=0.15)
    assert model.service(0, 100) == pytest.approx(100 * 20e-3, rel=0.15)


def test_a_quiet_spell_does_not_shrink_the_batch_at_once() -> None:
    step_time = StepTimeModel()
    model = CostModel(64, step_time)
    run_steps(step_time, StepShape(0, 60, 0), 20e-3)
    run_steps(step_time, StepShape(0, 1, 0), 10e-3, steps=20)
    assert model.batch() > 50


def test_others_prefills_lengthen_the_service() -> None:
    alone, mixed = StepTimeModel(), StepTimeModel()
    for i in range(2000):
        alone.observe(StepShape(0, 32, 0), 15e-3)
        prefill = 500 if i % 5 == 0 else 0
        mixed.observe(StepShape(prefill, 32, 0), 15e-3 + prefill * 1e-4)
    assert CostModel(32, mixed).service(0, 100) > 1.3 * CostModel(32, alone).service(0, 100)
    assert CostModel(32, mixed).service(0, 100) == pytest.approx(100 * 25e-3, rel=0.2)


def test_a_slowdown_scales_the_costs_and_its_end_restores_them() -> None:
    now = NEUTRAL
    step_time = StepTimeModel(overlap=False)
    model = CostModel(32, step_time, lambda: now)
    run_steps(step_time, StepShape(0, 32, 0), 20e-3)
    before, revision = model.service(100, 200), model.revision
    now = Slowdown(host=2.0)
    assert model.service(100, 200) == pytest.approx(1.3 * before, rel=0.05)
    assert model.slowdown == now
    assert model.revision == revision + 1
    now = NEUTRAL
    assert model.service(100, 200) == pytest.approx(before, rel=0.05)


def test_rates_move_in_steps_only() -> None:
    step_time = StepTimeModel()
    model = CostModel(32, step_time)
    run_steps(step_time, StepShape(0, 32, 0), 20e-3)
    cost, revision = model.shared(100, 200), model.revision
    run_steps(step_time, StepShape(0, 32, 0), 20.5e-3)
    assert (model.shared(100, 200), model.revision) == (cost, revision)
    run_steps(step_time, StepShape(0, 32, 0), 30e-3)
    assert model.shared(100, 200) > 1.3 * cost
    assert model.revision > revision


def test_a_failing_source_is_neutral() -> None:
    def broken() -> Slowdown:
        raise OSError("gone")

    assert CostModel(8, StepTimeModel(), broken).shared(10, 10) == CostModel(8, StepTimeModel()).shared(
        10, 10
    )


ODD = [0.0, -5.0, 1e308, math.nan, math.inf, -math.inf, 17.0]


def test_costs_are_positive_and_finite_whatever_comes() -> None:
    for host, device in itertools.product(ODD, ODD):
        model = CostModel(0, StepTimeModel(), lambda host=host, device=device: Slowdown(host, device))  # type: ignore[misc]
        for prompt, tokens in itertools.product(ODD, ODD):
            for cost in (model.shared(prompt, tokens), model.service(prompt, tokens)):
                assert 0 < cost < 1e13
