"""What was before: written to disk before the first change, so that whatever ends us, it can be put back.

One JSON object a line, only ever appended, and emptied when everything has been put back. The file is locked
for as long as one agent may change anything. A last line that was cut off told of a change that was
never made: it does not count.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from quietcore.agent.pin.registry import LEVERS
from quietcore.agent.pin.things import Thing, Thread, Value, thing_of, ticks_now
from quietcore.probes.errors import MeasureError

DEFAULT_PATH = Path("/var/lib/quietcore/pin.journal")
VERSION = 1
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_COMPACT_BYTES = 1 << 20
_ATTEMPTS = 10

Key = tuple[str, Thing]


class JournalBusyError(MeasureError):
    """Another process holds the journal."""


class Change(NamedTuple):
    """What is about to be set."""

    lever: str
    thing: Thing
    old: Value
    new: Value


@dataclass(slots=True)
class Entry:
    """One thing that was changed.

    Attributes:
        old: its value before the first change.
        ours: all that was set since, also if it was never reached.
        target: for whom.
        began: when, by the clock of processes' starts (ticks since boot).
    """

    lever: str
    thing: Thing
    old: Value
    ours: list[Value]
    target: str
    began: int


@dataclass(slots=True)
class Contents:
    """What a journal says.

    Attributes:
        kept: the changes were meant to stay (``pin apply``): no agent that crashed left them.
        damaged: lines that could not be understood.
        stale: it was written before the last boot, which undid everything.
    """

    entries: dict[Key, Entry] = field(default_factory=dict)
    kept: bool = False
    damaged: list[str] = field(default_factory=list)
    stale: bool = False


class Journal:
    """The journal, ours alone while it is open. Use :meth:`open`.

    Attributes:
        conceded: what others set after we did, for as long as this process runs: it is theirs.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.conceded: set[Key] = set()
        self._descriptor = descriptor
        text = _read_all(descriptor)
        whole = text.rpartition(b"\n")[0]
        whole += b"\n" if whole else b""
        if whole != text:
            os.ftruncate(descriptor, len(whole))
        self.contents = parse(whole.decode(errors="replace"))
        if self.contents.stale:
            self.clear()
            self.contents = Contents(stale=True)

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Open, making it if need be, and lock it.

        Raises:
            JournalBusyError: another process has it.
            MeasureError: it cannot be opened, or is not a file that only we can have written.
        """
        for _ in range(_ATTEMPTS):
            descriptor = _open(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # its holder may have put a new file in its place meanwhile
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                        return cls(path, descriptor)
            except BlockingIOError:
                os.close(descriptor)
                raise JournalBusyError(
                    f"another agent has the journal {path}", "stop it: it puts everything back as it ends"
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        raise JournalBusyError(f"the journal {path} is replaced again and again", "stop the other agent")

    @property
    def entries(self) -> dict[Key, Entry]:
        return self.contents.entries

    def of(self, target: str | None) -> list[Entry]:
        """Entries of one target, or all, the latest first."""
        return [e for e in reversed(self.entries.values()) if target in (None, e.target)]

    def record(self, changes: Sequence[Change], target: str) -> None:
        """On disk when it returns: only then may the changes be made. Raises MeasureError."""
        began = ticks_now()
        fresh: dict[Key, Entry] = {}
        new: list[tuple[Entry, Value]] = []
        for change in changes:
            key = (change.lever, change.thing)
            made = Entry(*key, change.old, [], target, began)
            entry = fresh.setdefault(key, self.entries.get(key) or made)
            if change.new not in entry.ours:
                new.append((entry, change.new))
        self._append([_line(entry, value) for entry, value in new])
        self.entries.update(fresh)
        for entry, value in new:
            entry.ours.append(value)

    def done(self, keys: Iterable[Key]) -> None:
        """These are as they were, or not ours to restore. Raises MeasureError."""
        gone = [key for key in keys if self.entries.pop(key, None) is not None]
        if not self.entries:
            self.clear()
        elif gone:
            self._append([{"done": [lever, list(thing)]} for lever, thing in gone])
            if os.fstat(self._descriptor).st_size > _COMPACT_BYTES:
                self._compact()

    def keep(self) -> None:
        """What is in force now is meant to stay until ``pin restore``."""
        self.contents.kept = True
        self._append([{"kept": True}])

    def clear(self) -> None:
        """Nothing is in force any more."""
        os.ftruncate(self._descriptor, 0)
        os.fsync(self._descriptor)
        self.contents = Contents()

    def set_aside(self) -> Path:
        """Leave a copy of a damaged journal beside it, for people to look at; returns where."""
        copy = self.path.with_name(f"{self.path.name}.damaged")
        descriptor = _make(copy)
        try:
            os.write(descriptor, "".join(f"{line}\n" for line in self.contents.damaged).encode())
        finally:
            os.close(descriptor)
        return copy

    def close(self) -> None:
        """Let others have it."""
        os.close(self._descriptor)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, records: Sequence[dict[str, Any]]) -> None:
        try:
            size = os.fstat(self._descriptor).st_size
            if not os.path.samestat(os.stat(self.path), os.fstat(self._descriptor)):
                raise FileNotFoundError(2, "it was replaced")
            head = [] if size else [_head()]
            data = b"".join(json.dumps(record).encode() + b"\n" for record in (*head, *records))
            try:
                _write_all(self._descriptor, data)
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, size)  # no half record may stay in the middle
                raise
        except OSError as e:
            raise MeasureError(
                f"the journal {self.path} cannot be written: {e.strerror}", "nothing is changed without it"
            ) from e

    def _compact(self) -> None:
        """Write anew what still counts."""
        temporary = self.path.with_name(f".{self.path.name}.new")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = _make(temporary)
        records = [_head(), *(_line(e, value) for e in self.entries.values() for value in e.ours)]
        records += [{"kept": True}] if self.contents.kept else []
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            _write_all(descriptor, b"".join(json.dumps(record).encode() + b"\n" for record in records))
            os.fsync(descriptor)
            os.rename(temporary, self.path)
        except BaseException:
            os.close(descriptor)
            raise
        _sync_directory(self.path.parent)
        os.close(self._descriptor)
        self._descriptor = descriptor


def look(path: Path) -> Contents | None:
    """What a journal says, without locking it; ``None`` if there is none. Raises MeasureError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise MeasureError(f"the journal {path} cannot be read: {e.strerror}", "run as root") from e
    try:
        _expect_ours(path, descriptor)
        # whatever follows the last line end is being written, or was cut off
        return parse(_read_all(descriptor).rpartition(b"\n")[0].decode(errors="replace"))
    finally:
        os.close(descriptor)


