"""The engine page, from the side that writes it and from the side that must not trust it."""

from __future__ import annotations

import math
import os
import random
import socket
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from quietcore.scheduler.cost import StepShape, StepTimeModel
from quietcore.scheduler.page import (
    Account,
    Decisions,
    EnginePageWriter,
    EngineStats,
    ProcessIdentity,
    StepTimes,
    read_engine_page,
)
from quietcore.scheduler.page.engine import BODY_SIZE, PAGE_SIZE
from quietcore.scheduler.page.files import HEADER_SIZE
from quietcore.scheduler.page.seqlock import RecordWriter

STATS = EngineStats(
    waiting={"premium": 3, "standard": 0, "batch": 12_000},
    running=31,
    slots=32,
    steps=StepTimes((8e-3, 8e-5, 1e-4, 5e-8), (2e-3, 0.0, 3e-5, 0.0), 1.1, 0.04, 123_456),
    tokens=Account(1000, 250_000.5, 248_000.0, 61_000.25),
    seconds=Account(999, 1200.5, 1180.25, 300.125),
    decisions=Decisions(1500, 7, 3, 11, 90, 4),
    re_estimates=77,
    slowdown_host=1.4,
    slowdown_device=1.05,
    revision=5,
    ignored_hints=21,
    degraded=True,
)


def content(stats: EngineStats) -> EngineStats:
    return replace(stats, identity=ProcessIdentity(), monotonic_ns=0, sequence=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engines" / "one.page"


def test_every_value_comes_back(path: Path) -> None:
    writer = EnginePageWriter(path)
    assert writer.error == ""
    assert writer.write(STATS)
    found = read_engine_page(path)
    assert found is not None
    assert content(found) == STATS
    assert found.identity == ProcessIdentity.own()
    assert 0 <= time.monotonic_ns() - found.monotonic_ns < 10**9
    assert writer.write(EngineStats())
    again = read_engine_page(path)
    assert again is not None
    assert content(again) == EngineStats()
    assert again.sequence == found.sequence + 2
    writer.close()


def test_the_layout_is_the_documented_one(path: Path) -> None:
    """Little-endian at fixed offsets: what a reader in another language relies on."""
    writer = EnginePageWriter(path)
    writer.write(STATS)
    raw = path.read_bytes()
    assert len(raw) == PAGE_SIZE == 512
    assert struct.unpack_from("<8sHHI", raw) == (b"QCPAGE\r\n", 1, 1, 512)
    sequence, _, length = struct.unpack_from("<QII", raw, 64)
    assert (sequence, length) == (2, BODY_SIZE)
    identity = struct.unpack_from("<QQQ", raw, 80)
    assert identity == tuple(ProcessIdentity.own())
    assert struct.unpack_from("<4I", raw, 112) == (31, 32, 3, 1)
    assert struct.unpack_from("<16sQ", raw, 128) == (b"premium".ljust(16, b"\0"), 3)
    assert struct.unpack_from("<Q", raw, 128 + 6 * 24) == (123_456,)
    assert struct.unpack_from("<d", raw, 128 + 6 * 24 + 12 * 8) == (8e-3,)
    writer.close()


def test_the_step_model_fits_in(path: Path) -> None:
    model = StepTimeModel()
    for _ in range(20):
        model.observe(StepShape(0, 8, 4000), 0.02, host_seconds=0.004)
    writer = EnginePageWriter(path)
    assert writer.write(EngineStats(steps=StepTimes(*model.state)))
    found = read_engine_page(path)
    assert found is not None
    assert tuple(found.steps) == tuple(model.state)
    writer.close()


def test_another_process_reads_it(path: Path) -> None:
    writer = EnginePageWriter(path)
    writer.write(STATS)
    code = (
        "import sys; from quietcore.scheduler.page import read_engine_page as r;"
        " s = r(sys.argv[1]); print(s.identity.pid, s.waiting['batch'])"
    )
    source = Path(__file__).resolve().parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(os.getpid()), "12000"]
    writer.close()


def test_more_tiers_than_fit_are_summed(path: Path) -> None:
    writer = EnginePageWriter(path)
    assert writer.write(EngineStats(waiting={f"tier{i}": i for i in range(10)}))
    found = read_engine_page(path)
    assert found is not None
    assert sum(found.waiting.values()) == sum(range(10))
    assert list(found.waiting) == ["tier0", "tier1", "tier2", "tier3", "tier4", "other"]
    writer.close()


