"""HTTP calls: one endpoint per path, with the caller, the body's limits and the errors that all share."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.auth import Request, unauthenticated
from gateway.errors import GatewayError
from gateway.jsontext import parse
from gateway.log import Log, LogUnavailableError
from gateway.node import Node
from gateway.principal import OPEN, Principal, caller_key
from gateway.protocols import EXTENSION

logger = logging.getLogger(__name__)

PROBLEM = "application/problem+json"
JSON = "application/json"


class JsonResponse(Response):
    media_type = JSON

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def problem_response(error: GatewayError, root_path: str = "") -> Response:
    body = orjson.dumps(error.problem(f"{root_path}/docs"))
    return Response(body, error.status, error.headers, media_type=PROBLEM)


def unavailable(reason: str) -> GatewayError:
    return GatewayError("unavailable", reason, headers={"Retry-After": "1"})


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request, its caller known. Its body is read at most once."""

    node: Node
    request: StarletteRequest
    principal: Principal
    headers: Mapping[bytes, bytes]  # by lower-case name; of one that was sent twice, the first

    @classmethod
    def of(cls, node: Node, request: StarletteRequest, principal: Principal) -> "Call":
        return cls(node, request, principal, dict(reversed(request.scope["headers"])))

    @property
    def log(self) -> Log:
        return self.node.log

    def param(self, name: str) -> str:
        return str(self.request.path_params[name])

    @property
    def media_type(self) -> str:
        """The content type without parameters, lower case.

        Raises `unsupported_media_type` for JSON or text in another charset than UTF-8.
        """
        return _media_type(self.headers.get(b"content-type", b""))

    def query(self, *once: str, repeated: Sequence[str] = ()) -> Mapping[str, str]:
        """The query's parameters by name; of one that may be repeated, the last.

        Raises `bad_request` for one that is unknown here, which may have been meant to narrow the answer, and for one
        of `once` that came twice. A ticket has done its part by now.
        """
        given = self.request.query_params
        for name in given:
            if name not in (*once, *repeated, "ticket"):
                raise GatewayError("bad_request", f"the parameter {name[:200]} is unknown here")
            if name in once and len(given.getlist(name)) > 1:
                raise GatewayError("bad_request", f"{name} was given twice")
        return given

    def limit(self, default: int, most: int) -> int:
        """The query's `limit`. Raises `bad_request` unless it is a whole number from 1 to `most`."""
        text = self.request.query_params.get("limit")
        if text is None:
            return default
        # Its length first: Python reads no number of thousands of digits.
        digits = text.lstrip("0") if text.isascii() and text.isdecimal() else ""
        if not digits or len(digits) > len(str(most)) or int(digits) > most:
            raise GatewayError("bad_request", f"limit is a number from 1 to {most}")
        return int(digits)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises `request_timeout` when no next byte comes in time, ClientDisconnect
        when the caller is gone, `unsupported_media_type` for a compressed body."""
        self.refuse_compressed()
        more = True
        while more:
            chunk, more = await self._receive()
            if chunk:
                yield chunk

    def refuse_compressed(self) -> None:
        """Raises `unsupported_media_type` for a compressed body."""
        if self.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise GatewayError("unsupported_media_type", "the body must not be compressed")

    async def _receive(self) -> tuple[bytes, bool]:
        """The body's next bytes, and whether more will come. Raises as `chunks`."""
        socket = self.request.scope.get("extensions", {}).get(EXTENSION)
        whole = socket and socket.take_body(self.request.receive)
        if whole is not None:
            return whole, False
        try:
            async with asyncio.timeout(self.node.settings.request_timeout):
                message = await self.request.receive()
        except TimeoutError:
            raise GatewayError(
                "request_timeout", "the body came too slowly", headers={"Connection": "close"}
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        return message.get("body", b""), message.get("more_body", False)

    async def body(self, limit: int | None = None) -> bytes:
        """The whole body. Raises as `chunks`, and `too_large` beyond `limit` bytes (a batch's, if None)."""
        self.refuse_compressed()
        return await self.raw_body(limit)

    async def raw_body(self, limit: int | None = None) -> bytes:
        """As `body`, compressed or not: for who only compares it."""
        limit = limit or self.node.settings.max_batch_bytes
        parts, size, more = [], 0, True
        while more:
            chunk, more = await self._receive()
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                raise GatewayError(
                    "too_large", f"the body may have {limit} bytes", headers={"Connection": "close"}
                )
        return b"".join(parts)

    async def json(self) -> dict[str, Any]:
        """The body as a JSON object. Raises as `body` and `parse`, `unsupported_media_type`, `invalid_request`."""
        if self.media_type != JSON:
            raise GatewayError("unsupported_media_type", f"the content type must be {JSON}")
        value = parse(await self.body(self.node.settings.max_event_bytes))
        if type(value) is not dict:
            raise GatewayError("invalid_request", "the body must be a JSON object")
        return value


def list_header(request: StarletteRequest, name: str) -> str | None:
    """A header whose value is a list, its lines joined to one (RFC 9110, section 5.3); None where it did not come."""
    lines = request.headers.getlist(name)
    return ", ".join(lines) if lines else None


@lru_cache(maxsize=64)
def _media_type(content_type: bytes) -> str:
    kind, _, parameters = content_type.decode("latin-1").partition(";")
    kind = kind.strip().lower()
    if not _is_text(kind):
        return kind
    for each in parameters.split(";"):
        name, _, value = each.strip().partition("=")
        if name.lower() == "charset" and value.strip('"').lower() not in ("utf-8", "utf8", "us-ascii"):
            raise GatewayError("unsupported_media_type", "the charset must be utf-8")
    return kind


def _is_text(kind: str) -> bool:
    """Whether the gateway reads such a body as text; the charset of any other is the receivers' matter."""
    return not kind or kind.startswith("text/") or kind.endswith("json")


Handler = Callable[[Call], Awaitable[Response]]


async def identify(node: Node, scope: Scope) -> Principal | None:
    """Who sends this request, HTTP or WebSocket; None where no credentials came. Raises as `authenticate`."""
    if not node.settings.has_keys:
        return OPEN
    return await node.authenticator.authenticate(
        Request(
            scope["headers"],
            scope["path"],
            scope["query_string"].decode("latin-1"),
            scope.get("method", "GET"),
            scope.get("subprotocols", ()),
            scope["state"]["origin_allowed"],
        )
    )


class Endpoint:
    """A path: its handlers by method. An ASGI application.

    `public` needs no caller. A GET handler answers HEAD as well. `also` are methods served elsewhere.
    """

    def __init__(
        self, node: Node, handlers: Mapping[str, Handler], *, public: bool = False, also: Sequence[str] = ()
    ) -> None:
        self._node = node
        self._handlers = dict(handlers)
        self._public = public
        self._also = also
        if "GET" in handlers:
            self._handlers.setdefault("HEAD", handlers["GET"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._answer(StarletteRequest(scope, receive))
        except ClientDisconnect:
            return
        socket = scope.get("extensions", {}).get(EXTENSION)
        is_plain = type(response) is Response and response.background is None
        if not (is_plain and socket and socket.answer(send, response)):
            await response(scope, receive, send)

    async def _answer(self, request: StarletteRequest) -> Response:
        root_path = self._node.settings.root_path
        try:
            return await self._handle(request)
        except GatewayError as error:
            return problem_response(error, root_path)
        except LogUnavailableError as error:
            return problem_response(unavailable(str(error)), root_path)
        except ClientDisconnect:
            raise
        except Exception:
            logger.exception("%s %s failed", request.method, request.url.path)
            return problem_response(
                GatewayError("internal", "the gateway failed; its log says why"), root_path
            )

    async def _handle(self, request: StarletteRequest) -> Response:
        handler = self._handlers.get(request.method)
        if handler is None:
            allow = ", ".join(sorted((*self._handlers, *self._also)))
            raise GatewayError(
                "method_not_allowed", f"{request.method} is not allowed here", headers={"Allow": allow}
            )
        principal = OPEN if self._public else await identify(self._node, request.scope)
        if principal is None:
            raise unauthenticated()
        return await handler(Call.of(self._node, request, principal))


async def limit_rate(call: Call) -> None:
    """Raises `rate_limited` where the caller publishes too often."""
    rates = call.node.publish_rates
    if rates is None or call.principal.open:
        return
    wait = await rates.take(caller_key(call.principal))
    if wait:
        raise GatewayError(
            "rate_limited", "this token publishes too often", headers={"Retry-After": str(math.ceil(wait))}
        )
