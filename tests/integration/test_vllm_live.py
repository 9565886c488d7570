"""Real vLLM servers whose requests end at given lengths: what the client is told, and what is estimated."""

from __future__ import annotations

import json
import os
import random
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.vllm_server.policies import policy_server
from tests.vllm_server.server import MODEL_NAME, VllmServer

from quietcore.scheduler.bench.serve import ServeOptions, run_serve

pytestmark = [pytest.mark.root, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

FIRST, SECOND = 30, 40
LONG = (300, 500)  # no request of the second lot ends before all of it is in the queue


def venv() -> Path:
    return Path(os.environ["QUIETCORE_VLLM_VENV"])


def write_stream(folder: Path, prompts: list[str]) -> Path:
    path = folder / "stream.jsonl"
    rows = [
        {
            "arrival_poisson": float(i),
            "tenant": f"t{i % 3}",
            "prompt": prompt,
            "prompt_tokens": 9,
            "output_tokens": 0,
        }
        for i, prompt in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


WORDS = ("explain", "list", "why", "the", "moon", "code", "short", "long", "prove", "sort", "add", "word")


def prompts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(4, 60))) for _ in range(count)]


def test_lengths_are_those_given_and_orders_change_no_token(tmp_path: Path) -> None:
    rng = random.Random(1)
    lengths = {f"a/{i}": rng.randint(1, 120) for i in range(40)}
    (tmp_path / "lengths.json").write_text(json.dumps(lengths))
    path = write_stream(tmp_path, prompts(40, 1))
    digests: list[list[str]] = []
    for policy in ("fcfs", "priority"):
        with policy_server(venv(), tmp_path / policy, policy, tmp_path / "lengths.json", slots=4) as server:
            result = run_serve(
                ServeOptions(
                    server.url,
                    path,
                    arrivals="burst",
                    rate=1.0,
                    hints=("tenant", "qos", "priority", "request"),
                    tiers={"premium": 0.3, "batch": 0.7},
                    extra_body={"vllm_xargs": {"run": "a"}, "return_token_ids": True},
                )
            )
        assert result.failures == {}
        assert [a.tokens for a in result.answers] == [lengths[f"a/{a.key}"] for a in result.answers]
        assert {a.finish_reason for a in result.answers} == {"stop"}
        digests.append([a.digest for a in result.answers])
        waits = {tier: found["ttft"]["mean"] for tier, found in result.to_json()["tiers"].items()}
        assert (waits["premium"] < waits["batch"]) or policy == "fcfs"
    assert digests[0] == digests[1]
    assert len(set(digests[0])) > 30


def ask(server: VllmServer, name: str, prompt: str) -> None:
    run, request = name.split("/")
    body = {
        "model": MODEL_NAME,
        "prompt": prompt,
        "max_tokens": 1024,
        "temperature": 0.0,
        "vllm_xargs": {"run": run, "request": request},
    }
    data = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request_ = urllib.request.Request(f"{server.url}/v1/completions", data, headers)
    with urllib.request.urlopen(request_, timeout=60) as answer:
        answer.read()


def estimates_of(tmp_path: Path, second_lengths: list[int]) -> dict[str, Any]:
    """Estimates at admission: of a first lot, one after the other, of a second all at once, and again."""
    rng = random.Random(2)
    folder = tmp_path / str(second_lengths[0])
    folder.mkdir()
    lengths = {f"first/{i}": rng.randint(5, 150) for i in range(FIRST)}
    lengths |= {f"{run}/{i}": n for run in ("second", "again") for i, n in enumerate(second_lengths)}
    (folder / "lengths.json").write_text(json.dumps(lengths))
    path = write_stream(folder, prompts(SECOND, 3))
    estimates = folder / "estimates.jsonl"
    with policy_server(
        venv(),
        folder / "server",
        "recording",
        folder / "lengths.json",
        slots=4,
        extra_env={"QUIETCORE_TEST_ESTIMATES": str(estimates)},
    ) as server:
        for i, prompt in enumerate(prompts(FIRST, 4)):
            ask(server, f"first/{i}", prompt)
        for run in ("second", "again"):
            extra = {"vllm_xargs": {"run": run}}
            hints = ("tenant", "request")
            result = run_serve(
                ServeOptions(server.url, path, arrivals="burst", rate=1.0, hints=hints, extra_body=extra)
            )
            assert result.failures == {}
            assert [a.tokens for a in result.answers] == second_lengths
    found: dict[str, Any] = {}
    for line in estimates.read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["request"], row["estimate"])
    return found


def test_lengths_of_unfinished_requests_change_no_estimate(tmp_path: Path) -> None:
    rng = random.Random(5)
    lengths = [rng.randint(*LONG) for _ in range(SECOND)]
    permuted = lengths[::-1]
    assert lengths[0] != permuted[0]
    one, other = estimates_of(tmp_path, lengths), estimates_of(tmp_path, permuted)
    names = [f"first/{i}" for i in range(FIRST)] + [f"second/{i}" for i in range(SECOND)]
    flat = [[value for name in names for value in found[name]] for found in (one, other)]
    assert flat[0] == pytest.approx(flat[1])
    assert len({one[name][0] for name in names}) > 5, "the estimates tell requests apart"
    changed = [one[f"again/{i}"][0] != pytest.approx(other[f"again/{i}"][0]) for i in range(SECOND)]
    assert any(changed), "once they have finished, lengths do change estimates"
