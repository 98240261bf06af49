"""What the clients of all transports share: one interface, one form of message."""

import asyncio
import json
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self
from urllib.parse import urlencode, urlsplit

DEADLINE: Final = 30.0  # seconds that any single message may take


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


def problem_of(body: bytes) -> dict[str, Any]:
    """The problem details of an answer, or what it says instead."""
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    return problem if isinstance(problem, dict) else {"body": body.decode(errors="replace")}
