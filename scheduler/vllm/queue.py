"""vLLM's queue interface over ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy, create_request_queue

from quietcore.scheduler.queue import JobQueue
from quietcore.scheduler.vllm.ledger import Ledger


class DriftQueue(RequestQueue):  # type: ignore[misc]
    """Waiting requests in our order, or in vLLM's own queue once ours has failed.

    "Prepend" is vLLM's word for putting back what it took: a skipped or preempted request. Here that is by
    rank, as is every addition. Where a method of ours raises, ``failed`` is told and vLLM's queue goes on
    with the same requests, so the caller sees no error.

    ``main``: the queue that this one is beside, for what vLLM could not start at once. Before 0.32 vLLM
    empties this one first, whoever waits in the other, so here is only what holds memory; others keep their
    place in line, as in later versions.

    Attributes:
        shown: the request that vLLM was last shown as the first in this step; in some it never looks.
        taken: how many it has taken since then, less those it has put back.
    """

    def __init__(
        self,
        jobs: JobQueue[Any],
        ledger: Ledger,
        failed: Callable[[Exception], None],
        main: DriftQueue | None = None,
    ) -> None:
        self.jobs: JobQueue[Any] | None = jobs
        self.stamp = 0
        self.shown: Any = None
        self.taken = 0
        self._ledger = ledger
        self._failed = failed
        self._main = main
        # Ours keeps priorities strict where vLLM was told to go by them, and only there.
        policy = SchedulingPolicy.PRIORITY if jobs.policy.strict else SchedulingPolicy.FCFS
        self._plain: Any = create_request_queue(policy)
        self._held: list[Any] | None = None

    # --- vLLM's interface ---

    def add_request(self, request: Any) -> None:
        if self._main is not None and self.jobs is not None and not _holds_memory(request):
            self._main.add_request(request)
            return
        if self.jobs is not None:
            try:
                self._add(self.jobs, request)
                return
            except Exception as error:  # whatever it is, the request must not be lost
                self.fail(error)
                if request in self._plain:
                    return
        self._plain.add_request(request)

    def pop_request(self) -> Any:
        if self.jobs:
            try:
                request = self.jobs.pop().item
                self.taken += 1
                return request
            except Exception as error:  # as above
                self.fail(error)
                # vLLM has prepared the one that it was shown, and takes for it whatever it gets.
                if self.shown is not None and self.shown in self._plain:
                    self._plain.remove_requests((self.shown,))
                    return self.shown
        return self._plain.pop_request()

    def peek_request(self) -> Any:
        if self.jobs:
            try:
                self.shown = self.jobs.peek().item
                return self.shown
            except Exception as error:  # as above
                self.fail(error)
        return self._plain.peek_request()

    def prepend_request(self, request: Any) -> None:
        if self._held is not None:
            self._held.append(request)
            return
        if self._main is not None and self.jobs is not None and not _holds_memory(request):
            self._main.prepend_request(request)
            return
        if self.jobs is not None:
            try:
                self._put_back(self.jobs, request)
                return
            except Exception as error:  # as above
                self.fail(error)
                if request in self._plain:
                    return
        self._plain.prepend_request(request)

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        for request in tuple(requests):
            self.prepend_request(request)

    def remove_request(self, request: Any) -> None:
        self.remove_requests((request,))

    def remove_requests(self, requests: Iterable[Any]) -> None:
        gone = tuple(requests)
        if self.jobs is not None:
            try:
                for request in gone:
                    self.jobs.remove(request.request_id)
                return
            except Exception as error:  # as above
                self.fail(error)
        self._plain.remove_requests(gone)

    def __bool__(self) -> bool:
        return len(self) > 0

    def __len__(self) -> int:
        return len(self.jobs) if self.jobs is not None else len(self._plain)

    def __iter__(self) -> Iterator[Any]:
        if self.jobs is not None:
            return iter([entry.item for entry in self.jobs])
        return iter(tuple(self._plain))

    def __contains__(self, request: object) -> bool:
        if self.jobs is not None:
            return getattr(request, "request_id", None) in self.jobs
        return request in self._plain

    def __getitem__(self, index: int) -> Any:
        return list(self)[index]

    # --- ours ---

    def hold(self) -> None:
        """What is put back from now on stays out, until `release`."""
        self._held = []

    def release(self) -> None:
        held, self._held = self._held, None
        for request in held or ():
            self.prepend_request(request)

    def fail(self, error: Exception) -> None:
        """Goes over to vLLM's order for good."""
        if self.jobs is None:
            return
        jobs, self.jobs = self.jobs, None
        items = [entry.item for entry in jobs.entries()]
        for request in sorted(items, key=lambda request: request.arrival_time):
            self._plain.add_request(request)
        self._failed(error)

    def _add(self, jobs: JobQueue[Any], request: Any) -> None:
        record, job = self._ledger.open(request, self.stamp)
        record.entry = jobs.push(job, request)

    def _put_back(self, jobs: JobQueue[Any], request: Any) -> None:
        record = self._ledger.get(request.request_id)
        if record is None or record.entry is None:
            self._add(jobs, request)
            return
        skipped = request.num_preemptions == record.preemptions
        if skipped:
            self.taken -= 1
            jobs.put_back(record.entry)
        else:
            record.preemptions = request.num_preemptions
            self._ledger.preemptions += 1
            jobs.put_back(record.entry, self._ledger.job(request, record))


def _holds_memory(request: Any) -> bool:
    """Whether a request that is not running has blocks of the cache, or some are filled for it."""
    return bool(request.num_computed_tokens > 0 or request.status.name == "WAITING_FOR_REMOTE_KVS")
