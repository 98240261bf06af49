"""The fast path: thin subclasses of uvicorn's protocols that give the application a socket to write to.

uvicorn still owns the connection and websockets still checks every incoming frame. What is added: shared,
ready-made bytes go straight to the transport, and peers that stall, vanish, flood or never ask are removed.

Private parts of uvicorn are used here and nowhere else; `tests/test_protocols.py` names each of them.
"""

import asyncio
import base64
import binascii
import logging
import random
import socket
import sys
from asyncio import TimerHandle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import httptools
import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.http11 import Request

from gateway.connection import Connection
from gateway.errors import GatewayError
from gateway.slim import Gate, Mailbox
from gateway.wire import chunk

EXTENSION = "gateway.socket"  # the key in scope["extensions"] under which the application finds the socket

HIGH_WATER, LOW_WATER = 65536, 16384  # bytes; uvloop's own low mark is 16 bytes, which means "empty"
UNSENT_BYTES = 131072  # what the kernel takes beyond what the peer has room for (TCP_NOTSENT_LOWAT)
CLOSE_GRACE = 5.0  # seconds a closing peer has to take what is buffered
MAX_HEAD_BYTES = 65536  # of a request's line and headers
MAX_HANDSHAKE_HEADERS = 128  # limits of websockets.http11, checked here so that they get an answer
MAX_HANDSHAKE_LINE = 8190

_HEAD_TOO_LARGE = GatewayError(
    "headers_too_large",
    f"a request's head may have {MAX_HEAD_BYTES} bytes and {MAX_HANDSHAKE_HEADERS} headers",
)

# uvicorn logs each malformed request as a warning and each handshake with its query string, which may hold a
# ticket. Failures of the application still come through.
_logger = logging.getLogger("gateway.protocols")
_logger.setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: until a request's head is complete, and until an unacknowledged or unread write ends a peer."""

    head: float
    peer: float


class Config(uvicorn.Config):
    """uvicorn's configuration with the gateway's protocols and their timeouts."""

    def __init__(self, app: Any, *, timeouts: Timeouts, **options: Any) -> None:
        super().__init__(app, http=HttpProtocol, ws=WebSocketProtocol, **options)
        self.timeouts = timeouts


def _tune(transport: asyncio.Transport, peer_timeout: float) -> None:
    transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        # A peer that vanishes, or stays with a closed window, is ended by the kernel.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(peer_timeout * 1000))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)


def _discard(_data: bytes) -> None:
    """Takes what is written to a client that has just gone: uvloop raises for a closed transport."""


