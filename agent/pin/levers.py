"""What every lever has in common: read the old value, set, read back, and restore only what is still ours.

A thing that is gone, a thread that may not be moved (PF_NO_SETAFFINITY), a managed interrupt: these are
outcomes, not errors.
"""

from __future__ import annotations

import contextlib
import enum
import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from quietcore.agent.pin.things import Thing, Value
from quietcore.probes.host.finding import format_list, parse_list

_GONE = frozenset({errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.ENXIO})


class GoneError(Exception):
    """The thing exists no more, or its name is another's by now."""


class RefusedError(Exception):
    """The kernel, or an owner, does not let it be changed; ``str()`` says why."""


class Outcome(enum.Enum):
    """What came of setting, or of restoring, one thing."""

    SET = "set"
    ALREADY = "as wanted already"
    RESTORED = "restored"
    GONE = "gone"
    REFUSED = "refused"
    CONFLICT = "changed by others"
    HELD = "held for another target"


class Lever(ABC):
    """One kind of setting.

    Attributes:
        name: in plans, the journal and JSON.
        thing: what it acts on.
        inherited: whether new threads and children start with the value of who made them.
        word: for people.
    """

    name: ClassVar[str]
    thing: ClassVar[type[Thing]]
    inherited: ClassVar[bool] = False
    word: ClassVar[str]

    @abstractmethod
    def read(self, thing: Any) -> Value:
        """The value now. Raises GoneError, RefusedError."""

    @abstractmethod
    def write(self, thing: Any, value: Value) -> None:
        """Set it. Raises GoneError, RefusedError; nothing has changed then."""

    def same(self, one: Value, other: Value) -> bool:
        """Whether two values mean the same."""
        return one == other

    def check(self, value: object) -> Value:
        """A value as it comes from a journal. Raises ValueError if it cannot be one of this lever."""
        if type(value) is not int:
            raise ValueError(f"{value!r} is no value of {self.name}")
        return value


class CpuListLever(Lever):
    """A lever whose values are lists of CPUs."""

    def same(self, one: Value, other: Value) -> bool:
        return parse_list(str(one)) == parse_list(str(other))

    def check(self, value: object) -> Value:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is no list of CPUs")
        parse_list(value.removesuffix("+"))
        return value


@contextlib.contextmanager
def kernel_answers() -> Iterator[None]:
    """Turns what the kernel answers into GoneError and RefusedError."""
    try:
        yield
    except OSError as e:
        if e.errno in _GONE:
            raise GoneError(e.strerror) from e
        raise RefusedError(e.strerror or str(e)) from e


def put(lever: Lever, thing: Thing, value: Value) -> None:
    """Set and read back. Raises GoneError, RefusedError; what was before stands then."""
    before = lever.read(thing)
    lever.write(thing, value)
    after = lever.read(thing)
    if not lever.same(after, value):
        if not lever.same(after, before):
            lever.write(thing, before)
        raise RefusedError(f"set to {value}, it reads {after}")


def restore(lever: Lever, thing: Thing, old: Value, ours: Sequence[Value]) -> tuple[Outcome, str]:
    """Put an old value back where the present one is one of ours. Returns what came of it, and why."""
    try:
        now = lever.read(thing)
        if lever.same(now, old):
            return Outcome.ALREADY, ""
        if not any(lever.same(now, value) for value in ours):
            return Outcome.CONFLICT, f"{now} now, not what we set ({', '.join(map(str, ours))}): left alone"
        put(lever, thing, old)
    except GoneError:
        return Outcome.GONE, ""
    except RefusedError as e:
        return Outcome.REFUSED, str(e)
    return Outcome.RESTORED, ""


def cpu_text(cpus: Sequence[int] | frozenset[int] | set[int]) -> str:
    """CPUs as levers write them."""
    return format_list(cpus)
