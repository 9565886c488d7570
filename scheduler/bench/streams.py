"""Recorded requests: streams with prompts (``.jsonl.gz``) and traces of lengths (``.parquet``).

A stream has one JSON object a line, in order of arrival: ``prompt_tokens``, ``output_tokens``, ``prompt``
and, where known, ``tenant``, ``category``, ``model``, ``arrival_poisson``, ``arrival_bursty`` (seconds, one
request a second on average). A trace has the columns ``prompt_tokens``, ``output_tokens`` and, where known,
``arrival_s``, ``tenant``, ``session``.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quietcore.scheduler.bench import BenchError, InputError
from quietcore.scheduler.estimate import RequestFacts

SUFFIXES = (".jsonl.gz", ".jsonl", ".parquet")
_ARRIVALS = {"poisson": "arrival_poisson", "bursty": "arrival_bursty", "trace": "arrival_s"}
_MOST_TOKENS = 1 << 30  # nothing of that length was ever recorded
_LEAST_PER_MODEL = 100
"""Requests on either side of a change of models for it to count as a swap."""


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request and the length of its answer, which an estimator may see only afterwards."""

    facts: RequestFacts
    output_tokens: int
    model: str = ""


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests in order of arrival.

    Attributes:
        arrivals: seconds, by kind (``poisson``, ``bursty``, ``trace``), as far as they are recorded.
    """

    name: str
    requests: tuple[RecordedRequest, ...]
    arrivals: Mapping[str, tuple[float, ...]]

    def find_swaps(self) -> list[int]:
        """Indices at which all models that answer were exchanged for others."""
        last = {request.model: i for i, request in enumerate(self.requests)}
        swaps, begin, reach = [], 0, -1
        for i, request in enumerate(self.requests):
            if i > reach and i - begin >= _LEAST_PER_MODEL and len(self.requests) - i >= _LEAST_PER_MODEL:
                swaps.append(i)
                begin = i
            reach = max(reach, last[request.model])
        return swaps


def name_of(path: Path) -> str:
    """A stream is called like its file, without the suffix."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    raise InputError(f"{path} is neither a stream (.jsonl.gz) nor a trace (.parquet)")


def read(path: Path, limit: int | None = None) -> Stream:
    """A stream or trace, or its first ``limit`` requests.

    Raises:
        InputError: the file cannot be read or is not of the format.
        BenchError: a trace needs pyarrow, which is not installed.
    """
    name = name_of(path)
    try:
        rows = _read_parquet(path) if path.suffix == ".parquet" else _read_lines(path)
        found = [row for _, row in zip(range(limit), rows, strict=False)] if limit else list(rows)
        requests = tuple(_request_of(i, row) for i, row in enumerate(found))
        if not requests:
            raise InputError(f"{path} holds no request")
        arrivals = {
            kind: _times(column, found)
            for kind, column in _ARRIVALS.items()
            if found[0].get(column) is not None
        }
    except KeyError as e:
        raise InputError(f"{path} has no field {e}") from e
    except (OSError, EOFError, zlib.error, ValueError, TypeError, OverflowError) as e:
        raise InputError(f"cannot read {path}: {e}") from e
    return Stream(name, requests, arrivals)


def _times(column: str, rows: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Of each row; ``ValueError`` where one is missing or no time."""
    times: list[float] = []
    for number, row in enumerate(rows, 1):
        given = row.get(column)
        time = math.nan if given is None else float(given)
        if not math.isfinite(time):
            raise ValueError(f"{column} of request {number} is {given}")
        times.append(time)
    return tuple(times)


def _request_of(i: int, row: Mapping[str, Any]) -> RecordedRequest:
    arrival = row.get("arrival_s", row.get("arrival_poisson"))
    prompt_tokens, output_tokens = int(row["prompt_tokens"]), int(row["output_tokens"])
    if not (0 <= prompt_tokens <= _MOST_TOKENS and 0 <= output_tokens <= _MOST_TOKENS):
        raise ValueError(f"request {i + 1} of {prompt_tokens} and {output_tokens} tokens")
    facts = RequestFacts(
        key=str(i),
        arrival=float(i if arrival is None else arrival),
        prompt_tokens=prompt_tokens,
        prompt=str(row.get("prompt") or ""),
        tenant=str(row.get("tenant") or ""),
        category=str(row.get("category") or ""),
        session=str(row.get("session") or ""),
    )
    return RecordedRequest(facts, output_tokens, str(row.get("model") or ""))


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"not an object: {line[:40]!r}")
            yield row


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as e:
        raise BenchError("traces (.parquet) need pyarrow", "pip install 'quietcore[bench]'") from e
    yield from parquet.read_table(path).to_pylist()
