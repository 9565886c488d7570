"""Who goes next: policies as pure functions from a job to a sort key that never depends on the time.

A key that changed with time would have to be worked out anew for every waiting request in every step. Two
things that seem to need the clock do without it: linear aging, since ``cost - weight x (now - arrival)``
orders jobs as ``cost + weight x arrival`` does, and slack, since ``deadline - now - service`` orders them as
``deadline - service`` does. What must happen at a given moment (a deadline that presses or can't be met any
more, a bound on waiting that is reached) is a timer of `quietcore.scheduler.queue`.

FIFO, Priority, Weighted, SJF and Aging are the five of DriftSched (arXiv 2606.02982); `drift` is ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

Rank = tuple[float, ...]

STANDARD = "standard"
# DriftSched's tier weights. A tier that isn't listed counts as standard.
TIER_WEIGHTS: Mapping[str, float] = MappingProxyType({"premium": 50.0, STANDARD: 30.0, "batch": 20.0})

_TIER_LETTERS = 16  # as the engine page has room for
_ODD = re.compile(r"[^a-z0-9_.:-]")


def tier_name(given: str) -> str:
    """A tier's name as it is compared, counted and shown, whoever wrote it: operator or client.

    Lower-cased, at most 16 letters, digits and ``_.:-``; anything else becomes ``_``.
    """
    return _ODD.sub("_", given.strip().lower())[:_TIER_LETTERS]


NAMES = ("fifo", "priority", "weighted", "sjf", "aging", "drift")

# Seconds of shared cost that a second of waiting makes good; dimensionless, as both are seconds of the
# engine.
AGING = 0.2
# With a bound on waiting, aging is not needed: at the same P99 the bound alone leaves more of the gain in the
# mean (`quietcore bench policy` shows both).
DRIFT_AGING = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """A waiting request, as far as its place in the queue goes.

    Attributes:
        key: unique among those that wait.
        arrival: seconds, of the clock that also tells the queue the time.
        cost: expected remaining seconds of engine time, the batch shared with others.
        service: expected remaining seconds from admission to the last token.
        tier: names the weight; see ``TIER_WEIGHTS``.
        priority: the client's, lower is earlier (vLLM's sense).
        deadline: when the last token is due, of the clock of ``arrival``; infinite if it is not.
        tenant: who is charged, where tenants get fair shares.
    """

    key: str
    arrival: float
    cost: float
    service: float = 0.0
    tier: str = STANDARD
    priority: int = 0
    deadline: float = math.inf
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request may be overtaken: a bound on its waiting, fixed when it arrives.

    The yardstick is the *fair wait*: how long first-come-first-served inside its tier would let the request
    wait, the engine being shared among tiers by their weights (the fluid model of weighted fair queueing,
    Parekh and Gallager 1993). It is known at arrival, since what waits is known in seconds of shared cost. A
    request is promised that its latency is at most ``stretch`` times the fair one, or that its wait is at
    most the ``usual`` one of its tier: what only the unlucky few have to bear under first-come-first-served
    spoils no percentile that anybody watches. The yardstick grows with the load and with the size of
    requests, so no second has to be tuned to a model.

    Attributes:
        stretch: latency allowed, over the request's fair latency (wait and service); 1 or more.
        usual: the quantile of the tier's recent fair waits that is allowed to everybody.
        floor: seconds that anybody may wait, however short the queue was.
        ceiling: seconds after which it is anybody's turn, however long the queue was.
    """

    stretch: float = 1.35
    usual: float = 0.95
    floor: float = 0.0
    ceiling: float = math.inf

    def bound(self, service: float, fair_wait: float, usual_wait: float = 0.0) -> float:
        """Seconds a request may wait until none of its tier goes ahead that came after it.

        ``service`` is what it takes itself once it is admitted.
        """
        stretched = self.stretch * (fair_wait + service) - service
        return min(max(stretched, usual_wait, self.floor), self.ceiling)