def parse(text: str) -> Contents:
    """What whole lines say; those that cannot be understood are kept as they are."""
    contents = Contents()
    for line in filter(None, text.split("\n")):
        try:
            _take(contents, json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError):
            contents.damaged.append(line)
    return contents


def _take(contents: Contents, record: dict[str, Any]) -> None:
    if "journal" in record:
        if record["journal"] != VERSION:
            raise ValueError(f"version {record['journal']}")
        contents.stale = record["boot"] != _boot()
    elif "kept" in record:
        contents.kept = bool(record["kept"])
    elif "done" in record:
        name, fields = record["done"]
        contents.entries.pop((name, thing_of(LEVERS[name].thing, fields)), None)
    else:
        lever = LEVERS[record["lever"]]
        thing = thing_of(lever.thing, record["thing"])
        old, new = lever.check(record["old"]), lever.check(record["new"])
        entry = Entry(lever.name, thing, old, [], str(record["target"]), int(record["began"]))
        contents.entries.setdefault((lever.name, thing), entry).ours.append(new)


def _head() -> dict[str, Any]:
    return {"journal": VERSION, "boot": _boot(), "pid": os.getpid()}


def _line(entry: Entry, new: Value) -> dict[str, Any]:
    return {
        "lever": entry.lever,
        "thing": list(entry.thing),
        "old": entry.old,
        "new": new,
        "target": entry.target,
        "began": entry.began,
    }


def _boot() -> str:
    return _BOOT.read_text().strip()


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        is_new = not path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
        try:
            _expect_ours(path, descriptor)
            if is_new:
                _sync_directory(path.parent)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as e:
        raise MeasureError(
            f"the journal {path} cannot be opened: {e.strerror}", "run as root, or name another by --journal"
        ) from e
    return descriptor


def _expect_ours(path: Path, descriptor: int) -> None:
    """What a journal says is done with root's power: nobody else may have written it."""
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or about.st_uid not in (0, os.geteuid()) or about.st_mode & 0o022:
        raise MeasureError(
            f"the journal {path} is no plain file that only its owner, root or you, may write",
            "remove it, or name another by --journal",
        )


def _make(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def _read_all(descriptor: int) -> bytes:
    return b"".join(_chunks(descriptor))


def _chunks(descriptor: int) -> Iterator[bytes]:
    offset = 0
    while chunk := os.pread(descriptor, 1 << 16, offset):
        offset += len(chunk)
        yield chunk


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def pids_in(entries: Iterable[Entry]) -> dict[int, int]:
    """Processes whose threads were changed, with their starts."""
    return {e.thing.pid: e.thing.started for e in entries if isinstance(e.thing, Thread)}
