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
from asyncio import TimerHandle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.http11 import Request

from gateway.connection import Connection
from gateway.errors import GatewayError
from gateway.wire import chunk

EXTENSION = "gateway.socket"  # the key in scope["extensions"] under which the application finds the socket

HIGH_WATER, LOW_WATER = 65536, 16384  # bytes; uvloop's own low mark is 16 bytes, which means "empty"
UNSENT_BYTES = 131072  # what the kernel takes beyond what the peer has room for (TCP_NOTSENT_LOWAT)
CLOSE_GRACE = 5.0  # seconds a closing peer has to take what is buffered
MAX_HEAD_BYTES = 65536  # of a request's line and headers
MAX_HANDSHAKE_HEADERS = 128  # limits of websockets.http11, checked here so that they get an answer
MAX_HANDSHAKE_LINE = 8190

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

    # Socket

    @property
    def write(self) -> Callable[[bytes], None]:
        return self.transport.write

    @property
    def paused(self) -> bool:
        return not self.writable.is_set()

    def watch(self, connection: Connection) -> None:
        """Also forgets the handshake, which would else stay in memory as long as the connection."""
        self.connection = connection
        self.scope.clear()  # type: ignore[attr-defined]
        del self.request, self.response

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
        super().handle_connect(event)
        if self.response.status_code == 101:
            cast("dict[str, Any]", self.scope["extensions"])[EXTENSION] = self

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


class HttpProtocol(_Ending, HttpToolsProtocol):
    """uvicorn's HTTP protocol, and `connection.Socket` over it for a stream in chunks."""

    connection: Connection | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _logger
        self._head_timer: TimerHandle | None = None
        self._head_bytes = 0
        self._upgrade = False

    # Socket

    @property
    def write(self) -> Callable[[bytes], None]:
        return self.transport.write

    @property
    def paused(self) -> bool:
        return self.flow.write_paused

    def watch(self, connection: Connection) -> None:
        self.connection = connection

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
        self._cancel_abort()
        self._stop_awaiting_head()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.connection is not None:
            self.connection.fall_behind()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._await_head()
            if self._head_bytes > MAX_HEAD_BYTES:
                self._answer(GatewayError("headers_too_large", f"a head may have {MAX_HEAD_BYTES} bytes"))

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
        if self._head_bytes:
            self._answer(GatewayError("request_timeout", "the request's head was not complete in time"))
        else:
            self.transport.close()
        self._abort_soon()

    def _answer(self, error: GatewayError) -> None:
        if not self.transport.is_closing():
            self.transport.write(_plain_response(error))
            self.transport.close()
            self._abort_soon()

    # HttpToolsProtocol

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._upgrade = False

    def on_headers_complete(self) -> None:
        self._stop_awaiting_head()
        self._head_bytes = 0
        self._upgrade = self._is_handshake()
        if not self._upgrade and len(self.headers) > MAX_HANDSHAKE_HEADERS:
            self._answer(GatewayError("headers_too_large", f"{MAX_HANDSHAKE_HEADERS} headers are allowed"))
            return
        super().on_headers_complete()
        if self._upgrade:
            return
        cast("dict[str, Any]", self.scope)["extensions"] = {EXTENSION: self}
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # httptools reads nothing more after an upgrade that was not taken

    def on_response_complete(self) -> None:
        self._head_bytes = 0
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
            and len(self.headers) <= MAX_HANDSHAKE_HEADERS
            and len(self.url) + 16 <= MAX_HANDSHAKE_LINE
            and all(len(name) + len(value) + 4 <= MAX_HANDSHAKE_LINE for name, value in self.headers)
            and not headers.keys() & {b"content-length", b"transfer-encoding"}
        )

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade to what is not offered is ignored (RFC 9110, 7.8), in silence."""

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
