"""Feedback pages as they must not be, and writes that broke off: tried by tests and by a bar."""

from __future__ import annotations

import contextlib
import math
import os
import random
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic_ns
from typing import Any

from quietcore.scheduler.cost import CostModel, MeasuredSlowdown, StepTimeModel
from quietcore.scheduler.page import (
    Feedback,
    FeedbackPageWriter,
    FeedbackReader,
    ProcessIdentity,
    StolenShares,
    seqlock,
)
from quietcore.scheduler.page.feedback import BODY_SIZE, PAGE_SIZE, SLOT_SIZE, _pack
from quietcore.scheduler.page.files import HEADER_SIZE
from quietcore.scheduler.page.seqlock import HEAD_SIZE, RecordWriter

OURS = ProcessIdentity(4026531836, 4711, 123_456)
WINDOW_NS = 10_000_000_000
"""So long that nothing is stale before a test ends."""
ODD = (math.nan, math.inf, -math.inf, 1e308, -1e308, -1.0, -0.0, 1.0000001, 5e-324, 101.0)
ODD_INTS = (0, 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
STRANGER = 65533


class Misled(AssertionError):
    """A reader believed what it must not."""


def make_feedback(number: int = 0, identity: ProcessIdentity = OURS) -> Feedback:
    """All its values tell the same number, below 1,000."""
    share = number / 10_000
    return Feedback(
        identity=identity,
        window_ns=WINDOW_NS,
        stolen=StolenShares(*[share] * 6),
        host_slowdown=1.0 + share,
        device_slowdown=1.0 + share,
        confidence=0.5 + share,
        launch_p50_s=share,
        launch_p99_s=share,
        gpu_clock_ratio=share,
        gpu_throttle=number,
    )


def check(found: Feedback | None) -> bool:
    """Whether something was believed; raises `Misled` if that makes no sense."""
    if found is None:
        return False
    shares = (*found.stolen, found.confidence)
    slowdowns = (found.host_slowdown, found.device_slowdown)
    sane = (
        found.identity == OURS
        and all(0.0 <= share <= 1.0 for share in shares)
        and all(1.0 <= slowdown <= 100.0 for slowdown in slowdowns)
        and found.confidence >= 0.5
        and 0.0 <= found.launch_p50_s <= 1e6
        and 0.0 <= found.launch_p99_s <= 1e6
        and 0.0 <= found.gpu_clock_ratio <= 2.0
        and 0 <= found.gpu_throttle < 2**63
        and 1_000_000 <= found.window_ns <= 10_000_000_000
    )
    if not sane:
        raise Misled(f"believed {found}")
    return True


class _Spoiler:
    """Puts spoilt pages where an engine looks for one."""

    def __init__(self, path: Path, good: bytes, rng: random.Random) -> None:
        self.path = path
        self.good = good
        self.rng = rng
        self.offset = next(o for o in range(HEADER_SIZE, PAGE_SIZE, SLOT_SIZE) if _is_ours(good, o))
        self.kinds: dict[str, Callable[[], None]] = {
            "random bytes": self.random_bytes,
            "changed bytes": self.changed_bytes,
            "changed bytes of our record": self.changed_record,
            "forged values": self.forged_values,
            "wrong size": self.wrong_size,
            "link": self.link,
            "no plain file": self.no_plain_file,
            "open to others": self.open_to_others,
            "cut short in its place": self.cut_short,
        }
        if os.geteuid() == 0:
            self.kinds["of a stranger"] = self.of_a_stranger

    def freshen(self) -> None:
        """The good page as of now, in its place."""
        page = bytearray(self.good)
        RecordWriter(page, self.offset).write(_pack(make_feedback(7), monotonic_ns()))
        self.good = bytes(page)
        self.write(self.good)

    def write(self, content: bytes) -> None:
        self.clear()
        self.path.write_bytes(content)

    def clear(self) -> None:
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)

    def random_bytes(self) -> None:
        begin = self.rng.choice((0, 16, HEADER_SIZE, self.offset, self.offset + HEAD_SIZE))
        self.write(self.good[:begin] + self.rng.randbytes(PAGE_SIZE - begin))

    def changed_bytes(self) -> None:
        self._change(0, PAGE_SIZE)

    def changed_record(self) -> None:
        self._change(self.offset, SLOT_SIZE)

    def _change(self, begin: int, length: int) -> None:
        page = bytearray(self.good)
        for _ in range(self.rng.choice((1, 3, 50))):
            page[begin + self.rng.randrange(length)] = self.rng.randrange(256)
        self.write(bytes(page))

    def forged_values(self) -> None:
        """With a right checksum, as a hostile writer would."""
        body = bytearray(self.good[self.offset + HEAD_SIZE :][:BODY_SIZE])
        for _ in range(self.rng.choice((1, 2, 12))):
            place = self.rng.randrange(6, BODY_SIZE // 8) * 8
            odd = self.rng.choice(ODD)
            struct.pack_into("<d", body, place, odd if self.rng.random() < 0.7 else self.rng.gauss(0.0, 1e3))
        if self.rng.random() < 0.3:
            struct.pack_into("<Q", body, self.rng.randrange(3, 6) * 8, self.rng.choice(ODD_INTS))
        page = bytearray(self.good)
        RecordWriter(page, self.offset).write(bytes(body))
        self.write(bytes(page))

    def wrong_size(self) -> None:
        cut = self.rng.choice(
            (0, 1, HEADER_SIZE, self.offset + 20, PAGE_SIZE - 1, self.rng.randrange(PAGE_SIZE))
        )
        self.write(self.good[:cut] if self.rng.random() < 0.7 else self.good + self.good[: cut + 1])

    def link(self) -> None:
        self.clear()
        target = self.path.with_name("target")
        target.write_bytes(self.good)
        if self.rng.random() < 0.5:
            self.path.symlink_to(target)
        else:
            os.link(target, self.path)

    def no_plain_file(self) -> None:
        self.clear()
        self.rng.choice((self.path.mkdir, lambda: os.mkfifo(self.path), lambda: None))()

    def open_to_others(self) -> None:
        self.write(self.good)
        self.path.chmod(self.rng.choice((0o666, 0o664, 0o646)))

    def of_a_stranger(self) -> None:
        self.write(self.good)
        os.chown(self.path, STRANGER, -1)

    def cut_short(self) -> None:
        """While a reader has it open."""
        with contextlib.suppress(OSError):
            os.truncate(self.path, self.rng.choice((0, 8, self.offset, self.offset + 8)))


def _is_ours(page: bytes, offset: int) -> bool:
    return page.startswith(struct.pack("<3Q", *OURS), offset + HEAD_SIZE)


def try_hostile_pages(folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """Shows ``count`` spoilt pages to an engine's cost model; how many of each kind.

    What a reader has open stays open for every other page, as in an engine. Raises `Misled` if nonsense was
    believed, or if the good page afterwards was not.
    """
    rng = random.Random(seed)
    path = folder / "page"
    writer = FeedbackPageWriter(path)
    writer.publish(make_feedback(number, OURS._replace(pid=number)) for number in range(1, 20))
    writer.publish([make_feedback(7), *(make_feedback(1, OURS._replace(pid=n)) for n in range(5, 15))])
    spoiler = _Spoiler(path, path.read_bytes(), rng)
    reader = FeedbackReader(path, OURS)
    measured = MeasuredSlowdown(reader)
    cost = CostModel(8, StepTimeModel(), measured)
    seen: Counter[str] = Counter()
    kinds = [*spoiler.kinds, "forged values", "forged values"]
    for number in range(count):
        if number % 1000 == 0:
            spoiler.freshen()
            look_again(reader, anew=True)
            if not check(reader.read()):
                raise Misled(f"a good page was refused after {number} spoilt ones")
        kind = rng.choice(kinds)
        spoiler.kinds[kind]()
        look_again(reader, anew=rng.random() < 0.8)
        believed = check(reader.read())
        if not 0.0 < cost.shared(100, 100) < 1e9:
            raise Misled(f"a cost of {cost.shared(100, 100)} s")
        seen[f"{kind}, believed" if believed else kind] += 1
    measured.close()
    spoiler.clear()
    writer.close()
    return seen


def look_again(reader: FeedbackReader, *, anew: bool = False) -> None:
    """As if time had passed: a millisecond, or a quarter of a second."""
    reader._again_ns = 0
    if anew:
        reader._check_ns = 0


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
    offset = next(o for o in range(HEADER_SIZE, PAGE_SIZE, SLOT_SIZE) if _is_ours(page, o))
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
