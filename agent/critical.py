"""Which threads pace a target's work, when no launches tell.

A thread is critical when others, directly or through a chain, sleep until it has
done something. Busy threads are not: engines spin by design.
"""

from __future__ import annotations

from collections.abc import Mapping

from quietcore.probes.readings import Count, ThreadWindow

SHARE = 0.25
"""A thread is critical from this part of the most awaited thread's score."""
MIN_AWAITED = 0.02
"""Less awaited time than this part of the wall time says nothing."""
MIN_DEMAND = 0.05
"""Without wake-ups: threads that wanted a CPU for at least this part of the time."""
_ROUNDS = 30


def demand(thread: ThreadWindow) -> float:
    """The part of its time in which a thread ran or wanted to; 0 for an empty window."""
    if not thread.wall_ns:
        return 0.0
    return ((thread.split.on_cpu or 0) + (thread.split.run_delay or 0)) / thread.wall_ns


def critical_threads(
    threads: Mapping[int, ThreadWindow], wakes: Mapping[tuple[int, int], Count] | None
) -> tuple[frozenset[int], str]:
    """The critical threads of a target, and how they were found: ``wake-ups`` or ``demand``.

    Each thread's sleep is handed to those who ended it, in proportion; a thread keeps
    the part of what it is handed in which it ran or wanted to run, and hands on the
    rest (the part it slept itself). What reaches interrupts or other processes leaves the sum.
    What stays with a thread is how long the target waited for it, counted in wall times.
    """
    awaited = _awaited(threads, wakes or {})
    top = max(awaited.values(), default=0.0)
    if top >= MIN_AWAITED:
        # progress needs running: a waker that never works only passes news on
        chosen = {t for t, s in awaited.items() if s >= SHARE * top and demand(threads[t]) >= MIN_AWAITED}
        if chosen:
            return frozenset(chosen), "wake-ups"
    busy = {tid for tid, thread in threads.items() if demand(thread) >= MIN_DEMAND}
    return frozenset(busy), "demand"


def _awaited(threads: Mapping[int, ThreadWindow], wakes: Mapping[tuple[int, int], Count]) -> dict[int, float]:
    slept = dict.fromkeys(threads, 0)
    for (_, wakee), count in wakes.items():
        if wakee in slept:
            slept[wakee] += count.ns
    links: dict[int, list[tuple[int, float]]] = {}
    for (waker, wakee), count in wakes.items():
        if wakee in threads and waker in threads and waker != wakee and slept[wakee]:
            links.setdefault(wakee, []).append((waker, count.ns / slept[wakee]))

    def sleep_share(tid: int) -> float:
        wall = threads[tid].wall_ns
        return min(slept[tid] / wall, 1.0) if wall else 0.0

    # in the first round every thread hands out its own sleep, later what it was handed
    handed = {tid: sleep_share(tid) for tid in threads}
    kept = dict.fromkeys(threads, 0.0)
    for _ in range(_ROUNDS):
        received = dict.fromkeys(threads, 0.0)
        for wakee, amount in handed.items():
            for waker, part in links.get(wakee, ()):
                received[waker] += amount * part
        if sum(received.values()) < 1e-6:
            break
        for tid, amount in received.items():
            kept[tid] += amount * (1 - sleep_share(tid))
            handed[tid] = amount * sleep_share(tid)
    return kept
