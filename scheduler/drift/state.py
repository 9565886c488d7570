"""What the drift model has learned, and its file."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quietcore.scheduler.drift import sealed
from quietcore.scheduler.drift.baselines import Groups, RunningMedian, Window
from quietcore.scheduler.drift.calibration import Calibration
from quietcore.scheduler.drift.fitting import Fitted
from quietcore.scheduler.drift.forest import BitmaskForest, ObliviousForest
from quietcore.scheduler.drift.history import History, Mean
from quietcore.scheduler.drift.local import Seen
from quietcore.scheduler.drift.ridge import Ridge
from quietcore.scheduler.drift.rows import Batch, RowStore
from quietcore.scheduler.drift.text import BUCKETS

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = "drift 2"
_LENGTHS = 256  # of a group that are saved for its running median
_FORESTS: dict[str, type[ObliviousForest | BitmaskForest]] = {
    "oblivious": ObliviousForest,
    "bitmask": BitmaskForest,
}


class Memory:
    """All that is learned, apart from how it is used.

    Attributes:
        history, median, cold: lengths of groups; ``cold`` relative to the prior.
        calibration: errors of late.
        store: rows for the next refit.
        fitted: the model in force, None before the first fit.
        fits: how many there were.
        era: how many changes were told.
    """

    def __init__(self, width: int) -> None:
        self.history = History()
        self.median = RunningMedian()
        self.cold: Groups[Mean] = Groups(Mean)
        self.calibration = Calibration()
        self.store = RowStore(width)
        self.fitted: Fitted | None = None
        self.fits = 0
        self.era = 0


class Snapshot:
    """A copy of a memory, which goes on learning while another thread writes the copy.

    Making one takes some 8 ms for a full memory. What nobody changes afterwards is not copied, and the
    windows of groups, the largest part, are left to `write`: it copies each in one piece, though maybe some
    requests newer than the rest. Groups go into flat lists, as a tuple for each would set off the garbage
    collector.
    """

    def __init__(self, memory: Memory, features: Sequence[str]) -> None:
        calibration = memory.calibration
        self._meta: dict[str, Any] = {
            "format": FORMAT,
            "features": list(features),
            "saved": time.time(),
            "all": memory.median.all.latest(_LENGTHS),
            "spread": calibration.spread.seen(),
            "local": calibration.local.seen(),
            "scale": calibration.scale.state(),
            "trust": calibration.trust.state(),
            "fits": memory.fits,
            "era": memory.era,
        }
        self._history = _copy_means(memory.history.groups)
        self._cold = _copy_means(memory.cold)
        self._windows = [each for group in memory.median.groups.items() for each in group]
        self._batch = memory.store.since(0)
        self._fitted = memory.fitted

    def write(self, path: Path) -> None:
        """Writes the file, at once or not at all.

        Raises:
            OSError: it cannot be written.
        """
        windows = _in_groups_of(2, self._windows)
        meta = {
            **self._meta,
            "history": _in_groups_of(5, self._history),
            "cold": _in_groups_of(5, self._cold),
            "groups": ([key, window.latest(_LENGTHS)] for key, window in windows),
        }
        arrays = _dump_rows(self._batch)
        if self._fitted is not None:
            meta["forest"], meta["rows"] = _dump_fitted(self._fitted, arrays)
        sealed.write(path, meta, arrays)


def load(path: Path, features: Sequence[str]) -> Memory:
    """Reads what `Snapshot.write` wrote.

    Raises:
        OSError: it cannot be read.
        sealed.DamagedError: it is damaged or of another version.
    """
    meta, arrays = sealed.read(path)
    if meta.get("format") != FORMAT or meta.get("features") != list(features):
        raise sealed.DamagedError(f"{path} is of another version of the drift model: delete it")
    try:
        return _restore(meta, arrays, len(features))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise sealed.DamagedError(f"{path} holds no drift model ({error}): delete it") from error


def _restore(meta: dict[str, Any], arrays: dict[str, NDArray[Any]], width: int) -> Memory:
    memory = Memory(width)
    _restore_means(memory.history.groups, meta["history"])
    _restore_means(memory.cold, meta["cold"])
    _restore_window(memory.median.all, meta["all"])
    for key, lengths in meta["groups"]:
        _restore_window(memory.median.groups.touch(_key(key)), lengths)
    calibration = memory.calibration
    for ratio, whole in meta["spread"]:
        calibration.spread.add(float(ratio), bool(whole))
    calibration.local.restore(
        [Seen(float(log), float(ratio), _key(group)) for log, ratio, group in meta["local"]]
    )
    calibration.scale.restore(meta["scale"])
    calibration.trust.restore(meta["trust"])
    memory.fits, memory.era = int(meta["fits"]), int(meta["era"])
    memory.store.merge(_restore_rows(arrays, width))
    if "forest" in meta:
        memory.fitted = _restore_fitted(meta["forest"], int(meta["rows"]), arrays, width + 2)
    return memory


def _copy_means(groups: Groups[Mean]) -> list[Any]:
    """Key and four numbers of each, one after the other."""
    flat: list[Any] = []
    for key, mean in groups.items():
        flat.extend((key, mean.weight, mean.mean, mean.recent, mean.last))
    return flat


def _in_groups_of(size: int, flat: list[Any]) -> Iterator[list[Any]]:
    return (flat[first : first + size] for first in range(0, len(flat), size))


def _restore_means(groups: Groups[Mean], dumped: list[list[Any]]) -> None:
    for key, *numbers in dumped:
        mean = groups.touch(_key(key))
        mean.weight, mean.mean, mean.recent, mean.last = map(float, numbers)


def _restore_window(window: Window, lengths: list[float]) -> None:
    for length in lengths:
        window.add(float(length))


def _key(dumped: Any) -> Hashable:
    """JSON makes lists of the tuples that groups go by."""
    return tuple(dumped) if isinstance(dumped, list) else str(dumped)


def _dump_rows(batch: Batch) -> dict[str, NDArray[Any]]:
    import numpy as np

    return {
        "first": np.array([batch.first]),
        "features": batch.features,
        "numbers": batch.numbers,
        "words": np.concatenate([*batch.words, np.empty(0, np.int64)]).astype(np.uint16),
        "sizes": np.array([len(words) for words in batch.words], np.uint16),
    }


def _restore_rows(arrays: dict[str, NDArray[Any]], width: int) -> Batch:
    import numpy as np

    features, numbers, sizes = arrays["features"], arrays["numbers"], arrays["sizes"].astype(np.int64)
    words = arrays["words"].astype(np.int64)
    count = len(sizes)
    if features.shape != (count, width) or numbers.shape != (count, 3) or sizes.sum() != len(words):
        raise ValueError("rows of another shape")
    if (words >= BUCKETS).any() or not (np.isfinite(features).all() and np.isfinite(numbers).all()):
        raise ValueError("rows out of range")
    pieces = np.split(words, np.cumsum(sizes)[:-1]) if count else []
    return Batch(int(arrays["first"][0]), features, pieces, numbers)


def _dump_fitted(fitted: Fitted, arrays: dict[str, NDArray[Any]]) -> tuple[str, int]:
    """Adds the arrays; returns the kind of forest and the number of rows."""
    arrays["ridge folds"], arrays["ridge table"] = fitted.ridge.folds, fitted.ridge.table
    for name in fitted.forest.ARRAYS:
        arrays[f"forest {name}"] = getattr(fitted.forest, name)
    kind = next(name for name, each in _FORESTS.items() if isinstance(fitted.forest, each))
    return kind, fitted.rows


def _restore_fitted(kind: str, rows: int, arrays: dict[str, NDArray[Any]], width: int) -> Fitted:
    forest = _FORESTS[kind](*[arrays[f"forest {name}"] for name in _FORESTS[kind].ARRAYS])
    if forest.feature.min(initial=0) < 0 or forest.feature.max(initial=0) >= width or len(forest.base) != 2:
        raise ValueError("trees of another model")
    ridge = Ridge(arrays["ridge folds"], arrays["ridge table"])
    if ridge.table.shape != (BUCKETS, 2) or ridge.folds.shape[1:] != (BUCKETS,):
        raise ValueError("words of another model")
    return Fitted(ridge, forest, rows)
