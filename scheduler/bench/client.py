"""A client of OpenAI's completions API that notes when each token came."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from types import TracebackType
from typing import TYPE_CHECKING, Any

from quietcore.scheduler.bench import BenchError

if TYPE_CHECKING:
    import aiohttp

_DATA = b"data:"
_DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Query:
    """A request to be sent: ``time`` in seconds from the start, ``body`` as the API takes it."""

    key: str
    time: float
    body: Mapping[str, Any]
    tier: str
    deadline_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, times in seconds from the start.

    Attributes:
        sent: when it should have been sent: what the client is late counts as latency.
        chunks: when each piece with text came.
        tokens: as the server counts them, else the number of pieces.
        digest: of the token ids where the server gives them (``return_token_ids``), else of
            the text: to compare runs.
        error: why it failed, else empty.
    """

    key: str
    sent: float
    finished: float
    chunks: tuple[float, ...] = ()
    tokens: int = 0
    prompt_tokens: int = 0
    finish_reason: str = ""
    digest: str = ""
    error: str = ""

    @property
    def latency(self) -> float:
        return self.finished - self.sent

    @property
    def ttft(self) -> float:
        """Time to the first token."""
        return (self.chunks[0] if self.chunks else self.finished) - self.sent

    @property
    def tpot(self) -> float | None:
        """Mean time per token after the first; ``None`` for a single token."""
        if self.tokens < 2 or not self.chunks:
            return None
        return (self.chunks[-1] - self.chunks[0]) / (self.tokens - 1)

    def tokens_until(self, time: float) -> float:
        """Tokens that had come by then, pieces of one answer taken as equally long."""
        if not self.chunks:
            return float(self.tokens) if self.finished <= time else 0.0
        return self.tokens * sum(chunk <= time for chunk in self.chunks) / len(self.chunks)


class Client:
    """Connections to one server; an asynchronous context manager."""

    def __init__(self, url: str, timeout_s: float, api_key: str = "") -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._timeout_s = timeout_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        try:
            import aiohttp
        except ImportError as error:
            raise BenchError("bench serve needs aiohttp", "pip install 'quietcore[bench]'") from error
        # No limit on connections: waiting here for a free one would hide the server's queue.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            headers=self._headers,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._opened().close()

    async def first_model(self) -> str:
        """The first model that the server lists. Raises BenchError if it does not answer."""
        import aiohttp

        try:
            async with self._opened().get(f"{self._url}/v1/models") as response:
                response.raise_for_status()
                return str((await response.json())["data"][0]["id"])
        except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError, OSError) as error:
            raise BenchError(
                f"no OpenAI server answers at {self._url}: {error}", "start it, or mend the address"
            ) from error
        except (ValueError, LookupError, TypeError) as error:
            raise BenchError(f"{self._url}/v1/models lists no model", "name it") from error

    async def ask(self, model: str, query: Query, begin: float) -> Answer:
        """Send one request and read its answer to the end; a failure is in ``Answer.error``."""
        import aiohttp

        loop = asyncio.get_running_loop()
        reading = _Reading()
        body = {**query.body, "model": model, "stream": True, "stream_options": {"include_usage": True}}
        error = ""
        try:
            async with self._opened().post(f"{self._url}/v1/completions", json=body) as response:
                if response.status != 200:
                    error = f"HTTP {response.status}: {(await response.text())[:200]}"
                else:
                    async for line in response.content:
                        reading.take(line, loop.time() - begin)
                    error = reading.error()
        except (TimeoutError, asyncio.TimeoutError):
            error = f"no end in {self._timeout_s:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        finished = loop.time() - begin
        return reading.answer(query, finished, " ".join(error.split()))

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the client is not open")
        return self._session


class _Reading:
    """A streamed answer, line by line."""

    def __init__(self) -> None:
        self._chunks: list[float] = []
        self._text = sha256()
        self._usage: Mapping[str, Any] = {}
        self._finish_reason = ""
        self._whole = False
        self._failure = ""

    def take(self, line: bytes, now: float) -> None:
        """Raises ValueError for what is no JSON."""
        if not line.startswith(_DATA):
            return
        data = line[len(_DATA) :].strip()
        if data == _DONE:
            self._whole = True
            return
        event = json.loads(data)
        if "error" in event:
            self._failure = str(event["error"])
            return
        self._usage = event.get("usage") or self._usage
        for choice in event.get("choices") or ():
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            text = choice.get("text") or ""
            # The closing piece may hold only the reason; a token that is half a character shows nothing.
            if text or not choice.get("finish_reason"):
                self._chunks.append(now)
            tokens = choice.get("token_ids")
            self._text.update(("".join(f"{token} " for token in tokens) if tokens else text).encode())

    def error(self) -> str:
        if self._failure:
            return self._failure
        return "" if self._whole else "the answer broke off"

    def answer(self, query: Query, finished: float, error: str) -> Answer:
        return Answer(
            key=query.key,
            sent=query.time,
            finished=finished,
            chunks=tuple(self._chunks),
            tokens=int(self._usage.get("completion_tokens") or len(self._chunks)),
            prompt_tokens=int(self._usage.get("prompt_tokens") or 0),
            finish_reason=self._finish_reason,
            digest=self._text.hexdigest()[:16],
            error=error,
        )
