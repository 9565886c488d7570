"""Pages as they must not be, shown to who reads them: tried by tests and by a bar."""

from __future__ import annotations

import contextlib
import math
import os
import random
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic_ns

from quietcore.scheduler.cost import CostModel, MeasuredSlowdown, StepTimeModel
from quietcore.scheduler.page import (
    Account,
    EnginePageWriter,
    EngineStats,
    Feedback,
    FeedbackPageWriter,
    FeedbackReader,
    ProcessIdentity,
    StepTimes,
    StolenShares,
    engine,
    feedback,
    read_engine_page,
)
from quietcore.scheduler.page.feedback import PAGE_SIZE, SLOT_SIZE, _pack
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
    """Puts spoilt pages where somebody looks for one.

    ``good`` has at ``offset`` the record that is looked for, with a body of ``body`` bytes; which eights of
    them hold floats and which hold integers.
    """

    def __init__(
        self,
        path: Path,
        good: bytes,
        rng: random.Random,
        offset: int,
        body: int,
        floats: Sequence[int],
        ints: Sequence[int],
    ) -> None:
        self.path = path
        self.good = good
        self.rng = rng
        self.offset = offset
        self.body = body
        self.floats = floats
        self.ints = ints
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
        self.write(self.good[:begin] + self.rng.randbytes(len(self.good) - begin))

    def changed_bytes(self) -> None:
        self._change(0, len(self.good))

    def changed_record(self) -> None:
        self._change(self.offset, HEAD_SIZE + self.body)

    def _change(self, begin: int, length: int) -> None:
        page = bytearray(self.good)
        for _ in range(self.rng.choice((1, 3, 50))):
            page[begin + self.rng.randrange(length)] = self.rng.randrange(256)
        self.write(bytes(page))

    def forged_values(self) -> None:
        """With a right checksum, as a hostile writer would."""
        body = bytearray(self.good[self.offset + HEAD_SIZE :][: self.body])
        for _ in range(self.rng.choice((1, 2, 12))):
            place = self.rng.choice(self.floats) * 8
            odd = self.rng.choice(ODD)
            struct.pack_into("<d", body, place, odd if self.rng.random() < 0.7 else self.rng.gauss(0.0, 1e3))
        if self.rng.random() < 0.3:
            struct.pack_into("<Q", body, self.rng.choice(self.ints) * 8, self.rng.choice(ODD_INTS))
        self.write(self.with_body(bytes(body)))

    def with_body(self, body: bytes) -> bytes:
        page = bytearray(self.good)
        RecordWriter(page, self.offset).write(body)
        return bytes(page)

    def wrong_size(self) -> None:
        size = len(self.good)
        cut = self.rng.choice((0, 1, HEADER_SIZE, self.offset + 20, size - 1, self.rng.randrange(size)))
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


def find_record(page: bytes) -> int:
    """Where in a feedback page ours is."""
    ours = struct.pack("<3Q", *OURS)
    return next(o for o in range(HEADER_SIZE, PAGE_SIZE, SLOT_SIZE) if page.startswith(ours, o + HEAD_SIZE))


def _pick(spoiler: _Spoiler) -> str:
    """Spoils the page, by forged values more often than by all else."""
    kind = spoiler.rng.choice([*spoiler.kinds, "forged values", "forged values"])
    spoiler.kinds[kind]()
    return kind


def try_hostile_pages(folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """Shows ``count`` spoilt feedback pages to an engine's cost model; how many of each kind.

    What a reader has open stays open for every other page, as in an engine. Raises `Misled` if nonsense was
    believed, or if the good page afterwards was not.
    """
    path = folder / "feedback"
    writer = FeedbackPageWriter(path)
    writer.publish(make_feedback(number, OURS._replace(pid=number)) for number in range(1, 20))
    writer.publish([make_feedback(7), *(make_feedback(1, OURS._replace(pid=n)) for n in range(5, 15))])
    good = path.read_bytes()
    rng = random.Random(seed)
    spoiler = _Spoiler(path, good, rng, find_record(good), feedback.BODY_SIZE, range(6, 18), range(3, 6))
    reader = FeedbackReader(path, OURS)
    measured = MeasuredSlowdown(reader)
    cost = CostModel(8, StepTimeModel(), measured)
    seen: Counter[str] = Counter()
    for number in range(count):
        if number % 1000 == 0:
            # as of now, or it would be stale in the end
            spoiler.good = spoiler.with_body(_pack(make_feedback(7), monotonic_ns()))
            spoiler.write(spoiler.good)
            look_again(reader, anew=True)
            if not check(reader.read()):
                raise Misled(f"a good page was refused after {number} spoilt ones")
        kind = _pick(spoiler)
        look_again(reader, anew=rng.random() < 0.8)
        believed = check(reader.read())
        if not 0.0 < cost.shared(100, 100) < 1e9:
            raise Misled(f"a cost of {cost.shared(100, 100)} s")
        seen[f"{kind}, believed" if believed else kind] += 1
    measured.close()
    spoiler.clear()
    writer.close()
    return seen


def try_hostile_engine_pages(folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """The same for engine pages, as the agent reads them."""
    path = folder / "engine"
    writer = EnginePageWriter(path)
    steps = StepTimes((1e-3, 1e-6, 1e-5, 1e-9), (1e-4, 0.0, 1e-6, 0.0), 1.1, 0.05, 1000)
    writer.write(EngineStats({"premium": 1, "batch": 2}, 3, 4, steps, Account(5, 6.0, 7.0, 8.0)))
    good = path.read_bytes()
    numbers = (engine.BODY_SIZE - (engine._INTS + engine._FLOATS) * 8) // 8
    floats = range(numbers + engine._INTS, engine.BODY_SIZE // 8)
    rng = random.Random(seed)
    spoiler = _Spoiler(path, good, rng, HEADER_SIZE, engine.BODY_SIZE, floats, range(floats.start))
    seen: Counter[str] = Counter()
    for number in range(count):
        if number % 1000 == 0:
            spoiler.write(good)
            if read_engine_page(path, max_age_s=1e6) is None:
                raise Misled(f"a good page was refused after {number} spoilt ones")
        kind = _pick(spoiler)
        found = read_engine_page(path, max_age_s=1e6)
        if found is not None:
            _check_engine(found)
        seen[kind if found is None else f"{kind}, believed"] += 1
    spoiler.clear()
    writer.close()
    return seen


def _check_engine(found: EngineStats) -> None:
    steps = found.steps
    times = (*steps.device, *steps.host, steps.pace, steps.error, found.slowdown_host, found.slowdown_device)
    floats = (*times, *found.tokens[1:], *found.seconds[1:])
    ints = (*found.waiting.values(), *found.decisions, found.tokens.requests, found.seconds.requests)
    counts = (*ints, steps.steps, found.re_estimates, found.revision, found.ignored_hints)
    sane = (
        all(0.0 <= value <= 1e15 for value in floats)
        and all(0 <= value < 2**53 for value in counts)
        and all(name.isascii() and name.isprintable() and name for name in found.waiting)
    )
    if not sane:
        raise Misled(f"believed {found}")


def look_again(reader: FeedbackReader, *, anew: bool = False) -> None:
    """As if time had passed: a millisecond, or a quarter of a second."""
    reader._again_ns = 0
    if anew:
        reader._check_ns = 0
