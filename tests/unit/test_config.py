"""Settings: where they come from, and that nonsense in them only costs a line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from quietcore.scheduler.config import Settings, load
from quietcore.scheduler.vllm.hints import parse


def test_nothing_given_is_drift_with_a_bound() -> None:
    settings = load(None, {})
    assert settings == Settings()
    policy = settings.build_policy()
    assert policy.name == "drift"
    assert policy.patience is not None
    assert not policy.fair


def test_vllm_hands_settings_in_a_section() -> None:
    settings = load({"quietcore": {"policy": "sjf", "preempt_slots": True, "aging": 1}, "other": {}}, {})
    assert (settings.policy, settings.preempt_slots, settings.aging) == ("sjf", True, 1.0)
    assert settings.problems == ()


def test_the_environment_wins() -> None:
    environ = {"QUIETCORE_POLICY": "off", "QUIETCORE_TIERS": '{"standard": 1, "gold": 9}'}
    settings = load({"quietcore": {"policy": "fifo", "seed": 3}}, environ)
    assert not settings.active
    assert settings.tiers == {"standard": 1.0, "gold": 9.0}
    assert settings.seed == 3


def test_the_policy_is_built_as_told() -> None:
    settings = load({"quietcore": {"stretch": 2, "wait_ceiling": 30, "fair_tenants": "yes"}}, {})
    policy = settings.build_policy()
    assert policy.fair
    assert policy.patience is not None
    assert (policy.patience.stretch, policy.patience.ceiling) == (2.0, 30.0)
    assert load({"quietcore": {"bounded": False}}, {}).build_policy().patience is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("policy", "lifo"),
        ("policy", 7),
        ("aging", "fast"),
        ("aging", True),
        ("stretch", 0.5),
        ("stretch", math.nan),
        ("stretch", 10**400),
        ("bounded", "maybe"),
        ("tiers", "not json"),
        ("tiers", "[" * 100_000),
        ("tiers", {"standard": 10**400}),
        ("tiers", {"gold": 3}),
        ("tiers", {"standard": "heavy"}),
        ("tiers", []),
        ("tiers", {"standard": 1, "Gold": 3, "gold": 4}),
        ("tiers", {"standard": 1, "customers-of-the-east": 3, "customers-of-the-west": 4}),
        ("tiers", {"standard": 1, " ": 3}),
        ("estimator", "drfit"),
        ("estimator", ["drift"]),
        ("prompt_head", -1),
        ("state", None),
        ("feedback", True),
        ("feedback", "run/quietcore/feedback"),
        ("feedback", ""),
        ("correct_time", "perhaps"),
    ],
)
def test_nonsense_is_left_out_and_named(name: str, value: object) -> None:
    settings = load({"quietcore": {name: value}}, {})
    assert getattr(settings, name) == getattr(Settings(), name)
    assert len(settings.problems) == 1
    assert f"quietcore.{name}" in settings.problems[0]


@pytest.mark.parametrize(
    "config", ["text", 5, ["quietcore"], {"quietcore": "drift"}, {"quietcore": None}, object()]
)
def test_a_configuration_of_any_kind_is_survived(config: object) -> None:
    assert load(config, {}).policy == "drift"


def test_an_unknown_setting_is_named() -> None:
    assert load({"quietcore": {"polcy": "off"}}, {}).problems == ("quietcore.polcy: no such setting",)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({}, "/run/quietcore/feedback"),
        ({"feedback": " Auto "}, "/run/quietcore/feedback"),
        ({"feedback": "/var/run/agent/page"}, "/var/run/agent/page"),
        ({"feedback": "OFF"}, None),
        ({"feedback": "/var/run/agent/page", "correct_time": False}, None),
    ],
)
def test_the_agent_is_heard_unless_told_otherwise(given: dict[str, object], path: str | None) -> None:
    settings = load({"quietcore": given}, {})
    assert settings.feedback_path == (path and Path(path))
    assert settings.problems == ()


def test_names_are_known_whatever_their_case() -> None:
    settings = load({"quietcore": {"policy": "SJF", "estimator": " Median "}}, {})
    assert (settings.policy, settings.estimator, settings.problems) == ("sjf", "median", ())


def test_a_tier_is_found_by_the_name_it_was_set_up_with() -> None:
    for name in ("Gold", "customers of the far east", "Größe", "x" * 100):
        tiers = load({"quietcore": {"tiers": {"Standard": 1, name: 9}}}, {}).tiers
        hints = parse(0, {"qos": name}, tiers)
        assert (tiers[hints.tier], hints.ignored) == (9.0, 0)
