"""uvicorn's WebSocket protocol with a socket for ready-made frames, and an end for every peer."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.http11 import Request

from gateway.connection import Connection
from gateway.errors import GatewayError
from gateway.protocols._ending import (
    CLOSE_GRACE,
    EXTENSION,
    Ending,
    discard,
    plain_response,
    prefix_of,
    quiet_logger,
    timeouts_of,
    tune,
)
from gateway.slim import Gate, Mailbox


class WebSocketProtocol(Ending, WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, and `connection.Socket` over it."""

    connection: Connection | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = quiet_logger
        self.queue = cast("asyncio.Queue[Any]", Mailbox())
        self.writable = cast("asyncio.Event", Gate(is_open=True))

    # Socket

    @property
    def write(self) -> Callable[[bytes], None]:
        return discard if self.close_sent or self.disconnected else self.transport.write

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
        self._write_close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        tune(self.transport, timeouts_of(self.config).peer)

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
            error = GatewayError("bad_request", reason)
            self.transport.write(plain_response(error, prefix_of(self.config)))
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
        elif not self.close_sent:
            self._fail(self.conn.close_sent.code, self.conn.close_sent.reason)

    def _fail(self, code: int, reason: str) -> None:
        """Ends after a violation: what else comes is discarded (RFC 6455, 7.1.7).

        It is read, though: to close a socket over unread bytes is a reset, which overtakes the close frame.
        """
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self._write_close()
        if self.connection is not None:
            self.connection.finished()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:  # TLS
            self._abort_soon(1.0)

    def _write_close(self) -> None:
        """Writes the close frame that was made, and gives the peer a moment to take it."""
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.stop_keepalive()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(CLOSE_GRACE, self.transport.abort)

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
