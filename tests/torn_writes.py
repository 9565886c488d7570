"""Writes to the feedback page that broke off: tried by tests and by a bar."""

from __future__ import annotations

import contextlib
import os
import random
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic_ns
from typing import Any

from tests.hostile_pages import OURS, Misled, check, find_record, look_again, make_feedback

from quietcore.scheduler.page import FeedbackPageWriter, FeedbackReader, seqlock
from quietcore.scheduler.page.feedback import SLOT_SIZE, _pack
from quietcore.scheduler.page.seqlock import RecordWriter


class _Stores(bytearray):
    """Notes in which pieces, and in which order, it is written to."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.log: list[tuple[int, bytes]] = []

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, slice):
            self.log.append((key.start, bytes(value)))
        super().__setitem__(key, value)


class _Noting:
    """A ``struct.Struct`` whose ``pack_into`` is noted."""

    def __init__(self, form: struct.Struct) -> None:
        self._form = form

    def pack_into(self, buffer: Any, offset: int, *values: Any) -> None:
        if isinstance(buffer, _Stores):
            buffer.log.append((offset, self._form.pack(*values)))
        self._form.pack_into(buffer, offset, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._form, name)


@contextlib.contextmanager
def noted_stores() -> Iterator[None]:
    """Inside, a `RecordWriter` over `_Stores` tells its stores."""
    originals = seqlock._SEQUENCE, seqlock._HEAD
    seqlock._SEQUENCE, seqlock._HEAD = map(_Noting, originals)  # type: ignore[assignment]
    try:
        yield
    finally:
        seqlock._SEQUENCE, seqlock._HEAD = originals


def stores_of(slot: bytes, body: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The stores by which a `RecordWriter` puts ``body`` into a slot, in order, and the slot after them."""
    buffer = _Stores(slot)
    with noted_stores():
        RecordWriter(buffer, 0).write(body)
    return buffer.log, bytes(buffer)


def torn(slot: bytes, stores: list[tuple[int, bytes]], rng: random.Random) -> bytes:
    """The slot as it is when a writer dies at a random byte of its work, or as another core may see it."""
    found = bytearray(slot)
    done = rng.randrange(len(stores) + 1)
    seen = stores[:done]
    if rng.random() < 0.3:
        seen = [store for store in stores if rng.random() < 0.5]
    for offset, content in seen:
        found[offset : offset + len(content)] = content
    if done < len(stores):
        offset, content = stores[done]
        part = rng.randrange(len(content) + 1)
        found[offset : offset + part] = content[:part]
    return bytes(found)


def try_torn_writes(folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """Lets ``count`` writes break off, and shows them to an engine that knew the record, and to a new one.

    Each may believe the record before or the new one, whole. After each, the next whole write must be seen.
    """
    rng = random.Random(seed)
    path = folder / "page"
    writer = FeedbackPageWriter(path)
    writer.publish([make_feedback(1)])
    page = path.read_bytes()
    offset = find_record(page)
    slot = page[offset : offset + SLOT_SIZE]
    reader = FeedbackReader(path, OURS)
    seen: Counter[str] = Counter()
    with path.open("r+b", buffering=0) as file:
        for number in range(count):
            old, new = number % 1000, (number + 1) % 1000
            slot = _show(file.fileno(), offset, stores_of(slot, _body(old))[1])
            if _number(reader) != old:
                raise Misled(f"write {number} was not seen after one that broke off")
            stores, whole = stores_of(slot, _body(new))
            slot = _show(file.fileno(), offset, torn(slot, stores, rng))
            for name, each in (("knew it", reader), ("new", FeedbackReader(path, OURS))):
                found = _number(each)
                if found not in (None, old, new):
                    raise Misled(f"{found} between {old} and {new}")
                if found == new and slot != whole:
                    raise Misled(f"{new} from a record that is not whole")
                seen[f"{name}: {'none' if found is None else 'before' if found == old else 'after'}"] += 1
                if each is not reader:
                    each.close()
    reader.close()
    writer.close()
    return seen


def _show(file: int, offset: int, slot: bytes) -> bytes:
    os.pwrite(file, slot, offset)
    return slot


def _body(number: int) -> bytes:
    """Of ``make_feedback(number)``, as of now."""
    return _pack(make_feedback(number), monotonic_ns())


def _number(reader: FeedbackReader) -> int | None:
    """What the record tells; raises `Misled` if its values are not of one write."""
    look_again(reader)
    found = reader.read()
    if not check(found):
        return None
    assert found is not None
    if found != replace(make_feedback(found.gpu_throttle), updated_ns=found.updated_ns):
        raise Misled(f"a mixture: {found}")
    return found.gpu_throttle
