"""uvicorn's HTTP protocol with a socket for ready-made chunks, bounded heads, and an end for every peer."""

import asyncio
import base64
import binascii
import sys
from asyncio import TimerHandle
from collections.abc import Callable
from typing import Any, cast

import httptools
from starlette.responses import Response
from starlette.types import Receive, Send
from uvicorn.protocols.http.httptools_impl import (
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from gateway.connection import Connection
from gateway.errors import GatewayError
from gateway.protocols._ending import (
    EXTENSION,
    Ending,
    discard,
    plain_response,
    prefix_of,
    quiet_logger,
    timeouts_of,
    tune,
)
from gateway.slim import Gate

MAX_HEAD_BYTES = 65536  # of a request's line and headers
MAX_HANDSHAKE_HEADERS = 128  # limits of websockets.http11, checked here so that they get an answer
MAX_HANDSHAKE_LINE = 8190

_HEAD_TOO_LARGE = GatewayError(
    "headers_too_large",
    f"a request's head may have {MAX_HEAD_BYTES} bytes and {MAX_HANDSHAKE_HEADERS} headers",
)


class _HeadHolder:
    """The transport as an answer sees it: its head waits for its body, and both leave in one write.

    uvicorn writes them apart, which costs a system call and, at the client, a second wake-up.
    """

    __slots__ = ("_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
            self._transport.write(data)
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 100 "):
            self._head = data
            self._loop.call_soon(self.release)
        else:
            self._transport.write(data)

    def release(self) -> None:
        """Writes the head if it still waits."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        self.release()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class HttpProtocol(Ending, HttpToolsProtocol):
    """uvicorn's HTTP protocol, and `connection.Socket` over it for a stream."""

    connection: Connection | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = quiet_logger
        self._head_timer: TimerHandle | None = None
        self._pending = 0  # bytes received since the last complete head or piece of a body
        self._in_head = self._lost = False
        self._upgrade = self._declined = False
        self._data = self._again = b""
        self._running: RequestResponseCycle | None = None  # while others wait behind it

    # Socket

    @property
    def write(self) -> Callable[[bytes], None]:
        return discard if self._lost else self.transport.write

    @property
    def paused(self) -> bool:
        return self.flow.write_paused

    def watch(self, connection: Connection) -> None:
        """The answer's head is out, and what follows goes through `write`. Forgets the request, as above."""
        self.connection = connection
        cycle = self._running or self.cycle
        cast("_HeadHolder", cycle.transport).release()
        cast("dict[str, Any]", cycle.scope).clear()
        if cycle is self.cycle:
            self.headers.clear()
        cycle.message_event = cast("asyncio.Event", Gate(is_open=cycle.message_event.is_set()))
        self.flow._is_writable_event = cast("asyncio.Event", Gate(is_open=not self.flow.write_paused))  # noqa: SLF001
        self.__dict__ = self.__dict__.copy()

    def end_by_close(self) -> None:
        """The answer that begins now is not in chunks: its end is that of the connection (RFC 9112, section 6.3)."""
        cycle = self._running or self.cycle
        cycle.chunked_encoding = False

    def take_body(self, receive: Receive) -> bytes | None:
        """The body of the request that runs, as most come: with nothing left to wait for, and no message to make.

        None, and nothing is taken, where it has to come that way: `receive` is not the request's own, since someone
        wants to see the messages, or the body has not come as a whole, or the client is gone.
        """
        cycle = self._running or self.cycle
        if getattr(receive, "__self__", None) is not cycle or cycle.more_body or cycle.disconnected:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        cycle.message_event.clear()
        self.flow.resume_reading()
        return body

    def answer(self, send: Send, response: Response) -> bool:
        """Writes a whole answer at once, in a fraction of the time that two messages to `send` take.

        False, and nothing is done, where it has to go that way: `send` is not the request's own, since someone wants
        to see the messages, or the answer is one of those that need more care.
        """
        cycle = self._running or self.cycle
        if getattr(send, "__self__", None) is not cycle or not self._takes_whole(cycle):
            return False
        head = [STATUS_LINE[response.status_code]]
        for name, value in (*cycle.default_headers, *response.raw_headers):
            if name == b"connection" or HEADER_VALUE_RE.search(value):
                return False
            head += (name, b": ", value, b"\r\n")
        self.transport.write(b"".join((*head, b"\r\n", response.body)))
        cycle.waiting_for_100_continue = False
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        cycle.on_response()
        return True

    def _takes_whole(self, cycle: RequestResponseCycle) -> bool:
        return (
            cycle.keep_alive
            and not (cycle.response_started or cycle.disconnected or self.flow.write_paused)
            and cycle.scope["method"] != "HEAD"
        )

    async def drained(self) -> None:
        await self.flow.drain()

    def close(self, code: int, reason: str) -> None:  # noqa: ARG002 - what it says stands in the stream
        if not self.transport.is_closing():
            assert self.connection is not None
            self.transport.write(self.connection.wire.end)
            self.transport.close()
            self._abort_soon()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tune(transport, timeouts_of(self.config).peer)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._cancel_abort()
        self._stop_awaiting_head()
        super().connection_lost(exc)
        if self._running is not None:  # uvicorn tells only the newest of its pipeline
            self._running.disconnected = True
            self._running.message_event.set()
        if self.connection is not None:
            self.connection.finished()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.connection is not None:
            self.connection.fall_behind()

    def data_received(self, data: bytes) -> None:
        self._pending += len(data)
        while data and not self.transport.is_closing():
            self._data, self._again = data, b""
            super().data_received(data)
            data = self._again
        self._data = b""
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return
        if self._pending > MAX_HEAD_BYTES:
            self._answer(_HEAD_TOO_LARGE)
        elif self._idle:
            self._await_head()

    def _await_head(self) -> None:
        """A connection that does not complete a request's head in time is ended."""
        if self._head_timer is None:
            timeout = timeouts_of(self.config).head
            self._head_timer = self.loop.call_later(timeout, self._head_overdue)

    def _stop_awaiting_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self) -> None:
        self._head_timer = None
        if self._pending:
            self._answer(GatewayError("request_timeout", "the request's head was not complete in time"))
        else:
            self.transport.close()
        self._abort_soon()

    def _answer(self, error: GatewayError) -> None:
        """Refuses what came and ends the connection; in silence where an earlier answer is still on its way."""
        if self.transport.is_closing():
            return
        if not self.pipeline and (self._idle or not self.cycle.response_started):
            self.transport.write(plain_response(error, prefix_of(self.config)))
        self.transport.close()
        self._abort_soon()

    @property
    def _idle(self) -> bool:
        """Whether everything asked so far has been answered."""
        return self.cycle is None or self.cycle.response_complete

    # HttpToolsProtocol

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._upgrade = self._declined = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers are discarded (RFC 9110, 6.5.1)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_awaiting_head()
        self._in_head = False
        self._pending = 0
        size = len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers])
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_HANDSHAKE_HEADERS:
            self._answer(_HEAD_TOO_LARGE)
            return
        if self.parser.get_method() == b"CONNECT":  # which httptools takes for an upgrade whatever it says
            self._answer(GatewayError("bad_request", "this is no proxy"))
            return
        self._upgrade = self._idle and self._is_handshake()
        self._declined = not self._upgrade and self.parser.should_upgrade()
        if self._declined:
            return
        before = self.cycle
        super().on_headers_complete()
        if not self._upgrade:
            cast("dict[str, Any]", self.scope)["extensions"] = {EXTENSION: self}
            self.cycle.transport = cast("asyncio.Transport", _HeadHolder(self.transport, self.loop))
        if self.pipeline and self._running is None:
            self._running = before

    def on_body(self, body: bytes) -> None:
        self._pending = 0
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._pending = 0
        if not self._declined and not self.transport.is_closing():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._pending = 0
        self._running = self.pipeline[-1][0] if self.pipeline else None
        self._stop_awaiting_head()
        super().on_response_complete()

    def handle_websocket_upgrade(self) -> None:
        super().handle_websocket_upgrade()
        # The parser and its callbacks hold each other: without this they would wait for the garbage collector.
        self.parser = None  # type: ignore[assignment]  # as uvicorn does when the connection is lost

    def _should_upgrade(self) -> bool:
        return self._upgrade

    def _is_handshake(self) -> bool:
        """Whether the request is a WebSocket handshake that websockets will accept (RFC 6455, 4.2.1)."""
        if self.parser.get_method() != b"GET":
            return False
        headers = dict(self.headers)
        return (
            self.parser.get_http_version() == "1.1"
            and self._get_upgrade() == b"websocket"
            and headers.get(b"sec-websocket-version") == b"13"
            and _is_key(headers.get(b"sec-websocket-key", b""))
            and len(self.url) + 16 <= MAX_HANDSHAKE_LINE
            and all(len(name) + len(value) + 4 <= MAX_HANDSHAKE_LINE for name, value in self.headers)
            and not headers.keys() & {b"content-length", b"transfer-encoding"}
        )

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade to what is not offered is ignored (RFC 9110, 7.8): the request is parsed again without it.

        httptools takes whatever follows the head for the other protocol's, the body of a POST as well, and
        clients that prefer HTTP/2 offer h2c with every request.
        """
        if not self._declined:
            return
        upgrade = sys.exception()
        assert isinstance(upgrade, httptools.HttpParserUpgrade)
        head = [
            self.parser.get_method(),
            b" ",
            self.url,
            b" HTTP/",
            self.parser.get_http_version().encode(),
            b"\r\n",
        ]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self._again = b"".join([*head, b"\r\n", self._data[upgrade.args[0] :]])
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def send_400_response(self, msg: str) -> None:
        self._answer(GatewayError("bad_request", msg))

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._abort_soon()


def _is_key(value: bytes) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False
