"""What the bench verbs share: errors as one line, progress, tables, options."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quietcore.scheduler.bench import BenchError, InputError

if TYPE_CHECKING:
    from quietcore.scheduler.bench.serve import OnProgress, ServeProgress

_EVERY = 0.1
"""Share of the requests between two lines of progress, where standard error is no terminal."""

INPUT_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
INPUT_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def jobs_option() -> Callable[[Any], Any]:
    """``--jobs``, by default the cores this process may use."""
    cores = len(os.sched_getaffinity(0))
    return click.option(
        "--jobs", type=click.IntRange(1, 512), default=cores, show_default="cores", help="Processes."
    )


def pairs(given: Sequence[str], option: str) -> list[tuple[str, str]]:
    """``NAME=VALUE`` options, split.

    Raises:
        UsageError: one has no name or no value.
    """
    found = []
    for each in given:
        name, _, value = each.partition("=")
        if not name or not value:
            raise click.UsageError(f"{option} wants NAME=VALUE, not {each!r}")
        found.append((name, value))
    return found


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Input that does not fit is wrong usage (2); what is missing here ends with 3."""
    from quietcore.probes.errors import MeasureError

    try:
        yield
    except InputError as e:
        raise click.UsageError(str(e)) from e
    except BenchError as e:
        raise MeasureError(str(e), e.remedy) from e


@contextlib.contextmanager
def progress(total: int, unit: str) -> Iterator[Callable[[str], None]]:
    """Counts finished tasks on standard error: a bar on a terminal, else a line each."""
    if sys.stderr.isatty():
        with click.progressbar(length=total, label=unit, file=sys.stderr, item_show_func=str) as bar:
            yield lambda name: bar.update(1, name)
        return
    done = 0

    def line(name: str) -> None:
        nonlocal done
        done += 1
        click.echo(f"{done}/{total} {unit}: {name}", err=True)

    yield line


@contextlib.contextmanager
def sending() -> Iterator[OnProgress]:
    """How far a run against a live server is: in place on a terminal, else a line for each tenth."""
    terminal = sys.stderr.isatty()
    shown: tuple[str, int] = ("", 0)

    def show(state: ServeProgress) -> None:
        nonlocal shown
        tenth = int(state.finished / state.total / _EVERY) if state.total else 0
        if not terminal and (state.phase, tenth) == shown:
            return
        shown = (state.phase, tenth)
        done = f"{state.finished} of {state.total} answered, {state.failed} failed"
        text = f"{state.phase}: {state.sent} sent, {done}"
        click.echo(f"\r{text}\033[K" if terminal else text, err=True, nl=not terminal)

    try:
        yield show
    finally:
        if terminal:
            click.echo(err=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text columns: the first to the left, figures to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def percent(value: float | None) -> str:
    """A ratio with its sign; nothing where there is none."""
    return "" if value is None else f"{value:+.1%}"


def number(value: float | None, digits: int = 2) -> str:
    """Fixed point; nothing where there is none."""
    return "" if value is None else f"{value:.{digits}f}"
