"""What the agent measures, on its way into costs: smoothed, felt in part, and taken note of by the clock."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from quietcore.scheduler.cost import NEUTRAL, CostModel, MeasuredSlowdown, Slowdown, StepShape, StepTimeModel
from quietcore.scheduler.cost.coupling import MOST, Coupling
from quietcore.scheduler.page import Feedback, ProcessIdentity

WINDOW_NS = 100_000_000
SHAPE = StepShape(0, 32, 0)
STEP_S = 20e-3


class Page:
    """As a `FeedbackReader`: the same object until there is another."""

    def __init__(self) -> None:
        self.told: Feedback | None = None
        self.closed = False

    def tell(self, host: float = 1.0, device: float = 1.0) -> None:
        self.told = Feedback(ProcessIdentity(1, 2, 3), WINDOW_NS, host_slowdown=host, device_slowdown=device)

    def read(self) -> Feedback | None:
        return self.told

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def page() -> Page:
    return Page()


def measured(page: Page) -> MeasuredSlowdown:
    return MeasuredSlowdown(page)


# --- the slowdown that is believed ---


def test_without_a_page_nothing_is_slow(page: Page) -> None:
    source = measured(page)
    assert source() == NEUTRAL
    page.tell(1.5)
    assert source() == Slowdown(1.5, 1.0)
    page.told = None
    assert source() == NEUTRAL
    source.close()
    assert page.closed


def test_the_murmur_of_a_host_is_no_disturbance(page: Page) -> None:
    source = measured(page)
    for host in (1.01, 1.03, 1.049, 1.0):
        page.tell(host)
        assert source() == NEUTRAL


def test_a_disturbance_begins_and_ends_at_once_and_does_not_flicker(page: Page) -> None:
    source = measured(page)
    page.tell(1.06)
    assert source().host == 1.06
    page.tell(1.03)
    assert source().host > 1.025, "less than it takes to begin, but it has begun"
    page.tell(1.02)
    assert source() == NEUTRAL
    page.tell(1.03)
    assert source() == NEUTRAL


def test_scatter_is_smoothed_and_a_change_is_not(page: Page) -> None:
    source = measured(page)
    rng = random.Random(1)
    told, believed = [], []
    for _ in range(400):
        page.tell(1.5 * rng.lognormvariate(0.0, 0.05))
        assert page.told is not None
        told.append(page.told.host_slowdown)
        believed.append(source().host)

    def scatter(values: list[float]) -> float:
        return sum(abs(value / 1.5 - 1.0) for value in values) / len(values)

    assert scatter(believed[10:]) < 0.65 * scatter(told[10:])
    page.tell(2.2)
    assert source().host == 2.2
    page.tell(1.2)
    assert source().host == 1.2


def test_each_record_counts_once(page: Page) -> None:
    source = measured(page)
    page.tell(1.5)
    source()
    page.tell(1.6)
    first = source()
    assert [source() for _ in range(5)] == [first] * 5


# --- how much of it a step feels ---


@pytest.mark.parametrize("true", [0.0, 0.3, 1.0, 2.5])
def test_a_coupling_is_learned_from_disturbed_steps(true: float) -> None:
    rng = random.Random(2)
    coupling = Coupling(0.0)
    for _ in range(60):
        slowdown = rng.choice((1.3, 1.6, 2.0))
        ratio = (1.0 + true * (slowdown - 1.0)) * rng.lognormvariate(0.0, 0.08)
        coupling.observe(slowdown, ratio - 1.0, 0.01)
    assert coupling.value == pytest.approx(true, abs=0.06)


def test_a_coupling_that_changes_is_followed() -> None:
    coupling = Coupling(0.0)
    for _ in range(300):
        coupling.observe(1.5, 0.5, 0.01)
    for _ in range(150):
        coupling.observe(1.5, 0.1, 0.01)
    assert coupling.value == pytest.approx(0.2, abs=0.1)


def test_nonsense_teaches_no_coupling() -> None:
    coupling = Coupling(0.5)
    for slowdown in (1.0, 1.01, float("nan"), 0.5, 3.0):
        coupling.observe(slowdown, float("nan"), 0.01)
    assert coupling.value == 0.5
    coupling.observe(2.0, float("inf"), 0.01)
    assert 0.0 <= coupling.value <= MOST


def run_steps(
    model: StepTimeModel, steps: int, factor: float = 1.0, slowdown: Slowdown = NEUTRAL, *, seed: int = 3
) -> None:
    rng = random.Random(seed)
    for _ in range(steps):
        model.observe(SHAPE, STEP_S * factor * rng.lognormvariate(0.0, 0.03), slowdown=slowdown)


HOST, DEVICE = Slowdown(host=1.6), Slowdown(device=1.6)


@pytest.mark.parametrize(
    ("overlap", "slowdown", "felt"),
    [
        *((True, slowdown, felt) for slowdown in (HOST, DEVICE) for felt in (1.0, 1.3, 1.6)),
        *((False, DEVICE, felt) for felt in (1.0, 1.3, 1.6)),
        # at the least the share that the host is taken for while nobody measures it
        *((False, HOST, felt) for felt in (1.3, 1.6)),
    ],
)
def test_the_second_disturbance_is_foreseen_in_full(overlap: bool, slowdown: Slowdown, felt: float) -> None:
    model = StepTimeModel(overlap=overlap)
    run_steps(model, 300)
    run_steps(model, 200, felt, slowdown)
    run_steps(model, 200)
    assert model.predict(SHAPE) == pytest.approx(STEP_S, rel=0.03)
    assert model.predict(SHAPE, slowdown) == pytest.approx(STEP_S * felt, rel=0.06)


def test_a_host_that_the_scheduler_does_not_see_is_found() -> None:
    """Of 20 ms 1 ms is seen, and 9 ms more are host work."""
    model = StepTimeModel(overlap=False)
    rng = random.Random(4)

    def run(steps: int, factor: float) -> None:
        slowdown = Slowdown(host=factor)
        for _ in range(steps):
            seconds = (10e-3 * factor + 10e-3) * rng.lognormvariate(0.0, 0.03)
            model.observe(SHAPE, seconds, host_seconds=1e-3 * factor, slowdown=slowdown)

    run(300, 1.0)
    assert model.predict(SHAPE, Slowdown(host=2.0)) == pytest.approx(21e-3, rel=0.05)
    run(150, 1.7)
    run(100, 1.0)
    assert model.predict(SHAPE, Slowdown(host=2.0)) == pytest.approx(30e-3, rel=0.05)
    assert model.predict(SHAPE) == pytest.approx(20e-3, rel=0.03)


# --- late announcements ---


def test_what_was_seen_before_a_late_announcement_teaches_no_coefficient() -> None:
    model = StepTimeModel()
    run_steps(model, 600)
    before = model.state.device
    run_steps(model, 10, 1.6)  # 0.3 s
    run_steps(model, 200, 1.6, Slowdown(host=1.6))
    assert model.state.device == pytest.approx(before, rel=0.01)
    run_steps(model, 10, 1.0, Slowdown(host=1.6))  # its end is told late, too
    assert model.predict(SHAPE) == pytest.approx(STEP_S, rel=0.03)


def test_an_announcement_holds_before_the_next_lesson() -> None:
    """After a late one: as far as steps have shown it already, it is not counted twice."""
    model = StepTimeModel(overlap=False)
    slowdown = Slowdown(host=1.6)
    run_steps(model, 300)
    run_steps(model, 200, 1.6, slowdown)
    run_steps(model, 200)
    run_steps(model, 6, 1.6)
    assert 1.2 < model.predict(SHAPE) / STEP_S < 1.5
    assert model.predict(SHAPE, slowdown) == pytest.approx(1.6 * STEP_S, rel=0.06)


def test_an_announcement_that_explains_nothing_leaves_what_the_steps_say() -> None:
    """A model that has not learned yet how much is felt goes on as if it timed itself alone."""
    model, alone = StepTimeModel(), StepTimeModel()
    for each in (model, alone):
        run_steps(each, 300)
        run_steps(each, 8, 1.6)
    assert model.predict(SHAPE, Slowdown(host=1.6)) == pytest.approx(alone.predict(SHAPE), rel=0.02)


def test_a_change_of_the_workload_survives_an_announcement() -> None:
    """What undisturbed steps have gained before is not taken back further than the announcement explains."""
    model = StepTimeModel()
    run_steps(model, 300)
    run_steps(model, 30, 2.0)  # 1.2 s without a word, and it is no noise
    run_steps(model, 1, 2.0, Slowdown(host=1.06))
    assert model.predict(SHAPE) > 1.7 * STEP_S


def test_bursts_shorter_than_their_announcement_hold_up_no_learning() -> None:
    """Disturbed and undisturbed in turn, five times a second: a change is followed all the same."""
    model = StepTimeModel()
    run_steps(model, 300)
    for number in range(100):
        run_steps(model, 4, 1.8, Slowdown(host=1.1) if number % 2 else NEUTRAL, seed=number)
    assert model.predict(SHAPE) == pytest.approx(1.8 * STEP_S, rel=0.06)
    assert model.predict(SHAPE, Slowdown(host=1.1)) == pytest.approx(1.8 * STEP_S, rel=0.12)
    run_steps(model, 200, 1.8)
    assert model.state.pace == pytest.approx(1.0, abs=0.15), "the coefficients have learned it"


def test_where_nothing_is_corrected_nothing_is_followed() -> None:
    model = StepTimeModel(lessons=300)
    run_steps(model, 400)
    before = model.predict(SHAPE)
    assert before == pytest.approx(STEP_S, rel=0.03)
    run_steps(model, 500, 3.0)
    model.observe(StepShape(0, 64, 0), STEP_S)
    assert model.predict(SHAPE) == before
    assert model.typical.decode_seqs > 32, "what the engine does is seen all the same"


# --- costs ---


def warm(page: Page) -> CostModel:
    model = CostModel(32, StepTimeModel(overlap=False), measured(page))
    for _ in range(2000):
        model.learn(*SHAPE, STEP_S, 1e-3)
    return model


def test_costs_follow_the_page_without_a_step(page: Page) -> None:
    model = warm(page)
    before, revision = model.service(0, 100), model.revision
    assert before == pytest.approx(100 * STEP_S, rel=0.05)
    page.tell(device=1.5)
    model.refresh()
    assert (model.revision, model.slowdown.device) == (revision + 1, 1.5)
    assert model.service(0, 100) == pytest.approx(1.475 * before, rel=0.05)
    page.tell()
    assert model.service(0, 100) == pytest.approx(before, rel=0.02), "asked for after an idle time"
    assert model.slowdown == NEUTRAL


def test_a_small_change_of_the_slowdown_is_not_held_back(page: Page) -> None:
    model = warm(page)
    costs, revisions = [model.service(0, 100)], [model.revision]
    for device in (1.06, 1.14, 1.06, 1.0):
        page.tell(device=device)
        costs.append(model.service(0, 100))
        revisions.append(model.revision)
    assert costs[1] == pytest.approx(1.06 * costs[0], rel=0.01)
    assert costs[4] == pytest.approx(costs[0], rel=0.01)
    assert revisions[1] == revisions[0] + 1
    assert revisions[4] == revisions[3] + 1


def test_a_slowdown_that_steps_do_not_feel_ranks_nothing_anew(page: Page) -> None:
    model = CostModel(32, StepTimeModel(overlap=True), measured(page))
    for _ in range(2000):
        model.learn(*SHAPE, STEP_S, 1e-3)
    before, revision = model.service(0, 100), model.revision
    page.tell(2.0)
    assert (model.service(0, 100), model.revision) == (before, revision)
    assert model.slowdown.host == 2.0
    page.tell()
    model.refresh()
    assert model.slowdown == NEUTRAL


def test_some_steps_teach_and_the_time_between_them_counts(page: Page) -> None:
    model = CostModel(32, StepTimeModel())
    for _ in range(300):
        model.learn(*SHAPE, 1e-3)
    assert model.step_time.steps == 300
    for _ in range(800):
        model.learn(*SHAPE, 1e-3)
    assert model.step_time.steps == 400
    for _ in range(100):
        model.learn(*SHAPE, 30e-3)
    assert model.step_time.steps == 450


def test_a_page_full_of_oddities_leaves_costs_positive(page: Page) -> None:
    model = warm(page)
    for host in (1.0, 100.0, 1.0, float("nan"), float("inf"), -1.0):
        page.told = replace(Feedback(ProcessIdentity(), 1), host_slowdown=host)
        assert 0.0 < model.service(10, 10) < 1e3
