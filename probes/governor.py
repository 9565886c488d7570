"""Keeps the cost of uprobes under a budget by attaching them part of the time.

A uprobe costs a trap per hit, whatever its program does, so sampling inside the program
saves nothing: the probes must come off. While they are on, hits are counted; their rate
times the calibrated cost of one gives the share of a core that the target pays.
"""

from __future__ import annotations

import ctypes as ct
import os
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quietcore.probes.backend import CALIBRATION_ID, Backend, Probe, UprobeLink
from quietcore.probes.errors import MeasureError

SELF_TEST = Path(__file__).parent / "_built" / "libselftest.so"
MIN_ON_S, MAX_OFF_S = 0.02, 10.0
PERIOD_S = 1.0
"""Aim of a period with the probes on and off; longer where the shortest stretch costs more."""
CHECK_S = 0.25
"""Time between looks at the cost while the probes are on."""
DEFAULT_COST_NS = 1_300.0
"""Entry and return of one call on an emulated instruction, where calibration is impossible."""
STEP_FACTOR = 14
"""How much dearer the pair is on an instruction that the kernel must step over."""
_CALIBRATION_CALLS = 2_000


@dataclass(frozen=True, slots=True)
class Site:
    """The probes of one library in one process of a target."""

    target: str
    pid: int
    path: str
    probes: Sequence[Probe]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time (ns) in which all calls were counted."""

    start: int
    end: int

    @property
    def ns(self) -> int:
        """Its length."""
        return self.end - self.start


@dataclass(slots=True)
class Governor:
    """Attaches and detaches the uprobes of all targets, together.

    Args:
        budget: share of one core that the probes may cost a target; ``None``: always attached.
            The dearest target sets the pace for all.
        cost_ns: nanoseconds that one hit costs (see :func:`calibrate`).
    """

    backend: Backend
    budget: float | None
    cost_ns: float = DEFAULT_COST_NS
    stretches: list[Stretch] = field(default_factory=list)
    _sites: dict[tuple[int, str], Site] = field(default_factory=dict)
    _links: dict[tuple[int, str], UprobeLink] = field(default_factory=dict)
    _files: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)
    _lost: list[tuple[Site, MeasureError]] = field(default_factory=list)
    _on_since: int = 0
    _on_s: float = MIN_ON_S
    _deadline: float = 0.0
    _began: float = 0.0
    _checked_at: int = 0
    _paid_ns: dict[str, float] = field(default_factory=dict)
    _hits_seen: dict[int, int] = field(default_factory=dict)

    @property
    def active(self) -> bool:
        """Whether there is anything to attach."""
        return bool(self._sites)

    @property
    def deadline(self) -> float:
        """When ``tick`` wants to be called next (``time.monotonic``)."""
        return self._deadline if self._sites else float("inf")

    def add(self, site: Site) -> None:
        """Probe a library of a process from now on, or from when the budget that was spent is earned again.

        Raises MeasureError: it cannot be, and is forgotten.
        """
        if (site.pid, site.path) in self._sites:
            return
        self._began = self._began or time.monotonic()
        try:
            self._attach(site)
        finally:
            # also if it was refused: a calibration in between has switched counting off
            if self._on_since:
                self.backend.count_launches(True)
        if not self._on_since:
            if self.budget is None or time.monotonic() >= self._deadline:
                self._switch_on()
            else:  # or every process that comes would buy a stretch
                self._links.pop((site.pid, site.path)).close()

    def remove(self, pid: int) -> None:
        """A process is gone, and its probes with it."""
        # its hits go with it
        share = self._cost_share() if self._on_since else 0.0
        for key in [k for k in self._sites if k[0] == pid]:
            del self._sites[key]
            self._files.pop(key, None)
            if link := self._links.pop(key, None):
                link.close()
        if self._on_since and not self._links:
            self.backend.count_launches(False)
            self._end_stretch()
            self._pause(share)

    def take_lost(self) -> list[tuple[Site, MeasureError]]:
        """Sites whose probes were on before and could not be set again, since the last call: forgotten."""
        lost, self._lost = self._lost, []
        return lost

    def tick(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        if not self._sites or now < self._deadline:
            return
        if not self._on_since:
            self._switch_on()
            return
        share = self._cost_share()
        if self.budget is None or share <= self.budget:
            self._deadline = now + CHECK_S
            return
        self._switch_off()
        self._pause(share)

    def _pause(self, share: float) -> None:
        """Set when the probes may come on again, after a stretch that cost ``share`` of a core."""
        if self.budget is None or not share:
            self._deadline = 0.0
            return
        self._on_s = min(max(self.budget / share * PERIOD_S, MIN_ON_S), PERIOD_S)
        # what was paid, and what the next stretch will cost, must have been earned by then
        paid = max(self._paid_ns.values(), default=0.0) / 1e9
        pause = (paid + share * self._on_s) / self.budget - (time.monotonic() - self._began)
        # jitter: a fixed period could keep step with the tokens
        self._deadline = time.monotonic() + min(max(pause, 0.05), MAX_OFF_S) * random.uniform(0.8, 1.2)

    def _cost_share(self) -> float:
        """Of one core, since the last look, for the target that pays most."""
        now = time.monotonic_ns()
        target_of = {site.pid: site.target for site in self._sites.values()}
        cost: dict[str, float] = {}
        for pid, hits in self.backend.probe_hits().items():
            if pid in target_of:
                new = hits - self._hits_seen.get(pid, 0)
                cost[target_of[pid]] = cost.get(target_of[pid], 0.0) + new * self.cost_ns
                self._hits_seen[pid] = hits
        for target, ns in cost.items():
            self._paid_ns[target] = self._paid_ns.get(target, 0.0) + ns
        elapsed, self._checked_at = max(now - self._checked_at, 1), now
        return max(cost.values(), default=0.0) / elapsed

    def _switch_on(self) -> None:
        for key in [k for k in self._sites if k not in self._links]:
            site = self._sites.pop(key)
            try:
                self._attach(site)
            except MeasureError as e:
                self._lost.append((site, e))
        if not self._links:
            return
        self.backend.count_launches(True)
        self._on_since = self._checked_at = time.monotonic_ns()
        self._deadline = time.monotonic() + self._on_s

    def _attach(self, site: Site) -> None:
        key = (site.pid, site.path)
        before, file = self._files.pop(key, None), _file_at(site.path)
        # a trap at an offset that is another file's would break the target
        if before and file and before != file:
            raise MeasureError(f"another file is now at {site.path}")
        self._links[key] = self.backend.attach_cuda(site.pid, site.path, site.probes)
        self._sites[key] = site
        if file:
            self._files[key] = file

    def _switch_off(self) -> None:
        self.backend.count_launches(False)
        self._end_stretch()
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._cost_share()  # detaching takes a while, and costs

    def _end_stretch(self) -> None:
        self.stretches.append(Stretch(self._on_since, time.monotonic_ns()))
        self._on_since = 0

    def seen_ns(self, start: int, end: int) -> int:
        """How much of a window was counted."""
        current = [Stretch(self._on_since, end)] if self._on_since else []
        return sum(max(min(s.end, end) - max(s.start, start), 0) for s in [*self.stretches, *current])

    def overhead(self) -> float:
        """Estimated share of one core that the probes have cost the dearest target so far."""
        elapsed = time.monotonic() - self._began
        return max(self._paid_ns.values(), default=0.0) / 1e9 / elapsed if elapsed > 0 else 0.0

    def close(self) -> None:
        """Detach everything."""
        if self._on_since:
            self._switch_off()
        self._sites.clear()


def calibrate(backend: Backend, *, single_step: bool = False) -> float:
    """Nanoseconds that entry and return probe add to one call, on this machine and now.

    The wheel's self-test library is called in this process with and without the real
    programs attached; the median of five runs.

    Args:
        single_step: measure a first instruction that the kernel must step over instead of
            one that it emulates.

    Raises:
        MeasureError: the probes cannot be attached.
    """
    library = ct.CDLL(str(SELF_TEST))
    name = "qc_selftest_step" if single_step else "qc_selftest_push"
    function = getattr(library, name)
    library.qc_selftest_burst.restype = ct.c_uint64
    library.qc_selftest_burst.argtypes = [ct.c_void_p, ct.c_uint64]

    def per_call() -> float:
        runs: list[int] = [library.qc_selftest_burst(function, _CALIBRATION_CALLS) for _ in range(5)]
        return statistics.median(runs) / _CALIBRATION_CALLS

    plain = per_call()
    pid = os.getpid()
    probe = Probe(symbol_offset(SELF_TEST, name), CALIBRATION_ID, 0, return_safe=True)
    link = backend.attach_cuda(pid, str(SELF_TEST), [probe])
    try:
        backend.count_launches(True)
        return max(per_call() - plain, 0.0)
    finally:
        backend.count_launches(False)
        link.close()
        backend.remove_process(pid)


def _file_at(path: str) -> tuple[int, int] | None:
    """Device and inode, ``None`` if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def symbol_offset(path: Path, symbol: str) -> int:
    """File offset of an exported function. Raises MeasureError."""
    from elftools.elf.elffile import ELFFile

    with open(path, "rb") as f:
        elf = ELFFile(f)
        symbols: Any = elf.get_section_by_name(".dynsym")
        found = symbols.get_symbol_by_name(symbol) if symbols else None
        if not found:
            raise MeasureError(f"{path.name} has no symbol {symbol}", "reinstall quietcore")
        offset: int = next(iter(elf.address_offsets(found[0]["st_value"])))
        return offset
