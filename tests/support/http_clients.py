"""The clients of `GET /events`, Server-Sent Events and long poll, on a plain connection of their own."""

import asyncio
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from tests.support.client import Client, Message, RefusedError, problem_of

_LOW_BUFFER: Final = 4096  # bytes that a reader with a small receive buffer takes in ahead of the test


class _Http:
    """One HTTP/1.1 connection, one request after the other."""

    def __init__(self, sock: socket.socket, host: str, *, small: bool) -> None:
        self._sock = sock
        self._host = host
        self._limit = _LOW_BUFFER if small else 1 << 20

    async def ask(
        self, target: str, headers: Mapping[str, str], method: str = "GET"
    ) -> tuple[int, dict[str, str]]:
        """Sends a request without a body; status and headers (lower case) of the answer."""
        if not hasattr(self, "reader"):
            self.reader, self.writer = await asyncio.open_connection(sock=self._sock, limit=self._limit)
        given = {"Host": self._host, **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        self.writer.write(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1"))
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in head[1:] if line)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}
        return int(head[0].split(" ")[1]), self.headers

    async def body(self) -> bytes:
        if "content-length" in self.headers:
            return await self.reader.readexactly(int(self.headers["content-length"]))
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes (RFC 9112, section 7.1). Raises IncompleteReadError where it was cut."""
        if "content-length" in self.headers:
            yield await self.body()
            return
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)

    async def cut(self) -> None:
        if hasattr(self, "writer"):
            self.writer.transport.abort()
        self._sock.close()


class _HttpClient(Client):
    """What SSE and long poll share."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._http: _Http | None = None
        self.answer_headers: dict[str, str] = {}

    @property
    def http(self) -> _Http:
        assert self._http is not None
        return self._http

    async def _ask(self, target: str, accept: str) -> None:
        """Raises RefusedError unless the answer is 200."""
        if self._http is None:
            self._http = _Http(
                await self._socket(),
                urlsplit(self.url).netloc,
                small=self._receive_buffer is not None,
            )
        headers = {"Accept": accept, **self.headers}
        status, self.answer_headers = await self.http.ask(target, headers)
        if status != 200:
            raise RefusedError(status, problem_of(await self.http.body()), self.answer_headers)

    async def cut(self) -> None:
        if self._http is not None:
            await self._http.cut()


class SseClient(_HttpClient):
    """`GET /events` as Server-Sent Events. A cursor to resume from goes as `Last-Event-ID`, as a browser does it."""

    transport = "sse"

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.blocks: list[str] = []  # as they came, comments too
        self._text = b""

    async def _connect(self) -> None:
        await self._ask(self._target("/events", **self._query_options()), "text/event-stream")
        self._chunks = self.http.chunks()

    async def block(self) -> str:
        """The next block, without its empty line. Raises StopAsyncIteration at the end."""
        while b"\n\n" not in self._text:
            try:
                self._text += await anext(self._chunks)
            except (asyncio.IncompleteReadError, ConnectionError):
                raise StopAsyncIteration from None
        block, _, self._text = self._text.partition(b"\n\n")
        self.blocks.append(block.decode())
        return block.decode()

    async def _next(self) -> Message:
        while True:
            message = self._message(await self.block())
            if message is not None:
                return message

    def _message(self, block: str) -> Message | None:
        """What a block says; None for a comment. The id is the place, whatever else is in the block."""
        lines = (line.partition(":") for line in block.split("\n") if not line.startswith(":"))
        fields = {name: value.removeprefix(" ") for name, _, value in lines}
        cursor = fields.get("id")
        if "data" not in fields:
            kind = "place" if len(self.blocks) == 1 else "at"
            return None if cursor is None else Message(kind, cursor)
        kind = fields.get("event", "event")
        body = json.loads(fields["data"])
        if kind == "close":
            self.code = body["code"]
        return Message(kind, cursor, body)


class LongPollClient(_HttpClient):
    """`GET /events` as long poll, one call after the other, each from the last one's cursor."""

    transport = "longpoll"

    def __init__(self, url: str, *, limit: int = 100, wait: int = 10, **options: Any) -> None:
        """`wait` seconds, once it has been told all that there was."""
        super().__init__(url, **options)
        self.limit = limit
        self.wait = wait
        self.answers: list[dict[str, Any]] = []
        self._caught_up = False
        self._waiting: deque[Message] = deque()

    async def _connect(self) -> None:
        if self._options.get("since", "live") == "live":
            answer = await self.poll(0)
            self._waiting.append(Message("place", answer["cursor"]))
            self._options["since"] = answer["cursor"]
            self._caught_up = True

    async def poll(self, wait: int) -> dict[str, Any]:
        """One call, as it was answered."""
        options = {**self._query_options(), "limit": str(self.limit), "wait": str(wait)}
        await self._ask(self._target("/events", **options), "application/json")
        answer: dict[str, Any] = json.loads(await self.http.body())
        self.answers.append(answer)
        return answer

    async def _next(self) -> Message:
        while not self._waiting:
            try:
                answer = await self.poll(self.wait if self._caught_up else 0)
            except (asyncio.IncompleteReadError, ConnectionError):
                raise StopAsyncIteration from None
            self._options["since"] = answer["cursor"]
            self._waiting.extend(self._messages(answer))
        return self._waiting.popleft()

    def _messages(self, answer: dict[str, Any]) -> list[Message]:
        messages = [] if answer["gap"] is None else [Message("gap", answer["gap"]["to"], answer["gap"])]
        for entry in answer["events"]:
            if "leave" in entry:
                messages.append(Message("leave", entry["cursor"], {"subject": entry["leave"]}))
            else:
                messages.append(Message("event", entry["cursor"], entry["event"]))
        self._caught_up = not messages
        kind = "at" if messages else "live"
        return [*messages, Message(kind, answer["cursor"])]
