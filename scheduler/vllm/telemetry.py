"""What the plug-in did, counted, and written to the engine page a few times a second."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic

from quietcore.scheduler.cost import CostModel
from quietcore.scheduler.estimate import End
from quietcore.scheduler.page import (
    Account,
    Decisions,
    EnginePageWriter,
    EngineStats,
    ProcessIdentity,
    StepTimes,
    engine_page_name,
    remove_abandoned_pages,
)

PERIOD_S = 0.2
OFF = "off"


def default_page_dir() -> Path:
    """Where engine pages of this user lie if nobody says otherwise."""
    return Path(tempfile.gettempdir()) / f"quietcore-{os.geteuid()}"


class Sum:
    """Predicted against actual, added up."""

    __slots__ = ("absolute_error", "actual", "predicted", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.predicted = self.actual = self.absolute_error = 0.0

    def add(self, predicted: float, actual: float) -> None:
        self.requests += 1
        self.predicted += predicted
        self.actual += actual
        self.absolute_error += abs(predicted - actual)

    def account(self) -> Account:
        return Account(self.requests, self.predicted, self.actual, self.absolute_error)


class Telemetry:
    """Counters, and their page. ``page_dir`` as in the settings; a page that can't be written is left out."""

    def __init__(self, page_dir: str, slots: int, warn: Callable[[str], None]) -> None:
        self.slots = slots
        self.admitted = 0
        self.preempted_forced = 0
        self.preempted_voluntary = 0
        self.promoted = 0
        self.deadlines_met = 0
        self.deadlines_missed = 0
        self.tokens = Sum()
        self.seconds = Sum()
        self._next = 0.0
        self._writer: EnginePageWriter | None = None
        if page_dir != OFF:
            folder = Path(page_dir) if page_dir else default_page_dir()
            remove_abandoned_pages(folder)
            self._writer = EnginePageWriter(folder / engine_page_name(ProcessIdentity.own()))
            if self._writer.error:
                warn(self._writer.error)

    def ended(self, end: End | None, tokens: tuple[float, float], seconds: tuple[float, float]) -> None:
        """A request has ended; predicted and actual of each."""
        if end is End.STOPPED:
            self.tokens.add(*tokens)
            self.seconds.add(*seconds)

    def deadline(self, end: End | None, in_time: bool) -> None:
        """A request with a deadline has ended; one aborted before it has neither met nor missed it."""
        if end is None:
            return
        if not in_time:
            self.deadlines_missed += 1
        elif end is not End.ABORTED:
            self.deadlines_met += 1

    def due(self) -> bool:
        """Whether it is time for `publish`."""
        return self._writer is not None and monotonic() >= self._next

    def hurry(self) -> None:
        """Something has changed that is worth a page at once."""
        self._next = 0.0

    def publish(
        self,
        waiting: Mapping[str, int],
        running: int,
        cost: CostModel,
        *,
        re_estimates: int,
        ignored_hints: int,
        degraded: bool,
    ) -> None:
        """Writes the page."""
        self._next = monotonic() + PERIOD_S
        if self._writer is None:
            return
        slowdown = cost.slowdown
        self._writer.write(
            EngineStats(
                waiting=waiting,
                running=running,
                slots=self.slots,
                steps=StepTimes(*cost.step_time.state),
                tokens=self.tokens.account(),
                seconds=self.seconds.account(),
                decisions=Decisions(
                    self.admitted,
                    self.preempted_forced,
                    self.preempted_voluntary,
                    self.promoted,
                    self.deadlines_met,
                    self.deadlines_missed,
                ),
                re_estimates=re_estimates,
                slowdown_host=slowdown.host,
                slowdown_device=slowdown.device,
                revision=cost.revision,
                ignored_hints=ignored_hints,
                degraded=degraded,
            )
        )

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
