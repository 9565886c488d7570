"""Files of named arrays that tell damage: a magic word, a SHA-256, and numpy's archive without pickles."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAGIC = b"QCDRIFT\x01"
_LARGEST = 256 << 20  # bytes
_META = "meta"
_HOLD_S, _REST_S = 0.001, 0.0005

_Item = TypeVar("_Item")


class DamagedError(ValueError):
    """The file is not one of ours, is damaged, or is of another version."""


def gently(items: Iterable[_Item]) -> Iterator[_Item]:
    """The items, with a rest whenever a millisecond has passed.

    Who works through many in a thread would else keep the interpreter's lock from the engine for 5 ms at a
    time, and in one call of C code, as json's, for as long as that runs.
    """
    begun = perf_counter()
    for item in items:
        yield item
        if perf_counter() - begun > _HOLD_S:
            sleep(_REST_S)
            begun = perf_counter()


def write(path: Path, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Replaces the file at once or not at all; the same content gives the same bytes.

    Raises:
        OSError: it cannot be written.
    """
    import numpy as np

    buffer = io.BytesIO()
    text = np.frombuffer(_encode(meta).encode(), np.uint8)
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


def _encode(meta: Mapping[str, Any]) -> str:
    """As JSON; an iterator becomes a list, which is worked through as `gently` does."""
    encode = json.JSONEncoder(sort_keys=True).encode
    parts = []
    for name, value in sorted(meta.items()):
        if isinstance(value, Iterator):
            text = f"[{', '.join([encode(each) for each in gently(value)])}]"
        else:
            text = encode(value)
        parts.append(f"{encode(name)}: {text}")
    return f"{{{', '.join(parts)}}}"


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
