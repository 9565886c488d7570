"""The feedback page, from the side that writes it and from the side that must not trust it."""

from __future__ import annotations

import math
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.hostile_pages import (
    OURS,
    check,
    look_again,
    make_feedback,
    stores_of,
    try_hostile_pages,
    try_torn_writes,
)

from quietcore.scheduler.page import (
    MAX_SLOTS,
    Feedback,
    FeedbackPageWriter,
    FeedbackReader,
    ProcessIdentity,
    StolenShares,
    default_feedback_path,
    feedback,
)
from quietcore.scheduler.page.feedback import BODY_SIZE, PAGE_SIZE, SLOT_SIZE
from quietcore.scheduler.page.seqlock import RecordWriter

MS, SECOND = 1_000_000, 1_000_000_000
FEEDBACK = Feedback(
    identity=OURS,
    window_ns=100 * MS,
    stolen=StolenShares(0.2, 0.05, 0.01, 0.02, 0.03, 0.001),
    host_slowdown=1.45,
    device_slowdown=1.1,
    confidence=0.9,
    launch_p50_s=5e-6,
    launch_p99_s=90e-6,
    gpu_clock_ratio=0.91,
    gpu_throttle=0x24,
)


class Clock:
    """CLOCK_MONOTONIC as writer and reader are shown it."""

    def __init__(self) -> None:
        self.now_ns = 1000 * SECOND

    def __call__(self) -> int:
        return self.now_ns

    def pass_(self, ns: int) -> None:
        self.now_ns += ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(feedback, "monotonic_ns", clock)
    return clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "quietcore" / "feedback"


@pytest.fixture
def writer(path: Path) -> Iterator[FeedbackPageWriter]:
    writer = FeedbackPageWriter(path)
    yield writer
    writer.close()


def others(count: int) -> list[Feedback]:
    return [make_feedback(1, OURS._replace(pid=pid)) for pid in range(10_000, 10_000 + count)]


# --- what is written is read ---


def test_every_value_comes_back(clock: Clock, writer: FeedbackPageWriter, path: Path) -> None:
    assert writer.publish([FEEDBACK]) == 0
    reader = FeedbackReader(path, OURS)
    assert reader.read() == replace(FEEDBACK, updated_ns=clock.now_ns)
    assert reader.slowdown() == (1.45, 1.1)
    reader.close()


def test_the_layout_is_the_documented_one(clock: Clock, writer: FeedbackPageWriter, path: Path) -> None:
    """Little-endian at fixed offsets: what a reader in another language relies on."""
    writer.publish([FEEDBACK])
    raw = path.read_bytes()
    assert len(raw) == PAGE_SIZE == 64 + MAX_SLOTS * 192
    assert struct.unpack_from("<8sHHI", raw) == (b"QCPAGE\r\n", 2, 1, PAGE_SIZE)
    sequence, _, length = struct.unpack_from("<QII", raw, 64)
    assert (sequence, length) == (2, BODY_SIZE)
    assert struct.unpack_from("<6Q", raw, 80) == (*OURS, clock.now_ns, 100 * MS, 0x24)
    floats = (0.2, 0.05, 0.01, 0.02, 0.03, 0.001, 1.45, 1.1, 0.9, 5e-6, 90e-6, 0.91)
    assert struct.unpack_from("<12d", raw, 128) == floats


def test_an_engine_finds_itself_by_default(writer: FeedbackPageWriter, path: Path) -> None:
    own = ProcessIdentity.own()
    writer.publish([*others(3), replace(FEEDBACK, identity=own), *others(5)])
    reader = FeedbackReader(path)
    found = reader.read()
    assert found is not None
    assert found.identity == own
    reader.close()
    assert default_feedback_path() == Path("/run/quietcore/feedback")


