"""Files of named arrays that tell damage: a magic word, a SHA-256, and numpy's archive without pickles."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAGIC = b"QCDRIFT\x01"
_LARGEST = 256 << 20  # bytes
_META = "meta"


class DamagedError(ValueError):
    """The file is not one of ours, is damaged, or is of another version."""


def write(path: Path, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Replaces the file at once or not at all; the same content gives the same bytes.

    Raises:
        OSError: it cannot be written.
    """
    import numpy as np

    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(meta, sort_keys=True).encode(), np.uint8)
    named: dict[str, Any] = {_META: text, **arrays}
    np.savez_compressed(buffer, **named)
    body = buffer.getvalue()
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(_MAGIC + hashlib.sha256(body).digest() + body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The meta data and the arrays.

    Raises:
        OSError: it cannot be read.
        DamagedError: it is not what `write` wrote.
    """
    import numpy as np

    with open(path, "rb") as file:
        content = file.read(_LARGEST + 1)
    start = len(_MAGIC) + hashlib.sha256().digest_size
    body = content[start:]
    if len(content) > _LARGEST or content[:start] != _MAGIC + hashlib.sha256(body).digest():
        raise DamagedError(f"{path} is damaged or not a drift model of this version: delete it")
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(arrays.pop(_META).tobytes())
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DamagedError(f"{path} holds no drift model ({error}): delete it") from error
    return meta, arrays
