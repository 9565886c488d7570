"""Parts of the plug-in that need no engine: the clock of steps, prompts as text, facts, counters."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.step_clock import Time

from quietcore.scheduler.config import Settings
from quietcore.scheduler.estimate import End
from quietcore.scheduler.vllm import steps, text
from quietcore.scheduler.vllm.facts import FactsReader
from quietcore.scheduler.vllm.steps import StepClock
from quietcore.scheduler.vllm.telemetry import Telemetry
from quietcore.scheduler.vllm.text import PromptDecoder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    time_ = Time()
    monkeypatch.setattr(steps, "perf_counter", time_)
    return time_


def make_output(**tokens: int) -> Any:
    return SimpleNamespace(
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
        scheduled_spec_decode_tokens={},
    )


def spend(clock: Time, timed: StepClock, output: Any, *seconds: float, running: Sequence[Any] = ()) -> Any:
    """A step of the synchronous engine: seconds of scheduling, of the model, of the update."""
    timed.begin()
    clock.now += seconds[0]
    timed.scheduled(output, list(running))
    clock.now += seconds[1]
    timed.returned()
    clock.now += seconds[2]
    return timed.updated(output, True)


def test_a_synchronous_step_lasts_from_one_end_to_the_next(clock: Time) -> None:
    timed = StepClock()
    first = spend(clock, timed, make_output(a=7, b=1), 0.001, 0.010, 0.002)
    assert first.seconds == pytest.approx(0.013)
    assert first.host_seconds == pytest.approx(0.003)
    assert (first.prefill_tokens, first.decode_seqs) == (7, 1)
    clock.now += 0.004
    second = spend(clock, timed, make_output(a=1, b=1), 0.001, 0.010, 0.002)
    assert second.seconds == pytest.approx(0.017)


def test_idleness_is_no_part_of_a_step(clock: Time) -> None:
    timed = StepClock()
    output = make_output(a=1)
    timed.begin()
    timed.scheduled(output, [])
    clock.now += 0.01
    timed.returned()
    timed.updated(output, False)
    clock.now += 30.0
    assert spend(clock, timed, make_output(b=5), 0.001, 0.010, 0.002).seconds == pytest.approx(0.013)


def test_steps_scheduled_ahead_are_paced_by_their_outputs(clock: Time) -> None:
    timed = StepClock()
    outputs = [make_output(a=1) for _ in range(4)]
    found = []
    for number, output in enumerate(outputs):
        timed.begin()
        clock.now += 0.002
        timed.scheduled(output, [])
        if number:
            clock.now += 0.008
            timed.returned()
            found.append(timed.updated(outputs[number - 1], True))
    # The first was not yet running when another came back; from then on the device never waits.
    assert [step and round(step.seconds, 6) for step in found[1:]] == [0.010, 0.010]


def test_an_output_that_was_never_scheduled_is_no_step(clock: Time) -> None:
    timed = StepClock()
    timed.returned()
    assert timed.updated(make_output(a=1), True) is None
    empty = make_output()
    timed.begin()
    timed.scheduled(empty, [])
    timed.returned()
    assert timed.updated(empty, True) is None


def test_drafted_tokens_are_decoding(clock: Time) -> None:
    output = make_output(a=4, b=1, c=100)
    output.scheduled_spec_decode_tokens = {"a": [1, 2, 3]}
    step = spend(clock, StepClock(), output, 0.001, 0.01, 0.001)
    assert (step.prefill_tokens, step.decode_seqs) == (100, 2)


def test_context_is_what_the_running_have_computed(clock: Time) -> None:
    timed = StepClock()
    running = [SimpleNamespace(num_computed_tokens=100), SimpleNamespace(num_computed_tokens=50)]
    spend(clock, timed, make_output(a=1, b=1), 0.0, 0.01, 0.0, running=running)
    step = spend(clock, timed, make_output(a=1, b=1), 0.0, 0.01, 0.0, running=running)
    assert step.context_tokens == 152
    timed.finished(100)
    assert spend(clock, timed, make_output(b=1), 0.0, 0.01, 0.0).context_tokens == 53


def make_decoder(head: int = 3, tail: int = 2) -> PromptDecoder:
    decoder = PromptDecoder(head, tail)
    decoder.use(lambda ids: " ".join(map(str, ids)))
    return decoder


def test_a_prompt_is_decoded_at_both_ends() -> None:
    assert make_decoder().text([1, 2, 3, 4, 5]) == "1 2 3 4 5"
    assert make_decoder().text([1, 2, 3, 4, 5, 6, 7]) == "1 2 3\n6 7"
    assert make_decoder(tail=0).text([1, 2, 3, 4]) == "1 2 3\n"
    assert make_decoder().text([]) == make_decoder().text(None) == PromptDecoder(3, 2).text([1]) == ""


def test_ids_that_cannot_be_decoded_leave_no_text() -> None:
    decoder = PromptDecoder(3, 2)

    def refuse(ids: Sequence[int]) -> str:
        raise OverflowError("id out of range")

    decoder.use(refuse)
    assert decoder.text([1]) == ""
    assert decoder.error == "OverflowError: id out of range"


def test_a_tokenizer_that_cannot_be_loaded_leaves_ids_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, revision: str | None) -> Any:
        raise OSError(f"{name} is not there.\n" + "Have you logged in? " * 50)

    monkeypatch.setattr(text, "_load_tokenizer", refuse)
    said: queue.Queue[str] = queue.Queue()
    decoder = PromptDecoder(3, 2)
    decoder.load_from("/nowhere", None, said.put)
    line = said.get(timeout=10)
    assert "no tokenizer (OSError: /nowhere is not there. Have you" in line
    assert len(line) < 300
    assert "\n" not in line
    assert decoder.text([1]) == ""


def make_reader(now: float, *, decode: bool = False) -> FactsReader:
    reader = FactsReader(Settings(), SimpleNamespace(skip_tokenizer_init=True), lambda: now, pytest.fail)
    if decode:
        reader.decoder.use(lambda ids: "text")
    return reader


def make_request(**fields: Any) -> Any:
    values: dict[str, Any] = {
        "request_id": "a",
        "arrival_time": time.time(),
        "prompt_token_ids": [1, 2, 3],
        "num_prompt_tokens": 3,
        "max_tokens": 16,
        "priority": 0,
        "lora_request": None,
        "sampling_params": SimpleNamespace(extra_args=None, temperature=0.5, stop=["x", "y"]),
    }
    return SimpleNamespace(**{**values, **fields})


def test_facts_are_what_a_request_tells() -> None:
    extra = {"tenant": "acme", "category": "code", "session": "s1"}
    sampling = SimpleNamespace(extra_args=extra, temperature=0.5, stop=["x", "y"])
    request = make_request(sampling_params=sampling, lora_request=SimpleNamespace(lora_name="sql"))
    facts = make_reader(50.0).read(request)
    assert (facts.key, facts.prompt_tokens, facts.max_tokens) == ("a", 3, 16)
    assert (facts.tenant, facts.category, facts.session, facts.adapter) == ("acme", "code", "s1", "sql")
    assert (facts.prompt, list(facts.prompt_ids)) == ("", [1, 2, 3])
    assert (facts.sampling["temperature"], facts.sampling["stop"]) == (0.5, 2)


def test_vllms_session_goes_before_the_hint() -> None:
    assert make_reader(0.0).read(make_request(session_id="header")).session == "header"


def test_text_stands_in_for_ids() -> None:
    facts = make_reader(0.0, decode=True).read(make_request())
    assert (facts.prompt, len(facts.prompt_ids)) == ("text", 0)


def test_a_request_without_ids_or_sampling_is_read_too() -> None:
    facts = make_reader(0.0).read(make_request(prompt_token_ids=None, sampling_params=None))
    assert (facts.prompt, len(facts.prompt_ids), facts.sampling) == ("", 0, {})


def test_an_arrival_is_told_in_the_queues_clock() -> None:
    facts = make_reader(1000.0).read(make_request(arrival_time=time.time() - 2.0))
    assert facts.arrival == pytest.approx(998.0, abs=0.5)


def test_stamps_of_another_clock_keep_their_distances() -> None:
    reader = make_reader(1000.0)
    arrivals = [reader.read(make_request(arrival_time=stamp)).arrival for stamp in (7.0, 5.0, 6.5)]
    assert arrivals == [1000.0, 998.0, 999.5]


def test_a_stamp_of_the_future_or_of_long_ago_is_now() -> None:
    for stamp in (time.time() + 100, time.time() - 1e6):
        assert make_reader(1000.0).read(make_request(arrival_time=stamp)).arrival == 1000.0


@pytest.mark.parametrize(
    ("end", "in_time", "counted"),
    [
        (End.STOPPED, True, (1, 0)),
        (End.LENGTH, True, (1, 0)),
        (End.ABORTED, True, (0, 0)),
        (End.STOPPED, False, (0, 1)),
        (End.ABORTED, False, (0, 1)),
        (None, True, (0, 0)),
        (None, False, (0, 0)),
    ],
)
def test_a_deadline_is_met_by_those_only_that_came_to_their_end(
    end: End | None, in_time: bool, counted: tuple[int, int]
) -> None:
    telemetry = Telemetry("off", 4, pytest.fail)
    telemetry.deadline(end, in_time)
    assert (telemetry.deadlines_met, telemetry.deadlines_missed) == counted
