"""`GET /ws`: many subscriptions on one WebSocket, JSON text messages both ways."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from gateway import jsontext
from gateway.auth import unauthenticated
from gateway.connection import Connection, Socket
from gateway.connections import retry_ms
from gateway.errors import GatewayError
from gateway.event import rfc3339
from gateway.filters import parse_filter
from gateway.http import identify, problem_response
from gateway.limits import Bucket
from gateway.log import LogUnavailableError
from gateway.node import Node
from gateway.principal import OPEN, Principal
from gateway.protocols import EXTENSION
from gateway.since import Start, parse_since
from gateway.transports.portable import PortableSocket
from gateway.wire import Frames, Lines

logger = logging.getLogger(__name__)

SUBPROTOCOL: Final = "gateway.v1"
AUTH_SECONDS: Final = 5.0  # how long a client without a token may take to send one
MAX_BAD_MESSAGES: Final = 10  # within BAD_MESSAGE_SECONDS; the tenth closes
BAD_MESSAGE_SECONDS: Final = 60.0
_FRAMES, _LINES = Frames(), Lines()
_MEMBERS: Final[dict[str, frozenset[str]]] = {
    "subscribe": frozenset({"op", "id", "filter", "since", "deliver", "leave"}),
    "unsubscribe": frozenset({"op", "id", "sub"}),
    "auth": frozenset({"op", "id", "token"}),
    "ping": frozenset({"op", "id"}),
}
_MAX_ID = 128


async def websocket(node: Node, scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application of the path."""
    await receive()  # websocket.connect
    if not scope["state"]["origin_allowed"] and _has_origin(scope):
        error = GatewayError("forbidden", "this page's origin is not allowed")
        await problem_response(error, node.settings.root_path)(scope, receive, send)
        return
    refusal: GatewayError | None = None
    principal: Principal | None = None
    try:
        principal = await identify(node, scope)
    except GatewayError as error:
        refusal = error
    except LogUnavailableError as error:
        refusal = GatewayError("unavailable", str(error))
    offered = scope.get("subprotocols", ())
    await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL if SUBPROTOCOL in offered else None})
    socket: Socket | None = scope.get("extensions", {}).get(EXTENSION)
    if socket is not None:
        await _Session(node, socket, principal, refusal).run(receive)
    else:
        await _run_portable(node, principal, refusal, receive, send)


def _has_origin(scope: Scope) -> bool:
    return any(name == b"origin" for name, _ in scope["headers"])


async def _run_portable(
    node: Node, principal: Principal | None, refusal: GatewayError | None, receive: Receive, send: Send
) -> None:
    socket = PortableSocket()
    session = _Session(node, socket, principal, refusal, lines=True)
    sender = asyncio.create_task(_send_lines(socket, send, node.settings.peer_timeout))
    reader = asyncio.create_task(session.run(receive))
    try:
        await asyncio.wait((sender, reader), return_when=asyncio.FIRST_COMPLETED)
        socket.abort()
        if not sender.done():
            await asyncio.wait((sender,), timeout=node.settings.peer_timeout)
    finally:
        for task in (sender, reader):
            task.cancel()
        await asyncio.gather(sender, reader, return_exceptions=True)


async def _send_lines(socket: PortableSocket, send: Send, seconds: float) -> None:
    with contextlib.suppress(OSError, TimeoutError):  # the client is gone; the reader sees it too
        async for data in socket.chunks():
            for line in data.decode().split("\n"):
                if line:
                    async with asyncio.timeout(seconds):
                        await send({"type": "websocket.send", "text": line})
        async with asyncio.timeout(seconds):
            await send({"type": "websocket.close", "code": socket.close_code, "reason": socket.close_reason})


class BadMessageError(Exception):
    """The message is no valid request; the text says where."""


