"""Scenarios of the feedback page: written as by the agent, read by the plug-in in vLLM's scheduler, while
steps take as long as the scenario says.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.hostile_pages import look_again
from tests.vllm_suite.engine import Engine
from tests.vllm_suite.kit import LOG, Oracle, by_first, finished, hint, make

from quietcore.scheduler.page import (
    Feedback,
    FeedbackPageWriter,
    ProcessIdentity,
    engine_page_name,
    read_engine_page,
)

STEP_S = 0.02
WINDOW_NS = 10_000_000_000
LONG = 100_000  # tokens


class Host:
    """An agent's page, and an engine whose steps take ``STEP_S`` times ``factor``."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.path = folder / "feedback"
        self.writer = FeedbackPageWriter(self.path)
        self.factor = 1.0
        self.now = 1000.0
        self.engine: Engine = make(
            estimator=Oracle(), feedback=str(self.path), now=lambda: self.now, bounded=False, **settings
        )

    @property
    def cost(self) -> Any:
        return self.engine.scheduler._control.cost

    def tell(self, host: float = 1.0, device: float = 1.0) -> None:
        """The agent's next window, and time enough to look at it."""
        own = ProcessIdentity.own()
        self.writer.publish([Feedback(own, WINDOW_NS, host_slowdown=host, device_slowdown=device)])
        self.look()

    def look(self) -> None:
        look_again(self.engine.scheduler._slowdown._reader, anew=True)

    def warm(self) -> None:
        """With one request that never ends by itself."""
        self.engine.add("warm", LONG, max_tokens=LONG, **hint(LONG))
        self.steps(900)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    def service(self) -> float:
        """What is expected of a hundred tokens, in steps."""
        return float(self.cost.service(0, 100)) / 100 / STEP_S


@contextmanager
def host(**settings: Any) -> Iterator[Host]:
    """Its time is that of the steps: nothing else takes any."""
    from quietcore.scheduler.vllm import steps

    with tempfile.TemporaryDirectory() as folder:
        found = Host(Path(folder), **settings)
        sample = found.engine._sample

        def take_time(output: Any) -> Any:
            found.now += STEP_S * found.factor
            return sample(output)

        found.engine._sample = take_time  # type: ignore[method-assign]
        try:
            with mock.patch.object(steps, "perf_counter", side_effect=lambda: found.now):
                yield found
        finally:
            found.engine.scheduler.shutdown()
            found.writer.close()


def costs() -> Any:
    """Noise that makes steps 1.6 times as long, twice, told by the page; what is expected in each moment."""
    with tempfile.TemporaryDirectory() as pages, host(slots=1, page_dir=pages) as here:
        engine_page = Path(pages) / engine_page_name(ProcessIdentity.own())
        here.tell()
        here.warm()
        found: dict[str, Any] = {"before": here.service(), "revision": here.cost.revision}
        for number in ("first", "second"):
            here.tell(host=1.6)
            here.factor = 1.6
            here.steps(1)
            found[f"{number} at once"] = here.service()
            shown = read_engine_page(engine_page)
            found[f"{number} shown"] = shown and shown.slowdown_host
            here.steps(200)
            found[f"{number} later"] = here.service()
            here.tell()
            here.factor = 1.0
            here.steps(1)
            found[f"{number} over"] = here.service()
            here.steps(100)
        found["revisions"] = here.cost.revision - found.pop("revision")
        found["warnings"] = list(LOG.lines)
        return found


def deadlines() -> Any:
    """A request that waits with a deadline, when the engine becomes so slow that it has to go first."""
    found = {}
    for name in ("quiet", "slow"):
        with host(slots=1) as here:
            here.tell()
            here.warm()
            here.engine.abort("warm")
            here.steps(2)
            here.engine.add("runs", 30, **hint(30))
            here.steps(5)
            here.engine.add("short", 5, **hint(5))
            here.engine.add("timed", 100, **hint(100, deadline_ms=5000))
            here.steps(5)
            if name == "slow":
                here.tell(device=2.15)  # steps of 1.8 times the length: it presses after 0.7 s, not 1.5
                here.factor = 1.8
            here.engine.drain()
            found[name] = [key for key in by_first(here.engine.outcomes) if key != "warm"]
    return found


def idle() -> Any:
    """What a request is expected to cost that comes first after noise has begun, or ended, in idleness."""
    with host(slots=1) as here:
        here.tell()
        here.warm()
        here.engine.abort("warm")
        here.engine.drain()
        costs = []
        for number, device in enumerate((1.0, 2.0, 1.0)):
            here.now += 30.0
            here.tell(device=device)
            here.engine.add(f"r{number}", 20, **hint(20))
            costs.append(here.engine.scheduler._control.ledger.get(f"r{number}").cost)
            here.engine.drain()
        return [cost / costs[0] for cost in costs]


def hostile() -> Any:
    """Under an engine at work the page becomes all that it must not be."""
    with host(slots=2) as here:
        here.tell(host=1.5)
        for number in range(12):
            here.engine.add(f"r{number}", 20, **hint(20))
        good = here.path.read_bytes()
        slowdowns = []
        for number in range(6):
            here.path.unlink(missing_ok=True)
            if number == 0:
                here.path.write_bytes(os.urandom(len(good)))
            elif number == 1:
                here.path.write_bytes(good[:100])
            elif number == 2:
                here.path.symlink_to("/etc/passwd")
            elif number == 3:
                os.mkfifo(here.path)
            elif number == 4:
                here.path.write_bytes(good)
                here.path.chmod(0o666)
            else:
                here.path.mkdir()
            here.look()
            here.steps(5)
            slowdowns.append(list(here.cost.slowdown))
        here.path.rmdir()
        here.engine.drain()
        return {
            "finished": finished(here.engine),
            "slowdowns": slowdowns,
            "active": here.engine.scheduler._control is not None,
            "warnings": list(LOG.lines),
        }


def restarted() -> Any:
    """The agent is replaced by another one; in the end nothing of the page stays open."""
    with host(slots=1) as here:
        here.tell(host=1.5)
        here.engine.add("r", 50, **hint(50))
        here.steps(2)
        slowdowns = [here.cost.slowdown.host]
        here.writer = FeedbackPageWriter(here.path)
        here.tell(host=2.5)
        here.steps(2)
        slowdowns.append(here.cost.slowdown.host)
        here.writer.close()
        here.look()
        here.steps(2)
        slowdowns.append(here.cost.slowdown.host)
        here.writer = FeedbackPageWriter(here.path)
        here.tell(host=1.2)
        here.steps(2)
        slowdowns.append(here.cost.slowdown.host)
        here.writer.close()
        held = _held(here.path)
        here.engine.scheduler._stop()
        return {"slowdowns": slowdowns, "held": held, "left": _held(here.path)}


def _held(path: Path) -> int:
    """How many descriptors of this process lead to it."""
    found = 0
    for each in Path("/proc/self/fd").iterdir():
        try:
            found += os.readlink(each).startswith(str(path))
        except OSError:  # the one that lists them
            continue
    return found


def unheard() -> Any:
    """With the page switched off, and with no correction at all."""
    found = {}
    for name, settings in (("off", {"feedback": "off"}), ("static", {"correct_time": False})):
        engine = make(estimator=Oracle(), **settings)
        for number in range(5):
            engine.add(f"r{number}", 5, **hint(5))
        engine.drain()
        control = engine.scheduler._control
        found[name] = [finished(engine), list(control.cost.slowdown), list(LOG.lines)]
    return found
