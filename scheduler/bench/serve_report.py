"""What a run of ``bench serve`` found, by tier."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from quietcore.scheduler.bench.client import Answer, Query

SCHEMA = "quietcore.bench.serve/1"
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class ServeResult:
    """The requests of a run and their answers, in the same order; ``capacity`` is 0 if it was not asked."""

    stream: str
    model: str
    rate: float
    capacity: float
    queries: tuple[Query, ...]
    answers: tuple[Answer, ...]

    @property
    def failures(self) -> dict[str, int]:
        """How often which error came, the commonest first."""
        return dict(Counter(answer.error for answer in self.answers if answer.error).most_common())

    @property
    def tiers(self) -> list[str]:
        return sorted({query.tier for query in self.queries})

    def mean_latency(self) -> float:
        """Seconds, of the requests that did not fail; not a number if all did."""
        good = [answer.latency for answer in self.answers if not answer.error]
        return sum(good) / len(good) if good else math.nan

    def to_json(self, *, rows: bool = False) -> dict[str, Any]:
        """A document of base units (seconds); ``rows`` adds each request."""
        good = [answer for answer in self.answers if not answer.error]
        seconds = max((answer.finished for answer in self.answers), default=0.0)
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "stream": self.stream,
            "model": self.model,
            "requests": len(self.answers),
            "rate": self.rate,
            "capacity": self.capacity or None,
            "load": self.rate / self.capacity if self.capacity else None,
            "seconds": seconds,
            "output_tokens": sum(answer.tokens for answer in good),
            "output_tokens_per_second": sum(answer.tokens for answer in good) / seconds if seconds else 0.0,
            "failed": len(self.answers) - len(good),
            "failures": self.failures,
            "all": summary(self.queries, self.answers),
            "tiers": {tier: summary(*self._of(tier)) for tier in self.tiers},
        }
        if rows:
            pairs = zip(self.queries, self.answers, strict=True)
            document["rows"] = [_row(query, answer) for query, answer in pairs]
        return document

    def _of(self, tier: str) -> tuple[list[Query], list[Answer]]:
        pairs = [(q, a) for q, a in zip(self.queries, self.answers, strict=True) if q.tier == tier]
        return [query for query, _ in pairs], [answer for _, answer in pairs]


def summary(queries: Sequence[Query], answers: Sequence[Answer]) -> dict[str, Any]:
    """Seconds as mean and quantiles: time to first token, per output token, between tokens, and latency."""
    pairs = [(q, a) for q, a in zip(queries, answers, strict=True) if not a.error]
    good = [answer for _, answer in pairs]
    gaps = [b - a for answer in good for a, b in zip(answer.chunks, answer.chunks[1:], strict=False)]
    due = [(q.deadline_ms, a) for q, a in pairs if q.deadline_ms is not None]
    return {
        "requests": len(answers),
        "failed": len(answers) - len(good),
        "ttft": spread(answer.ttft for answer in good),
        "tpot": spread(answer.tpot for answer in good if answer.tpot is not None),
        "itl": spread(gaps),
        "latency": spread(answer.latency for answer in good),
        "deadlines": len(due) or None,
        "deadlines_met": sum(a.latency * 1000 <= ms for ms, a in due) / len(due) if due else None,
    }


def spread(values: Iterable[float]) -> dict[str, float] | None:
    """Mean and quantiles (nearest rank); ``None`` of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    found = {"mean": sum(ordered) / len(ordered)}
    for name, share in QUANTILES.items():
        found[name] = ordered[max(0, math.ceil(share * len(ordered)) - 1)]
    return found


def _row(query: Query, answer: Answer) -> dict[str, Any]:
    return {
        "key": query.key,
        "tier": query.tier,
        "sent": answer.sent,
        "ttft": answer.ttft,
        "latency": answer.latency,
        "tokens": answer.tokens,
        "prompt_tokens": answer.prompt_tokens,
        "finish_reason": answer.finish_reason,
        "digest": answer.digest,
        "error": answer.error or None,
    }
