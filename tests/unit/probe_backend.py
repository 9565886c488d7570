"""A backend that notes down what is asked of it, and refuses what it is told to."""

from __future__ import annotations

from collections.abc import Sequence

from tests.unit.factories import SilentBackend, make_snapshot

from quietcore.probes.backend import Events, Probe
from quietcore.probes.errors import BackendUnavailableError, MeasureError
from quietcore.probes.readings import Snapshot

REFUSAL = BackendUnavailableError("libbpf", "attach", "no such mapping")


class FakeLink:
    """Attached until it is closed."""

    def __init__(self, backend: FakeBackend, pid: int, path: str) -> None:
        self.backend, self.place = backend, (pid, path)

    def close(self) -> None:
        if self in self.backend.attached:
            self.backend.attached.remove(self)


class FakeBackend(SilentBackend):
    """Attributes say what is refused, pending, and what was done."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.full = False
        self.pending = Events()
        self.hits: dict[int, int] = {}
        self.losses: dict[str, int] = {}
        self.attached: list[FakeLink] = []
        self.attempts: list[tuple[int, str]] = []
        self.counting = False
        self.processes: list[int] = []
        self.over: list[int] = []
        self.clock = 0

    def add_process(self, pid: int) -> None:
        if self.full:
            raise MeasureError("too many processes", "name fewer")
        self.processes.append(pid)

    def end_process(self, pid: int) -> None:
        self.over.append(pid)

    def attach_cuda(self, pid: int, path: str, probes: Sequence[Probe]) -> FakeLink:
        self.attempts.append((pid, path))
        if path in self.refused:
            raise REFUSAL
        self.attached.append(FakeLink(self, pid, path))
        return self.attached[-1]

    def count_launches(self, enabled: bool) -> None:
        # as of maps that come with the first attached probe
        assert self.attached or not enabled
        self.counting = enabled

    def probe_hits(self) -> dict[int, int]:
        return dict(self.hits)

    def snapshot(self) -> Snapshot:
        self.clock += 1_000_000
        return make_snapshot(self.clock, losses=self.losses)

    def events(self) -> Events:
        found, self.pending = self.pending, Events()
        return found

    @property
    def places(self) -> list[tuple[int, str]]:
        return [link.place for link in self.attached]
