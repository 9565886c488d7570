r"""Settings of the plug-in, from vLLM's ``--additional-config`` and from the environment.

    vllm serve MODEL --scheduler-cls quietcore.scheduler.vllm.DriftScheduler \
        --additional-config '{"quietcore": {"policy": "drift", "preempt_slots": true}}'

Each setting may also come as ``QUIETCORE_<NAME>`` from the environment, which wins: vLLM hashes its
configuration into the key of its compile cache, so what changes from start to start belongs there. A value
that makes no sense is left out and named in `Settings.problems`; it never stops an engine.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quietcore.scheduler import drift
from quietcore.scheduler.page import default_feedback_path
from quietcore.scheduler.policy import NAMES, STANDARD, TIER_WEIGHTS, Patience, Policy, build, tier_name

SECTION = "quietcore"
PREFIX = "QUIETCORE_"
OFF = "off"
AUTO = "auto"

_PATIENCE = Patience()


def _setting(default: Any, parse: Callable[[Any], Any]) -> Any:
    return field(default=default, metadata={"parse": parse})


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value.strip()


def _path_or_word(*words: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        text = _text(value)
        if text.lower() in words:
            return text.lower()
        if not text.startswith("/"):
            raise ValueError(f"neither an absolute path nor one of {', '.join(words)}")
        return text

    return parse


def _one_of(*names: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        name = _text(value).lower()
        if name not in names:
            raise ValueError(f"not one of {', '.join(names)}")
        return name

    return parse


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("neither true nor false")


def _number(least: float, most: float = math.inf) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        if isinstance(value, bool):
            raise ValueError("not a number")
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError("not a number") from None
        if not least <= number <= most:
            raise ValueError(f"not between {least:g} and {most:g}")
        return number

    return parse


def _count(least: int, most: int) -> Callable[[Any], int]:
    parse = _number(least, most)
    return lambda value: int(parse(value))


def _weights(value: Any) -> Mapping[str, float]:
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping) or not value:
        raise ValueError("not a mapping of tiers to weights")
    weight = _number(1e-6, 1e6)
    parsed: dict[str, float] = {}
    for given, each in value.items():
        tier = tier_name(_text(given))
        if not tier:
            raise ValueError("a tier without a name")
        if tier in parsed:
            raise ValueError(f"two tiers that are both {tier!r}, as capitals and odd letters do not count")
        parsed[tier] = weight(each)
    if STANDARD not in parsed:
        raise ValueError(f"without the tier {STANDARD!r}, which requests have that name none")
    return parsed


@dataclass(frozen=True)
class Settings:
    """What the plug-in does.

    Attributes:
        policy: one of `quietcore.scheduler.policy.NAMES`, or ``off``: exactly as without the plug-in.
        estimator: one of `quietcore.scheduler.drift.NAMES`.
        aging: seconds of shared cost that a second of waiting makes good; the policy's own if not given.
        stretch, usual_wait, wait_floor, wait_ceiling: the bound on waiting, see `Patience`; seconds.
        bounded: whether there is such a bound.
        fair_tenants: whether tenants get equal shares.
        preempt_slots: whether a running request of a lower tier gives its slot to a waiting one of a higher.
        tiers: weights by name, see `tier_name`.
        page_dir: folder of the engine page; ``off`` for none, empty for the user's own.
        feedback: the feedback page that the agent writes; ``auto`` where it does so, ``off`` for none.
        correct_time: whether step times follow what the steps and the agent say; if not, they stay what the
            first 20 s of work have taught, which is for comparison only.
        state: file in which the estimator outlives a restart of the engine; none if empty.
        prompt_head, prompt_tail: tokens of a prompt that are decoded for the estimator.
        seed: of what little chance there is in the estimator.
    """

    policy: str = _setting("drift", _one_of(*NAMES, OFF))
    estimator: str = _setting("drift", _one_of(*drift.NAMES))
    aging: float | None = _setting(None, _number(0.0, 1e6))
    stretch: float = _setting(_PATIENCE.stretch, _number(1.0, 1e6))
    usual_wait: float = _setting(_PATIENCE.usual, _number(0.0, 1.0))
    wait_floor: float = _setting(_PATIENCE.floor, _number(0.0))
    wait_ceiling: float = _setting(_PATIENCE.ceiling, _number(0.0))
    bounded: bool = _setting(True, _flag)
    fair_tenants: bool = _setting(False, _flag)
    preempt_slots: bool = _setting(False, _flag)
    tiers: Mapping[str, float] = field(default_factory=lambda: TIER_WEIGHTS, metadata={"parse": _weights})
    page_dir: str = _setting("", _text)
    feedback: str = _setting(AUTO, _path_or_word(AUTO, OFF))
    correct_time: bool = _setting(True, _flag)
    state: str = _setting("", _text)
    prompt_head: int = _setting(96, _count(0, 4096))
    prompt_tail: int = _setting(32, _count(0, 4096))
    seed: int = _setting(0, _count(0, 2**31 - 1))
    problems: tuple[str, ...] = ()

    @property
    def active(self) -> bool:
        return self.policy != OFF

    @property
    def feedback_path(self) -> Path | None:
        """The feedback page to be read; none if the agent is not to be heard."""
        if self.feedback == OFF or not self.correct_time:
            return None
        return default_feedback_path() if self.feedback == AUTO else Path(self.feedback)

    def build_policy(self, *, strict: bool = False) -> Policy:
        """The policy that these settings describe; not for ``off``. ``strict``: see `Policy`."""
        patience = Patience(self.stretch, self.usual_wait, self.wait_floor, self.wait_ceiling)
        return build(
            self.policy,
            aging_weight=self.aging,
            weights=self.tiers,
            patience=patience if self.bounded else None,
            fair=self.fair_tenants,
            strict=strict,
        )


def load(additional_config: object, environ: Mapping[str, str]) -> Settings:
    """Settings out of vLLM's ``additional_config`` (whatever it is) and an environment; never raises."""
    problems: list[str] = []
    given: dict[str, tuple[str, Any]] = {}
    parsers = {each.name: each.metadata["parse"] for each in dataclasses.fields(Settings) if each.metadata}
    section = additional_config.get(SECTION) if isinstance(additional_config, Mapping) else None
    if isinstance(section, Mapping):
        for name, value in section.items():
            if name in parsers:
                given[name] = (f"{SECTION}.{name}", value)
            else:
                problems.append(f"{SECTION}.{name}: no such setting")
    elif section is not None:
        problems.append(f"{SECTION}: not a mapping of settings")
    for name in parsers:
        value = environ.get(PREFIX + name.upper())
        if value is not None:
            given[name] = (PREFIX + name.upper(), value)
    values: dict[str, Any] = {}
    for name, (source, value) in given.items():
        try:
            values[name] = parsers[name](value)
        except (ValueError, RecursionError) as error:
            problems.append(f"{source}={value!r}: {error}")
    return Settings(**values, problems=tuple(problems))
