"""One measurement: attaches to targets, follows them, and takes a snapshot every so often."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from quietcore.agent.targets import Follower, Target
from quietcore.probes import cgroups, proc
from quietcore.probes.backend import Backend, Probe
from quietcore.probes.cuda_libs import (
    API_CLASSES,
    API_SYMBOLS,
    ApiClass,
    LibraryAccessError,
    find_libraries,
    probe_sites,
)
from quietcore.probes.errors import MeasureError, TargetGoneError
from quietcore.probes.governor import DEFAULT_COST_NS, STEP_FACTOR, Governor, Site, calibrate
from quietcore.probes.readings import Outlier, Snapshot, Window

STEP_S = 1.0
"""Time between snapshots: the windows whose scatter gives the margin of error."""
SWEEP_S = 0.5
LASTING = ("threads", "targets")
"""Losses at the start that last: what found no room then is missing from every step."""
PROBED: tuple[ApiClass, ...] = ("launch", "graph_launch", "sync", "copy")
"""Classes of CUDA calls that are probed; allocations do not pace a server."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a measurement.

    ``seen_ns`` of it had the CUDA probes counting. ``throttled`` is by cgroup
    directory, of all targets: nanoseconds that its threads were held back by its CPU quota.
    """

    window: Window
    snapshot: Snapshot
    seen_ns: int
    throttled: dict[str, int]


@dataclass(slots=True)
class Session:
    """Measures targets with one backend. Use as a context manager: leaving it detaches everything.

    Args:
        budget: share of one core that uprobes may cost a target, ``None`` for no limit.
    """

    backend: Backend
    targets: list[Target]
    budget: float | None
    notes: list[tuple[Target | None, str]] = field(default_factory=list)
    outliers: list[Outlier] = field(default_factory=list)
    governor: Governor = field(init=False)
    _follower: Follower = field(init=False)
    first: Snapshot = field(init=False)
    last: Snapshot = field(init=False)
    _stopping: bool = field(default=False, init=False)
    _throttled: dict[str, int] = field(default_factory=dict)
    _cgroups: dict[int, set[str]] = field(default_factory=dict)
    _known: dict[tuple[int, int, int], str] = field(default_factory=dict)
    _headless: set[int] = field(default_factory=set)
    _costs: dict[bool, float] = field(default_factory=dict)
    _uncalibrated: dict[bool, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.governor = Governor(self.backend, self.budget)
        self.notes += [(target, target.note) for target in self.targets if target.note]
        self._follower = Follower(self.targets, self._arrived, self._left)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Attach to everything that is there now. Raises MeasureError if no target is left, or too many."""
        for target in self.targets:
            if target.cgroup_id is not None:
                self.backend.add_cgroup(target.cgroup_id)
            for pid in list(target.processes):
                self._take_in(target, pid)
        if not any(target.alive for target in self.targets):
            raise TargetGoneError("the target ended before anything was attached")
        self._throttled = self._read_throttled()
        first = self.backend.snapshot()
        passed = {name: n for name, n in first.losses.items() if name not in LASTING}
        self.first = self.last = replace(first, losses=passed)

    def run(
        self, seconds: float, between: Callable[[float], None] | None = None, step: float = STEP_S
    ) -> Iterator[Step]:
        """Measure; yields a step about every ``step`` seconds.

        Ends early when all targets have, or after :meth:`stop`.

        Args:
            between: called with the seconds since the start after each step.
        """
        began = last = time.monotonic()
        due, sweep = began + step, began + SWEEP_S
        poller = select.poll()
        if (fd := self.backend.event_fd()) is not None:
            poller.register(fd, select.POLLIN)
        while True:
            wait = min(due, sweep, self.governor.deadline) - time.monotonic()
            poller.poll(max(wait, 0) * 1000)
            self._handle_events()
            self.governor.tick()
            self._find_lost()
            now = time.monotonic()
            if now >= sweep:
                self._follower.sweep()
                self._find_cuda()
                sweep = now + SWEEP_S
            alive = any(target.alive for target in self.targets)
            if self._stopping:
                self._note(None, f"stopped after {now - began:.1f} s of {seconds:g} s")
                # a sliver would weigh as much as a whole step
                if last == began or now - last >= step / 2:
                    yield self._step()
                return
            if now >= due or not alive:
                yield self._step()
                if between:
                    between(now - began)
                if not alive or now - began >= seconds - 0.01:
                    return
                last, due = now, min(due + step, began + seconds)

    def stop(self) -> None:
        """End :meth:`run` within half a second; what was measured stands. For signal handlers."""
        self._stopping = True

    @property
    def whole(self) -> Window:
        """All that was measured so far, as one window."""
        return self.last.since(self.first)

    def _step(self) -> Step:
        snapshot = self.backend.snapshot()
        window = snapshot.since(self.last)
        self.last = snapshot
        throttled = self._read_throttled()
        change = {path: ns - self._throttled.get(path, ns) for path, ns in throttled.items()}
        self._throttled = throttled
        return Step(window, snapshot, self.governor.seen_ns(window.start, window.end), change)

    def _handle_events(self) -> None:
        events = self.backend.events()
        self.outliers += events.outliers[: max(0, 1000 - len(self.outliers))]
        for event in events.processes:
            if event.kind == "fork":
                self._follower.forked(event.tgid)
            elif event.kind == "exit":
                self._follower.ended(event.tgid)
            else:
                self._find_cuda(event.tgid)

    def _arrived(self, target: Target, pid: int) -> None:
        try:
            self._take_in(target, pid)
        except MeasureError as e:
            # the others are still worth a result
            target.drop(pid)
            self._note(target, f"new processes are not followed: {e}")

    def _take_in(self, target: Target, pid: int) -> None:
        try:
            self.backend.add_process(pid)
        except TargetGoneError:
            target.drop(pid)
            return
        self._find_cuda(pid)

    def _left(self, _target: Target, pid: int) -> None:
        # its totals stay until the session ends: what it did belongs to the result
        self.governor.remove(pid)
        self.backend.end_process(pid)
        self._forget_libraries(pid)

    def _find_cuda(self, only: int | None = None) -> None:
        """Probe libraries that were mapped since the last look."""
        for target in self.targets:
            for pid in target.processes:
                if only in (None, pid):
                    self._probe(target, pid)

    def _probe(self, target: Target, pid: int) -> None:
        try:
            libraries = [lib for lib in find_libraries(pid) if lib.primary]
        except LibraryAccessError as e:
            self._note(target, str(e))
            return
        if not libraries:
            self._watch_headless(target, pid)
        for library in libraries:
            key = (pid, library.device, library.inode)
            if key in self._known:
                continue
            self._known[key] = library.open_path
            try:
                sites = probe_sites(library, PROBED)
                stepped = [s.symbol for s in sites if s.point.cost == "single-step"]
                if stepped:
                    self._note(
                        target,
                        f"{library.path}: {len(stepped)} functions begin with an instruction that the kernel "
                        f"must step over, which costs {STEP_FACTOR} times as much ({stepped[0]}, ...)",
                    )
                self._calibrate(bool(stepped))
                probes = [
                    Probe(
                        s.file_offset,
                        s.api_id,
                        API_CLASSES.index(API_SYMBOLS[s.symbol].api_class),
                        s.point.return_safe,
                    )
                    for s in sites
                ]
                self.governor.add(Site(target.name, pid, library.open_path, probes))
                if doubt := self._uncalibrated.get(bool(stepped)):
                    self._note(None, doubt)
            except MeasureError as e:
                # a process may end at any moment: that is no news
                if not proc.has_ended(pid):
                    self._note(target, f"launches are not seen: {e}")

    def _watch_headless(self, target: Target, pid: int) -> None:
        """Tell of a process that goes on without its main thread: the kernel shows no mappings of it."""
        stat = proc.read_stat(pid)
        if stat is None or stat.state not in proc.OVER or proc.has_ended(pid, stat.started):
            return
        # at the first look it may be a process whose threads are all about to end
        if pid in self._headless:
            self._note(target, f"the main thread of process {pid} has ended: its launches cannot be seen")
        self._headless.add(pid)

    def _find_lost(self) -> None:
        """Look again for libraries whose probes could not be set anew: mapped elsewhere, or gone."""
        for site, error in self.governor.take_lost():
            target = next((t for t in self.targets if site.pid in t.processes), None)
            if target is None or proc.has_ended(site.pid, target.processes[site.pid]):
                continue
            self._note(
                target,
                f"launches of process {site.pid} may have been missed: its CUDA library is no longer where "
                f"it was ({error.cause})",
            )
            self._forget_libraries(site.pid, site.path)
            self._probe(target, site.pid)

    def _forget_libraries(self, pid: int, path: str | None = None) -> None:
        """Let them be found again: those of a process, or the one that was opened by ``path``."""
        for key, opened in list(self._known.items()):
            if key[0] == pid and path in (None, opened):
                del self._known[key]

    def _calibrate(self, stepped: bool) -> None:
        """Find the cost of this kind of probes, once."""
        if self.budget is None or stepped in self._costs:
            return
        try:
            cost = calibrate(self.backend, single_step=stepped)
        except (MeasureError, OSError) as e:
            cost = self._costs.get(False, DEFAULT_COST_NS) * (STEP_FACTOR if stepped else 1)
            self._uncalibrated[stepped] = f"probe cost not calibrated, {cost:.0f} ns assumed: {e}"
        self._costs[stepped] = cost
        # the dearest kind in use stands for all
        self.governor.cost_ns = max(self._costs.values())

    def _note(self, target: Target | None, text: str) -> None:
        if (target, text) not in self.notes:
            self.notes.append((target, text))

    def notes_on(self, target: Target) -> tuple[str, ...]:
        """What a reader of this target's result has to know."""
        return tuple(text for whose, text in self.notes if whose in (None, target))

    def cgroups_above(self, pids: Iterable[int]) -> set[str]:
        """Directories of the cpu cgroups that targets' processes were in, and of those above them."""
        return {directory for pid in pids for directory in self._cgroups.get(pid, ())}

    def _read_throttled(self) -> dict[str, int]:
        above: dict[Path, list[str]] = {}
        for target in self.targets:
            for pid in target.processes:
                if own := cgroups.cpu_cgroup(pid):
                    if own not in above:
                        # a pod's quota may be that of a cgroup above
                        above[own] = [str(directory) for directory in cgroups.with_ancestors(own)]
                    self._cgroups.setdefault(pid, set()).update(above[own])
        directories = {directory for line in above.values() for directory in line}
        stats = ((directory, cgroups.throttle_stats(directory)) for directory in directories)
        return {directory: read.throttled_ns for directory, read in stats if read}

    def close(self) -> None:
        """Detach everything."""
        try:
            self.governor.close()
        finally:
            self.backend.close()
