"""The maps of the kernel side, seen from user space: fill, read, forget. Both BPF backends share it."""

from __future__ import annotations

import ctypes as ct
import errno
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from quietcore.probes import decode, layout, proc
from quietcore.probes.backend import BackendName, ProgramStatus
from quietcore.probes.cuda_libs import API_SYMBOLS
from quietcore.probes.durations import DurationTotals, Theft
from quietcore.probes.errors import MeasureError, TargetGoneError
from quietcore.probes.readings import Count, LauncherTotals, Snapshot, State, ThreadTotals

API_NAMES = {api.api_id: symbol for symbol, api in API_SYMBOLS.items()}
MAX_PROCESSES = 4096
"""Room in the map ``targets`` of bpf/sched.bpf.c and bpf/bcc.c."""
_STEADY_NS = 200_000  # a read of the threads map that takes longer was interrupted
_Struct = TypeVar("_Struct", bound=ct.Structure)
_Versioned = TypeVar("_Versioned", layout.Thread, layout.Launcher)


class BpfMap(Protocol):
    """A BPF map, whoever made it. Keys and values are ctypes."""

    def lookup(self, key: ct._SimpleCData[int] | ct.Structure, value: type[_Struct]) -> _Struct | None:
        """The value of ``key``, ``None`` if there is none."""

    def update(self, key: object, value: object, *, only_new: bool = False) -> bool:
        """Store; ``False`` if ``only_new`` and there is one already. Raises OSError."""

    def delete(self, key: object) -> None:
        """Remove; silent if there is none."""

    def items(self, key: type[Any], value: type[_Struct]) -> Iterator[tuple[Any, _Struct]]:
        """Every entry."""

    def per_cpu(self, index: int, value: type[Any]) -> list[Any]:
        """One row of a per-CPU array: a value a CPU."""


