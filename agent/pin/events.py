"""What passes between the agent's loop and pin control."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Literal

from quietcore.agent.attribution import Culprit
from quietcore.agent.targets import Target

Kind = Literal["plan", "apply", "keep", "rollback", "restore", "advise", "stand-aside", "conflict"]


class Mode(enum.Enum):
    """How far pin control may go."""

    OFF = "off"
    ADVISE = "advise"
    AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Reading:
    """One target in one window.

    Attributes:
        critical: ids of the threads that pace it.
        stolen: share of their wall time that others took, 0..1.
        rate: launches or steps a second, ``None`` where neither is seen.
        seconds: length of the window, which ends at ``now`` (seconds, CLOCK_MONOTONIC).
        contention: share that the target's own threads took from each other: a plan may crowd them.
    """

    target: Target
    critical: frozenset[int]
    stolen: float
    rate: float | None
    culprits: tuple[Culprit, ...]
    seconds: float
    now: float
    contention: float = 0.0


@dataclass(frozen=True, slots=True)
class Event:
    """Something that pin control did, or would do, or will not do.

    Attributes:
        target: its name; empty for what concerns none.
        detail: the same for programs (JSON).
        text: one line for people.
    """

    kind: Kind
    target: str
    detail: dict[str, Any] = field(default_factory=dict)
    text: str = ""
