"""An OpenAI completions server that answers by script, in a thread of the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Script = Callable[["Exchange"], Any]


@dataclass
class Exchange:
    """One request as it came, and what its answer is written to."""

    body: dict[str, Any]
    headers: dict[str, str]
    response: web.StreamResponse

    async def send(self, event: dict[str, Any] | str) -> None:
        data = event if isinstance(event, str) else json.dumps(event)
        await self.response.write(f"data: {data}\n\n".encode())

    async def tokens(self, count: int, gap: float = 0.0, reason: str = "stop") -> None:
        """So many tokens, the closing piece, the usage, the end."""
        for i in range(count):
            await self.send({"choices": [{"index": 0, "text": f"t{i} ", "finish_reason": None}]})
            await asyncio.sleep(gap)
        await self.send({"choices": [{"index": 0, "text": "", "finish_reason": reason}]})
        await self.send({"choices": [], "usage": {"completion_tokens": count, "prompt_tokens": 7}})
        await self.send("[DONE]")


@dataclass
class FakeServer:
    """``bodies`` are the requests as they came."""

    script: Script
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "first"}, {"id": "second"}]})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        exchange = Exchange(body, dict(request.headers), response)
        if body["prompt"].startswith("refuse"):
            return web.Response(status=400, text="no such\nthing")
        await response.prepare(request)
        await self.script(exchange)
        return response


@contextlib.contextmanager
def serving(script: Script) -> Iterator[FakeServer]:
    """Run one on a free port until the block ends."""
    server = FakeServer(script)
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/v1/models", server.models)
        app.router.add_post("/v1/completions", server.completions)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        server.url = f"http://{host}:{port}"
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
