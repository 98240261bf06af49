"""Clients for the three ways to read a stream, with one interface, so that a test runs over each of them.

    client = WebSocketClient(url)
    async for message in client.open(filter={"exact": {"subject": "o-1"}}, since="earliest"):
        ...

The first message is the `place` where the stream starts. `client.cursor` is the place that a client would
resume from; `await client.cut()` ends the connection without a word.
"""

import asyncio
import json
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self
from urllib.parse import urlencode, urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

DEADLINE: Final = 30.0  # seconds that any single message may take
_LOW_BUFFER: Final = 4096  # bytes that a reader with a small receive buffer takes in ahead of the test


@dataclass(frozen=True, slots=True)
class Message:
    """One thing that a client was told.

    `kind` is `place` (where the stream starts), `event`, `leave`, `gap`, `live`, `at`, or whatever else the
    gateway says. `body` is the event of an `event`, else the JSON object that came. Long poll has no
    `live`: here an empty answer is one.
    """

    kind: str
    cursor: str | None
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def is_content(self) -> bool:
        """Whether it is about the events themselves: an event, a leave or a gap."""
        return self.kind in ("event", "leave", "gap")

    @property
    def subject(self) -> str | None:
        return self.body.get("subject")

    @property
    def lost_from(self) -> str | None:
        """Of a gap: after which cursor something is missing."""
        lost_from: str | None = self.body["from"]
        return lost_from

    @property
    def reason(self) -> str | None:
        return self.body.get("reason")


class RefusedError(Exception):
    """The gateway refused to serve: an HTTP status with its problem, or a WebSocket's `error` message."""

    def __init__(self, status: int, problem: dict[str, Any], headers: Mapping[str, str]) -> None:
        super().__init__(f"{status} {problem}")
        self.status = status
        self.problem = problem
        self.headers = headers

    @property
    def code(self) -> str:
        return str(self.problem.get("code"))


class Client(ABC):
    """One reader. Sent with each request: `headers`, a bearer `token`, and `query` parameters."""

    transport: ClassVar[str]

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        """`receive_buffer` bytes are all that the kernel and the client hold for a test that does not read."""
        self.url = url
        self.headers = dict(headers or {})
        if token is not None:
            self.headers["Authorization"] = f"Bearer {token}"
        self.query = dict(query or {})
        self.cursor: str | None = None
        self.code: int | None = None  # with which the gateway closed
        self._receive_buffer = receive_buffer
        self._options: dict[str, Any] = {}
        self._is_open = False

    def open(
        self,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - the option's name
        since: str | None = None,
        deliver: str | None = None,
        leave: bool | None = None,
    ) -> Self:
        """The stream with these options; the connection is made when the first message is asked for."""
        options = {"filter": filter, "since": since, "deliver": deliver, "leave": leave}
        self._options = {name: value for name, value in options.items() if value is not None}
        return self

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        """Raises RefusedError, StopAsyncIteration at the stream's end, TimeoutError."""
        async with asyncio.timeout(DEADLINE):
            if not self._is_open:
                self._is_open = True
                await self._connect()
            message = await self._next()
        self.cursor = message.cursor or self.cursor
        return message

    @abstractmethod
    async def _connect(self) -> None: ...

    @abstractmethod
    async def _next(self) -> Message: ...

    @abstractmethod
    async def cut(self) -> None:
        """Ends the connection at once, without a word; what was not read is lost. Idempotent."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def _socket(self) -> socket.socket:
        """Connected to the gateway."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if self._receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
            parts = urlsplit(self.url)
            await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
        except BaseException:
            sock.close()
            raise
        return sock

    def _target(self, path: str, **more: str) -> str:
        query = {**self.query, **more}
        return f"{path}?{urlencode(query, safe='*:')}" if query else path

    def _query_options(self) -> dict[str, str]:
        """The options as a query has them."""
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in self._options.items()
        }


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
                answer.status_code, _problem(bytes(answer.body or b"")), answer.headers
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
                self._version,
                small=self._receive_buffer is not None,
            )
        headers = {"Accept": accept, **self.headers}
        status, self.answer_headers = await self.http.ask(target, headers)
        if status != 200:
            raise RefusedError(status, _problem(await self.http.body()), self.answer_headers)

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


CLIENTS: Final[dict[str, type[Client]]] = {
    each.transport: each for each in (WebSocketClient, SseClient, LongPollClient)
}


def _problem(body: bytes) -> dict[str, Any]:
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    return problem if isinstance(problem, dict) else {"body": body.decode(errors="replace")}


async def catch_up(stream: Client) -> list[Message]:
    """What a stream tells about events until it is live."""
    told = []
    async for message in stream:
        if message.kind == "live":
            return told
        if message.is_content:
            told.append(message)
    raise AssertionError(f"the stream ended after {len(told)} messages, before it was live")


async def take(stream: Client, count: int) -> list[Message]:
    """The next `count` messages about events; whatever else comes is passed over."""
    told: list[Message] = []
    while len(told) < count:
        message = await anext(stream)
        if message.is_content:
            told.append(message)
    return told


async def take_until(stream: Client, event_id: str) -> list[Message]:
    """The messages about events up to and with the event of that id."""
    told: list[Message] = []
    while not told or told[-1].body.get("id") != event_id:
        told += await take(stream, 1)
    return told


def ids(messages: list[Message]) -> list[str]:
    """The ids of the events among them."""
    return [each.body["id"] for each in messages if each.kind == "event"]
