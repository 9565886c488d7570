"""Hints of clients: what is understood, and that nothing else does harm."""

from __future__ import annotations

import math
from typing import Any

import pytest

from quietcore.scheduler.policy import TIER_WEIGHTS
from quietcore.scheduler.vllm.hints import MAX_NAME, NONE, Hints, parse


def read(priority: object = 0, extra: object = None) -> Hints:
    return parse(priority, extra, TIER_WEIGHTS)


def test_nothing_told_is_standard() -> None:
    assert read() is read(0, {"somebody_elses": 1}) is NONE


def test_all_hints_are_read() -> None:
    given = {"tenant": "acme", "qos": "Premium", "category": "code", "session": 7, "deadline_ms": 1500}
    assert read(2, given) == Hints("premium", 2, "acme", "code", "7", 1.5)


@pytest.mark.parametrize(("priority", "tier"), [(-5, "premium"), (0, "standard"), (3, "batch")])
def test_a_priority_stands_in_for_a_tier(priority: int, tier: str) -> None:
    assert read(priority, {"tenant": "a"}).tier == tier


def test_a_tier_goes_before_a_priority() -> None:
    assert read(-1, {"qos": "batch"}).tier == "batch"


def test_tiers_that_are_not_configured_are_not_implied() -> None:
    assert parse(-1, None, {"standard": 1.0, "gold": 3.0}).tier == "standard"
    assert parse(0, {"qos": "gold"}, {"standard": 1.0, "gold": 3.0}).tier == "gold"


@pytest.mark.parametrize(
    "extra",
    [
        {"qos": "diamond"},
        {"qos": ["premium"]},
        {"tenant": {"name": "a"}},
        {"tenant": 1.5},
        {"category": 10**30},
        {"deadline_ms": "soon"},
        {"deadline_ms": -1},
        {"deadline_ms": 0},
        {"deadline_ms": math.nan},
        {"deadline_ms": math.inf},
        {"deadline_ms": [100]},
        {"deadline_ms": 1e30},
        {"deadline_ms": "1e400"},
    ],
)
def test_nonsense_is_ignored_and_counted(extra: dict[str, Any]) -> None:
    hints = read(0, extra)
    assert hints == Hints(ignored=1)


@pytest.mark.parametrize("extra", [None, 5, "text", ["tenant"], object()])
def test_extra_arguments_of_any_kind_are_survived(extra: object) -> None:
    assert read(0, extra) is NONE


@pytest.mark.parametrize("priority", ["high", 1.5, None, [1]])
def test_a_priority_of_any_kind_is_survived(priority: object) -> None:
    assert read(priority, {"tenant": "a"}).priority == 0


def test_numbers_as_text_and_long_names_are_taken_in_part() -> None:
    hints = read(0, {"deadline_ms": "250", "tenant": "x" * 1000})
    assert hints.deadline_s == 0.25
    assert len(hints.tenant) == MAX_NAME
    assert hints.ignored == 0
