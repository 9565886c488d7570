"""The journal: on disk before anything is changed, locked, and readable whatever cut it off."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from quietcore.agent.pin import journal as module
from quietcore.agent.pin.journal import Change, Journal, JournalBusyError, look, parse
from quietcore.agent.pin.things import IrqLine, Thread
from quietcore.probes.errors import MeasureError

ONE, TWO = Thread(1, 10, 11, 12), Thread(1, 10, 13, 14)
LINE = IrqLine(9, "eth0")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "pin.journal"


def pin(thread: Thread, new: str = "1") -> Change:
    return Change("affinity", thread, "0-1+", new)


def test_what_was_recorded_is_found_again(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.record([pin(ONE), Change("nice", ONE, 0, -10), Change("irq", LINE, "0-3", "0")], "a")
        journal.record([pin(ONE, "0")], "a")
    with Journal.open(path) as journal:
        entry = journal.entries["affinity", ONE]
        assert (entry.old, entry.ours, entry.target) == ("0-1+", ["1", "0"], "a")
        assert [e.thing for e in journal.of("a")] == [LINE, ONE, ONE]  # the latest first
        assert journal.of("b") == []
    assert path.stat().st_mode & 0o777 == 0o600


def test_it_is_on_disk_before_record_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}").encode() + b" " + path.read_bytes())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    with Journal.open(path) as journal:
        assert synced[-1].startswith(bytes(path.parent) + b" ")  # its name in the directory
        journal.record([pin(ONE)], "a")
        assert b'"new": "1"' in synced[-1]
        assert synced[-1].startswith(bytes(path) + b" ")


def test_a_value_set_again_needs_no_new_line(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.record([pin(ONE)], "a")
        size = path.stat().st_size
        journal.record([pin(ONE)], "a")
        assert path.stat().st_size == size


@pytest.mark.parametrize("cut", [1, 2, 20, 60])
def test_a_torn_last_line_does_not_count(path: Path, cut: int) -> None:
    with Journal.open(path) as journal:
        journal.record([pin(ONE)], "a")
        whole = path.stat().st_size
        journal.record([pin(TWO)], "a")
    os.truncate(path, path.stat().st_size - cut)
    contents = look(path)
    assert contents is not None
    assert list(contents.entries) == [("affinity", ONE)]
    assert not contents.damaged
    with Journal.open(path) as journal:
        assert list(journal.entries) == [("affinity", ONE)]
        assert path.stat().st_size == whole
        # what is appended next begins a line of its own
        journal.record([pin(TWO)], "a")
    with Journal.open(path) as journal:
        assert len(journal.entries) == 2


def test_a_first_line_that_was_torn(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"journal": 1, "bo')
    with Journal.open(path) as journal:
        assert not journal.entries
        assert path.read_bytes() == b""


def test_emptied_when_all_is_done(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.record([pin(ONE), pin(TWO)], "a")
        journal.done([("affinity", ONE)])
        assert list(journal.entries) == [("affinity", TWO)]
    with Journal.open(path) as journal:
        assert list(journal.entries) == [("affinity", TWO)]
        journal.done([("affinity", TWO)])
        assert path.read_bytes() == b""
        journal.record([pin(ONE)], "a")
    contents = look(path)
    assert contents is not None
    assert len(contents.entries) == 1


def test_what_was_done_may_come_again_with_another_old_value(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.record([pin(ONE), pin(TWO)], "a")
        journal.done([("affinity", ONE)])
        journal.record([Change("affinity", ONE, "0", "1")], "b")
    with Journal.open(path) as journal:
        entry = journal.entries["affinity", ONE]
        assert (entry.old, entry.ours, entry.target) == ("0", ["1"], "b")


def test_one_at_a_time(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.record([pin(ONE)], "a")
        with pytest.raises(JournalBusyError, match=r"another agent has the journal .*; stop it"):
            Journal.open(path)
        contents = look(path)  # looking is free
        assert contents is not None
        assert contents.entries
    Journal.open(path).close()


def test_a_journal_from_before_the_last_boot(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal.open(path) as journal:
        journal.record([pin(ONE)], "a")
    monkeypatch.setattr(module, "_boot", lambda: "another")
    with Journal.open(path) as journal:
        assert journal.contents.stale
        assert not journal.entries
    assert path.read_bytes() == b""


def test_lines_in_the_middle_that_make_no_sense(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.record([pin(ONE)], "a")
    good = path.read_text()
    bad = [
        "{",
        "7",
        "{}",
        '{"lever": "affinity", "thing": [1, 2], "old": "0", "new": "1", "target": "a", "began": 1}',
        '{"lever": "affinity", "thing": [1, 2, 3, "4"], "old": "0", "new": "1", "target": "a", "began": 1}',
        '{"lever": "affinity", "thing": [1, 2, 3, 4], "old": "x", "new": "1", "target": "a", "began": 1}',
        '{"lever": "nice", "thing": [1, 2, 3, 4], "old": "0", "new": 1, "target": "a", "began": 1}',
        '{"lever": "magic", "thing": [1], "old": 0, "new": 1, "target": "a", "began": 1}',
        '{"journal": 99, "boot": ""}',
    ]
    path.write_text("\n".join(bad) + "\n" + good)
    with Journal.open(path) as journal:
        assert list(journal.entries) == [("affinity", ONE)]
        assert journal.contents.damaged == bad
        copy = journal.set_aside()
    assert copy.read_text().splitlines() == bad


def test_meant_to_stay(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.record([pin(ONE)], "a")
        journal.keep()
    with Journal.open(path) as journal:
        assert journal.contents.kept
        journal.done([("affinity", ONE)])
        assert not journal.contents.kept


def test_it_does_not_grow_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COMPACT_BYTES", 4000)
    with Journal.open(path) as journal:
        journal.record([Change("nice", ONE, 0, -10), Change("nice", ONE, 0, -5)], "a")
        journal.keep()
        for tid in range(200):
            thread = Thread(1, 10, tid, 14)
            journal.record([pin(thread)], "a")
            journal.done([("affinity", thread)])
        assert path.stat().st_size < 6000
        with pytest.raises(JournalBusyError):
            Journal.open(path)
    with Journal.open(path) as journal:
        assert journal.entries["nice", ONE].ours == [-10, -5]
        assert journal.contents.kept
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_changed_without_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with Journal.open(path) as journal:
        journal.record([pin(ONE)], "a")
        before = path.read_bytes()
        monkeypatch.setattr(module, "_write_all", full)
        with pytest.raises(MeasureError, match=r"cannot be written: No space left.*; nothing is changed"):
            journal.record([pin(TWO)], "a")
        assert list(journal.entries) == [("affinity", ONE)]
        assert path.read_bytes() == before


def test_a_journal_that_was_taken_away(path: Path) -> None:
    with Journal.open(path) as journal:
        path.unlink()
        with pytest.raises(MeasureError, match="cannot be written"):
            journal.record([pin(ONE)], "a")


def link(path: Path) -> None:
    path.symlink_to(path.parent / "other")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def shared(path: Path) -> None:
    path.touch()
    path.chmod(0o666)


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("trap", [link, pipe, shared, folder])
def test_a_journal_that_others_may_have_written(path: Path, trap: Callable[[Path], None]) -> None:
    path.parent.mkdir()
    trap(path)
    with pytest.raises(MeasureError, match="--journal"):
        Journal.open(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_strangers_journal(path: Path) -> None:
    path.parent.mkdir()
    path.touch(0o600)
    os.chown(path, 65534, 65534)
    with pytest.raises(MeasureError, match="only its owner, root or you"):
        Journal.open(path)
    with pytest.raises(MeasureError, match="only its owner, root or you"):
        look(path)


def test_no_journal(path: Path) -> None:
    assert look(path) is None


def test_lines_are_json_of_their_own(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.record([pin(ONE)], "odd\nname \u2028")
    head, line = path.read_text().splitlines()
    assert json.loads(head)["journal"] == 1
    assert json.loads(line)["target"] == "odd\nname \u2028"
    assert parse(path.read_text()).entries["affinity", ONE].target == "odd\nname \u2028"
