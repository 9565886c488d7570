"""The estimator's state on disk, so that a restarted engine need not learn anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from quietcore.scheduler.config import Settings

# Seconds between two saves: while the engine has nothing to do, and however busy it is.
_WHEN_IDLE_S = 30.0
_AT_LAST_S = 600.0


class StateFile:
    """Restores and saves what has ``load`` and ``save``; a file that is damaged or can't be written costs a
    line.
    """

    def __init__(self, settings: Settings, parallel_config: Any, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._path: Path | None = None
        self._saved = monotonic()
        self._revision = 0
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
        self._saved = monotonic()
        revision = getattr(estimator, "revision", 0)
        if revision != self._revision:
            self._revision = revision
            self.save(estimator)

    def save(self, estimator: Any) -> None:
        save = getattr(estimator, "save", None)
        if self._path is None or save is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            save(self._path)
        except Exception as error:
            self._warn(
                f"quietcore: the estimator could not be saved to {self._path}: {type(error).__name__}: "
                f"{error}; choose a file that the server may write"
            )
