"""Independent runs over the cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from typing import TypeVar

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def run(
    function: Callable[[_Task], _Result],
    tasks: Sequence[_Task],
    jobs: int,
    progress: Callable[[_Task], None] = lambda task: None,
) -> list[_Result]:
    """``function`` of each task, in the order of the tasks, by up to ``jobs`` processes.

    The first exception ends all. Workers are spawned, not forked: the libraries in use have threads.
    """
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        found = []
        for task in tasks:
            found.append(function(task))
            progress(task)
        return found
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool:
        futures: dict[Future[_Result], _Task] = {pool.submit(function, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                future.result()
                progress(futures[future])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]