class _Session:
    """One client's side of the conversation."""

    __slots__ = ("_bad", "_bucket", "_connection", "_node", "_refusal")

    def __init__(
        self,
        node: Node,
        socket: Socket,
        principal: Principal | None,
        refusal: GatewayError | None,
        *,
        lines: bool = False,
    ) -> None:
        self._node = node
        self._connection = Connection(node.streams, socket, _LINES if lines else _FRAMES, principal)
        self._refusal = refusal
        self._bad: list[float] = []
        self._bucket: Bucket | None = None

    async def run(self, receive: Receive) -> None:
        """Serves the client until it is gone. Whatever ends it, nothing of it is left."""
        connection, connections = self._connection, self._node.connections
        connection.socket.watch(connection)
        refusal = self._refusal or await self._admit()
        if refusal is not None:
            self._refuse(refusal)
            await _disconnected(receive)
            return
        connections.add(connection)
        self._node.websocket_beat.add(connection)
        deadline = None
        try:
            self._hello()
            if connection.principal is None:
                deadline = asyncio.get_running_loop().call_later(AUTH_SECONDS, self._auth_overdue)
            await self._listen(receive)
        finally:
            if deadline is not None:
                deadline.cancel()
            self._node.websocket_beat.remove(connection)
            connections.remove(connection)

    async def _admit(self) -> GatewayError | None:
        """Why the client may not stay; None where it was admitted."""
        try:
            await self._node.connections.admit(self._connection.principal)
        except GatewayError as error:
            return error
        return None

    async def _listen(self, receive: Receive) -> None:
        connection = self._connection
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                connection.code = connection.code or message.get("code") or 1005
                return
            if connection.code:
                continue
            try:
                await self._take(message)
            except Exception:
                logger.exception("connection %s: a message failed", connection.id)
                connection.end(1011, "internal error", retry_ms())
            await connection.socket.drained()  # who does not read its answers is not read either

    def _refuse(self, error: GatewayError) -> None:
        self._say_error(error, None)
        self._connection.end(error.kind.close or 1011, error.kind.title, retry_ms())

    def _auth_overdue(self) -> None:
        if self._connection.principal is None:
            self._refuse(unauthenticated())

    def _hello(self) -> None:
        heartbeat = round(self._node.settings.peer_timeout / 3)
        self._say({"op": "hello", "connection": self._connection.id, "heartbeat": heartbeat})

    def _say(self, message: dict[str, Any]) -> None:
        self._connection.socket.write(self._connection.wire.message(message, ""))

    def _say_error(self, error: GatewayError, id_: str | None) -> None:
        message: dict[str, Any] = {"op": "error", "id": id_, "code": error.code, "message": error.detail}
        if error.errors:
            message["errors"] = [{"pointer": each.pointer, "detail": each.detail} for each in error.errors]
        self._say(message)

    # Messages

    async def _take(self, message: Any) -> None:
        connection = self._connection
        if self._is_flooding():
            self._refuse(GatewayError("rate_limited", "too many messages"))
            return
        text = message.get("text")
        if text is None:
            connection.end(4008, "binary frames are not spoken here", retry_ms())
            return
        request: dict[str, Any] = {}
        try:
            request = _parse(text)
            await self._handle(request)
        except BadMessageError as error:
            self._bad_message(str(error), request.get("id") if type(request.get("id")) is str else None)
        except GatewayError as error:
            self._say_error(error, request.get("id"))
        except LogUnavailableError as error:
            self._say_error(GatewayError("unavailable", str(error)), request.get("id"))

    def _is_flooding(self) -> bool:
        if self._bucket is None:
            self._bucket = Bucket(self._node.settings.message_rate)
        return bool(self._bucket.take())

    def _bad_message(self, reason: str, id_: str | None) -> None:
        self._say_error(GatewayError("bad_message", reason), id_)
        now = asyncio.get_running_loop().time()
        self._bad = [moment for moment in self._bad if now - moment < BAD_MESSAGE_SECONDS] + [now]
        if len(self._bad) >= MAX_BAD_MESSAGES:
            self._connection.end(4008, "too many bad messages", retry_ms())

    async def _handle(self, request: dict[str, Any]) -> None:
        op = request["op"]
        if self._connection.principal is None and op != "auth":
            self._refuse(unauthenticated())
            return
        handlers: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "auth": self._auth,
            "ping": self._ping,
        }
        await handlers[op](request)

    async def _ping(self, request: dict[str, Any]) -> None:
        self._say({"op": "pong", **({"id": request["id"]} if "id" in request else {})})

    async def _auth(self, request: dict[str, Any]) -> None:
        token = _text(request, "token")
        first = self._connection.principal is None
        try:
            principal = await self._node.authenticator.bearer(token) if self._node.settings.has_keys else OPEN
            if first:
                await self._node.connections.identify(self._connection, principal)
            else:
                self._node.connections.renew(self._connection, principal)
        except GatewayError as error:
            if not first:
                raise
            self._refuse(error)
            return
        expires = rfc3339(principal.expires) if principal.expires is not None else None
        self._say({"op": "auth", "expires": expires})

    async def _unsubscribe(self, request: dict[str, Any]) -> None:
        sub = _text(request, "sub")
        self._connection.unsubscribe(sub)
        self._say({"op": "unsubscribed", "sub": sub})

    async def _subscribe(self, request: dict[str, Any]) -> None:
        connection, node = self._connection, self._node
        latest, leave = _options(request)
        since = request.get("since")
        if since is not None and type(since) is not str:
            raise BadMessageError("since: must be a string")
        wanted = parse_filter(request["filter"]) if "filter" in request else None
        start_from = parse_since(since, node.cursors)
        assert connection.principal is not None
        filter_ = connection.principal.restrict(wanted)
        if len(connection.subscriptions) >= node.settings.max_subscriptions:
            limit = node.settings.max_subscriptions
            raise GatewayError("too_many_subscriptions", f"a connection may have {limit} subscriptions")
        channel = node.hub.open(filter_, latest=latest, leave=leave)
        try:
            subscription = connection.open(channel)
        except GatewayError:
            node.hub.release(channel)
            raise

        def announce(start: Start) -> None:
            told = {"op": "subscribed", "id": request.get("id"), "sub": channel.sub, "cursor": start.cursor}
            self._say(told)

        try:
            await connection.start(subscription, start_from, announce)
        except LogUnavailableError:
            connection.unsubscribe(channel.sub)
            raise