def test_another_process_reads_it(writer: FeedbackPageWriter, path: Path) -> None:
    code = (
        "import sys; from quietcore.scheduler.page import FeedbackReader, ProcessIdentity;"
        "r = FeedbackReader(sys.argv[1], ProcessIdentity(*map(int, sys.argv[2:]))); print(*r.slowdown())"
    )
    source = Path(__file__).resolve().parents[2] / "src"
    writer.publish([replace(FEEDBACK, window_ns=10 * SECOND)])
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), *map(str, OURS)],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1.45", "1.1"]


def test_the_same_record_is_the_same_object(clock: Clock, writer: FeedbackPageWriter, path: Path) -> None:
    writer.publish([FEEDBACK])
    reader = FeedbackReader(path, OURS)
    first = reader.read()
    clock.pass_(20 * MS)
    assert reader.read() is first
    writer.publish([replace(FEEDBACK, host_slowdown=2.0)])
    clock.pass_(2 * MS)
    assert reader.slowdown() == (2.0, 1.1)
    reader.close()


# --- neutral ---


def test_a_record_is_stale_after_three_windows(clock: Clock, writer: FeedbackPageWriter, path: Path) -> None:
    writer.publish([FEEDBACK])
    reader = FeedbackReader(path, OURS)
    assert reader.read() is not None
    clock.pass_(300 * MS - 1)
    assert reader.read() is not None
    clock.pass_(1)
    assert reader.read() is None
    assert FeedbackReader(path, OURS).read() is None
    writer.publish([FEEDBACK])
    clock.pass_(2 * MS)
    assert reader.read() is not None
    reader.close()


def test_a_record_of_the_future_is_none(clock: Clock, writer: FeedbackPageWriter, path: Path) -> None:
    clock.pass_(SECOND)
    writer.publish([FEEDBACK])
    clock.pass_(-1)
    reader = FeedbackReader(path, OURS)
    assert reader.read() is None
    clock.pass_(2 * SECOND)
    writer.publish([FEEDBACK])
    clock.pass_(2 * MS)
    assert reader.read() is not None
    reader.close()


@pytest.mark.parametrize("confidence", [0.0, 0.499])
def test_what_the_agent_does_not_trust_itself_is_none(
    writer: FeedbackPageWriter, path: Path, confidence: float
) -> None:
    writer.publish([replace(FEEDBACK, confidence=confidence)])
    assert FeedbackReader(path, OURS).slowdown() == (1.0, 1.0)


def test_absent_foreign_and_damaged_are_none(writer: FeedbackPageWriter, path: Path) -> None:
    writer.publish([replace(FEEDBACK, window_ns=10 * SECOND)])
    assert FeedbackReader(path, OURS).read() is not None
    for stranger in (
        OURS._replace(pid=1),
        OURS._replace(pid_ns=1),
        OURS._replace(start_ticks=OURS.start_ticks + 1),
    ):
        assert FeedbackReader(path, stranger).read() is None
    assert FeedbackReader(path, OURS, owners=[os.geteuid() + 1]).read() is None
    assert FeedbackReader(path.with_name("missing"), OURS).read() is None
    assert FeedbackReader("/proc/self/mem", OURS).read() is None
    other = path.with_name("other")
    for offset in (0, 8, 10, 12, 64, 72, 76, 100, 150):  # header and record
        page = bytearray(path.read_bytes())
        page[offset] ^= 1
        other.write_bytes(page)
        assert FeedbackReader(other, OURS).read() is None, offset


def forge(path: Path, body: bytes) -> None:
    """A page with a right checksum around any body, as a hostile writer could make it."""
    page = bytearray(path.read_bytes())
    RecordWriter(page, 64).write(body)
    path.write_bytes(page)


