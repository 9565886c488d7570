"""Heaps with lazy deletion, of which `quietcore.scheduler.queue` is made."""

from __future__ import annotations

import bisect
import heapq
import math
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from quietcore.scheduler.policy import Job, Rank

T = TypeVar("T")
# ``(tier,)``, or ``(tier, tenant)`` inside it.
Flow = tuple[str, ...]

# A heap is rebuilt when the deleted entries in it outnumber the others by this many.
_SLACK = 64


class Entry(Generic[T]):
    """A job in the queue or just out of it, with what the queue fixed at its arrival.

    Attributes:
        item: what the caller queues.
        flow: tier, and tenant where tenants get fair shares. The bound holds in the tier.
        due: when its bound on waiting is reached; infinite without one.
        charged: shared cost its flow has been charged for it.
        rests: how often it was set aside.
        ranked: the last change of the estimates that its job has heard of.
    """

    __slots__ = (
        "charged",
        "due",
        "flow",
        "item",
        "job",
        "lane",
        "ranked",
        "rests",
        "sequence",
        "stamp",
        "wakes",
    )

    def __init__(self, job: Job, item: T, flow: Flow, due: float, sequence: int) -> None:
        self.job = job
        self.item = item
        self.flow = flow
        self.due = due
        self.sequence = sequence
        self.charged = 0.0
        self.ranked = 0
        self.rests = 0
        self.wakes = 0
        self.lane: Lane[T] | FlowLane[T] | None = None
        self.stamp = 0


_Node = tuple[Rank, int, int, Entry[T]]


class Lane(Generic[T]):
    """Entries by rank, then by arrival."""

    def __init__(self) -> None:
        self._heap: list[_Node[T]] = []
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def push(self, entry: Entry[T], rank: Rank) -> None:
        self.insert(entry, rank)
        entry.lane = self

    def insert(self, entry: Entry[T], rank: Rank) -> None:
        entry.stamp += 1
        heapq.heappush(self._heap, (rank, entry.sequence, entry.stamp, entry))
        self._live += 1

    def discard(self, entry: Entry[T]) -> None:
        """Takes out an entry that is in; its node stays in the heap until it comes up."""
        entry.stamp += 1
        entry.lane = None
        self._live -= 1
        if len(self._heap) > 2 * self._live + _SLACK:
            self._heap = [node for node in self._heap if node[2] == node[3].stamp]
            heapq.heapify(self._heap)

    def head(self) -> Entry[T] | None:
        heap = self._heap
        while heap:
            entry = heap[0][3]
            if heap[0][2] == entry.stamp:
                return entry
            heapq.heappop(heap)
        return None

    def __iter__(self) -> Iterator[Entry[T]]:
        """In order."""
        return (node[3] for node in sorted(self._heap, key=lambda node: node[:3]) if node[2] == node[3].stamp)


