"""The WebSocket client, on the library that most users have."""

import asyncio
import json
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.client import DEADLINE, Client, Message, RefusedError, problem_of


class WebSocketClient(Client):
    """`GET /ws` with one subscription; `send` and `receive` are for everything else."""

    transport = "websocket"
    subprotocols: tuple[str, ...] = ("gateway.v1",)

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._connection: ClientConnection | None = None
        self.hello: dict[str, Any] = {}
        self.sub = ""

    @property
    def connection(self) -> ClientConnection:
        assert self._connection is not None
        return self._connection

    async def connect(self) -> None:
        """The handshake, and nothing said. Raises RefusedError where it is refused."""
        small = self._receive_buffer is not None
        sock = await self._socket()
        try:
            self._connection = await connect(
                self.url.replace("http", "ws", 1) + self._target("/ws"),
                sock=sock,
                additional_headers=self.headers,
                subprotocols=self.subprotocols or None,  # type: ignore[arg-type]  # its own string type
                ping_interval=None,
                compression=None,
                max_size=None,
                max_queue=1 if small else 1024,
                close_timeout=5,
                proxy=None,
            )
        except BaseException as error:
            sock.close()
            if not isinstance(error, InvalidStatus):
                raise
            answer = error.response
            raise RefusedError(
                answer.status_code, problem_of(bytes(answer.body or b"")), answer.headers
            ) from None

    async def send(self, **message: Any) -> None:
        await self.connection.send(json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        """The next message as it came. Raises StopAsyncIteration when the gateway has closed."""
        async with asyncio.timeout(DEADLINE):
            try:
                message: dict[str, Any] = json.loads(await self.connection.recv())
            except ConnectionClosed:
                self.code = self.connection.close_code
                raise StopAsyncIteration from None
        return message

    async def expect(self, op: str) -> dict[str, Any]:
        """The next message of this kind; others are passed over."""
        while True:
            message = await self.receive()
            if message["op"] == op:
                return message

    async def closed(self) -> int:
        """The close code, whatever comes before it."""
        while True:
            try:
                await self.receive()
            except StopAsyncIteration:
                assert self.code is not None
                return self.code

    async def _connect(self) -> None:
        await self.connect()
        self.hello = await self.receive()
        if self.hello["op"] == "error":
            raise RefusedError(0, self.hello, {})
        await self.send(op="subscribe", id="1", **self._options)

    async def _next(self) -> Message:
        message = await self.receive()
        op = message["op"]
        if op == "error":
            raise RefusedError(0, message, {})
        if op == "subscribed":
            self.sub = message["sub"]
            return Message("place", message["cursor"], message)
        if op == "event":
            return Message("event", message["cursor"], message["event"])
        return Message(op, message.get("cursor") or message.get("to"), message)

    async def cut(self) -> None:
        if self._connection is not None:
            self._connection.transport.abort()
            await self._connection.wait_closed()
