"""The feedback page, from the side that writes it and from the side that must not trust it."""

from __future__ import annotations

import math
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.hostile_pages import OURS, make_feedback
from tests.unit.feedback_clock import Clock

from quietcore.scheduler.page import (
    MAX_SLOTS,
    Feedback,
    FeedbackPageWriter,
    FeedbackReader,
    ProcessIdentity,
    StolenShares,
    default_feedback_path,
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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


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
