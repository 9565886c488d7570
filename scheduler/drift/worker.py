"""The child process that fits: rows come in by stdin, models go out by stdout."""

from __future__ import annotations

import contextlib
import os
import sys

from quietcore.scheduler.drift.refit import Learner, receive, send


def main() -> None:
    """Answers each batch of rows with a model, or with what went wrong, until stdin ends."""
    width, trees = int(sys.argv[1]), sys.argv[2]
    os.nice(19)
    leave_cores_of(os.getppid())
    # stdout carries models; what a library prints must not get between them
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    learner = Learner(width, trees)
    while True:
        try:
            batch, seed = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            learner.store.merge(batch)
            send(answers, learner.fit(seed))
        except Exception as error:
            send(answers, f"{type(error).__name__}: {error}")


def leave_cores_of(engine: int) -> None:
    """Go to other CPUs of who started the engine, if it has any: a pinned engine wants its own to itself."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(f"/proc/{engine}/stat", "rb") as stat:
            # the state follows the name, which may hold anything; the parent follows the state
            starter = int(stat.read().rpartition(b")")[2].split()[1])
        others = os.sched_getaffinity(starter) - os.sched_getaffinity(0)
        if others:
            os.sched_setaffinity(0, others)


if __name__ == "__main__":
    main()
