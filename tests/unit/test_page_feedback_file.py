"""The file of the feedback page: replaced, cut short, in the way; and what a reader makes of hostile ones."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.hostile_pages import (
    OURS,
    check,
    look_again,
    make_feedback,
    try_hostile_engine_pages,
    try_hostile_pages,
)
from tests.torn_writes import stores_of, try_torn_writes
from tests.unit.feedback_clock import Clock

from quietcore.scheduler.page import Feedback, FeedbackPageWriter, FeedbackReader, feedback, files
from quietcore.scheduler.page.feedback import BODY_SIZE, SLOT_SIZE
from quietcore.scheduler.page.seqlock import RecordWriter

MS, SECOND = 1_000_000, 1_000_000_000
FEEDBACK = Feedback(OURS, 100 * MS, host_slowdown=1.45, device_slowdown=1.1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "quietcore" / "feedback"


def others(count: int) -> list[Feedback]:
    return [make_feedback(1, OURS._replace(pid=pid)) for pid in range(10_000, 10_000 + count)]


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

    monkeypatch.setattr(feedback, "open_page", count("open", files.open_page))
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
    clock: Clock, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = FeedbackPageWriter(path)
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
    writer.close()


def test_the_stores_that_are_torn_are_the_writers() -> None:
    slot = bytes(SLOT_SIZE)
    stores, whole = stores_of(slot, b"x" * BODY_SIZE)
    expected = bytearray(slot)
    RecordWriter(expected, 0).write(b"x" * BODY_SIZE)
    assert whole == expected
    assert [(offset, len(content)) for offset, content in stores] == [
        (0, 8),
        (16, BODY_SIZE),
        (0, 16),
        (0, 8),
    ]


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


def test_hostile_engine_pages_mislead_no_agent(tmp_path: Path) -> None:
    seen = try_hostile_engine_pages(tmp_path, 5000, seed=1)
    assert sum(seen.values()) == 5000
    assert seen["forged values"] > 500
    assert seen["forged values, believed"] > 50, "some are in range by chance"


@pytest.mark.slow
@pytest.mark.parametrize("attempt", [try_hostile_pages, try_hostile_engine_pages])
def test_a_hundred_thousand_hostile_pages_mislead_nobody(
    tmp_path: Path, attempt: Callable[[Path, int], Counter[str]]
) -> None:
    assert sum(attempt(tmp_path, 100_000).values()) == 100_000


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