def test_odd_names_are_made_plain(path: Path) -> None:
    writer = EnginePageWriter(path)
    assert writer.write(EngineStats(waiting={'a"b\n{}': 1, "": 2, "x" * 40: 3, "größe": 4}))
    found = read_engine_page(path)
    assert found is not None
    assert dict(found.waiting) == {"a_b___": 1, "other": 2, "x" * 16: 3, "gr__e": 4}
    writer.close()


@pytest.mark.parametrize(
    ("waiting", "found"),
    [
        ({"größe": 1, "gr__e": 2}, {"gr__e": 3}),
        ({"x" * 17: 1, "x" * 18: 2, "y": 4}, {"x" * 16: 3, "y": 4}),
        ({"": 1, "other": 2}, {"other": 3}),
        (
            {"other": 1, **{str(i): 1 for i in range(9)}},
            {"other": 6, **{str(i): 1 for i in range(4)}},
        ),
    ],
)
def test_names_that_look_alike_are_one_and_spoil_no_page(
    path: Path, waiting: dict[str, int], found: dict[str, int]
) -> None:
    writer = EnginePageWriter(path)
    assert writer.write(EngineStats(waiting=waiting))
    page = read_engine_page(path)
    assert page is not None
    assert dict(page.waiting) == found
    writer.close()


def test_a_folder_that_cannot_be_written_disables_the_writer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = EnginePageWriter(tmp_path / "file" / "engine.page")
    assert "engine.page" in writer.error
    assert writer.write(STATS) is False
    writer.close()
    assert EnginePageWriter("/proc/quietcore/engine.page").error


def test_the_writer_never_raises(path: Path) -> None:
    writer = EnginePageWriter(path)
    writer.write(STATS)
    wrong = [
        replace(STATS, running=-1),
        replace(STATS, running=2**40),
        replace(STATS, waiting={"a": -5}),
        replace(STATS, waiting=None),  # type: ignore[arg-type]
        replace(STATS, tokens=Account(1, "x", 0, 0)),  # type: ignore[arg-type]
        replace(STATS, decisions=()),  # type: ignore[arg-type]
    ]
    for stats in wrong:
        assert writer.write(stats) is False
    found = read_engine_page(path)
    assert found is not None, "the last good page stays"
    assert content(found) == STATS
    assert writer.write(replace(STATS, slowdown_host=math.nan, seconds=Account(1, math.inf, 0, 0)))
    found = read_engine_page(path)
    assert found is not None
    assert (found.slowdown_host, found.seconds.predicted) == (0.0, 0.0)
    writer.close()
    assert writer.write(STATS) is False


def test_a_page_that_was_cut_short_does_not_end_the_engine(path: Path) -> None:
    code = (
        "import os, sys\n"
        "from quietcore.scheduler.page import EnginePageWriter, EngineStats\n"
        "writer = EnginePageWriter(sys.argv[1])\n"
        "os.truncate(sys.argv[1], 0)\n"
        "print(writer.error, writer.write(EngineStats()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_closing_removes_only_the_own_page(path: Path) -> None:
    first = EnginePageWriter(path)
    second = EnginePageWriter(path)
    first.close()
    second.write(STATS)
    assert read_engine_page(path) is not None
    second.close()
    second.close()
    assert list(path.parent.iterdir()) == []


def test_a_link_in_its_place_is_replaced_and_its_target_spared(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "engine.page"
    path.symlink_to(victim)
    writer = EnginePageWriter(path)
    writer.write(STATS)
    assert victim.read_text() == "precious"
    assert read_engine_page(path) is not None
    writer.close()


def test_absent_stale_and_foreign_are_none(path: Path) -> None:
    assert read_engine_page(path) is None
    writer = EnginePageWriter(path)
    assert read_engine_page(path) is None, "never written"
    writer.write(STATS)
    own = ProcessIdentity.own()
    assert read_engine_page(path, identity=own) is not None
    assert read_engine_page(path, identity=own._replace(start_ticks=own.start_ticks + 1)) is None
    assert read_engine_page(path, identity=own._replace(pid_ns=1)) is None
    assert read_engine_page(path, owners=[os.geteuid() + 1]) is None
    assert read_engine_page(path, max_age_s=0.0) is None
    writer.close()


def test_a_page_from_the_future_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = EnginePageWriter(path)
    now = time.monotonic_ns()
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic_ns", lambda: now + 10**10)
        writer.write(STATS)
    assert read_engine_page(path) is None
    writer.close()


def test_files_of_the_wrong_kind_are_none(tmp_path: Path) -> None:
    writer = EnginePageWriter(tmp_path / "good")
    writer.write(STATS)
    good = (tmp_path / "good").read_bytes()

    def refused(name: str) -> bool:
        return read_engine_page(tmp_path / name) is None

    (tmp_path / "same").write_bytes(good)
    assert not refused("same")
    (tmp_path / "short").write_bytes(good[:-1])
    (tmp_path / "long").write_bytes(good + b"\0")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "symlink").symlink_to(tmp_path / "good")
    os.link(tmp_path / "same", tmp_path / "hardlink")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "writable").write_bytes(good)
    (tmp_path / "writable").chmod(0o666)
    for name in ("short", "long", "empty", "folder", "symlink", "hardlink", "fifo", "writable", "missing"):
        assert refused(name), name
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert refused("socket")
    for offset in (0, 8, 10, 12):  # magic, kind, version, size
        other = bytearray(good)
        other[offset] ^= 1
        (tmp_path / "other").write_bytes(other)
        assert refused("other")
    writer.close()


