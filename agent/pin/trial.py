"""What a plan did, by measurement: before against after, and whether that is good enough."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from quietcore.agent.pin.events import Reading
from quietcore.agent.verdict import THRESHOLD

CLEARED = 0.1
"""A plan that leaves no more than this part of what was stolen needs no rival."""
HELPS = 0.8
"""A plan helps if it leaves no more than this part."""
SLOWER = 0.8
"""A plan that leaves less than this part of the rate hurts, whatever it does to waiting."""
WORSE = 1.1
WORSE_MARGIN = 0.02
BACK_AGAIN = 0.7
"""A plan that was kept no longer helps when this part of what it removed is back."""


class Judgement(enum.Enum):
    """What a plan came to."""

    CLEARED = "cleared"
    HELPS = "helps"
    NO_HELP = "does not help"
    HURTS = "hurts"
    NOT_APPLIED = "could not be applied"


@dataclass(frozen=True, slots=True)
class Measured:
    """Mean of readings: shares of the critical threads' time, and launches or steps a second.

    ``stolen`` by others and ``contention`` with the target's own threads are 0..1, ``rate`` is ``None`` where
    unknown.
    """

    stolen: float
    rate: float | None
    contention: float = 0.0

    def __str__(self) -> str:
        own = f", {self.contention:.1%} by its own threads" if self.contention >= THRESHOLD else ""
        rate = f", {self.rate:,.0f}/s" if self.rate is not None else ""
        return f"{self.stolen:.1%} stolen{own}{rate}"


def mean(readings: Sequence[Reading]) -> Measured:
    """By length of window. Raises ZeroDivisionError without readings."""
    seconds = sum(reading.seconds for reading in readings)
    rates = [(reading.rate, reading.seconds) for reading in readings if reading.rate is not None]
    timed = sum(length for _, length in rates)
    return Measured(
        sum(reading.stolen * reading.seconds for reading in readings) / seconds,
        sum(rate * length for rate, length in rates) / timed if timed else None,
        sum(reading.contention * reading.seconds for reading in readings) / seconds,
    )


def left(before: Measured, after: Measured) -> float:
    """What a plan left of what was stolen; contention that it adds, or removes, counts as well."""
    return max(after.stolen + after.contention - before.contention, 0.0)


def judge(before: Measured, after: Measured) -> Judgement:
    """What changed between two measurements."""
    rest = left(before, after)
    if is_slower(before, after) or rest > WORSE * before.stolen + WORSE_MARGIN:
        return Judgement.HURTS
    if rest > HELPS * before.stolen:
        return Judgement.NO_HELP
    is_clear = rest <= max(THRESHOLD, CLEARED * before.stolen)
    return Judgement.CLEARED if is_clear else Judgement.HELPS


def is_slower(before: Measured, after: Measured) -> bool:
    """Whether work got done clearly slower."""
    return bool(before.rate) and after.rate is not None and after.rate < SLOWER * (before.rate or 0.0)


def is_back(before: Measured, kept: Measured, now: Measured) -> bool:
    """Whether a kept plan has ceased to help: the time that it had won is being stolen again."""
    rest = left(before, kept)
    return left(before, now) >= max(2 * THRESHOLD, rest + BACK_AGAIN * (before.stolen - rest))


@dataclass(frozen=True, slots=True)
class Result:
    """One plan that was tried."""

    name: str
    judgement: Judgement
    before: Measured
    after: Measured | None

    def __str__(self) -> str:
        measured = f", {self.before} -> {self.after}" if self.after else ""
        return f"{self.name} {self.judgement.value}{measured}"

    def as_json(self) -> dict[str, object]:
        return {
            "plan": self.name,
            "judgement": self.judgement.name.lower(),
            "before": asdict(self.before),
            "after": asdict(self.after) if self.after else None,
        }