class ShareCounters:
    """What each flow has been served, over its weight: whose turn it is among flows.

    These are the virtual token counters of VTC (OSDI'24, arXiv 2401.00588). As there, the backlogged flow of
    the lowest counter goes next, its counter grows by what it is served over its weight, and a flow that
    comes back from idleness starts no lower than the lowest of those that are backlogged (or the last that
    was), so that nobody saves up service by staying away. Three things differ. The unit is seconds of shared
    cost, not weighted tokens. A request is charged what it is expected to cost when it is admitted, and the
    difference when it ends (the paper's variant with length prediction): until then a flow's share is wrong
    by the errors of its running requests at most. And inside a flow the order is the policy's.
    """

    MAX_IDLE = 4096

    def __init__(self) -> None:
        self.waiting: dict[Flow, int] = {}
        self._served: dict[Flow, float] = {}
        self._start = 0.0
        # Of the backlogged; a counter that has grown since is put right when it comes up.
        self._lowest: list[tuple[float, Flow]] = []

    def __getitem__(self, flow: Flow) -> float:
        return self._served.get(flow, self._start)

    def charge(self, flow: Flow, seconds: float) -> None:
        if not math.isfinite(seconds):
            return
        self._served[flow] = self[flow] + seconds
        if seconds < 0 and flow in self.waiting:
            self._note(flow)

    def enter(self, flow: Flow) -> None:
        """A request of ``flow`` waits."""
        jobs = self.waiting.get(flow, 0)
        if jobs == 0:
            if self.waiting:
                self._start = self._least()
            if len(self._served) > len(self.waiting) + self.MAX_IDLE:
                self._served = {each: self[each] for each in self.waiting}
            self._served[flow] = max(self[flow], self._start)
        self.waiting[flow] = jobs + 1
        if jobs == 0:
            self._note(flow)

    def leave(self, flow: Flow) -> None:
        """A request of ``flow`` waits no more."""
        jobs = self.waiting[flow] - 1
        if jobs:
            self.waiting[flow] = jobs
        else:
            del self.waiting[flow]
            self._start = self[flow]

    def _note(self, flow: Flow) -> None:
        heapq.heappush(self._lowest, (self[flow], flow))
        if len(self._lowest) > 2 * len(self.waiting) + _SLACK:
            self._lowest = [(self[each], each) for each in self.waiting]
            heapq.heapify(self._lowest)

    def _least(self) -> float:
        """The lowest counter of the backlogged, of which there are some."""
        lowest = self._lowest
        while True:
            served, flow = lowest[0]
            if flow not in self.waiting or served > self[flow]:
                heapq.heappop(lowest)
            elif served < self[flow]:
                heapq.heapreplace(lowest, (self[flow], flow))
            else:
                return served


class FlowLane(Generic[T]):
    """Flows, each a `Lane`; the next entry is the head of the flow of the lowest counter.

    Flows are told apart by ``depth`` of their names: 1 for tiers, 2 for tenants in them. One whose counter
    has changed has to be named to `touch`.
    """

    def __init__(self, served: ShareCounters, depth: int) -> None:
        self._served = served
        self._depth = depth
        self._flows: dict[Flow, Lane[T]] = {}
        self._order: list[tuple[float, int, Flow]] = []
        self._live = 0
        self._ticket = 0

    def __len__(self) -> int:
        return self._live

    def push(self, entry: Entry[T], rank: Rank) -> None:
        flow = entry.flow[: self._depth]
        lane = self._flows.get(flow)
        if lane is None:
            lane = self._flows[flow] = Lane()
            self.touch(flow)
        lane.insert(entry, rank)
        entry.lane = self
        self._live += 1

    def discard(self, entry: Entry[T]) -> None:
        flow = entry.flow[: self._depth]
        lane = self._flows[flow]
        lane.discard(entry)
        self._live -= 1
        if not lane:
            del self._flows[flow]

    def touch(self, flow: Flow) -> None:
        if flow not in self._flows:
            return
        self._ticket += 1
        heapq.heappush(self._order, (self._served[flow], self._ticket, flow))
        if len(self._order) > 2 * len(self._flows) + _SLACK:
            self._order = [(self._served[each], 0, each) for each in self._flows]
            heapq.heapify(self._order)

    def head(self) -> Entry[T] | None:
        order = self._order
        while order:
            served, _, flow = order[0]
            if flow in self._flows and self._served[flow] == served:
                return self._flows[flow].head()
            heapq.heappop(order)
        return None

    def __iter__(self) -> Iterator[Entry[T]]:
        """Flow by flow in the order of their counters now, in order inside a flow."""
        for flow in sorted(self._flows, key=self._served.__getitem__):
            yield from self._flows[flow]


class RecentQuantile:
    """A quantile of the last values, exact."""

    def __init__(self, share: float, window: int = 1000) -> None:
        self._share = share
        self._window = window
        self._in_order: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, value: float) -> float:
        """The quantile, ``value`` among them."""
        self._in_order.append(value)
        bisect.insort(self._sorted, value)
        if len(self._in_order) > self._window:
            del self._sorted[bisect.bisect_left(self._sorted, self._in_order.popleft())]
        return self._sorted[int(self._share * (len(self._sorted) - 1))]
