"""Refits at once, for benchmarks, or in a process of its own, for engines.

Fitting holds the interpreter's lock for milliseconds at a time, so that a thread alone would stall the
engine. A thread hands new rows to a child process of low priority and waits for the fitted model.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
import time
from typing import IO, TYPE_CHECKING, Any, Protocol

from quietcore.scheduler.drift import fitting
from quietcore.scheduler.drift.rows import Batch, RowStore

if TYPE_CHECKING:
    from quietcore.scheduler.drift.fitting import Fitted

_log = logging.getLogger(__name__)
_LONGEST_FIT = 120.0  # seconds, after which the child is taken for hung
_MOST_SHARE = 0.2  # of the time may go into refits: busy engines end requests faster than they teach
_RETRY = (1.0, 10.0, 60.0, 600.0)  # seconds of rest after failures in a row
_HEAD = struct.Struct("<Q")
WORKER = "quietcore.scheduler.drift.worker"


class Learner:
    """Rows and the last fit: what a refit starts from."""

    def __init__(self, width: int, trees: str) -> None:
        self.store = RowStore(width)
        self._fit_forest = _choose(trees)
        self._fitted: Fitted | None = None

    def fit(self, seed: int) -> Fitted:
        self._fitted = fitting.fit(self.store.rows(), self._fitted, seed, self._fit_forest)
        return self._fitted


def _choose(trees: str) -> fitting.FitForest:
    """LightGBM may be there and not load, as without its OpenMP library."""
    if trees == "lightgbm":
        try:
            import lightgbm  # noqa: F401
        except (ImportError, OSError) as error:
            _log.warning("quietcore: LightGBM does not load (%s); the drift model does without", error)
        else:
            return fitting.fit_lightgbm
    return fitting.fit_oblivious


class Refitter(Protocol):
    """Where refits are done."""

    def request(self, store: RowStore, seed: int) -> bool:
        """Asks for a refit on what is stored now; False while one is under way, or none can be."""

    def take(self) -> Fitted | None:
        """The newest model, once."""

    def close(self) -> None:
        """Ends what was started."""


class InlineRefitter:
    """Refits within `request`: the same rows give the same model at the same time."""

    def __init__(self, width: int, trees: str) -> None:
        self._learner = Learner(width, trees)
        self._fitted: Fitted | None = None

    def request(self, store: RowStore, seed: int) -> bool:
        self._learner.store = store
        self._fitted = self._learner.fit(seed)
        return True

    def take(self) -> Fitted | None:
        fitted, self._fitted = self._fitted, None
        return fitted

    def close(self) -> None:
        return None


class BackgroundRefitter:
    """Refits in a child process. What fails is logged once and tried again later, with ever longer rests."""

    def __init__(self, width: int, trees: str) -> None:
        self._width, self._trees = width, trees
        self._orders: queue.Queue[tuple[Batch, int] | None] = queue.Queue(1)
        self._fitted: Fitted | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._store: RowStore | None = None
        self._sent = 0
        self._busy = False
        self._failures = 0
        self._rest_until = 0.0
        self._closed = False

    def request(self, store: RowStore, seed: int) -> bool:
        alive = self._thread is not None and self._thread.is_alive()
        if self._closed or (alive and self._busy) or time.monotonic() < self._rest_until:
            return False
        if not alive or store is not self._store:
            self._end_child()
            self._store = store
        if not alive:
            self._orders = queue.Queue(1)
            self._thread = threading.Thread(target=self._serve, name="quietcore-refit", daemon=True)
            self._busy = False
            try:
                self._thread.start()
            except RuntimeError as error:
                self._fail(error)
                return False
        self._busy = True
        batch, self._sent = store.since(self._sent), store.total
        self._orders.put((batch, seed))
        return True

    def take(self) -> Fitted | None:
        fitted, self._fitted = self._fitted, None
        return fitted

    def close(self) -> None:
        self._closed = True
        thread = self._thread
        self._end_child()
        if thread is not None and thread.is_alive():
            if not self._busy:
                self._orders.put(None)
            thread.join(5.0)
        self._end_child()

    def _serve(self) -> None:
        orders = self._orders
        while True:
            order = orders.get()
            if order is None:
                return
            begun = time.monotonic()
            try:
                self._fitted = self._ask(*order)
                self._failures = 0
                ended = time.monotonic()
                self._rest_until = ended + (ended - begun) * (1 / _MOST_SHARE - 1)
            except Exception as error:  # whatever it is, the engine goes on with the model it has
                self._end_child()
                if self._closed:
                    return
                self._fail(error)
            finally:
                self._busy = False

    def _ask(self, batch: Batch, seed: int) -> Fitted:
        if self._child is None:
            self._child = _start_child(self._width, self._trees)
        child = self._child
        watch = threading.Timer(_LONGEST_FIT, child.kill)
        watch.daemon = True
        watch.start()
        try:
            send(child.stdin, (batch, seed))
            answer = receive(child.stdout)
        finally:
            watch.cancel()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        fitted: Fitted = answer
        return fitted

    def _fail(self, error: Exception) -> None:
        self._sent = 0  # a new child needs all rows
        rest = _RETRY[min(self._failures, len(_RETRY) - 1)]
        self._rest_until = time.monotonic() + rest
        self._failures += 1
        if self._failures == 1:
            _log.warning(
                "quietcore: refit failed (%s); estimates stay as they are, next try in %.0f s", error, rest
            )

    def _end_child(self) -> None:
        child, self._child = self._child, None
        self._sent = 0
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _start_child(width: int, trees: str) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.Popen(
        [sys.executable, "-m", WORKER, str(width), trees],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )


def send(pipe: IO[bytes] | None, message: Any) -> None:
    """Pickled: both ends of the pipe are ours."""
    if pipe is None:
        raise BrokenPipeError("no pipe to the refit process")
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    pipe.write(_HEAD.pack(len(content)))
    pipe.write(content)
    pipe.flush()


def receive(pipe: IO[bytes] | None) -> Any:
    """What `send` wrote.

    Raises:
        EOFError: the other end is gone.
    """
    head = pipe.read(_HEAD.size) if pipe is not None else b""
    if len(head) < _HEAD.size:
        raise EOFError("the refit process ended")
    (size,) = _HEAD.unpack(head)
    content = pipe.read(size) if pipe is not None else b""
    if len(content) < size:
        raise EOFError("the refit process ended")
    return pickle.loads(content)