@dataclass(frozen=True, slots=True)
class Policy:
    """An order, and which of the queue's timers go with it.

    Attributes:
        key: the order, smallest first; jobs of the same key go by arrival.
        weights: of the tiers.
        deadlines: whether a deadline that presses goes ahead of the order.
        patience: the bound on waiting; ``None`` lets the order starve whom it will.
        fair: whether tenants get equal shares, the order holding inside a tenant.
        strict: whether all of this holds among requests of the same ``priority`` only, lower ones going first
            whatever the rest says; shares are not kept then.
    """

    name: str
    key: Callable[[Job], Rank]
    weights: Mapping[str, float] = field(default_factory=lambda: TIER_WEIGHTS)
    deadlines: bool = False
    patience: Patience | None = None
    fair: bool = False
    strict: bool = False

    def weight(self, tier: str) -> float:
        return self.weights.get(tier) or self.weights.get(STANDARD, 1.0)


def fifo(job: Job) -> Rank:
    """First come, first served."""
    return (job.arrival,)


def sjf(job: Job) -> Rank:
    """Least expected remaining cost first."""
    return (job.cost, job.arrival)


def priority(weights: Mapping[str, float] = TIER_WEIGHTS) -> Callable[[Job], Rank]:
    """Strictly by the client's priority, then by tier, then by arrival."""
    negative = {tier: -weight for tier, weight in weights.items()}
    standard = negative.get(STANDARD, -1.0)

    def key(job: Job) -> Rank:
        return (job.priority, negative.get(job.tier, standard), job.arrival)

    return key


def weighted(weights: Mapping[str, float] = TIER_WEIGHTS) -> Callable[[Job], Rank]:
    """By tier weight plus seconds waited: premium goes as if it had come 20 s before standard, 30 s before
    batch.
    """
    standard = weights.get(STANDARD, 1.0)

    def key(job: Job) -> Rank:
        return (job.arrival - weights.get(job.tier, standard),)

    return key


def aging(weight: float) -> Callable[[Job], Rank]:
    """By cost less ``weight`` times the seconds waited."""

    def key(job: Job) -> Rank:
        return (job.cost + weight * job.arrival, job.arrival)

    return key


def drift(weight: float = DRIFT_AGING, weights: Mapping[str, float] = TIER_WEIGHTS) -> Callable[[Job], Rank]:
    """By cost over tier weight, less ``weight`` times the seconds waited.

    The standard tier's cost counts as it is, so that ``weight`` means the same with and without tiers.
    Ordering by cost over weight minimises the weighted mean of completion times where costs are certain
    (Smith's rule, 1956).
    """
    standard = weights.get(STANDARD, 1.0)
    discount = {tier: standard / each for tier, each in weights.items() if each > 0}

    def key(job: Job) -> Rank:
        return (job.cost * discount.get(job.tier, 1.0) + weight * job.arrival, job.arrival)

    return key


def build(
    name: str = "drift",
    *,
    aging_weight: float | None = None,
    weights: Mapping[str, float] = TIER_WEIGHTS,
    patience: Patience | None = None,
    fair: bool = False,
    strict: bool = False,
) -> Policy:
    """The policy of that name, one of ``NAMES``; ``ValueError`` if there is none.

    Only `drift` looks at deadlines and takes ``patience``; the published five are left as published.
    ``aging_weight`` is for `aging` (default ``AGING``) and `drift`.
    """
    keys: dict[str, Callable[[Job], Rank]] = {
        "fifo": fifo,
        "priority": priority(weights),
        "weighted": weighted(weights),
        "sjf": sjf,
        "aging": aging(AGING if aging_weight is None else aging_weight),
        "drift": drift(DRIFT_AGING if aging_weight is None else aging_weight, weights),
    }
    if name not in keys:
        raise ValueError(f"unknown policy {name!r}: choose one of {', '.join(NAMES)}")
    ours = name == "drift"
    return Policy(name, keys[name], weights, ours, patience if ours else None, fair and not strict, strict)
