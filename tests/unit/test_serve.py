"""The client of ``bench serve`` against a server that answers by script."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="needs aiohttp, of the [bench] extra")

from click.testing import CliRunner
from tests.unit.openai_server import Exchange, FakeServer, serving

from quietcore.agent.cli.bench.serve import command
from quietcore.scheduler.bench import BenchError, InputError
from quietcore.scheduler.bench.client import Answer, Query
from quietcore.scheduler.bench.serve import (
    ServeOptions,
    ServeProgress,
    arrival_times,
    capacity_of,
    plan,
    run_serve,
)
from quietcore.scheduler.bench.serve_report import spread
from quietcore.scheduler.bench.streams import read
from quietcore.scheduler.policy import TIER_WEIGHTS
from quietcore.scheduler.vllm.hints import parse

SECRET = 4321  # an output length that must not leave the file


def rows(count: int = 20) -> list[dict[str, Any]]:
    return [
        {
            "i": i,
            "arrival_poisson": 100.0 + 2.0 * i,
            "arrival_bursty": 100.0 + 8.0 * (i // 4),
            "tenant": f"t{i % 2}",
            "category": "math",
            "model": "m",
            "prompt_tokens": 5,
            "output_tokens": SECRET,
            "prompt": f"{i} what is the answer?",
        }
        for i in range(count)
    ]


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    return write(tmp_path, rows())


def write(folder: Path, content: list[dict[str, Any]]) -> Path:
    path = folder / "stream.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


async def three_tokens(exchange: Exchange) -> None:
    await exchange.tokens(3, gap=0.02)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(three_tokens) as started:
        yield started


def options(server: FakeServer, stream: Path, **changes: Any) -> ServeOptions:
    return ServeOptions(**{"url": server.url, "stream": stream, "rate": 200.0, **changes})


def test_all_requests_are_answered_and_measured(server: FakeServer, stream: Path) -> None:
    seen: list[ServeProgress] = []
    result = run_serve(options(server, stream), seen.append)
    document = result.to_json(rows=True)
    assert document["requests"] == 20
    assert document["failed"] == 0
    assert document["model"] == "first"
    assert document["output_tokens"] == 60
    whole = document["all"]
    assert 0.0 < whole["ttft"]["mean"] < whole["latency"]["mean"]
    # three pieces 20 ms apart
    assert 0.015 < whole["tpot"]["p50"] < 0.2
    assert 0.015 < whole["itl"]["p50"] < 0.2
    assert whole["latency"]["p50"] >= 0.04
    assert set(document["tiers"]) == {"t0", "t1"}
    assert [row["prompt_tokens"] for row in document["rows"]] == [7] * 20
    assert seen[-1] == ServeProgress("serving", 20, 20, 0, 20)
    assert json.loads(json.dumps(document)) == document


def test_the_length_never_leaves(server: FakeServer, stream: Path) -> None:
    hints = ("tenant", "category", "qos", "priority", "deadline", "request")
    run_serve(options(server, stream, hints=hints, tiers={"premium": 1.0}, deadline_ms={"premium": 500.0}))
    assert len(server.bodies) == 20
    assert str(SECRET) not in json.dumps([server.bodies, server.headers])
    assert {body["max_tokens"] for body in server.bodies} == {1024}


def test_hints_are_those_asked_for(server: FakeServer, stream: Path) -> None:
    run_serve(options(server, stream, requests=1, hints=()))
    assert "vllm_xargs" not in server.bodies[-1]
    hints = ("tenant", "category", "qos", "priority", "deadline", "request")
    changes = {"hints": hints, "tiers": {"batch": 1.0}, "deadline_ms": {"batch": 900.0}}
    extra = {"vllm_xargs": {"run": "a"}, "top_p": 0.5}
    result = run_serve(options(server, stream, requests=1, extra_body=extra, **changes))
    body = server.bodies[-1]
    assert body["vllm_xargs"] == {
        "tenant": "t0",
        "category": "math",
        "qos": "batch",
        "deadline_ms": 900.0,
        "request": "0",
        "run": "a",
    }
    assert (body["priority"], body["top_p"], body["stream"]) == (1, 0.5, True)
    document = result.to_json()
    assert document["tiers"]["batch"]["deadlines"] == 1
    assert document["tiers"]["batch"]["deadlines_met"] == 1.0


def test_tiers_and_deadlines_are_told_unless_nothing_is(server: FakeServer, stream: Path) -> None:
    changes = {"requests": 1, "tiers": {"batch": 1.0}, "deadline_ms": {"batch": 900.0}}
    run_serve(options(server, stream, **changes))
    assert server.bodies[-1]["vllm_xargs"] == {"tenant": "t0", "qos": "batch", "deadline_ms": 900.0}
    run_serve(options(server, stream, **changes, hints=("category",)))
    assert server.bodies[-1]["vllm_xargs"] == {"category": "math", "qos": "batch", "deadline_ms": 900.0}
    result = run_serve(options(server, stream, **changes, hints=()))
    assert "vllm_xargs" not in server.bodies[-1]
    assert result.to_json()["tiers"]["batch"]["deadlines"] == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], {"tenant"}),
        (["--hint", "category"], {"tenant", "category"}),
        (["--tier", "batch=1", "--deadline-ms", "batch=900"], {"tenant", "qos", "deadline_ms"}),
        (["--tier", "batch=1", "--hint", "priority"], {"tenant"}),
        (["--tier", "batch=1", "--no-hints"], set()),
    ],
)
def test_the_command_tells_what_it_says(
    server: FakeServer, stream: Path, arguments: list[str], told: set[str]
) -> None:
    common = [str(stream), "--url", server.url, "--rate", "200", "--requests", "1"]
    done = CliRunner().invoke(command, [*common, *arguments])
    assert done.exit_code == 0, done.output
    assert set(server.bodies[-1].get("vllm_xargs", ())) == told


def test_hints_and_none_exclude_each_other(stream: Path) -> None:
    arguments = [str(stream), "--url", "http://127.0.0.1:9", "--no-hints", "--hint", "category"]
    assert CliRunner().invoke(command, arguments).exit_code == 2


@pytest.mark.parametrize("tier", TIER_WEIGHTS)
def test_a_priority_is_read_as_the_tier_it_stands_for(server: FakeServer, stream: Path, tier: str) -> None:
    run_serve(options(server, stream, requests=1, hints=("priority",), tiers={tier: 1.0}))
    body = server.bodies[-1]
    assert parse(body["priority"], body.get("vllm_xargs"), TIER_WEIGHTS).tier == tier


def test_a_priority_of_any_other_tier_is_that_of_batch(server: FakeServer, stream: Path) -> None:
    run_serve(options(server, stream, requests=1, hints=("priority",), tiers={"gold": 1.0}))
    assert server.bodies[-1]["priority"] == 1


def test_tiers_are_drawn_alike_for_a_seed(server: FakeServer, stream: Path) -> None:
    recorded = read(stream)
    tiers = {"premium": 0.5, "batch": 0.5}

    def drawn(seed: int) -> list[str]:
        return [query.tier for query in plan(options(server, stream, tiers=tiers, seed=seed), recorded, 1.0)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert set(drawn(1)) == set(tiers)


def test_arrivals_have_the_rate_asked_for(stream: Path) -> None:
    recorded = read(stream)
    assert arrival_times("burst", recorded, 0, 5) == [0.0] * 5
    assert arrival_times("poisson", recorded, 0, 20) == pytest.approx(list(range(20)))
    assert arrival_times("poisson", recorded, 5, 10) == pytest.approx(list(range(10)))
    bursty = arrival_times("bursty", recorded, 0, 20)
    assert bursty[:5] == pytest.approx([0, 0, 0, 0, 19 / 4])
    assert bursty[-1] == pytest.approx(19)
    with pytest.raises(InputError, match="has no trace arrivals"):
        arrival_times("trace", recorded, 0, 5)


def test_it_is_an_open_loop(stream: Path) -> None:
    """Slow answers delay no later request."""
    arrived: list[float] = []

    async def slow(exchange: Exchange) -> None:
        arrived.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.5)
        await exchange.tokens(1)

    with serving(slow) as server:
        result = run_serve(options(server, stream, rate=100.0))
    assert max(arrived) - min(arrived) < 0.45
    assert min(answer.latency for answer in result.answers) >= 0.5
    assert [query.time for query in result.queries] == pytest.approx([i / 100 for i in range(20)])


def test_failures_of_every_kind_are_counted(tmp_path: Path) -> None:
    async def odd(exchange: Exchange) -> None:
        word = exchange.body["prompt"].split()[0]
        if word == "cut":
            await exchange.send({"choices": [{"index": 0, "text": "a", "finish_reason": None}]})
        elif word == "error":
            await exchange.send({"error": {"message": "engine died"}})
            await exchange.send("[DONE]")
        elif word == "garbage":
            await exchange.send("{not json")
        elif word == "silent":
            await asyncio.sleep(2.0)
        else:
            await exchange.tokens(2)

    content = rows(6)
    for row, word in zip(content, ("good", "refuse", "cut", "error", "garbage", "silent"), strict=True):
        row["prompt"] = f"{word} {row['prompt']}"
    with serving(odd) as server:
        result = run_serve(options(server, write(tmp_path, content), timeout_s=0.5))
    document = result.to_json()
    assert (document["requests"], document["failed"]) == (6, 5)
    errors = [answer.error for answer in result.answers]
    assert errors[0] == ""
    assert errors[1] == "HTTP 400: no such thing"
    assert errors[2] == "the answer broke off"
    assert "engine died" in errors[3]
    assert "JSONDecodeError" in errors[4]
    assert errors[5] == "no end in 0.5 s"
    assert document["all"]["latency"]["mean"] == pytest.approx(result.answers[0].latency)


def test_capacity_is_measured_and_load_applied(stream: Path) -> None:
    """One request at a time, 20 ms each: 50 a second."""
    lock = asyncio.Lock()

    async def single(exchange: Exchange) -> None:
        async with lock:
            await exchange.tokens(2, gap=0.01)

    with serving(single) as server:
        result = run_serve(ServeOptions(server.url, stream, load=0.5, calibrate=20, requests=10))
    assert 25 < result.capacity < 50
    assert result.rate == pytest.approx(0.5 * result.capacity)
    assert result.to_json()["load"] == pytest.approx(0.5)


def test_capacity_counts_tokens_of_the_saturated_part() -> None:
    # ten slots at ten tokens a second each; two long requests run on alone
    short = [Answer(str(i), 0.0, 1.0, tuple(k / 10 for k in range(1, 11)), 10) for i in range(8)]
    long = [Answer(str(i), 0.0, 5.0, tuple(k / 10 for k in range(1, 51)), 50) for i in range(8, 10)]
    mean = (8 * 10 + 2 * 50) / 10
    assert capacity_of(short + long) == pytest.approx(100 / mean)


def test_a_server_that_fails_all_is_an_error() -> None:
    with pytest.raises(BenchError, match="boom"):
        capacity_of([Answer("0", 0.0, 1.0, error="boom")] * 5)


def test_no_server_is_one_clear_line(stream: Path) -> None:
    with pytest.raises(BenchError, match="no OpenAI server answers at http"):
        run_serve(ServeOptions("http://127.0.0.1:9", stream, rate=1.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hints": ("colour",)}, "no such hint: colour"),
        ({"tiers": {"a": -1.0}}, "shares"),
        ({"deadline_ms": {"batch": 5.0}}, "that no request is in: batch"),
        ({"tiers": {"batch": 0.0, "a": 1.0}, "deadline_ms": {"batch": 5.0}}, "that no request is in: batch"),
        ({"tiers": {"a": 1.0}, "deadline_ms": {"a": math.nan}}, "deadlines must be positive"),
        ({"load": 0.0}, "positive"),
        ({"rate": math.nan}, "positive"),
        ({"max_tokens": 0}, "at least 1"),
        ({"skip": 20}, "only 20 requests"),
    ],
)
def test_wrong_options_are_refused(stream: Path, changes: dict[str, Any], message: str) -> None:
    with serving(three_tokens) as server, pytest.raises(InputError, match=message):
        run_serve(options(server, stream, **changes))


def test_a_trace_without_prompts_is_refused(server: FakeServer, tmp_path: Path) -> None:
    content = [{**row, "prompt": ""} for row in rows(3)]
    with pytest.raises(InputError, match="no prompts"):
        run_serve(options(server, write(tmp_path, content)))


def test_the_address_may_end_in_v1(server: FakeServer, stream: Path) -> None:
    result = run_serve(options(server, stream, requests=2, url=f"{server.url}/v1/", api_key="k", model="m"))
    assert result.failures == {}
    assert server.bodies[0]["model"] == "m"
    assert server.headers[0]["Authorization"] == "Bearer k"


def test_prompts_are_cut(server: FakeServer, stream: Path) -> None:
    run_serve(options(server, stream, prompt_chars=6))
    assert {len(body["prompt"]) for body in server.bodies} == {6}


def test_spread_takes_nearest_ranks() -> None:
    assert spread([]) is None
    found = spread(float(i) for i in range(1, 101))
    assert found == {"mean": 50.5, "p50": 50.0, "p95": 95.0, "p99": 99.0}


def test_what_the_client_is_late_counts_as_latency() -> None:
    answer = Answer("0", sent=1.0, finished=3.0, chunks=(2.0, 2.5, 3.0), tokens=5)
    assert (answer.latency, answer.ttft, answer.tpot) == (2.0, 1.0, 0.25)
    assert Answer("0", 1.0, 2.0, (2.0,), 1).tpot is None
    assert Query("0", 1.0, {}, "all").deadline_ms is None
