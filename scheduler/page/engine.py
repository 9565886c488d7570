"""The engine page: what the scheduler inside an engine did and expects, for the agent to export."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import re
import stat
import struct
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from quietcore.scheduler.page.files import HEADER_SIZE, Kind, create_page, has_header, open_page
from quietcore.scheduler.page.identity import ProcessIdentity
from quietcore.scheduler.page.seqlock import RecordWriter, read_record, record_size

VERSION = 1
MAX_TIERS = 6
NAME_BYTES = 16
OTHER = "other"

_DEGRADED = 1

# identity; time; running, slots, tiers, flags | name and depth a tier | ints | floats: in this order
_FIXED = struct.Struct("<QQQ Q 4I")
_TIER = struct.Struct(f"<{NAME_BYTES}sQ")
_INTS, _FLOATS = 12, 18
_NUMBERS = struct.Struct(f"<{_INTS}Q{_FLOATS}d")
_TIERS_SIZE = MAX_TIERS * _TIER.size
BODY_SIZE = _FIXED.size + _TIERS_SIZE + _NUMBERS.size
PAGE_SIZE = HEADER_SIZE + record_size(BODY_SIZE)

_MAX_INT = 2**53
_MAX_FLOAT = 1e15
_NAME = re.compile(rf"[A-Za-z0-9_.:-]{{1,{NAME_BYTES}}}")
# also one that was not yet put in its place
_PAGE_NAME = re.compile(r"\.?engine-(\d{1,20})-(\d{1,20})-(\d{1,20})\.page(\.\d{1,20})?")
_FUTURE_NS = 1_000_000_000


class Account(NamedTuple):
    """Predicted against actual, over all requests that ended by themselves: how many, and three sums."""

    requests: int = 0
    predicted: float = 0.0
    actual: float = 0.0
    absolute_error: float = 0.0


class Decisions(NamedTuple):
    """How often the scheduler did what, since the engine started."""

    admitted: int = 0
    preempted_forced: int = 0
    preempted_voluntary: int = 0
    promoted: int = 0
    deadlines_met: int = 0
    deadlines_missed: int = 0


class StepTimes(NamedTuple):
    """The step-time model: seconds a step, a prefill token, a sequence and a token of context, by part.

    ``StepTimes(*model.state)`` of a :class:`~quietcore.scheduler.cost.StepTimeModel`.
    """

    device: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    host: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    pace: float = 1.0
    error: float = 0.0
    steps: int = 0


_NONE, _NO_DECISIONS, _NO_STEPS, _NOBODY = Account(), Decisions(), StepTimes(), ProcessIdentity()


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The content of an engine page.

    Attributes:
        waiting: requests in the queue by tier; past six tiers the rest is ``other``, and tiers whose names
            are alike when made plain are one.
        running: requests that hold a slot, of ``slots``.
        steps: the step-time model.
        tokens, seconds: predicted against actual output tokens, and seconds of engine time.
        decisions: what was decided, counted.
        re_estimates: requests whose estimate was corrected while they ran or waited.
        ignored_hints: hints of clients that made no sense.
        slowdown_host, slowdown_device: the correction applied to step times now, 1 if none.
        revision: how often costs changed enough to rank the queue anew.
        degraded: whether something of ours failed and the engine serves in its own order.
        identity, monotonic_ns, sequence: set by the writer. Whose page it is, when it was written
            (CLOCK_MONOTONIC), and how often, times two.
    """

    waiting: Mapping[str, int] = field(default_factory=dict)
    running: int = 0
    slots: int = 0
    steps: StepTimes = _NO_STEPS
    tokens: Account = _NONE
    seconds: Account = _NONE
    decisions: Decisions = _NO_DECISIONS
    re_estimates: int = 0
    slowdown_host: float = 1.0
    slowdown_device: float = 1.0
    revision: int = 0
    ignored_hints: int = 0
    degraded: bool = False
    identity: ProcessIdentity = _NOBODY
    monotonic_ns: int = 0
    sequence: int = 0


def engine_page_name(identity: ProcessIdentity) -> str:
    """The file name of a process's page; no two engines of a host share one."""
    return f"engine-{identity.pid_ns}-{identity.pid}-{identity.start_ticks}.page"


def remove_abandoned_pages(folder: Path) -> None:
    """Remove this user's pages whose writers have ended without doing so, as killed ones; never raises."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            name = _PAGE_NAME.fullmatch(entry.name)
            if name is None or not ProcessIdentity(*map(int, name.groups()[:3])).is_gone():
                continue
            with contextlib.suppress(OSError):
                about = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid():
                    os.unlink(entry.path)


class EnginePageWriter:
    """Writes this process's page in some microseconds and never raises.

    A page that cannot be made leaves a writer that does nothing; ``error`` says why, for one line in the log.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.error = ""
        self._identity = ProcessIdentity.own()
        self._page: mmap.mmap | None = None
        try:
            self._page = create_page(self.path, Kind.ENGINE, VERSION, PAGE_SIZE)
            self._inode = self.path.stat().st_ino
            self._record = RecordWriter(self._page, HEADER_SIZE)
        except (OSError, ValueError) as error:
            self.error = f"no engine page at {self.path}: {error}; choose a folder that the server may write"

    def write(self, stats: EngineStats) -> bool:
        """Publish ``stats`` as of now; whether that worked."""
        if self._page is None:
            return False
        try:
            if self._page.size() < PAGE_SIZE:  # the file was cut short: to write would be SIGBUS
                return False
            self._record.write(_pack(stats, self._identity, time.monotonic_ns()))
        except (OSError, ValueError, TypeError, ArithmeticError, struct.error, AttributeError):
            return False
        return True

    def close(self) -> None:
        """Remove the page, unless another has taken its place; again is harmless."""
        if self._page is None:
            return
        self._page.close()
        self._page = None
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()


