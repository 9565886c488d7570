"""The estimator's state on disk, so that a restarted engine need not learn anew."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from quietcore.scheduler.config import Settings

# Seconds between two saves: while the engine has nothing to do, and however busy it is.
_WHEN_IDLE_S = 30.0
_AT_LAST_S = 600.0
_SHUTDOWN_S = 5.0  # that the engine's end waits for the file


class StateFile:
    """Restores and saves what has ``load(path)`` and ``snapshot()``, whose answer has ``write(path)``.

    A file that is damaged or can't be written costs a line. Writing takes a third of a second, so in the
    engine's step there is only the snapshot; one thread at a time writes.
    """

    def __init__(self, settings: Settings, parallel_config: Any, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._path: Path | None = None
        self._saved = monotonic()
        self._revision = 0
        self._writing: threading.Thread | None = None
        if settings.state:
            # Engines of one server must not write one file.
            rank = getattr(parallel_config, "data_parallel_index", None)
            if rank is None:
                rank = getattr(parallel_config, "data_parallel_rank", 0)
            alone = getattr(parallel_config, "data_parallel_size", 1) == 1
            path = Path(settings.state)
            self._path = path if alone else path.with_name(f"{path.stem}-{rank}{path.suffix}")

    def restore(self, estimator: Any) -> None:
        load = getattr(estimator, "load", None)
        if self._path is None or load is None or not self._path.exists():
            return
        try:
            load(self._path)
        except Exception as error:  # a damaged file may raise anything
            self._warn(
                f"quietcore: the estimator could not be restored from {self._path}: {type(error).__name__}: "
                f"{error}; it starts anew, and the file will be replaced"
            )

    def save_at_times(self, estimator: Any, idle: bool) -> None:
        """After each step: saves what a refit has changed, rarely and best when nobody waits for it.

        Not only at the end, since vLLM's front end may kill the engine before its end.
        """
        if self._path is None or monotonic() - self._saved < (_WHEN_IDLE_S if idle else _AT_LAST_S):
            return
        if not self.join(0.0):
            return
        self._saved = monotonic()
        revision = getattr(estimator, "revision", 0)
        if revision != self._revision:
            self._revision = revision
            self._begin(estimator)

    def save(self, estimator: Any) -> None:
        """At the engine's end: saves, and waits for it some seconds at the most. None: only waits."""
        end = monotonic() + _SHUTDOWN_S
        if self.join(_SHUTDOWN_S):
            self._begin(estimator)
        if not self.join(max(end - monotonic(), 0.0)):
            self._complain(f"{_SHUTDOWN_S:g} s were not enough")

    def join(self, seconds: float) -> bool:
        """Waits so long for a write that is under way; whether there is none any more."""
        if self._writing is not None:
            self._writing.join(seconds)
            if self._writing.is_alive():
                return False
            self._writing = None
        return True

    def _begin(self, estimator: Any) -> None:
        snapshot = getattr(estimator, "snapshot", None)
        if self._path is None or snapshot is None:
            return
        try:
            arguments = (self._path, snapshot())
            thread = threading.Thread(target=self._write, args=arguments, name="quietcore-state", daemon=True)
            thread.start()
            self._writing = thread
        except Exception as error:  # whatever it is, requests are served without
            self._complain(f"{type(error).__name__}: {error}")

    def _write(self, path: Path, snapshot: Any) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            snapshot.write(path)
        except Exception as error:  # as above
            self._complain(f"{type(error).__name__}: {error}")

    def _complain(self, reason: str) -> None:
        self._warn(
            f"quietcore: the estimator could not be saved to {self._path}: {reason}; "
            "choose a file that the server may write"
        )
