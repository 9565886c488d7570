"""A running ``vllm bench serve`` as the load of a server, and its figures."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from tests.vllm_server.guarded import Guarded, VllmError, tail
from tests.vllm_server.metrics import TOKENS


class LoadedServer(Protocol):
    """What a load asks of its server."""

    def running(self) -> bool: ...

    def metrics(self) -> dict[str, float]: ...

    def log_tail(self) -> str: ...


@dataclass(frozen=True)
class LoadResult:
    """What a load did.

    ``finished``: ``vllm bench serve`` came to its end; ``bench`` is what it saved and the figures are its.
    Otherwise it was cut off, and they come from the server's counters, from the first token to that moment.
    """

    finished: bool
    seconds: float
    output_tokens: int
    output_tokens_per_s: float
    requests: int
    mean_ttft_ms: float
    mean_itl_ms: float
    bench: Mapping[str, Any] | None


class LoadHandle:
    """A running ``vllm bench serve``; made by :meth:`VllmServer.load`."""

    def __init__(
        self, server: LoadedServer, guarded: Guarded, result_path: Path, duration_s: float | None
    ) -> None:
        self._server = server
        self._guarded = guarded
        self._result_path = result_path
        self._duration_s = duration_s
        self._begin: tuple[float, dict[str, float]] | None = None
        self._end: tuple[float, dict[str, float]] | None = None
        self._result: LoadResult | None = None
        self.pid = guarded.pid
        self.log_path = guarded.log_path

    def running(self) -> bool:
        return self._guarded.running()

    def wait_busy(self, timeout_s: float = 120.0) -> None:
        """Return once tokens come out of the server."""
        deadline = time.monotonic() + timeout_s
        before = self._server.metrics()[TOKENS]
        while True:
            now = self._server.metrics()
            if now[TOKENS] > before:
                self._begin = (time.monotonic(), now)
                return
            if not self._guarded.running():
                raise self._died()
            if time.monotonic() > deadline:
                raise VllmError(f"no token in {timeout_s:.0f} s of load:\n{tail(self.log_path)}")
            time.sleep(0.1)

    def wait(self) -> LoadResult:
        """Wait until ``duration_s`` is over or the benchmark ends by itself, then stop."""
        deadline = math.inf
        if self._duration_s is not None and self._begin is not None:
            deadline = self._begin[0] + self._duration_s
        while self._guarded.running() and self._server.running():
            left = deadline - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(left, 0.1))
        return self.stop()

    def stop(self) -> LoadResult:
        """End the load and say what it did; the second call gives the same answer."""
        if self._result is None:
            cut_off = self._guarded.running()
            try:
                if cut_off:
                    self._end = (time.monotonic(), self._server.metrics())
            except OSError as error:
                raise VllmError(f"the server is gone: {error}\n{self._server.log_tail()}") from error
            finally:
                self._guarded.stop()
            bench: Mapping[str, Any] | None = None
            with contextlib.suppress(OSError, ValueError):
                bench = json.loads(self._result_path.read_text())
            if bench is None and not cut_off:
                raise self._died()
            self._result = self._summary(bench)
        return self._result

    def abort(self) -> None:
        """End the load, whatever it did."""
        self._guarded.stop()

    def _died(self) -> VllmError:
        code = self._guarded.returncode()
        return VllmError(f"vllm bench serve ended with {code}:\n{tail(self.log_path)}")

    def _summary(self, bench: Mapping[str, Any] | None) -> LoadResult:
        if bench is not None:
            return LoadResult(
                finished=True,
                seconds=float(bench["duration"]),
                output_tokens=int(bench["total_output_tokens"]),
                output_tokens_per_s=float(bench["output_throughput"]),
                requests=int(bench["completed"]),
                mean_ttft_ms=float(bench["mean_ttft_ms"]),
                mean_itl_ms=float(bench["mean_itl_ms"]),
                bench=bench,
            )
        seconds = 0.0
        delta: dict[str, float] = {}
        if self._begin is not None and self._end is not None:
            seconds = self._end[0] - self._begin[0]
            delta = {name: value - self._begin[1].get(name, 0.0) for name, value in self._end[1].items()}

        def mean_ms(name: str) -> float:
            count = delta.get(f"{name}_count", 0.0)
            return 1000.0 * delta[f"{name}_sum"] / count if count else 0.0

        tokens = int(delta.get(TOKENS, 0.0))
        return LoadResult(
            finished=False,
            seconds=seconds,
            output_tokens=tokens,
            output_tokens_per_s=tokens / seconds if seconds > 0 else 0.0,
            requests=int(delta.get("vllm:request_success_total", 0.0)),
            mean_ttft_ms=mean_ms("vllm:time_to_first_token_seconds"),
            mean_itl_ms=mean_ms("vllm:inter_token_latency_seconds"),
            bench=None,
        )

    def __enter__(self) -> LoadHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.stop()
        else:
            self.abort()
