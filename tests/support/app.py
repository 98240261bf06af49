"""The gateway in this process, without a socket: its ASGI application over a log in memory."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx

from gateway.app import Gateway
from gateway.node import Node
from gateway.settings import Settings
from gateway.workers import Worker

BASE = "http://127.0.0.1:8000"
Json = Any


@dataclass(frozen=True, slots=True)
class InProcess:
    """A running gateway and a client for it. An exception of the application is the test's."""

    gateway: Gateway
    node: Node
    http: httpx.AsyncClient

    async def publish(self, *events: Json) -> Json:
        """Publishes a batch; the answer."""
        response = await self.http.post("/events", json=list(events))
        assert response.status_code == 202, response.text
        return response.json()


@contextlib.asynccontextmanager
async def in_process(worker: Worker | None = None, **options: Any) -> AsyncIterator[InProcess]:
    """A gateway with these settings, by default without keys."""
    gateway = Gateway(Settings(**{"store": "memory:", **options}), worker)
    async with gateway.running() as node:
        transport = httpx.ASGITransport(gateway)
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as http:
            yield InProcess(gateway, node, http)


class Exchange:
    """One HTTP request or WebSocket driven by hand, message by message, where a whole answer would hide the order.

    `sent` holds what the application sent so far.
    """

    def __init__(
        self,
        app: Any,
        path: str,
        *,
        method: str = "GET",
        query: str = "",
        headers: dict[str, str] | None = None,
        kind: str = "http",
        subprotocols: Sequence[str] = (),
    ) -> None:
        given = {"host": "127.0.0.1:8000", **(headers or {})}
        self.scope: dict[str, Any] = {
            "type": kind,
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http" if kind == "http" else "ws",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
            **({"method": method} if kind == "http" else {"subprotocols": list(subprotocols)}),
        }
        self._app = app
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._changed = asyncio.Event()
        self.sent: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._app(self.scope, self._incoming.get, self._send))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.give({"type": f"{self.scope['type']}.disconnect"})
        async with asyncio.timeout(10):
            await self._task

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        self._changed.set()

    def give(self, message: dict[str, Any]) -> None:
        """What the application receives next."""
        self._incoming.put_nowait(message)

    def body(self, data: bytes = b"", *, more: bool = False) -> None:
        self.give({"type": "http.request", "body": data, "more_body": more})

    async def done(self) -> None:
        """Returns when the application has returned."""
        async with asyncio.timeout(10):
            await asyncio.shield(self._task)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def text(self) -> str:
        """The body so far."""
        return b"".join(each.get("body", b"") for each in self.sent).decode()

    async def sent_at_least(self, count: int) -> None:
        """Returns when so many messages were sent."""
        async with asyncio.timeout(10):
            while len(self.sent) < count:
                self._changed.clear()
                await self._changed.wait()

    async def until(self, text: str) -> str:
        """The body so far, as soon as it has `text`."""
        async with asyncio.timeout(10):
            while text not in self.text:
                self._changed.clear()
                await self._changed.wait()
        return self.text
