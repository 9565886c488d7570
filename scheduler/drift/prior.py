"""What is known of lengths before the first request: fitted by ``scripts/train_prior`` on public prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quietcore.scheduler.drift import ridge, sealed, text
from quietcore.scheduler.drift.forest import ObliviousForest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHIPPED = Path(__file__).with_name("prior.qcd")
FORMAT = "prior 1"
NAMES = ("prior words", "prior")
FEATURES = ("prompt tokens", *text.NAMES)
_WORDS = len(FEATURES)


@dataclass(frozen=True, slots=True)
class Prior:
    """Log of a prompt's length relative to a model's usual one, from its text alone.

    Attributes:
        level: log of the usual length, of the models that it was fitted on.
        table: as `ridge.Ridge.table`.
        forest: over `FEATURES` and the words' score.
    """

    level: float
    table: NDArray[np.float32]
    forest: ObliviousForest

    def fill(self, row: NDArray[np.float64], reading: text.Reading) -> float:
        """Completes a row that begins with `start_row`; returns the prior's score, zero without a text."""
        if not reading.counts[0]:
            return 0.0
        row[_WORDS] = ridge.score(self.table, reading.words)
        row[_WORDS + 1] = score = self.forest.score(row)[0]
        return score


def start_row(reading: text.Reading, prompt_tokens: int) -> list[float]:
    """The features that the prior reads (`FEATURES`) and, still zero, its own (`NAMES`)."""
    return [math.log1p(max(prompt_tokens, 0)), *reading.counts, 0.0, 0.0]


def neutral() -> Prior:
    """A prior that knows nothing, for when there is no file."""
    import numpy as np

    empty = np.zeros((0, 1))
    forest = ObliviousForest(np.zeros(1), empty.astype(np.int64), empty, np.zeros((0, 2)))
    return Prior(math.log(150.0), np.zeros((text.BUCKETS, 2), np.float32), forest)


def schema() -> dict[str, Any]:
    """What a prior's numbers depend on; a file with another schema is of no use."""
    return {"format": FORMAT, "features": list(text.NAMES), "buckets": text.BUCKETS}


@lru_cache(maxsize=8)
def load(path: Path) -> Prior:
    """Reads what ``scripts/train_prior`` wrote.

    Raises:
        OSError: it cannot be read.
        sealed.DamagedError: it is damaged or of another version.
    """
    meta, arrays = sealed.read(path)
    if meta.get("schema") != schema():
        raise sealed.DamagedError(f"{path} is of another version: train it again with scripts/train_prior")
    return unpack(float(meta["level"]), arrays)


def unpack(level: float, arrays: dict[str, NDArray[Any]]) -> Prior:
    """From the small types of the file to those that scoring uses."""
    import numpy as np

    idf = arrays["idf"].astype(np.float32) * arrays["scale"][0]
    weight = arrays["weight"].astype(np.float32) * arrays["scale"][1]
    forest = ObliviousForest(
        arrays["base"].astype(np.float64),
        arrays["feature"].astype(np.int64),
        arrays["threshold"].astype(np.float64),
        arrays["value"].astype(np.float64),
    )
    return Prior(level, np.stack((weight * idf, idf**2), axis=1), forest)
