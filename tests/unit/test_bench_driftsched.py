"""The published experiment, rebuilt: its requests, static batches, and what comes out."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from click.testing import CliRunner

from quietcore.agent.cli import cli
from quietcore.scheduler.bench.driftsched import experiment, static, workload
from quietcore.scheduler.bench.driftsched.estimators import Recording, static_budgets
from quietcore.scheduler.bench.virtual import StepTime
from quietcore.scheduler.drift.baselines import classify
from quietcore.scheduler.estimate import RequestFacts


def make_request(key: str, tokens: int, gap: float = 0.0, phase: str = "stress") -> workload.WorkRequest:
    facts = RequestFacts(key, 0.0, 20, "What for?", tenant="standard", max_tokens=tokens)
    return workload.WorkRequest(facts, "short_qa", phase, gap, tokens, tokens)


def test_the_recipe_is_the_published_one() -> None:
    requests = workload.make(1)
    assert len(requests) == 3000
    for phase, mix in (("learning", (40, 25, 25, 10)), ("stress", (10, 20, 40, 30))):
        part = [request for request in requests if request.phase == phase]
        assert len(part) == {"learning": 1000, "stress": 2000}[phase]
        counts = Counter(request.job_type for request in part)
        for job_type, percent in zip(workload.BUDGETS, mix, strict=True):
            assert counts[job_type] / len(part) == pytest.approx(percent / 100, abs=0.05)
        low, high = {"learning": (0.05, 0.15), "stress": (0.005, 0.03)}[phase]
        assert all(low <= request.gap_s <= high for request in part)
    tenants = Counter(request.facts.tenant for request in requests)
    assert set(tenants) == set(workload.TENANTS)
    assert min(tenants.values()) > 900


def test_pinned_answers_fill_their_budget_and_natural_ones_stop_before_it() -> None:
    pinned = workload.make(1)
    assert all(request.output_tokens == workload.BUDGETS[request.job_type] for request in pinned)
    natural = workload.make(1, "natural")
    assert all(request.output_tokens <= workload.BUDGETS[request.job_type] for request in natural)
    ended = sum(request.output_tokens < workload.BUDGETS[request.job_type] for request in natural)
    assert 0.3 < ended / len(natural) < 0.8


def test_words_are_fewer_than_tokens() -> None:
    requests = workload.make(1)
    ratio = sum(r.output_words for r in requests) / sum(r.output_tokens for r in requests)
    assert ratio == pytest.approx(0.79, abs=0.01)


def test_prompts_name_their_job_type_and_are_classified_by_it() -> None:
    assert all(classify(request.facts.prompt) == request.job_type for request in workload.make(2))


def test_runs_differ_and_repeat() -> None:
    assert workload.make(1) == workload.make(1)
    assert workload.make(1) != workload.make(2)


def test_a_static_batch_lasts_as_long_as_its_longest() -> None:
    batch = [make_request("a", 100), make_request("b", 300)]
    seconds = 300 * 12e-3 + 400 * 0.1e-3 + 40 * 0.08e-3
    assert static.batch_seconds(batch, StepTime()) == pytest.approx(seconds)
    estimator = Recording("static", {r.facts.key: r for r in batch}, "tokens")
    latency = static.serve(batch, lambda request, arrival, estimate: arrival, estimator, StepTime())
    # the second was not there when the first was taken, but within the 10 ms that a batch is filled
    assert latency["a"] == latency["b"] == pytest.approx(seconds + 0.01, abs=0.02)


def test_the_thirty_third_waits_for_the_batch() -> None:
    requests = [make_request(str(i), 64) for i in range(33)]
    estimator = Recording("static", {r.facts.key: r for r in requests}, "tokens")
    latency = static.serve(requests, lambda request, arrival, estimate: arrival, estimator, StepTime())
    alone = static.batch_seconds(requests[32:], StepTime())
    assert latency["32"] == pytest.approx(latency["0"] + alone, abs=0.02)


def test_the_stress_phase_begins_after_the_other_has_drained() -> None:
    requests = [make_request("a", 512, phase="learning"), make_request("b", 64)]
    seen = []

    def order(request: workload.WorkRequest, arrival: float, estimate: object) -> float:
        seen.append(arrival)
        return arrival

    estimator = Recording("static", {r.facts.key: r for r in requests}, "tokens")
    latency = static.serve(requests, order, estimator, StepTime())
    assert seen[1] == pytest.approx(latency["a"] + workload.PAUSE_S)


def test_the_estimator_is_told_words_and_static_budgets_are_told_nothing() -> None:
    requests = {r.facts.key: r for r in workload.make(3, count=400)}
    learned = Recording("ema-keyword", requests, "words")
    static.serve(list(requests.values()), lambda r, a, e: a, learned, StepTime())
    budgets = static_budgets(requests)
    last = max(requests, key=int)
    assert learned.admitted[last].mean == pytest.approx(0.79 * budgets[last].mean, rel=0.15)


def bench(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["bench", "driftsched", "--jobs", "1", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_published_setting_comes_out() -> None:
    """Fewer requests and one run: the signs, and roughly the sizes."""
    document = json.loads(bench("--runs", "1", "--estimator", "ema-keyword", "--json"))
    assert document["schema"] == "quietcore.bench.driftsched/1"
    rows = {(row["policy"], row["phase"]): row for row in document["rows"]}
    sjf = rows["sjf", "stress"]
    assert sjf["p50_vs_fifo"] == pytest.approx(-0.42, abs=0.08)
    assert sjf["p99_vs_fifo"] < -0.1
    assert sjf["mae_vs_static"] < -0.35
    assert sjf["rmse_vs_static"] < -0.35
    assert rows["fifo", "stress"]["p50_vs_fifo"] == 0


def test_the_table_names_every_scheduler() -> None:
    text = bench("--runs", "1", "--requests", "90", "--estimator", "median")
    for name in ("fifo (ema-keyword)", "weighted (ema-keyword)", "sjf (median)", "drift (median)"):
        assert name in text
    assert "static batching, stress phase" in text


def test_an_unknown_estimator_is_named() -> None:
    result = CliRunner().invoke(cli, ["bench", "driftsched", "--estimator", "magic"])
    assert result.exit_code == 2
    assert "no estimator is named magic" in result.stderr


def test_the_plan_compares_with_the_published_estimator() -> None:
    trials = experiment.plan(["static"], ["drift"], 2, "pinned", "words", 90)
    assert len(trials) == 2 * (5 + 2)
    assert (trials[0].policy, trials[0].estimator) == experiment.REFERENCE