class Accounts:
    """The accounts that the programs keep in ``maps``, which may grow.

    Args:
        backend: whose maps they are.
        maps: by the names of ``bpf/*.c``.
        sees_throttling: the programs tell throttled threads from preempted ones.
    """

    def __init__(
        self, backend: BackendName, maps: Mapping[str, BpfMap], *, sees_throttling: bool = True
    ) -> None:
        self._backend, self._maps, self._sees_throttling = backend, maps, sees_throttling
        self._hints: dict[int, State] = {}
        self._irq_names = decode.IrqNames(proc.irq_names)
        self._epoch = 0
        self._unseeded = 0

    def add_process(self, pid: int) -> None:
        """Account all threads of a process, now and to come. Raises MeasureError, TargetGoneError."""
        # first the filter, then the scan: a thread born in between is seen by its fork
        proc.thread_ids(pid)
        try:
            self._maps["targets"].update(ct.c_uint32(pid), ct.c_uint32(1))
        except OSError as e:
            if e.errno != errno.E2BIG:
                raise
            raise MeasureError(
                f"the targets have more than {MAX_PROCESSES:,} processes: too many to follow",
                "name fewer, by --pid, --match or a smaller --cgroup",
            ) from e
        try:
            tids = proc.thread_ids(pid)
        except TargetGoneError:
            self.end_process(pid)
            raise
        for tid in tids:
            self._seed(pid, tid)

    def _seed(self, pid: int, tid: int) -> None:
        stat = proc.read_stat(pid, tid)
        if stat is None:
            return
        hint = {"R": State.ON_CPU, "D": State.BLOCKED}.get(stat.state, State.SLEEPING)
        self._hints[tid] = hint
        now = time.monotonic_ns()
        entry = layout.Thread(
            since=now,
            seeded=now,
            state=layout.UNKNOWN,
            resolved=decode.STATES.index(hint),
            tgid=pid,
            comm=stat.comm.encode()[:15],
        )
        try:
            self._maps["threads"].update(ct.c_uint32(tid), entry, only_new=True)
        except OSError:  # the map is full
            self._unseeded += 1

    def end_process(self, pid: int) -> None:
        """Take the pid, which may soon be a stranger's, out of the filter; totals stay."""
        self._maps["targets"].delete(ct.c_uint32(pid))

    def remove_process(self, pid: int) -> None:
        """Forget a process, its threads and launchers."""
        self._maps["targets"].delete(ct.c_uint32(pid))
        for name, kind in (("threads", layout.Thread), ("launchers", layout.Launcher)):
            if name not in self._maps:
                continue
            for tid, value in list(self._maps[name].items(ct.c_uint32, kind)):
                if value.tgid == pid:
                    self._maps[name].delete(ct.c_uint32(tid))
                    self._hints.pop(tid, None)

    def count_launches(self, enabled: bool, outlier_ns: int) -> None:
        """Switch counting at attached probes on or off; on, intervals begin afresh."""
        self._epoch += 1
        config = layout.CudaConfig(epoch=self._epoch, enabled=enabled, outlier_ns=outlier_ns)
        self._maps["cuda_config"].update(ct.c_uint32(0), config)

    def probe_hits(self) -> dict[int, int]:
        """Probe hits so far, by process."""
        hits: dict[int, int] = {}
        if "launchers" in self._maps:
            for _, value in self._maps["launchers"].items(ct.c_uint32, layout.Launcher):
                hits[value.tgid] = hits.get(value.tgid, 0) + value.hits
        return hits

    def snapshot(self) -> Snapshot:
        """Running totals, now."""
        maps = self._maps
        threads = self._read_threads()
        return Snapshot(
            time=time.monotonic_ns(),
            backend=self._backend,
            threads=threads,
            blames={
                (key.victim, key.offender): decode.blame_totals(value)
                for key, value in maps["blames"].items(layout.BlameKey, layout.Blame)
            },
            wakes={
                (key.waker, key.wakee): decode.wake_count(value)
                for key, value in maps["wakes"].items(layout.WakeKey, layout.Wake)
            },
            irqs={
                (key.tid, self._irq_names.source(key.id)): Count(value.ns, value.count)
                for key, value in maps["irq_times"].items(layout.IrqKey, layout.IrqTime)
            },
            irq_totals=decode.irq_totals(
                maps["irq_totals"].per_cpu(row, layout.IrqTime) for row in range(layout.NR_IRQ_TOTALS)
            ),
            launchers={
                tid: self._launcher(tid, value) for tid, value in self._steady("launchers", layout.Launcher)
            }
            if "launchers" in maps
            else None,
            losses=self._read_losses(),
            steal_ns=proc.steal_ns(),
        )

    def _read_losses(self) -> dict[str, int]:
        losses = {
            name: sum(self._maps["losses"].per_cpu(row, ct.c_uint64))
            for row, name in enumerate(layout.LOSSES)
        }
        # the kernel counts threads that are born, user space those that were there before
        losses["threads"] += self._unseeded
        return losses

    def _read_threads(self) -> dict[int, ThreadTotals]:
        for _ in range(5):
            before = time.monotonic_ns()
            raw = self._steady("threads", layout.Thread)
            now = time.monotonic_ns()
            if now - before < _STEADY_NS + 2_000 * len(raw):
                break
        return {tid: self._thread(tid, value, now) for tid, value in raw}

    def _thread(self, tid: int, raw: layout.Thread, now: int) -> ThreadTotals:
        totals = decode.thread_totals(tid, raw, now, self._hints.get(tid, State.SLEEPING))
        if self._sees_throttling:
            return totals
        return replace(totals, split=replace(totals.split, throttled=None))

    def _launcher(self, tid: int, raw: layout.Launcher) -> LauncherTotals:
        totals = decode.launcher_totals(tid, raw, API_NAMES)
        if self._sees_throttling:
            return totals
        return replace(
            totals,
            interval=_unthrottled(totals.interval),
            launch=_unthrottled(totals.launch),
            sync=_unthrottled(totals.sync),
        )

    def _steady(self, name: str, kind: type[_Versioned]) -> list[tuple[int, _Versioned]]:
        """All entries of a map; those that were being written are read again."""
        source, entries = self._maps[name], []
        value: _Versioned | None
        for tid, value in source.items(ct.c_uint32, kind):
            tries = 0
            while value is not None and decode.is_torn(value) and tries < 100:
                value, tries = source.lookup(ct.c_uint32(tid), kind), tries + 1
            if value is not None:
                entries.append((tid, value))
        return entries


def _unthrottled(durations: DurationTotals) -> DurationTotals:
    seen: dict[Theft, int] = dict(durations.stolen)
    del seen[Theft.THROTTLED]
    return replace(durations, stolen=seen)


def program_status(group: str, program: str, fd: int) -> ProgramStatus:
    """Run count and time of a loaded program, as its file descriptor tells them."""
    with open(f"/proc/self/fdinfo/{fd}") as f:
        info = dict(line.split(":", 1) for line in f if ":" in line)
    return ProgramStatus(group, program, int(info.get("run_cnt", 0)), int(info.get("run_time_ns", 0)))
