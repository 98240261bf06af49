"""`GET /events` as Server-Sent Events: one subscription per stream."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.connection import Connection
from gateway.connections import retry_ms
from gateway.errors import GatewayError
from gateway.http import Call
from gateway.hub import Channel
from gateway.log import LogUnavailableError
from gateway.node import Node
from gateway.protocols import EXTENSION
from gateway.since import Since, Start
from gateway.transports.portable import PortableSocket
from gateway.transports.query import Query
from gateway.wire import Blocks, Chunks

_CHUNKS, _BLOCKS = Chunks(), Blocks()
MEDIA_TYPE = "text/event-stream"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_RAW_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8")] + [
    (name.lower().encode(), value.encode()) for name, value in _HEADERS.items()
]
COMMENT = b":\n\n"


def stream(call: Call, query: Query) -> ASGIApp:
    """What serves the stream. Raises GatewayError `forbidden`."""
    node, scope = call.node, call.request.scope
    filter_ = call.principal.restrict(query.filter)
    if scope["method"] == "HEAD":
        head = Response(headers=_HEADERS, media_type=MEDIA_TYPE)
        del head.headers["content-length"]  # GET has none either (RFC 9110, section 8.6)
        return head
    channel = node.hub.open(filter_, latest=query.latest, leave=query.leave)
    if EXTENSION in scope.get("extensions", {}):
        return _Fast(node, _fast_connection(call), query.since, channel)
    return _portable(call, query.since, channel)


def _fast_connection(call: Call) -> Connection:
    scope = call.request.scope
    socket = scope["extensions"][EXTENSION]
    # "A server MUST NOT send a response containing Transfer-Encoding unless the corresponding request
    # indicates HTTP/1.1 (or later minor revisions)" (RFC 9112, section 6.1). nginx asks by HTTP/1.0 unless told not to.
    if scope["http_version"] == "1.1":
        return Connection(call.node.streams, socket, _CHUNKS, call.principal)
    socket.end_by_close()
    return Connection(call.node.streams, socket, _BLOCKS, call.principal)


@dataclass(slots=True)
class _Fast:
    """A stream whose socket the server hands out: one task, and next to nothing held while it is idle."""

    node: Node
    connection: Connection
    since: Since
    channel: Channel

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _RAW_HEADERS})
        with serving(self.node, self.connection):
            await _start(self.node, self.connection, self.since, self.channel)
            while (await receive())["type"] != "http.disconnect":
                pass


def _portable(call: Call, since: Since, channel: Channel) -> ASGIApp:
    # Importing it changes uvicorn's signal handling, so only where it serves.
    from sse_starlette import EventSourceResponse  # noqa: PLC0415

    node, socket = call.node, PortableSocket()
    connection = Connection(node.streams, socket, _BLOCKS, call.principal)

    async def body() -> AsyncIterator[bytes]:
        with serving(node, connection):
            await _start(node, connection, since, channel)
            async for data in socket.chunks():
                yield data

    peer_timeout = node.settings.peer_timeout
    response = EventSourceResponse(
        body(), headers=_HEADERS, ping=int(peer_timeout) * 1000, send_timeout=peer_timeout * 2 / 3
    )

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(OSError, TimeoutError):  # the client is gone
            await response(scope, receive, send)

    return serve


@contextlib.contextmanager
def serving(node: Node, connection: Connection) -> Iterator[None]:
    """While it is served; nothing of the connection is left afterwards."""
    connection.socket.watch(connection)
    try:
        yield
    finally:
        node.sse_beat.remove(connection)
        connection.code = connection.code or 1005
        node.connections.remove(connection)
        connection.finished()


async def _start(node: Node, connection: Connection, since: Since, channel: Channel) -> None:
    """Serves the stream, or tells the client why it may not stay.

    The answer's status is 200 by now, since an EventSource gives up for good on any other; it shall come back later.
    """
    subscription = connection.open(channel)
    try:
        await node.connections.admit(connection.principal)
    except GatewayError as error:
        connection.end(error.kind.close, error.kind.title, retry_ms())
        return
    if connection.closed:  # gone meanwhile
        return
    node.connections.add(connection)
    node.sse_beat.add(connection)

    def announce(start: Start) -> None:
        """Dispatches nothing, but carries the place: a cut before the first event loses nothing."""
        first = f"retry: {retry_ms()}\n: connected {connection.id}\nid: {start.cursor}\n\n"
        connection.socket.write(connection.wire.join([first.encode()]))

    while True:
        try:
            await connection.start(subscription, since, announce)
        except LogUnavailableError:
            await asyncio.sleep(1.0)
        else:
            return


def beat(connection: Connection) -> None:
    """A place where the client's would grow old, else a comment: proxies and dead peers want to see bytes."""
    if not connection.beat() and not connection.socket.paused:
        connection.socket.write(connection.wire.join([COMMENT]))