def forge(path: Path, body: bytes) -> None:
    """A page with a right checksum around any body, as a hostile engine could make it."""
    page = bytearray(path.read_bytes())
    RecordWriter(page, HEADER_SIZE).write(body)
    path.write_bytes(page)


def test_values_out_of_range_are_refused(tmp_path: Path) -> None:
    writer = EnginePageWriter(tmp_path / "good")
    writer.write(STATS)
    start = HEADER_SIZE + 16
    good = (tmp_path / "good").read_bytes()[start : start + BODY_SIZE]
    path = tmp_path / "forged"
    path.write_bytes((tmp_path / "good").read_bytes())
    forge(path, good)
    assert read_engine_page(path) is not None
    numbers = 48 + 6 * 24
    spoilt: list[tuple[int, str, float | bytes]]
    spoilt = [(numbers + 12 * 8 + 8 * i, "<d", value) for i in range(18) for value in (math.nan, -1.0, 1e308)]
    spoilt += [(numbers + 8 * i, "<Q", 2**63) for i in range(12)]
    spoilt += [(8, "<Q", 0), (40, "<I", 7), (44, "<I", 2), (48, "<16s", b"a\nb"), (48, "<16s", b"batch")]
    spoilt += [(48, "<16s", b""), (64, "<Q", 2**60), (24, "<Q", 2**64 - 1)]
    for offset, form, value in spoilt:
        body = bytearray(good)
        struct.pack_into(form, body, offset, value)
        forge(path, bytes(body))
        assert read_engine_page(path) is None, (offset, value)
    writer.close()


def test_random_bodies_give_none_or_values_in_range(tmp_path: Path) -> None:
    writer = EnginePageWriter(tmp_path / "good")
    writer.write(STATS)
    start = HEADER_SIZE + 16
    good = (tmp_path / "good").read_bytes()
    body = good[start : start + BODY_SIZE]
    path = tmp_path / "forged"
    path.write_bytes(good)
    rng = random.Random(4)
    for _ in range(300):
        spoilt = bytearray(body)
        for _ in range(rng.choice([1, 4, 400])):
            spoilt[rng.randrange(BODY_SIZE)] = rng.randrange(256)
        forge(path, bytes(spoilt))
        found = read_engine_page(path, max_age_s=math.inf)
        if found is not None:
            floats = (*found.steps.device, *found.steps.host, *found.tokens, *found.seconds)
            assert all(0 <= value <= 1e16 for value in floats)
            assert all(0 <= depth < 2**53 and name.isascii() for name, depth in found.waiting.items())
    writer.close()


WRITER = """
import os, sys, threading
from quietcore.scheduler.page import EnginePageWriter, EngineStats
writer = EnginePageWriter(sys.argv[1])
assert not writer.error
n = 0
print("ready", flush=True)
while True:
    n += 1
    writer.write(EngineStats(waiting={"a": n, "b": n}, running=n % 1000, revision=n))
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_never_misleads(tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[2] / "src"
    rng = random.Random(9)
    whole = 0
    for number in range(15):
        path = tmp_path / f"{number}.page"
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            env={**os.environ, "PYTHONPATH": str(source)},
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        end = time.monotonic() + rng.uniform(0.01, 0.1)
        while time.monotonic() < end:
            found = read_engine_page(path)
            if found is not None:
                whole += 1
                count = found.revision
                assert dict(found.waiting) == {"a": count, "b": count}
                assert found.running == count % 1000
        process.kill()
        process.wait()
        process.stdout.close()
        found = read_engine_page(path)
        assert found is None or dict(found.waiting) == {"a": found.revision, "b": found.revision}
    assert whole > 100
