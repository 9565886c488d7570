"""The child process that fits: rows come in by stdin, models go out by stdout."""

from __future__ import annotations

import os
import sys

from quietcore.scheduler.drift.refit import Learner, receive, send


def main() -> None:
    """Answers each batch of rows with a model, or with what went wrong, until stdin ends."""
    width, trees = int(sys.argv[1]), sys.argv[2]
    os.nice(10)
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


if __name__ == "__main__":
    main()
