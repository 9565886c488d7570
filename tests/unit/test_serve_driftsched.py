"""The published experiment on a live server: what is sent, in what order, and what is compared."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("aiohttp", reason="needs aiohttp, of the [bench] extra")

from tests.unit.openai_server import Exchange, serving

from quietcore.agent.cli import cli
from quietcore.probes.errors import MeasureError
from quietcore.scheduler.bench import InputError
from quietcore.scheduler.bench.driftsched import live
from quietcore.scheduler.bench.driftsched.live import LiveExperiment, LiveOptions, compare, run_live


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PAUSE_S", 0.2)


async def answer(exchange: Exchange) -> None:
    await exchange.tokens(exchange.body["max_tokens"] // 16, reason="length")


def run(requests: int = 60, **changes: Any) -> tuple[LiveExperiment, list[dict[str, Any]]]:
    with serving(answer) as server:
        found = run_live(LiveOptions(server.url, requests=requests, gap_scale=0.05, **changes))
        return found, server.bodies


def test_both_phases_are_served_with_their_budgets() -> None:
    found, bodies = run()
    assert {phase: len(result.answers) for phase, result in found.phases.items()} == {
        "learning": 20,
        "stress": 40,
    }
    assert {body["max_tokens"] for body in bodies} == {64, 256, 384, 512}
    assert all(body["ignore_eos"] for body in bodies)
    assert {body["vllm_xargs"]["qos"] for body in bodies} == {"premium", "standard", "batch"}
    document = found.to_json()
    assert json.loads(json.dumps(document)) == document
    stress = document["phases"]["stress"]
    assert stress["failed"] == 0
    assert set(stress["tiers"]) == {"premium", "standard", "batch"}
    assert sum(job["requests"] for job in stress["job_types"].values()) == 40
    assert stress["rate"] > document["phases"]["learning"]["rate"]


def test_the_stress_phase_waits_for_the_learning_phase() -> None:
    running = most_at_switch = 0

    async def slow(exchange: Exchange) -> None:
        nonlocal running, most_at_switch
        number = int(exchange.body["prompt"].split()[1])
        if number == 10:  # the first of the stress phase
            most_at_switch = running
        running += 1
        await asyncio.sleep(0.3)
        running -= 1
        await exchange.tokens(1)

    with serving(slow) as server:
        run_live(LiveOptions(server.url, requests=30, gap_scale=0.05))
    assert most_at_switch == 0


def test_scales_and_hints_apply() -> None:
    _, bodies = run(12, token_scale=0.25, hints=False)
    assert {body["max_tokens"] for body in bodies} <= {16, 64, 96, 128}
    assert all("vllm_xargs" not in body for body in bodies)


def test_the_same_seed_sends_the_same() -> None:
    prompts = [sorted(body["prompt"] for body in run(12, seed=seed)[1]) for seed in (1, 1, 2)]
    assert prompts[0] == prompts[1] != prompts[2]


def test_changes_are_ratios_of_what_failed_in_neither() -> None:
    before, _ = run(30)

    def halved(experiment: LiveExperiment) -> LiveExperiment:
        phases = {}
        for phase, result in experiment.phases.items():
            answers = [replace(a, finished=a.sent + a.latency / 2) for a in result.answers]
            answers[0] = replace(answers[0], error="gone", finished=1e6)
            phases[phase] = replace(result, answers=tuple(answers))
        return replace(experiment, phases=phases)

    found = compare(before, halved(before))
    assert found["stress"] == {
        "mean": pytest.approx(-0.5),
        "median": pytest.approx(-0.5),
        "p99": pytest.approx(-0.5),
    }


def test_wrong_options_are_refused() -> None:
    with pytest.raises(InputError, match="three requests"):
        run_live(LiveOptions("http://127.0.0.1:9", requests=2))


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", "driftsched", "--gap-scale", "0.05", *arguments])


def test_servers_are_compared_with_the_first() -> None:
    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.2)
        await answer(exchange)

    with serving(answer) as quick, serving(slow) as other:
        servers = ("--server", f"quick={quick.url}", "--server", other.url, "--requests", "30")
        shown = bench(*servers)
        document = json.loads(bench(*servers, "--json", "--api-key", "secret").stdout)
        prompts = [sorted(body["prompt"] for body in server.bodies) for server in (quick, other)]
    assert shown.exit_code == 0
    assert prompts[0] == prompts[1]
    other_name = other.url.removeprefix("http://")
    rows = [line.split()[:3] for line in shown.stdout.splitlines() if line.startswith((other_name, "quick"))]
    assert rows == [[name, count, "0"] for count in ("10", "20") for name in ("quick", other_name)]
    assert list(document["servers"]) == ["quick", other_name]
    assert document["servers"]["quick"]["vs_first"]["stress"]["mean"] == 0
    assert document["servers"][other_name]["vs_first"]["stress"]["mean"] > 0
    assert "secret" not in json.dumps(document)


def test_a_failed_request_is_told_and_ends_with_1() -> None:
    async def cut(exchange: Exchange) -> None:
        if int(exchange.body["prompt"].split()[1]) == 3:
            await exchange.send({"error": "out of luck"})
        else:
            await answer(exchange)

    with serving(cut) as server:
        result = bench("--server", f"a={server.url}", "--requests", "30")
    assert result.exit_code == 1
    assert "a, learning phase: failed 1: out of luck" in result.stdout


def test_no_server_is_measured_when_one_does_not_answer() -> None:
    with serving(answer) as server:
        result = bench("--server", server.url, "--server", "http://127.0.0.1:9")
    assert isinstance(result.exception, MeasureError)
    assert server.bodies == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--server", "localhost"), "wants [NAME=]URL"),
        (("--server", "http://a", "--server", "http://a"), "the same name"),
        (("--server", "http://a", "--runs", "2"), "--runs means nothing with --server"),
        ((), "--gap-scale needs --server"),
    ],
)
def test_options_that_would_do_nothing_are_refused(arguments: tuple[str, ...], said: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
