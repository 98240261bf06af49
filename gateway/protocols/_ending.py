"""What both protocols share: how a socket is tuned, how a peer is ended, how one is refused below ASGI."""

import asyncio
import logging
import socket
import struct
from asyncio import TimerHandle
from dataclasses import dataclass
from typing import Any, cast

import orjson

from gateway.connection import Traffic
from gateway.errors import GatewayError

EXTENSION = "gateway.socket"  # the key in scope["extensions"] under which the application finds the socket

HIGH_WATER, LOW_WATER = 65536, 16384  # bytes; uvloop's own low mark is 16 bytes, which means "empty"
UNSENT_BYTES = 131072  # what the kernel takes beyond what the peer has room for (TCP_NOTSENT_LOWAT)
CLOSE_GRACE = 5.0  # seconds a closing peer has to take what is buffered

_TCP_INFO_BYTES, _BYTES_ACKED = 128, 120  # as much of struct tcp_info as is read, and the place in it

# uvicorn logs each malformed request as a warning and each handshake with its query string, which may hold a
# ticket. Failures of the application still come through.
quiet_logger = logging.getLogger("gateway.protocols")
quiet_logger.setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: until a request's head is complete, and until an unacknowledged or unread write ends a peer."""

    head: float
    peer: float


def timeouts_of(config: object) -> Timeouts:
    """Those of the gateway's `Config`, which uvicorn hands to both protocols."""
    timeouts: Timeouts = cast("Any", config).timeouts
    return timeouts


def prefix_of(config: object) -> str:
    """The prefix under which a proxy serves the gateway, of the same `Config`."""
    prefix: str = cast("Any", config).prefix
    return prefix


def tune(transport: asyncio.Transport, peer_timeout: float) -> None:
    transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        # A peer that vanishes, or stays with a closed window, is ended by the kernel.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(peer_timeout * 1000))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)


def discard(_data: bytes) -> None:
    """Takes what is written to a client that has just gone: uvloop raises for a closed transport."""


class Ending:
    """Ends a transport by force where `close()` would wait for a peer that never reads."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _abort_timer: TimerHandle | None = None

    @property
    def traffic(self) -> Traffic:
        """The kernel counts what the peer has acknowledged: nothing is counted for each write."""
        sock = self.transport.get_extra_info("socket")
        sent = None if sock is None else _acknowledged(sock)
        return Traffic(sent, self.transport.get_write_buffer_size())

    def abort(self) -> None:
        self.transport.abort()

    def _abort_soon(self, seconds: float = CLOSE_GRACE) -> None:
        if self._abort_timer is None:
            self._abort_timer = self.loop.call_later(seconds, self.transport.abort)

    def _cancel_abort(self) -> None:
        if self._abort_timer is not None:
            self._abort_timer.cancel()
            self._abort_timer = None


def _acknowledged(sock: socket.socket) -> int | None:
    """tcpi_bytes_acked of linux/tcp.h; None for another kind of socket, or an older kernel."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:  # closed, or no TCP
        return None
    return struct.unpack_from("=Q", info, _BYTES_ACKED)[0] if len(info) == _TCP_INFO_BYTES else None


def plain_response(error: GatewayError, prefix: str) -> bytes:
    """An answer below ASGI, for a request that never became one. `prefix` is a proxy's, or empty."""
    body = orjson.dumps(error.problem(f"{prefix}/docs"))
    return (
        f"HTTP/1.1 {error.status} {error.kind.title}\r\n"
        "content-type: application/problem+json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    ).encode() + body
