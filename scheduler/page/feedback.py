"""The feedback page: what the agent measured of each process of its targets, for the engine in it to read.

One record a process. A reader takes nothing in it on trust, and whatever is wrong with the page or a record
(stale, torn, another's, absent, a value that makes no sense) means *neutral*: as if there were no agent.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from os import pread
from pathlib import Path
from time import monotonic_ns
from typing import NamedTuple

from quietcore.scheduler.page.files import HEADER_SIZE, Kind, create_page, has_header, open_page
from quietcore.scheduler.page.identity import ProcessIdentity
from quietcore.scheduler.page.seqlock import ATTEMPTS, HEAD_SIZE, RecordWriter, read_record, record_size

VERSION = 1
MAX_SLOTS = 256
LEAST_CONFIDENCE = 0.5
STALE_WINDOWS = 3

# identity; updated, window, throttle reasons | stolen shares | host, device, confidence, launches, clocks
_IDENTITY = struct.Struct("<3Q")
_BODY = struct.Struct("<3Q3Q6d6d")
BODY_SIZE = _BODY.size
SLOT_SIZE = record_size(BODY_SIZE)
PAGE_SIZE = HEADER_SIZE + MAX_SLOTS * SLOT_SIZE
_OFFSETS = range(HEADER_SIZE, PAGE_SIZE, SLOT_SIZE)
_EMPTY = bytes(BODY_SIZE)

_LEAST_WINDOW_NS, _MOST_WINDOW_NS = 1_000_000, 10_000_000_000
_MOST_SLOWDOWN = 100.0
_MOST_LAUNCH_S = 1e6
_MOST_CLOCK_RATIO = 2.0
_MOST_INT = 2**63
# least, most, and what is written in place of what is no number
_RANGES = (
    *((0.0, 1.0, 0.0),) * 6,
    *((1.0, _MOST_SLOWDOWN, 1.0),) * 2,
    (0.0, 1.0, 0.0),
    *((0.0, _MOST_LAUNCH_S, 0.0),) * 2,
    (0.0, _MOST_CLOCK_RATIO, 0.0),
)

# A look at the page is a system call; within a millisecond of the last one it would tell nothing new.
_AGAIN_NS = 1_000_000
# So often the reader sees whether the page is still in its place and, without a record, looks for one.
_CHECK_NS = 250_000_000
_NEVER = 2**63


class StolenShares(NamedTuple):
    """Shares of wall time, 0 to 1, that each cause took from the critical threads."""

    run_queue: float = 0.0
    preempted: float = 0.0
    throttled: float = 0.0
    irq: float = 0.0
    softirq: float = 0.0
    steal: float = 0.0


_NOTHING = StolenShares()


@dataclass(frozen=True, slots=True)
class Feedback:
    """What is known of one process; all processes of a target have the same.

    Attributes:
        window_ns: length of the window that it tells of, 1 ms to 10 s.
        host_slowdown: how many times as long host work takes as undisturbed, 1 or more.
        device_slowdown: the same for the GPU's work, from its clocks.
        confidence: 0 to 1; below 0.5 the reader takes it for neutral.
        launch_p50_s, launch_p99_s: latency of kernel launches in seconds, 0 where unknown.
        gpu_clock_ratio: present clock over the highest, 0 where unknown.
        gpu_throttle: NVML's clocks-event reasons, as bits.
        updated_ns: set by the writer, CLOCK_MONOTONIC.
    """

    identity: ProcessIdentity
    window_ns: int
    stolen: StolenShares = _NOTHING
    host_slowdown: float = 1.0
    device_slowdown: float = 1.0
    confidence: float = 1.0
    launch_p50_s: float = 0.0
    launch_p99_s: float = 0.0
    gpu_clock_ratio: float = 0.0
    gpu_throttle: int = 0
    updated_ns: int = 0


def default_feedback_path() -> Path:
    """Where agent and engine meet if nobody says otherwise."""
    return Path("/run/quietcore/feedback")


class FeedbackPageWriter:
    """The agent's side, the only writer of a page; one that another left at ``path`` is replaced.

    Raises:
        OSError: the page cannot be made there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        folder = self.path.parent
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o755)  # engines of other users read it, whatever our umask is
        self._page = create_page(self.path, Kind.FEEDBACK, VERSION, PAGE_SIZE)
        self._inode = self.path.stat().st_ino
        self._records = [RecordWriter(self._page, offset) for offset in _OFFSETS]
        self._slots: dict[ProcessIdentity, int] = {}
        self._free = list(reversed(range(MAX_SLOTS)))

    def publish(self, feedback: Iterable[Feedback]) -> int:
        """Write all that is known now; who is not in it any more loses his record.

        A process keeps its place while it is published. Values out of range are brought into it, and what is
        no number counts as unknown. Returns how many processes found no room.
        """
        now_ns = monotonic_ns()
        wanted = {each.identity: each for each in feedback}
        for identity in self._slots.keys() - wanted.keys():
            slot = self._slots.pop(identity)
            self._records[slot].write(_EMPTY)
            self._free.append(slot)
        without = 0
        for identity, each in wanted.items():
            found = self._slots.get(identity)
            if found is None:
                if not self._free:
                    without += 1
                    continue
                found = self._slots[identity] = self._free.pop()
            self._records[found].write(_pack(each, now_ns))
        return without

    def close(self) -> None:
        """Remove the page, unless another has taken its place; again is harmless."""
        if self._page.closed:
            return
        self.publish(())
        self._page.close()
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()


