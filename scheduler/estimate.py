"""The contract between those who predict output lengths and those who order requests by them."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What is known of a request when it is admitted.

    Attributes:
        key: unique in the engine's life.
        arrival: seconds, of any clock that all requests share.
        prompt: its text, where there is any (benchmarks; a bounded head and tail in the engine).
        prompt_ids: token ids, where the text is not known.
        max_tokens: the cap on the output, 0 if there is none.
        tenant, category, adapter, session: as the client names them, empty if it does not.
        sampling: temperature, top_p, n, stop, ... as far as they are known.
        least: tokens before which it does not end (``min_tokens``).
        fixed: whether it has just as many tokens as its cap allows (``ignore_eos`` without other stops).
    """

    key: str
    arrival: float
    prompt_tokens: int
    prompt: str = ""
    prompt_ids: Sequence[int] = ()
    max_tokens: int = 0
    tenant: str = ""
    category: str = ""
    adapter: str = ""
    session: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    least: int = 0
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """Output tokens as a distribution: the mean ranks requests, the quantiles meet deadlines."""

    mean: float
    p50: float
    p90: float

    def at_least(self, tokens: float) -> Estimate:
        """The same where no length is below ``tokens``."""
        if tokens <= min(self.mean, self.p50):
            return self
        return Estimate(max(self.mean, tokens), max(self.p50, tokens), max(self.p90, tokens))


class End(enum.Enum):
    """How a request ended; all but ``STOPPED`` say only that the length is at least what was seen."""

    STOPPED = "stopped"
    LENGTH = "length"
    ABORTED = "aborted"


class Estimator(Protocol):
    """Predicts output lengths and learns from those that came.

    ``estimate`` is called in the engine's admission path (under 100 us); what takes longer,
    as a refit, is done elsewhere. No method raises for strange input.
    """

    name: str

    def estimate(self, facts: RequestFacts) -> Estimate:
        """At admission."""

    def remaining(self, facts: RequestFacts, first: Estimate, produced: int) -> Estimate:
        """What is still to come of a request that has ``produced`` tokens; never below one."""

    def observe(self, facts: RequestFacts, first: Estimate, produced: int, end: End) -> None:
        """A request has ended; ``first`` is what was estimated at its admission.

        ``produced`` is 0 where it ended before it ran: nothing to learn, and nothing to keep.
        """
