"""Records of requests: what the queue gets, and what the estimator learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from quietcore.scheduler.cost import CostModel
from quietcore.scheduler.estimate import End, Estimate, RequestFacts
from quietcore.scheduler.vllm.hints import Hints
from quietcore.scheduler.vllm.ledger import Ledger

PER_TOKEN = 0.01  # seconds of a step with one slot and no cost a sequence


class Estimator:
    name = "fake"

    def __init__(self) -> None:
        self.answer = Estimate(100.0, 80.0, 300.0)
        self.asked: list[str] = []
        self.seen: list[tuple[str, int, End]] = []

    def estimate(self, facts: RequestFacts) -> Estimate:
        self.asked.append(facts.key)
        return self.answer

    def remaining(self, facts: RequestFacts, first: Estimate, produced: int) -> Estimate:
        self.asked.append(f"{facts.key} after {produced}")
        return Estimate(7.0, 7.0, 9.0)

    def observe(self, facts: RequestFacts, first: Estimate, produced: int, end: End) -> None:
        self.seen.append((facts.key, produced, end))


def make_request(key: str = "a", **fields: Any) -> Any:
    values: dict[str, Any] = {
        "request_id": key,
        "num_prompt_tokens": 10,
        "num_output_tokens": 0,
        "num_tokens": 10,
        "sampling_params": SimpleNamespace(stop=None),
        "status": SimpleNamespace(name="WAITING"),
        "hints": Hints(),
        "max_tokens": 0,
        "least": 0,
        "fixed": False,
        "cached": 0,
    }
    return SimpleNamespace(**{**values, **fields})


@pytest.fixture
def estimator() -> Estimator:
    return Estimator()


@pytest.fixture
def ledger(estimator: Estimator) -> Ledger:
    def facts(request: Any) -> RequestFacts:
        return RequestFacts(
            request.request_id,
            50.0,
            request.num_prompt_tokens,
            max_tokens=request.max_tokens,
            least=request.least,
            fixed=request.fixed,
        )

    cost = CostModel.fixed(1, PER_TOKEN, 0.0, 0.001)
    return Ledger(estimator, cost, facts, lambda request: request.hints, lambda request: request.cached)


def test_a_job_is_what_is_expected_and_told(ledger: Ledger) -> None:
    hints = Hints("premium", -1, "acme", deadline_s=60.0)
    record, job = ledger.open(make_request(hints=hints), 0)
    assert job.cost == record.cost == pytest.approx(100 * PER_TOKEN + 0.01)
    assert (job.key, job.arrival, job.tier, job.priority, job.tenant) == ("a", 50.0, "premium", -1, "acme")
    assert job.deadline == 110.0


def test_a_deadline_is_kept_by_the_ninetieth_percentile(ledger: Ledger) -> None:
    _, plain = ledger.open(make_request("a"), 0)
    _, pressed = ledger.open(make_request("b", hints=Hints(deadline_s=9.0)), 0)
    assert pressed.cost == plain.cost
    assert pressed.service - plain.service == pytest.approx(200 * PER_TOKEN)


def test_no_more_is_expected_than_the_cap_allows(ledger: Ledger) -> None:
    _, job = ledger.open(make_request(max_tokens=20), 0)
    assert job.cost == pytest.approx(20 * PER_TOKEN + 0.01)


def test_no_less_is_expected_than_is_asked_for(ledger: Ledger) -> None:
    request = make_request(least=500)
    record, job = ledger.open(request, 0)
    assert job.cost == pytest.approx(500 * PER_TOKEN + 0.01)
    assert (record.first.p50, record.first.p90) == (500.0, 500.0)
    request.num_output_tokens = 40
    assert ledger.job(request, record).cost == pytest.approx(460 * PER_TOKEN + 0.01)


def test_a_length_that_only_its_cap_ends_is_known_and_teaches_nothing(
    ledger: Ledger, estimator: Estimator
) -> None:
    request = make_request(max_tokens=2000, fixed=True, status=SimpleNamespace(name="FINISHED_LENGTH_CAPPED"))
    record, job = ledger.open(request, 0)
    assert job.cost == pytest.approx(2000 * PER_TOKEN + 0.01)
    request.num_output_tokens = 500
    assert ledger.job(request, record).cost == pytest.approx(1500 * PER_TOKEN + 0.01)
    request.num_output_tokens = 2000
    ledger.close(request)
    assert (estimator.asked, estimator.seen) == ([], [])


def test_what_the_cache_holds_is_no_cost(ledger: Ledger) -> None:
    request = make_request(num_prompt_tokens=5000, num_tokens=5000, cached=4900)
    _, job = ledger.open(request, 0)
    assert job.cost == pytest.approx(100 * PER_TOKEN + 0.1)
    ledger.started("a", 4000)  # meanwhile the cache has lost some
    request.num_output_tokens, request.status = 10, SimpleNamespace(name="FINISHED_STOPPED")
    closed = ledger.close(request)
    assert closed is not None
    assert closed.cost == pytest.approx(10 * PER_TOKEN + 1.0)
    ledger.started("of another scheduler", 5)


def test_a_preempted_request_has_the_rest_and_all_prefill_before_it(ledger: Ledger) -> None:
    request = make_request()
    record, _ = ledger.open(request, 0)
    request.num_output_tokens, request.num_tokens = 40, 50
    job = ledger.job(request, record)
    assert job.cost == pytest.approx(7 * PER_TOKEN + 50 * 0.001)
    assert record.horizon == 47.0


def test_after_a_refit_those_that_wait_are_estimated_anew_once(ledger: Ledger, estimator: Estimator) -> None:
    request = make_request()
    record, _ = ledger.open(request, 0)
    estimator.answer = Estimate(10.0, 10.0, 10.0)
    assert ledger.job(request, record, stamp=0).cost > 1.0
    assert ledger.job(request, record, stamp=1).cost == pytest.approx(10 * PER_TOKEN + 0.01)
    ledger.job(request, record, stamp=1)
    assert estimator.asked == ["a", "a"]


def test_what_runs_past_its_prediction_is_estimated_anew_now_and_then(
    ledger: Ledger, estimator: Estimator
) -> None:
    request = make_request()
    record, _ = ledger.open(request, 0)
    told = 0
    for produced in range(1, 201):
        request.num_output_tokens = produced
        for found in [*ledger.check([request]), *ledger.check([request])]:
            assert found == (request, record)
            cost = ledger.whole_cost(request, record, record.horizon)
            assert cost == pytest.approx(record.horizon * PER_TOKEN + 0.01)
            told += 1
    assert record.horizon > 200
    assert 3 <= ledger.re_estimates <= 12
    assert told == ledger.re_estimates


@pytest.mark.parametrize(
    ("status", "stop", "learnt"),
    [
        ("FINISHED_STOPPED", None, End.STOPPED),
        ("FINISHED_REPETITION", None, End.STOPPED),
        ("FINISHED_LENGTH_CAPPED", None, End.LENGTH),
        ("FINISHED_ABORTED", None, End.ABORTED),
        ("FINISHED_ABORTED", ["\n"], End.STOPPED),
        ("FINISHED_ERROR", None, None),
        ("FINISHED_IGNORED", None, None),
        ("FINISHED_OF_A_LATER_VERSION", None, None),
    ],
)
def test_each_end_is_learnt_for_what_it_is(
    ledger: Ledger, estimator: Estimator, status: str, stop: list[str] | None, learnt: End | None
) -> None:
    request = make_request(sampling_params=SimpleNamespace(stop=stop))
    ledger.open(request, 0)
    request.num_output_tokens, request.status = 30, SimpleNamespace(name=status)
    closed = ledger.close(request)
    assert closed is not None
    assert closed.end is learnt
    assert closed.cost == pytest.approx(30 * PER_TOKEN + 0.01)
    assert estimator.seen == [("a", 30, learnt) if learnt else ("a", 0, End.ABORTED)]
    assert len(ledger) == 0
    assert ledger.close(request) is None


@pytest.mark.parametrize("stop", [None, ["\n"]])
def test_what_never_ran_teaches_nothing_and_cost_nothing(
    ledger: Ledger, estimator: Estimator, stop: list[str] | None
) -> None:
    status = SimpleNamespace(name="FINISHED_ABORTED")
    request = make_request(status=status, sampling_params=SimpleNamespace(stop=stop))
    ledger.open(request, 0)
    closed = ledger.close(request)
    assert closed is not None
    # not a stop string: the page would count a deadline met, and a length of none
    assert closed.end is End.ABORTED
    assert closed.cost == 0.0
    assert estimator.seen == [("a", 0, End.ABORTED)]


def test_requests_that_generate_nothing_are_not_estimated(ledger: Ledger, estimator: Estimator) -> None:
    request = make_request(sampling_params=None, status=SimpleNamespace(name="FINISHED_STOPPED"))
    _, job = ledger.open(request, 0)
    assert job.cost == pytest.approx(PER_TOKEN + 0.01)
    request.num_output_tokens = 1
    ledger.close(request)
    assert (estimator.asked, estimator.seen) == ([], [])


def test_an_estimate_that_is_no_number_is_an_error(ledger: Ledger, estimator: Estimator) -> None:
    estimator.answer = Estimate(math.nan, 1.0, 1.0)
    with pytest.raises(ValueError, match="'fake' gave"):
        ledger.open(make_request(), 0)
    assert ledger.estimator_failed


@pytest.mark.parametrize("where", ["estimate", "remaining", "observe"])
def test_an_estimator_that_raises_is_remembered(ledger: Ledger, estimator: Estimator, where: str) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    request = make_request()
    record, _ = ledger.open(request, 0)
    assert not ledger.estimator_failed
    setattr(estimator, where, fail)
    request.num_output_tokens = 5 if where == "remaining" else 0
    acts: dict[str, Callable[[], object]] = {
        "estimate": lambda: ledger.open(make_request("b"), 0),
        "remaining": lambda: ledger.job(request, record),
        "observe": lambda: end(ledger, request),
    }
    with pytest.raises(RuntimeError, match="broken"):
        acts[where]()
    assert ledger.estimator_failed


def end(ledger: Ledger, request: Any) -> None:
    request.num_output_tokens, request.status = 3, SimpleNamespace(name="FINISHED_STOPPED")
    ledger.close(request)