def _parse(text: str) -> dict[str, Any]:
    """The request that a text is, its members known and its `op` and `id` of the right type."""
    request = _json(text)
    if type(request) is not dict:
        raise BadMessageError("the message must be a JSON object")
    members = _MEMBERS.get(request["op"]) if type(request.get("op")) is str else None
    if members is None:
        raise BadMessageError(f"op: must be one of {', '.join(_MEMBERS)}")
    unknown = sorted(request.keys() - members)
    if unknown:
        raise BadMessageError(f"{unknown[0]}: is no member of {request['op']}")
    if "id" in request and (type(request["id"]) is not str or len(request["id"]) > _MAX_ID):
        raise BadMessageError(f"id: must be a string of at most {_MAX_ID} characters")
    return request


def _json(text: str) -> Any:
    """The value of a text. What only its filter holds may be unfit to be kept: the filter's reader refuses it."""
    try:
        data = text.encode()
        return jsontext.parse(data, what="the message")
    except UnicodeEncodeError as error:
        raise BadMessageError(f"the message is not JSON: {error}") from None
    except GatewayError as error:
        if error.code == "bad_json":
            raise BadMessageError(error.detail) from None
        refusal = BadMessageError(error.detail)
    try:
        value = jsontext.parse_leniently(data)
        # Whatever else has it is quoted in answers, which could not be written then.
        jsontext.dumps({**value, "filter": None} if type(value) is dict else value)
    except (ValueError, GatewayError):
        raise refusal from None
    return value


def _text(request: dict[str, Any], name: str) -> str:
    value = request.get(name)
    if type(value) is not str or not value:
        raise BadMessageError(f"{name}: must be a non-empty string")
    return value


def _options(request: dict[str, Any]) -> tuple[bool, bool]:
    deliver = request.get("deliver", "all")
    if deliver not in ("all", "latest"):
        raise BadMessageError("deliver: must be all or latest")
    leave = request.get("leave", False)
    if type(leave) is not bool:
        raise BadMessageError("leave: must be true or false")
    return deliver == "latest", leave


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "websocket.disconnect":
        pass
