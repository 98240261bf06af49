"""The guard: what every request passes first, whatever its path: host, port, prefix, origin."""

from collections.abc import Awaitable
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import GatewayError
from gateway.http import problem_response
from gateway.origins import Origins, cors_headers, is_loopback, loopback_host, preflight_headers
from gateway.settings import Settings

_OPS_PATHS = ("/metrics", "/console", "/connections", "/explain")
_PROBES = ("/livez", "/readyz")


class Guard:
    """ASGI middleware. Sets `scope["state"]["origin_allowed"]` for what comes after."""

    def __init__(self, app: ASGIApp, settings: Settings, origins: Origins) -> None:
        self._app = app
        self._root_path = settings.root_path
        self._origins = origins
        self._ops_port = settings.ops_port
        # --insecure-open is for other addresses: on this one nobody needs it, and pages still rebind their names.
        elsewhere = settings.insecure_open and not is_loopback(settings.host)
        self._loopback_only = not settings.has_keys and not elsewhere

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Not a coroutine itself: a stream that is open for days need not hold its frame."""
        scope.setdefault("state", {})
        headers = dict(scope["headers"])  # bytes: decoded only where one is looked at
        is_bare = self._strip_prefix(scope)
        host = headers.get(b"host", b"").decode("latin-1")
        error = _malformed(scope) or self._misdirected(scope, host) or self._wrong_port(scope)
        if error is not None:
            return problem_response(error, self._root_path)(scope, receive, send)
        origin = headers[b"origin"].decode("latin-1") if b"origin" in headers else None
        allowed = origin is not None and self._origins.allows(origin, _scheme(scope), host)
        scope["state"]["origin_allowed"] = allowed
        if origin is not None and allowed and scope["type"] == "http":
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                requested = headers.get(b"access-control-request-headers", b"").decode("latin-1")
                return Response(status_code=204, headers=preflight_headers(origin, requested))(
                    scope, receive, send
                )
            send = _with_headers(send, cors_headers(origin))
        if is_bare and scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            return self._with_slash(scope)(scope, receive, send)
        return self._app(scope, receive, send)

    def _strip_prefix(self, scope: Scope) -> bool:
        """Works behind a proxy that passes the prefix on as well as behind one that takes it off.

        Returns whether the path was the prefix alone, without the slash that makes a directory of it.
        """
        prefix = self._root_path
        path = scope["path"]
        if prefix and (path == prefix or path.startswith(prefix + "/")):
            scope["path"] = path[len(prefix) :] or "/"
            raw: bytes = scope.get("raw_path") or b""
            if raw.startswith(prefix.encode()):
                scope["raw_path"] = raw[len(prefix) :] or b"/"
        return bool(prefix) and path == prefix

    def _with_slash(self, scope: Scope) -> Response:
        """Relative links of the page at /gw/ would lead past the prefix from /gw."""
        query = scope["query_string"].decode("latin-1")
        return Response(
            status_code=308, headers={"Location": f"{self._root_path}/{'?' if query else ''}{query}"}
        )

    def _misdirected(self, scope: Scope, host: str) -> GatewayError | None:
        """A page that rebinds its name to this machine can choose every header but the Host that came."""
        if not self._loopback_only:
            return None
        if loopback_host(host) and loopback_host(scope["state"].get("raw_host", "")):
            return None
        return GatewayError("misdirected_request", "without keys the gateway answers to loopback names only")

    def _wrong_port(self, scope: Scope) -> GatewayError | None:
        """With a port of their own, operations are served there alone, and nothing else is."""
        if not self._ops_port:
            return None
        path = scope["path"]
        server = scope.get("server")
        on_ops_port = server is not None and server[1] == self._ops_port
        is_ops = any(path == each or path.startswith(each + "/") for each in _OPS_PATHS)
        renewal = path.startswith("/connections/") and path.endswith("/token")
        if path in _PROBES or on_ops_port == (is_ops and not renewal):
            return None
        return GatewayError("not_found", "this path is served on another port")


def _malformed(scope: Scope) -> GatewayError | None:
    """A request of HTTP/1.1 names its host once (RFC 9112, section 3.2): of two, a proxy may have read the other."""
    if scope.get("http_version") != "1.1" or scope["state"].get("hosts", 1) == 1:
        return None
    return GatewayError("bad_request", "a request has one Host header")


def _scheme(scope: Scope) -> str:
    return str(scope["scheme"]).replace("ws", "http")


def _with_headers(send: Send, added: dict[str, str]) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: Any = MutableHeaders(scope=message)
            vary = headers.get("vary")
            headers.update(added)
            if vary:
                headers["vary"] = f"{vary}, {added.get('Vary', 'Origin')}"
        await send(message)

    return send_with_headers
