"""A chat endpoint without a model, for tests of judges: a real HTTP server that is OpenAI-compatible.

It can be made to misbehave.
"""

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from aiohttp import web

MODEL = "judge-model"


@dataclass
class Reply:
    """The answer to a request."""

    content: str | None = ""
    """The text of the completion."""
    status: int = 200
    body: str | None = None
    """The whole body, in place of a completion with `content`."""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    finish_reason: str = "stop"


class Endpoint:
    """The server. Use it as `async with Endpoint(answer) as endpoint:`."""

    def __init__(self, answer: Callable[[dict[str, Any]], Reply], models: Reply | None = None) -> None:
        """answer: from the JSON of a request to the reply. models: the reply to `/v1/models`."""
        self._answer = answer
        self._models = models or Reply(body=json.dumps({"data": [{"id": MODEL}]}))
        self.requests: list[dict[str, Any]] = []
        """The JSON of each request."""
        self.headers: list[dict[str, str]] = []
        """The headers of each request."""
        self.max_in_flight = 0
        """The largest number of concurrent requests."""
        self._in_flight = 0

    async def __aenter__(self) -> "Endpoint":
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._list)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _complete(self, request: web.Request) -> web.Response:
        content = await request.json()
        self.requests.append(content)
        self.headers.append(dict(request.headers))
        self._in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self._in_flight)
        try:
            return await self._send(self._answer(content))
        finally:
            self._in_flight -= 1

    async def _list(self, request: web.Request) -> web.Response:
        return await self._send(self._models)

    async def _send(self, reply: Reply) -> web.Response:
        await asyncio.sleep(reply.delay_s)
        body = reply.body
        if body is None:
            message = {"role": "assistant", "content": reply.content}
            choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
            usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
            body = json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})
        return web.Response(text=body, status=reply.status, headers=reply.headers, content_type="application/json")


def closed_port() -> int:
    """A local port without a listener."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
