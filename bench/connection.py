"""Blocking connections of the bench, and how one becomes a subscriber."""

import socket
from collections.abc import Callable
from typing import Final

from bench import wire
from bench.server import Server

# A connection's way to a subscription: what to send, and what to wait for before the next step.
Steps = tuple[tuple[bytes, bytes], ...]

READ_BYTES: Final = 65_536
_TIMEOUT_SECONDS: Final = 60.0
_SOURCES: Final = 8  # loopback addresses to connect from: one has only 28,000 ports


class ClientError(Exception):
    """The server did not do what the bench relies on."""


def websocket_steps(server: Server, exact: dict[str, str] | None = None) -> Steps:
    return (wire.upgrade(server.port), wire.HEAD_END), (wire.subscribe(exact), wire.SUBSCRIBED)


def stream_steps(server: Server, exact: dict[str, str] | None = None) -> Steps:
    return ((wire.stream_request(server.port, exact), server.program.stream_begins),)


TRANSPORTS: Final[dict[str, Callable[[Server, dict[str, str] | None], Steps]]] = {
    "WebSocket": websocket_steps,
    "SSE": stream_steps,
}


def connect(server: Server, *, source: int = 0, receive_buffer: int | None = None) -> socket.socket:
    """A connection from one of several addresses. `receive_buffer`: SO_RCVBUF in bytes, else the kernel's."""
    connection = socket.socket()
    connection.settimeout(_TIMEOUT_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.bind((f"127.0.0.{2 + source % _SOURCES}", 0))
    connection.connect(("127.0.0.1", server.port))
    return connection


def exchange(connection: socket.socket, request: bytes, awaited: bytes) -> bytes:
    """Sends `request` and reads until `awaited` has come. Raises ClientError."""
    connection.sendall(request)
    return wait_for(connection, awaited)


def wait_for(connection: socket.socket, awaited: bytes) -> bytes:
    """All that came up to and with `awaited`. Raises ClientError."""
    received = b""
    while awaited not in received:
        chunk = connection.recv(READ_BYTES)
        received += chunk
        if not chunk or wire.is_refusal(received):
            raise ClientError(f"{awaited!r} did not come, but {received[:500]!r}")
    return received


def wait_for_response(connection: socket.socket) -> bytes:
    """One HTTP response as a whole. Raises ClientError where the connection ends before."""
    received = b""
    while not wire.response_end(received):
        chunk = connection.recv(READ_BYTES)
        received += chunk
        if not chunk:
            raise ClientError(f"the answer ended with {received[:500]!r}")
    return received
