"""What the checks of a host share: their result, where they read, lists of CPUs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec

from quietcore.probes.errors import MeasureError

Status = Literal["ok", "warn", "fail", "unknown"]
_P = ParamSpec("_P")


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about the host.

    Attributes:
        check: a short name that does not change, for scripts: ``cpu-governor``.
        status: ``warn`` may cost time, ``fail`` prevents a measurement, ``unknown`` could not be read.
        detail: what was found, without a full stop.
        remedy: what the user can do; empty where nothing is to be done.
    """

    check: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Roots:
    """Where procfs and sysfs are mounted."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")


def check(
    name: str,
) -> Callable[
    [Callable[Concatenate[Roots, _P], Iterable[Finding]]], Callable[Concatenate[Roots, _P], list[Finding]]
]:
    """Makes a check that never raises: what it cannot read or understand becomes ``unknown``."""

    def decorate(
        body: Callable[Concatenate[Roots, _P], Iterable[Finding]],
    ) -> Callable[Concatenate[Roots, _P], list[Finding]]:
        @functools.wraps(body)
        def guarded(roots: Roots, /, *args: _P.args, **kwargs: _P.kwargs) -> list[Finding]:
            try:
                return list(body(roots, *args, **kwargs))
            except OSError as e:
                return [Finding(name, "unknown", f"{e.filename or 'a file'} cannot be read: {e.strerror}")]
            except MeasureError as e:
                return [Finding(name, "unknown", e.cause, e.remedy)]
            except (ValueError, LookupError) as e:
                return [Finding(name, "unknown", f"what the kernel says is not understood: {e!r}")]

        return guarded

    return decorate


def parse_list(text: str) -> set[int]:
    """CPUs or nodes as the kernel lists them: ``0-3,8``."""
    numbers: set[int] = set()
    for part in text.replace("(null)", "").split(","):
        if part.strip():
            first, _, last = part.partition("-")
            numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def format_list(numbers: Iterable[int]) -> str:
    """The inverse of :func:`parse_list`."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def read_text(path: Path) -> str:
    """A file's text without the line end. Raises OSError, with the file's name."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError as e:  # of a failed read(2), as without PSI, the name is not told
        raise OSError(e.errno, e.strerror, str(path)) from e


def try_read(path: Path) -> str:
    """A file's text, empty if it cannot be read."""
    try:
        return read_text(path)
    except OSError:
        return ""


def status_fields(proc: Path, pid: int | str) -> dict[str, str]:
    """/proc/PID/status by field. Raises OSError."""
    lines = read_text(proc / str(pid) / "status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
