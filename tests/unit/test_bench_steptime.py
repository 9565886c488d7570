"""Noise that comes and goes in virtual time: what each way of correction makes of it."""

from __future__ import annotations

import itertools
import json
import math
import random

import pytest
from click.testing import CliRunner

from quietcore.agent.cli.bench import steptime
from quietcore.scheduler.bench import loop_model
from quietcore.scheduler.bench.loop_model import (
    MAKES,
    MIXES,
    NONE,
    PAGE,
    RIGHT,
    SCENARIOS,
    SELF_TIMED,
    Row,
    compare,
    run,
)
from quietcore.scheduler.cost import StepShape

IN_TURN, OVERLAPPING, HOST_ONLY = MAKES
BUSY, IDLE, MIX, MIX_IDLE, LATE, SHORT_SIGHTED, NERVOUS = SCENARIOS
SHAPE = StepShape(0, 16, 10_000)


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], Row]:
    """Fewer than the verb runs; every one is the same each time."""
    found = [compare(make, scenario, seeds=3, changes=10) for make in MAKES for scenario in SCENARIOS]
    return {(row.make, row.scenario): row for row in found}


def test_noise_multiplies_the_hosts_work_only() -> None:
    quiet, seen = IN_TURN.seconds(SHAPE, 1.0)
    noisy, seen_noisy = IN_TURN.seconds(SHAPE, 2.0)
    host = IN_TURN.seen(SHAPE) + IN_TURN.unseen(SHAPE)
    assert noisy - quiet == pytest.approx(host)
    assert seen_noisy == 2.0 * seen
    assert OVERLAPPING.seconds(SHAPE, 1.2)[0] == OVERLAPPING.device(SHAPE)
    assert OVERLAPPING.seconds(SHAPE, 2.0)[0] == pytest.approx(2.0 * host)
    assert HOST_ONLY.seconds(SHAPE, 2.0)[0] == pytest.approx(2.0 * HOST_ONLY.seconds(SHAPE, 1.0)[0])


def test_the_agent_tells_later_what_it_measured() -> None:
    agent = loop_model._Agent(BUSY, random.Random(1))
    agent.watch(10.0, 1.0)
    told = agent.read()
    assert told is not None
    assert told.host_slowdown < 1.02
    agent.watch(10.09, 2.0)
    told = agent.read()
    assert told is not None
    assert told.host_slowdown < 1.02, "that window has not ended yet"
    agent.watch(10.5, 2.0)
    told = agent.read()
    assert told is not None
    assert told.host_slowdown == pytest.approx(2.0, rel=0.2)


def test_runs_are_the_same_each_time_and_seeds_differ() -> None:
    assert run(IN_TURN, IDLE, changes=3, seed=5) == run(IN_TURN, IDLE, changes=3, seed=5)
    assert run(IN_TURN, IDLE, changes=3, seed=5) != run(IN_TURN, IDLE, changes=3, seed=6)


def test_the_mix_of_the_workload_changes_only_where_said() -> None:
    assert {change.mix for change in loop_model._plan(BUSY, 10, random.Random(0))} == {MIXES[0]}
    changes = list(loop_model._plan(MIX, 10, random.Random(0)))
    assert all(a.mix != b.mix for a, b in itertools.pairwise(changes))
    assert [change.factor > 1.0 for change in changes] == [True, False] * 5


@pytest.mark.parametrize("make", [IN_TURN, HOST_ONLY])
@pytest.mark.parametrize("scenario", [BUSY, IDLE, MIX, MIX_IDLE])
def test_with_the_page_half_of_the_error_is_gone_and_nothing_is_worse_than_self_timed(
    rows: dict[tuple[str, str], Row], make: loop_model.Make, scenario: loop_model.Scenario
) -> None:
    row = rows[make.name, scenario.name]
    assert row.error[PAGE] < 0.6 * row.error[NONE]
    assert row.ratio[0] < 0.95


@pytest.mark.parametrize("make", [IN_TURN, HOST_ONLY])
def test_after_an_idle_gap_only_the_page_knows(
    rows: dict[tuple[str, str], Row], make: loop_model.Make
) -> None:
    for scenario in (IDLE, MIX_IDLE):
        row = rows[make.name, scenario.name]
        assert row.error[PAGE] < 0.6 * row.error[SELF_TIMED]
    assert rows[make.name, IDLE.name].corrected_s[PAGE] < 0.05
    assert rows[make.name, IDLE.name].corrected_s[SELF_TIMED] > 0.1


def test_a_host_hidden_behind_the_device_gains_least_and_loses_nothing(
    rows: dict[tuple[str, str], Row],
) -> None:
    for scenario in SCENARIOS:
        assert rows[OVERLAPPING.name, scenario.name].ratio[0] < 1.05


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("scenario", [LATE, SHORT_SIGHTED, NERVOUS])
def test_a_poor_agent_does_little_harm(
    rows: dict[tuple[str, str], Row], make: loop_model.Make, scenario: loop_model.Scenario
) -> None:
    assert rows[make.name, scenario.name].ratio[0] < 1.1


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("scenario", [BUSY, IDLE])
def test_half_a_second_after_noise_the_errors_are_those_of_quiet_times(
    rows: dict[tuple[str, str], Row], make: loop_model.Make, scenario: loop_model.Scenario
) -> None:
    row = rows[make.name, scenario.name]
    assert row.back[PAGE] < 1.1 * row.clean[PAGE]
    assert row.back[SELF_TIMED] > row.back[PAGE]


def test_a_prediction_within_a_tenth_is_right() -> None:
    assert RIGHT == 0.1
    nothing = (1.0, 1.0, 1.0)
    samples = [
        loop_model.Sample(1, 0.0, True, nothing, (0.5, 0.3, 0.3)),
        loop_model.Sample(1, 0.2, True, nothing, (0.5, 0.2, 0.05)),
        loop_model.Sample(1, 0.4, True, nothing, (0.5, 0.05, 0.2)),
        loop_model.Sample(2, 0.0, False, nothing, (0.0, 0.0, 0.0)),
    ]
    assert [loop_model._corrected([samples], index) for index in range(3)] == [math.inf, 0.4, 0.2]


def test_the_verb_prints_a_table_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_model, "SCENARIOS", SCENARIOS[:2])
    arguments = ["--seeds", "2", "--changes", "2", "--jobs", "1"]
    done = CliRunner().invoke(steptime.command, arguments)
    assert done.exit_code == 0, done.output
    assert "in turn, busy" in done.output
    assert "self-timed" in done.output
    done = CliRunner().invoke(steptime.command, [*arguments, "--json"])
    document = json.loads(done.stdout)
    assert document["schema"] == "quietcore.bench.steptime/1"
    assert len(document["rows"]) == len(MAKES) * 2
    assert "Infinity" not in done.stdout