class FeedbackReader:
    """The engine's side: what the page says of this process, in under a microsecond and without blocking.

    ``identity`` is by default this process's, ``owners`` are the uids that may own the page, root's and the
    own one by default. The page is read by ``pread``, not mapped: a touch of what somebody has cut short
    meanwhile would kill the engine. In most calls nothing is new, and that is known from the clock or from
    the sequence of the record alone.
    """

    __slots__ = (
        "_again_ns",
        "_check_ns",
        "_file",
        "_found",
        "_inode",
        "_key",
        "_offset",
        "_owners",
        "_sequence",
        "_until_ns",
        "path",
    )

    def __init__(
        self,
        path: str | os.PathLike[str],
        identity: ProcessIdentity | None = None,
        owners: Collection[int] | None = None,
    ) -> None:
        self.path = Path(path)
        self._key = _IDENTITY.pack(*(ProcessIdentity.own() if identity is None else identity))
        self._owners = frozenset((0, os.geteuid()) if owners is None else owners)
        self._file = -1
        self._inode = (0, 0)
        self._offset = 0  # of our record; 0: not found
        self._sequence = b""
        self._found: Feedback | None = None
        self._until_ns = _NEVER  # from then on it is stale
        self._again_ns = 0
        self._check_ns = 0

    def read(self) -> Feedback | None:
        """What is measured now; ``None`` is neutral. Never raises.

        The same object comes again until there is a new record. While one is being written, or was left
        half-written by a writer that died, the one before holds until it is stale.
        """
        now_ns = monotonic_ns()
        if now_ns < self._again_ns:
            return self._found
        try:
            if now_ns >= self._check_ns:
                self._check(now_ns)
            if not self._offset:
                self._again_ns = self._check_ns
                return None
            if pread(self._file, 8, self._offset) != self._sequence:
                self._take()
        except OSError:
            self._forget()
        if now_ns >= self._until_ns:
            self._found, self._until_ns = None, _NEVER
        self._again_ns = min(now_ns + _AGAIN_NS, self._until_ns)
        return self._found

    def slowdown(self) -> tuple[float, float]:
        """Of host and device; 1 and 1 where neutral."""
        found = self.read()
        return (1.0, 1.0) if found is None else (found.host_slowdown, found.device_slowdown)

    def close(self) -> None:
        """Let go of the page; reading again opens it again."""
        self._forget()
        self._again_ns = self._check_ns = 0
        self._shut()

    def _forget(self) -> None:
        self._offset, self._sequence = 0, b""
        self._found, self._until_ns = None, _NEVER

    def _shut(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _check(self, now_ns: int) -> None:
        """Is the page at ``path`` still the one that is open? And where in it are we?"""
        self._check_ns = now_ns + _CHECK_NS
        if self._file >= 0 and _inode(self.path) != self._inode:
            self._forget()
            self._shut()
        if self._file < 0:
            descriptor = open_page(self.path, PAGE_SIZE, self._owners)
            if descriptor is None:
                return
            self._file, self._inode = descriptor, _inode(descriptor)
        if not self._offset:
            self._offset = self._search()

    def _search(self) -> int:
        """The offset of the first whole record that is ours, 0 if there is none."""
        page = pread(self._file, PAGE_SIZE, 0)
        if len(page) != PAGE_SIZE or not has_header(page, Kind.FEEDBACK, VERSION, PAGE_SIZE):
            return 0
        if self._key in page:
            for offset in _OFFSETS:
                if page.startswith(self._key, offset + HEAD_SIZE) and read_record(page, offset, BODY_SIZE):
                    return offset
        return 0

    def _take(self) -> None:
        for _ in range(ATTEMPTS):
            slot = pread(self._file, SLOT_SIZE, self._offset)
            record = read_record(slot, 0, BODY_SIZE) if len(slot) == SLOT_SIZE else None
            if record is not None:
                break
        else:
            return
        _, body = record
        if not body.startswith(self._key):
            self._forget()
            return
        self._sequence = slot[:8]
        self._found, self._until_ns = None, _NEVER
        found = _unpack(body)
        # the clock after the record, or one written this moment would be of the future
        if found is not None and found.updated_ns <= monotonic_ns():
            self._found = found
            self._until_ns = found.updated_ns + STALE_WINDOWS * found.window_ns


def _inode(file: Path | int) -> tuple[int, int]:
    try:
        about = os.stat(file)
    except OSError:
        return 0, 0
    return about.st_dev, about.st_ino


def _pack(feedback: Feedback, now_ns: int) -> bytes:
    floats = (
        *feedback.stolen,
        feedback.host_slowdown,
        feedback.device_slowdown,
        feedback.confidence,
        feedback.launch_p50_s,
        feedback.launch_p99_s,
        feedback.gpu_clock_ratio,
    )
    return _BODY.pack(
        *feedback.identity,
        now_ns,
        min(max(feedback.window_ns, _LEAST_WINDOW_NS), _MOST_WINDOW_NS),
        feedback.gpu_throttle & (_MOST_INT - 1),
        *(
            min(max(value, least), most) if math.isfinite(value) else unknown
            for value, (least, most, unknown) in zip(floats, _RANGES, strict=True)
        ),
    )


def _unpack(body: bytes) -> Feedback | None:
    """Every value within its range and trusted by who wrote it, or nothing at all."""
    pid_ns, pid, start, updated_ns, window_ns, throttle, *floats = _BODY.unpack(body)
    if not _LEAST_WINDOW_NS <= window_ns <= _MOST_WINDOW_NS or max(updated_ns, throttle) >= _MOST_INT:
        return None
    if not all(least <= value <= most for value, (least, most, _) in zip(floats, _RANGES, strict=True)):
        return None
    host, device, confidence, p50, p99, clock_ratio = floats[6:]
    if confidence < LEAST_CONFIDENCE:
        return None
    return Feedback(
        identity=ProcessIdentity(pid_ns, pid, start),
        window_ns=window_ns,
        stolen=StolenShares(*floats[:6]),
        host_slowdown=host,
        device_slowdown=device,
        confidence=confidence,
        launch_p50_s=p50,
        launch_p99_s=p99,
        gpu_clock_ratio=clock_ratio,
        gpu_throttle=throttle,
        updated_ns=updated_ns,
    )