def read_engine_page(
    path: str | os.PathLike[str],
    *,
    owners: Collection[int] | None = None,
    identity: ProcessIdentity | None = None,
    max_age_s: float = 60.0,
) -> EngineStats | None:
    """The content of a page, or ``None`` if it is absent, torn, stale, foreign or not to be trusted.

    ``owners``: uids of whom it may be, by default this process's. ``identity``: whose it must be, if that is
    known; an engine without requests takes no steps and writes nothing, so who checks that it
    lives may well give a long ``max_age_s``. It is read, not mapped: whoever owns it could cut it short.
    """
    descriptor = open_page(Path(path), PAGE_SIZE, (os.geteuid(),) if owners is None else owners)
    if descriptor is None:
        return None
    try:
        for _ in range(3):
            page = os.pread(descriptor, PAGE_SIZE, 0)
            if len(page) != PAGE_SIZE or not has_header(page, Kind.ENGINE, VERSION, PAGE_SIZE):
                return None
            found = read_record(page, HEADER_SIZE, BODY_SIZE)
            if found is not None:
                break
        else:
            return None
    except OSError:
        return None
    finally:
        os.close(descriptor)
    stats = _unpack(found[1])
    if stats is None or (identity is not None and stats.identity != identity):
        return None
    age_ns = time.monotonic_ns() - stats.monotonic_ns
    if not -_FUTURE_NS <= age_ns <= max_age_s * 1e9:
        return None
    return replace(stats, sequence=found[0])


def _pack(stats: EngineStats, identity: ProcessIdentity, now_ns: int) -> bytes:
    flags = _DEGRADED if stats.degraded else 0
    tiers = _tiers(stats.waiting)
    steps, decisions, tokens, seconds = stats.steps, stats.decisions, stats.tokens, stats.seconds
    floats: tuple[float, ...] = (
        *steps.device,
        *steps.host,
        steps.pace,
        steps.error,
        *tokens[1:],
        *seconds[1:],
        stats.slowdown_host,
        stats.slowdown_device,
    )
    if not math.isfinite(sum(floats)):
        floats = tuple(value if math.isfinite(value) else 0.0 for value in floats)
    return b"".join(
        (
            _FIXED.pack(*identity, now_ns, stats.running, stats.slots, len(tiers), flags),
            *tiers,
            bytes(_TIERS_SIZE - len(tiers) * _TIER.size),
            _NUMBERS.pack(
                *(steps.steps, tokens.requests, seconds.requests),
                *decisions,
                *(stats.re_estimates, stats.revision, stats.ignored_hints),
                *floats,
            ),
        )
    )


def _tiers(waiting: Mapping[str, int]) -> list[bytes]:
    plain: dict[bytes, int] = {}
    for name, depth in waiting.items():
        _add(plain, _name(name), depth)
    if len(plain) > MAX_TIERS:
        items = list(plain.items())
        plain = dict(items[: MAX_TIERS - 1])
        _add(plain, OTHER.encode(), sum(depth for _, depth in items[MAX_TIERS - 1 :]))
    return [_TIER.pack(name, depth) for name, depth in plain.items()]


def _add(depths: dict[bytes, int], name: bytes, depth: int) -> None:
    """No name twice: a page with one is not to be trusted."""
    depths[name] = depths.get(name, 0) + depth


def _name(name: str) -> bytes:
    if not _NAME.fullmatch(name):
        name = re.sub(r"[^A-Za-z0-9_.:-]", "_", name)[:NAME_BYTES] or OTHER
    return name.encode("ascii")


def _unpack(body: bytes) -> EngineStats | None:
    """Every value within its range, or nothing at all."""
    pid_ns, pid, start, now_ns, running, slots, tiers, flags = _FIXED.unpack_from(body)
    numbers = _NUMBERS.unpack_from(body, _FIXED.size + _TIERS_SIZE)
    ints, floats = numbers[:_INTS], numbers[_INTS:]
    if tiers > MAX_TIERS or flags & ~_DEGRADED or not _in_range(ints, floats):
        return None
    waiting = _unpack_tiers(body, tiers)
    if waiting is None or max(pid_ns, pid, start, now_ns) >= 2**63 or not pid:
        return None
    return EngineStats(
        waiting=waiting,
        running=running,
        slots=slots,
        steps=StepTimes(floats[0:4], floats[4:8], floats[8], floats[9], ints[0]),
        tokens=Account(ints[1], *floats[10:13]),
        seconds=Account(ints[2], *floats[13:16]),
        decisions=Decisions(*ints[3:9]),
        re_estimates=ints[9],
        revision=ints[10],
        ignored_hints=ints[11],
        slowdown_host=floats[16],
        slowdown_device=floats[17],
        degraded=bool(flags & _DEGRADED),
        identity=ProcessIdentity(pid_ns, pid, start),
        monotonic_ns=now_ns,
    )


def _in_range(ints: Iterable[int], floats: Iterable[float]) -> bool:
    return all(value < _MAX_INT for value in ints) and all(0.0 <= value <= _MAX_FLOAT for value in floats)


def _unpack_tiers(body: bytes, count: int) -> dict[str, int] | None:
    waiting: dict[str, int] = {}
    for index in range(count):
        raw, depth = _TIER.unpack_from(body, _FIXED.size + index * _TIER.size)
        name = raw.rstrip(b"\0").decode("ascii", "replace")
        if not _NAME.fullmatch(name) or name in waiting or depth >= _MAX_INT:
            return None
        waiting[name] = depth
    return waiting