class _Ending:
    """Ends a transport by force where `close()` would wait for a peer that never reads."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _abort_timer: TimerHandle | None = None

    def abort(self) -> None:
        self.transport.abort()

    def _abort_soon(self, seconds: float = CLOSE_GRACE) -> None:
        if self._abort_timer is None:
            self._abort_timer = self.loop.call_later(seconds, self.transport.abort)

    def _cancel_abort(self) -> None:
        if self._abort_timer is not None:
            self._abort_timer.cancel()
            self._abort_timer = None


class WebSocketProtocol(_Ending, WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, and `connection.Socket` over it."""

    connection: Connection | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _logger
        self.queue = cast("asyncio.Queue[Any]", Mailbox())
        self.writable = cast("asyncio.Event", Gate(is_open=True))

    # Socket

    @property
    def write(self) -> Callable[[bytes], None]:
        return _discard if self.disconnected else self.transport.write

    @property
    def paused(self) -> bool:
        return not self.writable.is_set()

    def watch(self, connection: Connection) -> None:
        """Also forgets the handshake, which would else stay in memory as long as the connection."""
        self.connection = connection
        self.scope.clear()  # type: ignore[attr-defined]
        self.request.headers.clear()  # websockets' parser holds the request for ever
        del self.request, self.response
        self.__dict__ = self.__dict__.copy()  # as large as it must be; grown, it is twice that

    async def drained(self) -> None:
        await self.writable.wait()

    def close(self, code: int, reason: str) -> None:
        if self.close_sent or self.transport.is_closing():
            return
        try:
            self.conn.send_close(code, reason)
        except InvalidState:
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.stop_keepalive()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(CLOSE_GRACE, self.transport.abort)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        _tune(self.transport, cast("Config", self.config).timeouts.peer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_abort()
        super().connection_lost(exc)
        if self.connection is not None:
            self.connection.finished()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.connection is not None:
            self.connection.fall_behind()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            self._refuse("the WebSocket handshake is malformed")

    def _refuse(self, reason: str) -> None:
        if not self.transport.is_closing():
            self.transport.write(_plain_response(GatewayError("bad_request", reason)))
            self.transport.close()

    # WebSocketsSansIOProtocol

    def handle_connect(self, event: Request) -> None:
        if self.conn.accept(event).status_code != 101:
            return  # refused by `data_received`: uvicorn would answer in plain text
        super().handle_connect(event)
        cast("dict[str, Any]", self.scope["extensions"])[EXTENSION] = self

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.close_sent:
            self.handshake_complete = True  # also by a refusal, which uvicorn would log as an error

    def handle_ping(self) -> None:
        """Answers, unless the peer does not read its answers (RFC 6455, 5.5.3: one pong for many pings)."""
        output = b"".join(self.conn.data_to_send())
        if not self.paused:
            self.transport.write(output)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:  # uvicorn would log a traceback
                self.frames = []
                self.conn.fail(1007, "invalid UTF-8")
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        if self.conn.close_sent is None:  # the peer had closed already
            self.transport.abort()
            return
        super().handle_parser_exception()
        self._abort_soon()

    def handle_close(self, event: Any) -> None:
        super().handle_close(event)
        self._abort_soon()

    def schedule_ping(self) -> None:
        """As uvicorn's, spread over a tenth of the interval: reconnects in one moment do not ping in one."""
        assert self.ping_interval is not None
        delay = max(0.0, self.ping_interval * random.uniform(0.9, 1.0) - self.last_ping_rtt)  # noqa: S311 - jitter
        self.ping_timer = self.loop.call_later(delay, self.send_keepalive_ping)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._abort_soon(1.0)

    def shutdown(self) -> None:
        super().shutdown()
        self._abort_soon(1.0)


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


class HttpProtocol(_Ending, HttpToolsProtocol):
    """uvicorn's HTTP protocol, and `connection.Socket` over it for a stream in chunks."""

    connection: Connection | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _logger
        self._head_timer: TimerHandle | None = None
        self._pending = 0  # bytes received since the last complete head or piece of a body
        self._in_head = self._lost = False
        self._upgrade = self._declined = False
        self._data = self._again = b""
        self._running: RequestResponseCycle | None = None  # while others wait behind it

    # Socket

    @property
    def write(self) -> Callable[[bytes], None]:
        return _discard if self._lost else self.transport.write

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

    async def drained(self) -> None:
        await self.flow.drain()

    def close(self, code: int, reason: str) -> None:  # noqa: ARG002 - what it says stands in the stream
        if not self.transport.is_closing():
            self.transport.write(b"0\r\n\r\n")
            self.transport.close()
            self._abort_soon()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _tune(transport, cast("Config", self.config).timeouts.peer)
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
            timeout = cast("Config", self.config).timeouts.head
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
            self.transport.write(_plain_response(error))
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
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
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
        headers = dict(self.headers)
        return (
            self.parser.get_method() == b"GET"
            and self.parser.get_http_version() == "1.1"
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


def _plain_response(error: GatewayError) -> bytes:
    """An answer below ASGI, for a request that never became one."""
    body = orjson.dumps(error.problem())
    return (
        f"HTTP/1.1 {error.status} {error.kind.title}\r\n"
        "content-type: application/problem+json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    ).encode() + body


__all__ = ["EXTENSION", "Config", "HttpProtocol", "Timeouts", "WebSocketProtocol", "chunk"]
