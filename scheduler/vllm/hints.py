"""What a client tells of a request: ``priority`` and ``vllm_xargs`` {tenant, qos, category, session,
deadline_ms}.

All of it is a stranger's input. What makes no sense is left out and counted, and never fails the request.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from quietcore.scheduler.policy import STANDARD, tier_name

MAX_NAME = 64
MAX_DEADLINE_S = 7 * 86400.0

_KNOWN = ("tenant", "qos", "category", "session", "deadline_ms")


@dataclass(frozen=True, slots=True)
class Hints:
    """What was told and made sense.

    Attributes:
        deadline_s: seconds from the request's arrival to its last token; infinite if none was given.
        ignored: hints that made no sense.
    """

    tier: str = STANDARD
    priority: int = 0
    tenant: str = ""
    category: str = ""
    session: str = ""
    deadline_s: float = math.inf
    ignored: int = 0


NONE = Hints()


def parse(priority: object, extra_args: object, tiers: Collection[str]) -> Hints:
    """Hints out of vLLM's ``Request.priority`` and ``SamplingParams.extra_args``; never raises.

    ``tiers`` are those that there are. A request without ``qos`` whose priority is below zero (vLLM: earlier)
    counts as premium, above zero as batch, so that a client of vLLM's own priorities needs to change nothing.
    """
    given = extra_args if isinstance(extra_args, Mapping) else {}
    if not priority and not any(name in given for name in _KNOWN):
        return NONE
    ignored = 0
    rank = priority if isinstance(priority, int) else 0
    names: dict[str, str] = {}
    for name in ("tenant", "category", "session"):
        value = given.get(name)
        names[name] = _name(value)
        ignored += value is not None and not names[name]
    tier = tier_name(_name(given.get("qos")))
    if tier not in tiers:
        ignored += given.get("qos") is not None
        implied = "premium" if rank < 0 else "batch" if rank > 0 else STANDARD
        tier = implied if implied in tiers else STANDARD
    deadline = _seconds(given.get("deadline_ms"))
    ignored += given.get("deadline_ms") is not None and deadline == math.inf
    return Hints(tier, rank, **names, deadline_s=deadline, ignored=ignored)


def _name(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()[:MAX_NAME]
    if isinstance(value, int):
        return str(value)[:MAX_NAME] if abs(value) < 10**18 else ""
    return ""


def _seconds(milliseconds: Any) -> float:
    if isinstance(milliseconds, str):
        try:
            milliseconds = float(milliseconds)
        except ValueError:
            return math.inf
    if not isinstance(milliseconds, int | float) or not 0 < milliseconds <= MAX_DEADLINE_S * 1000:
        return math.inf
    return milliseconds / 1000.0
