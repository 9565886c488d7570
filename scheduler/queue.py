"""The queue: requests by their policy's key, and what lifts one out of that order.

Knows nothing of an engine. Three lanes, each before the next:

    overdue    its bound on waiting is reached: by arrival inside a tier, tiers by their shares of the engine
    pressing   its deadline has come close and can still be met: by the latest time to start it
    ordinary   by the policy's key

With fair shares the last two are one lane in which the least-served tenant goes first, and a deadline that
presses goes ahead of the same tenant's others only: it costs nothing to send one with everything.

A timer heap moves requests between them, and only `settle` looks at it: between two calls of `settle` the
order is frozen, but for what is pushed and taken. Nothing costs more than the logarithm of the queue's
length, except iteration.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from typing import Generic

from quietcore.scheduler.lanes import Entry, Flow, FlowLane, Lane, RecentQuantile, ShareCounters, T
from quietcore.scheduler.policy import Job, Policy, Rank
from quietcore.scheduler.turns import Turns

__all__ = ["Entry", "JobQueue"]

# A first request that can't be started is set aside after so many steps in a row, for so many steps, and so
# often at most: what doesn't fit now must not stop what does, nor starve by it. An overdue one is never set
# aside.
TRIES = 4
REST_STEPS = 16
MAX_RESTS = 8

# A changed estimate moves a request only if its cost changes by this share, or its service where it has a
# deadline.
_WORTH_MOVING = 0.02
# So much of what is ranked anew at a time are requests with a deadline, while there are any: for them alone
# the seconds count, not only how they compare.
_WITH_DEADLINE = 0.75

# Timers of requests that have left are dropped when they outnumber the others by this many.
_SLACK = 64

# So many tenants with something waiting have a share each (one in each tier); what others send then shares
# one, since names are a client's to invent.
MAX_TENANTS = 1024
_OTHERS = "\0"


class JobQueue(Generic[T]):
    """Waiting jobs, each with an item of the caller's.

    Not thread-safe. Time is of the clock that the jobs' arrivals are of; it may jump. ``promoted`` counts how
    often one has become overdue.
    """

    def __init__(self, policy: Policy, now: float = 0.0) -> None:
        self.policy = policy
        self.now = now
        self.promoted = 0
        self._step = 0
        self._sequence = 0
        self._entries: dict[str, Entry[T]] = {}
        self._tiers = ShareCounters()
        self._tenants = ShareCounters()
        self._overdue: Lane[T] | FlowLane[T] = Lane() if policy.strict else FlowLane(self._tiers, 1)
        self._pressing: Lane[T] = Lane()
        self._ordinary: Lane[T] | FlowLane[T] = FlowLane(self._tenants, 2) if policy.fair else Lane()
        self._resting: Lane[T] = Lane()
        self._timers: list[tuple[float, int, int, Entry[T]]] = []
        # Seconds of shared cost that wait, by tier.
        self._backlog: dict[str, float] = {}
        self._usual: dict[str, RecentQuantile] = {}
        self._stuck: tuple[Entry[T] | None, int] = (None, 0)
        self._change = 0
        self._timed: Turns[T] = Turns()
        self._untimed: Turns[T] = Turns()

    # --- what is in it --------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Entry[T]]:
        """In order, as far as it is known now (the turns of flows are not foreseen). Costs a sort."""
        lanes = [entry for lane in self._lanes() for entry in lane]
        if self.policy.strict:
            lanes.sort(key=lambda entry: entry.job.priority)
        return iter(lanes)

    def _lanes(self) -> tuple[Lane[T] | FlowLane[T], ...]:
        return self._overdue, self._pressing, self._ordinary, self._resting

    def entries(self) -> list[Entry[T]]:
        """All that wait, in no order; works even where an order can't be told any more."""
        return list(self._entries.values())

    def get(self, key: str) -> Entry[T] | None:
        return self._entries.get(key)

    def is_overdue(self, entry: Entry[T]) -> bool:
        return entry.lane is self._overdue

    @property
    def overdue(self) -> int:
        """How many wait beyond their bound."""
        return len(self._overdue)

    @property
    def backlog(self) -> float:
        """Seconds of shared cost that wait."""
        return sum(self._backlog.values())

    def count_by_tier(self) -> dict[str, int]:
        return {tier: jobs for (tier,), jobs in self._tiers.waiting.items()}

    # --- in and out -----------------------------------------------------------------------------------------

    def push(self, job: Job, item: T) -> Entry[T]:
        """Queues a job; its bound on waiting is fixed here. A job of the same key is replaced."""
        if job.key in self._entries:
            self.remove(job.key)
        self._sequence += 1
        entry = Entry(job, item, self._flow(job), self._due(job), self._sequence)
        entry.ranked = self._change
        self._enter(entry)
        return entry

    def put_back(self, entry: Entry[T], job: Job | None = None) -> None:
        """Queues again what was taken, its arrival and bound kept; ``job`` tells what is left of it."""
        if job is not None:
            entry.job = job
        self._charge(entry, -entry.job.cost)
        self._enter(entry)

    def peek(self) -> Entry[T]:
        """The next entry, left in; ``IndexError`` if there is none."""
        heads = (head for lane in self._lanes() if lane and (head := lane.head()) is not None)
        if self.policy.strict:
            entry = min(heads, key=lambda head: (head.lane is self._resting, head.job.priority), default=None)
        else:
            entry = next(heads, None)
        if entry is None:
            raise IndexError("peek from an empty queue")
        return entry

    def pop(self) -> Entry[T]:
        """Takes the next entry; ``IndexError`` if there is none."""
        entry = self.peek()
        self._charge(entry, entry.job.cost)
        self._leave(entry)
        return entry

    def remove(self, key: str) -> Entry[T] | None:
        """Takes out the job of that key, if it waits."""
        entry = self._entries.get(key)
        if entry is not None:
            self._leave(entry)
        return entry

    def account(self, entry: Entry[T], cost: float) -> None:
        """What a job that was taken cost in the end, seconds: its flow's next turn comes by that."""
        self._charge(entry, cost - entry.charged)

    def _flow(self, job: Job) -> Flow:
        if not self.policy.fair:
            return (job.tier,)
        flow = (job.tier, job.tenant)
        waiting = self._tenants.waiting
        return flow if flow in waiting or len(waiting) < MAX_TENANTS else (job.tier, _OTHERS)

    def _enter(self, entry: Entry[T]) -> None:
        tier = entry.flow[0]
        self._tiers.enter(entry.flow[:1])
        if self.policy.fair:
            self._tenants.enter(entry.flow)
        self._backlog[tier] = self._backlog.get(tier, 0.0) + entry.job.cost
        self._turns(entry.job).enter(entry, self._change)
        self._entries[entry.job.key] = entry
        self._place(entry)

    def _leave(self, entry: Entry[T]) -> None:
        if entry.lane is not None:
            entry.lane.discard(entry)
        tier = entry.flow[0]
        self._tiers.leave(entry.flow[:1])
        if self.policy.fair:
            self._tenants.leave(entry.flow)
        self._backlog[tier] -= entry.job.cost
        if entry.flow[:1] not in self._tiers.waiting:
            del self._backlog[tier]  # and with it what rounding has left
        self._turns(entry.job).leave(entry, self._change)
        # Last: should anything above fail, it is still among `entries`.
        del self._entries[entry.job.key]

    def _charge(self, entry: Entry[T], seconds: float) -> None:
        entry.charged += seconds
        flow, share = entry.flow, seconds / self.policy.weight(entry.flow[0])
        self._tiers.charge(flow[:1], share)
        if isinstance(self._overdue, FlowLane):
            self._overdue.touch(flow[:1])
        if isinstance(self._ordinary, FlowLane):
            self._tenants.charge(flow, share)
            self._ordinary.touch(flow)

    def _due(self, job: Job) -> float:
        patience = self.policy.patience
        if patience is None:
            return math.inf
        usual = self._usual.get(job.tier)
        if usual is None:
            usual = self._usual[job.tier] = RecentQuantile(patience.usual)
        wait = self._fair_wait(job.tier)
        return job.arrival + patience.bound(job.service, wait, usual.add(wait))

    def _fair_wait(self, tier: str) -> float:
        """Seconds until what waits of a tier is through, if each tier has its share of the engine."""
        own = self._backlog.get(tier)
        if own is None:
            return 0.0
        per_weight = own / self.policy.weight(tier)
        return own + sum(
            min(cost, per_weight * self.policy.weight(other))
            for other, cost in self._backlog.items()
            if other != tier
        )

    # --- time -----------------------------------------------------------------------------------------------

    def settle(self, now: float) -> None:
        """Once a step, before the queue is asked: moves what the time has moved."""
        self.now = now
        self._step += 1
        timers = self._timers
        while timers and timers[0][0] <= now:
            _, _, stamp, entry = heapq.heappop(timers)
            if entry.stamp == stamp:
                self._move(entry)
                self.promoted += self.is_overdue(entry)
        while (resting := self._resting.head()) is not None:
            if resting.wakes > self._step and len(self._resting) < len(self._entries):
                break
            self._move(resting)

    def _move(self, entry: Entry[T]) -> None:
        if entry.lane is not None:
            entry.lane.discard(entry)
            self._place(entry)

    def _place(self, entry: Entry[T]) -> None:
        """Puts an entry into the lane of this moment, with a timer for the next change."""
        job, now = entry.job, self.now
        first: Rank = (job.priority,) if self.policy.strict else ()
        if now >= entry.due:
            self._overdue.push(entry, (*first, job.arrival))
            return
        change = entry.due
        if self.policy.deadlines and job.deadline < math.inf:
            latest = job.deadline - job.service
            # Half of the slack is spent in the common order, or far deadlines would be a way to the front.
            presses = latest - 0.5 * max(latest - job.arrival, 0.0)
            if now < presses:
                change = min(change, presses)
            elif now <= latest:
                if self.policy.fair:
                    self._ordinary.push(entry, (0.0, latest, job.arrival))
                else:
                    self._pressing.push(entry, (*first, latest, job.arrival))
                self._wake_at(min(change, math.nextafter(latest, math.inf)), entry)
                return
        if self.policy.fair:
            first = (1.0,)
        self._ordinary.push(entry, (*first, *self.policy.key(job)))
        self._wake_at(change, entry)

    def _wake_at(self, when: float, entry: Entry[T]) -> None:
        if when == math.inf:
            return
        heapq.heappush(self._timers, (when, entry.sequence, entry.stamp, entry))
        if len(self._timers) > 2 * len(self._entries) + _SLACK:
            self._timers = [timer for timer in self._timers if timer[2] == timer[3].stamp]
            heapq.heapify(self._timers)

    # --- what the engine tells ------------------------------------------------------------------------------

    def stall(self) -> bool:
        """The first request could not be started in this step though a slot was free; true if it was set
        aside.
        """
        if len(self._entries) < 2:
            return False
        head = self.peek()
        stuck, steps = self._stuck
        steps = steps + 1 if stuck is head else 1
        self._stuck = (head, steps)
        if steps < TRIES or head.rests >= MAX_RESTS or head.lane in (self._overdue, self._resting):
            return False
        self._stuck = (None, 0)
        if head.lane is not None:
            head.lane.discard(head)
        head.rests += 1
        head.wakes = self._step + REST_STEPS
        self._resting.push(head, (head.wakes,))
        self._wake_at(head.due, head)
        return True

    def start_rerank(self) -> None:
        """Estimates have changed: `rerank` will go once through all that wait now."""
        self._change += 1
        self._timed.begin()
        self._untimed.begin()

    @property
    def to_rerank(self) -> int:
        return self._timed.left + self._untimed.left

    def rerank(self, revise: Callable[[Entry[T]], Job], limit: int) -> int:
        """Asks ``revise`` anew for at most ``limit`` of those that still have their old estimate; returns how
        many. Most of them have a deadline, if as many have.
        """
        asked = 0
        first = math.ceil(_WITH_DEADLINE * limit)
        for turns, most in ((self._timed, first), (self._untimed, limit), (self._timed, limit)):
            while asked < most and (entry := turns.next(self._change)) is not None:
                asked += 1
                self._revise(entry, revise(entry))
        return asked

    def _turns(self, job: Job) -> Turns[T]:
        return self._timed if job.deadline < math.inf else self._untimed

    def _revise(self, entry: Entry[T], job: Job) -> None:
        old = entry.job
        timed = job.deadline < math.inf
        if (
            job.deadline == old.deadline
            and not _moves(old.cost, job.cost)
            and not (timed and _moves(old.service, job.service))
        ):
            return
        if timed != (old.deadline < math.inf):
            self._turns(old).leave(entry, self._change)
            self._turns(job).enter(entry, self._change)
        self._backlog[entry.flow[0]] += job.cost - old.cost
        entry.job = job
        if entry.lane is not self._resting:
            self._move(entry)


def _moves(old: float, new: float) -> bool:
    return abs(new - old) > _WORTH_MOVING * old