def test_values_out_of_range_are_refused(writer: FeedbackPageWriter, path: Path) -> None:
    writer.publish([replace(FEEDBACK, window_ns=10 * SECOND)])
    good = path.read_bytes()[80 : 80 + BODY_SIZE]
    forged = path.with_name("forged")
    forged.write_bytes(path.read_bytes())
    forge(forged, good)
    assert FeedbackReader(forged, OURS).read() is not None
    wrong: list[tuple[int, str, float]] = [
        (48 + 8 * i, "<d", value) for i in range(12) for value in (math.nan, math.inf, -math.inf, -1.0, 1e308)
    ]
    wrong += [(96, "<d", 0.99), (104, "<d", 0.0), (48, "<d", 1.01), (112, "<d", 0.49)]
    wrong += [(24, "<Q", 2**64 - 1), (32, "<Q", 0), (32, "<Q", 2**63), (40, "<Q", 2**63)]
    for offset, form, value in wrong:
        body = bytearray(good)
        struct.pack_into(form, body, offset, value)
        forge(forged, bytes(body))
        assert FeedbackReader(forged, OURS).read() is None, (offset, value)


def test_the_writer_brings_values_into_their_range(writer: FeedbackPageWriter, path: Path) -> None:
    odd = replace(
        FEEDBACK,
        window_ns=10**15,
        stolen=StolenShares(-0.1, 1.5, math.nan, math.inf, 0.0, 1.0),
        host_slowdown=1e9,
        device_slowdown=math.nan,
        confidence=7.0,
        launch_p50_s=-1.0,
        launch_p99_s=math.inf,
        gpu_clock_ratio=math.nan,
        gpu_throttle=2**64 + 5,
    )
    writer.publish([odd])
    found = FeedbackReader(path, OURS).read()
    assert found is not None
    assert found.stolen == StolenShares(0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    assert (found.host_slowdown, found.device_slowdown, found.confidence) == (100.0, 1.0, 1.0)
    assert (found.launch_p50_s, found.launch_p99_s, found.gpu_clock_ratio) == (0.0, 0.0, 0.0)
    assert (found.gpu_throttle, found.window_ns) == (5, 10 * SECOND)
    writer.publish([replace(FEEDBACK, host_slowdown=math.inf)])
    assert FeedbackReader(path, OURS).slowdown() == (1.0, 1.1)


# --- slots ---


def test_a_process_keeps_its_slot_and_room_is_limited(writer: FeedbackPageWriter, path: Path) -> None:
    crowd = others(MAX_SLOTS + 10)
    assert writer.publish(crowd) == 10
    first, last = crowd[0].identity, crowd[MAX_SLOTS - 1].identity
    place = path.read_bytes().find(struct.pack("<3Q", *last))
    assert writer.publish([crowd[MAX_SLOTS - 1], FEEDBACK]) == 0
    page = path.read_bytes()
    assert page.find(struct.pack("<3Q", *last)) == place
    assert page.find(struct.pack("<3Q", *first)) < 0
    assert FeedbackReader(path, OURS).read() is not None
    assert writer.publish([*crowd[:MAX_SLOTS], FEEDBACK]) == 1
    assert FeedbackReader(path, OURS).read() is not None, "who was there keeps his place"


def test_one_process_twice_is_one_record(writer: FeedbackPageWriter, path: Path) -> None:
    assert writer.publish([FEEDBACK] * (MAX_SLOTS + 1)) == 0
    assert path.read_bytes().count(struct.pack("<3Q", *OURS)) == 1


def test_who_is_not_published_any_more_is_neutral_and_may_come_back(
    clock: Clock, writer: FeedbackPageWriter, path: Path
) -> None:
    writer.publish([FEEDBACK])
    reader = FeedbackReader(path, OURS)
    assert reader.read() is not None
    writer.publish(others(1))
    clock.pass_(2 * MS)
    assert reader.read() is None
    writer.publish([*others(1), FEEDBACK])  # another slot
    clock.pass_(100 * MS)
    writer.publish([*others(1), FEEDBACK])
    clock.pass_(160 * MS)
    assert reader.read() is not None
    reader.close()


def test_of_two_records_of_one_process_the_whole_one_counts(path: Path, writer: FeedbackPageWriter) -> None:
    writer.publish([replace(FEEDBACK, window_ns=10 * SECOND)])
    page = bytearray(path.read_bytes())
    page[64 + 3 * SLOT_SIZE : 64 + 4 * SLOT_SIZE] = page[64 : 64 + SLOT_SIZE]
    page[64] |= 1  # for ever being written
    copy = path.with_name("copy")
    copy.write_bytes(page)
    assert FeedbackReader(copy, OURS).slowdown() == (1.45, 1.1)


# --- the file ---


def test_a_restarted_agent_is_noticed(clock: Clock, path: Path) -> None:
    first = FeedbackPageWriter(path)
    first.publish([FEEDBACK])
    reader = FeedbackReader(path, OURS)
    assert reader.slowdown() == (1.45, 1.1)
    second = FeedbackPageWriter(path)
    second.publish([*others(9), replace(FEEDBACK, host_slowdown=3.0)])
    clock.pass_(251 * MS)
    assert reader.slowdown() == (3.0, 1.1)
    first.close()
    assert path.exists(), "it is another's by now"
    second.close()
    second.close()
    assert list(path.parent.iterdir()) == []
    clock.pass_(2 * MS)
    assert reader.slowdown() == (1.0, 1.0)
    reader.close()


def test_a_page_that_comes_later_is_found(clock: Clock, path: Path) -> None:
    reader = FeedbackReader(path, OURS)
    assert reader.read() is None
    writer = FeedbackPageWriter(path)
    writer.publish([FEEDBACK])
    clock.pass_(100 * MS)
    assert reader.read() is None
    writer.publish([FEEDBACK])
    clock.pass_(150 * MS)
    assert reader.read() is not None
    reader.close()
    assert reader.read() is not None, "it is opened again when it is wanted"
    reader.close()
    writer.close()


@pytest.mark.parametrize("what", ["absent", "hostile", "without us", "good"])
def test_the_file_is_looked_for_four_times_a_second_at_most(
    what: str, clock: Clock, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = FeedbackPageWriter(path)
    writer.publish(others(1) if what == "without us" else [FEEDBACK])
    if what == "absent":
        path.unlink()
    if what == "hostile":
        path.chmod(0o666)
    calls = {"open": 0, "stat": 0, "pread": 0}

    def count(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            calls[name] += 1
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(feedback, "open_page", count("open", feedback.open_page))
    monkeypatch.setattr(os, "stat", count("stat", os.stat))
    monkeypatch.setattr(feedback, "pread", count("pread", os.pread))
    reader = FeedbackReader(path, OURS)
    for number in range(10_000):  # a second
        reader.read()
        clock.pass_(SECOND // 10_000)
        if what == "good" and number % 500 == 0:
            writer.publish([FEEDBACK])
    assert calls["open"] <= (1 if what in ("good", "without us") else 4)
    assert calls["stat"] <= 5
    # of a record as often as a millisecond has passed, and once more where it is new; else for the search
    assert calls["pread"] <= (1100 if what == "good" else 4)
    reader.close()
    writer.close()


def test_a_page_cut_short_under_the_reader_is_neutral(path: Path) -> None:
    """A mapping would end the engine here, with SIGBUS."""
    writer = FeedbackPageWriter(path)
    writer.publish([replace(FEEDBACK, window_ns=10 * SECOND)])
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    reader = FeedbackReader(copy, OURS)
    assert reader.read() is not None
    os.truncate(copy, 0)
    look_again(reader)
    assert check(reader.read()), "what was read whole holds until it is stale"
    reader.close()
    assert reader.read() is None
    writer.close()


@pytest.mark.parametrize("kind", ["file", "link", "fifo"])
def test_what_lies_in_its_place_is_replaced_and_spared(tmp_path: Path, kind: str) -> None:
    path, victim = tmp_path / "feedback", tmp_path / "victim"
    victim.write_text("precious")
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_text("old")
    writer = FeedbackPageWriter(path)
    writer.publish([FEEDBACK])
    assert FeedbackReader(path, OURS).read() is not None
    assert path.stat().st_mode & 0o777 == 0o644
    assert victim.read_text() == "precious"
    writer.close()


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "feedback", tmp_path / "folder", Path("/proc/quietcore/feedback")):
        with pytest.raises(OSError, match=r"."):
            FeedbackPageWriter(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]


def test_engines_of_other_users_may_read_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        writer = FeedbackPageWriter(tmp_path / "run" / "feedback")
    finally:
        os.umask(before)
    assert writer.path.stat().st_mode & 0o777 == 0o644
    assert writer.path.parent.stat().st_mode & 0o777 == 0o755
    writer.close()


def test_a_reader_without_descriptors_is_neutral(
    clock: Clock, writer: FeedbackPageWriter, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.publish([FEEDBACK])
    reader = FeedbackReader(path, OURS)
    assert reader.read() is not None

    def refuse(*args: object) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(feedback, "pread", refuse)
        clock.pass_(2 * MS)
        assert reader.read() is None
        clock.pass_(SECOND)
        assert reader.read() is None
    writer.publish([FEEDBACK])
    clock.pass_(250 * MS)
    assert reader.read() is not None
    reader.close()


# --- writes that break off, pages made to mislead ---


def test_the_stores_that_are_torn_are_the_writers(clock: Clock) -> None:
    slot = bytes(SLOT_SIZE)
    stores, whole = stores_of(slot, b"x" * BODY_SIZE)
    expected = bytearray(slot)
    RecordWriter(expected, 0).write(b"x" * BODY_SIZE)
    assert whole == expected
    assert [(offset, len(content)) for offset, content in stores] == [(0, 8), (16, BODY_SIZE), (0, 16), (0, 8)]


def test_torn_writes_mislead_nobody(tmp_path: Path) -> None:
    """10,000: each store of the writer broken off at any byte, or seen in another order."""
    seen = try_torn_writes(tmp_path, 10_000)
    assert seen["knew it: before"] > 3000
    assert seen["knew it: after"] > 1000
    assert seen["new: none"] > 3000


def test_hostile_pages_mislead_nobody(tmp_path: Path) -> None:
    seen = try_hostile_pages(tmp_path, 5000, seed=1)
    assert sum(seen.values()) == 5000
    assert seen["forged values"] > 500
    assert seen["changed bytes of our record"] > 100


@pytest.mark.slow
def test_a_hundred_thousand_hostile_pages_mislead_nobody(tmp_path: Path) -> None:
    assert sum(try_hostile_pages(tmp_path, 100_000, seed=2).values()) == 100_000


WRITER = """
import sys
from tests.hostile_pages import make_feedback
from quietcore.scheduler.page import FeedbackPageWriter
writer = FeedbackPageWriter(sys.argv[1])
print("ready", flush=True)
number = 0
while True:
    number = (number + 1) % 1000
    writer.publish([make_feedback(number)])
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_never_misleads(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    rng = random.Random(3)
    whole = 0
    for number in range(15):
        path = tmp_path / str(number)
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            env={**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"},
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        reader = FeedbackReader(path, OURS)
        end = time.monotonic() + rng.uniform(0.01, 0.1)
        while time.monotonic() < end:
            whole += is_of_one_write(reader)
        process.kill()
        process.wait()
        process.stdout.close()
        is_of_one_write(reader)
        is_of_one_write(FeedbackReader(path, OURS))
        reader.close()
    assert whole > 100


def is_of_one_write(reader: FeedbackReader) -> bool:
    look_again(reader, anew=True)
    found = reader.read()
    if found is None:
        return False
    assert found == replace(make_feedback(found.gpu_throttle), updated_ns=found.updated_ns)
    return True
