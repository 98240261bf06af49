"""Which pages may talk to the gateway, and under which host names it is reached.

Origins are compared by scheme, host and port, never by prefix or pattern. CORS (Fetch, section 3.2) and the
names a proxy forwards are here too, since both turn on the same values.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_WEB_SCHEMES: Final = {"http": "http", "ws": "http", "https": "https", "wss": "https"}
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", re.ASCII)
_EXTENSION_HEADER = re.compile(r"ce-[a-z0-9]{1,20}", re.ASCII)
_MAX_EXTENSION_HEADERS: Final = 64

ALLOWED_METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE"
ALLOWED_HEADERS: Final = ("Authorization", "Content-Type", "Last-Event-ID", "Idempotency-Key", "If-Match")
EXPOSED_HEADERS: Final = "ETag, Location, Retry-After, Idempotent-Replayed"
PREFLIGHT_SECONDS: Final = 7200  # the longest that any browser keeps an answer


@dataclass(frozen=True, slots=True)
class Origin:
    """A web origin (RFC 6454), lower case, its port never left out."""

    scheme: str
    host: str
    port: int


def parse_origin(text: str) -> Origin | None:
    """The origin that an Origin header or a setting names; None for `null` and what is no http(s) origin."""
    scheme, separator, host = text.partition("://")
    return _origin(scheme.lower(), host) if separator and scheme.lower() in _DEFAULT_PORTS else None


def _origin(scheme: str, host: str) -> Origin | None:
    match = _HOST.fullmatch(host)
    if match is None:
        return None
    name, port = match.groups()
    return Origin(scheme, name.lower(), int(port) if port else _DEFAULT_PORTS[scheme])


class Origins:
    """The origins whose pages may use the gateway: its own, and those that are listed."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        """Raises ValueError for text that is no origin."""
        self._allowed = frozenset(map(_listed, allowed))

    def allows(self, origin: str, scheme: str, host: str) -> bool:
        """Whether a page of `origin` may talk to the gateway as reached by `scheme` and the Host header."""
        page = parse_origin(origin)
        if page is None or scheme not in _WEB_SCHEMES:
            return False
        return page in self._allowed or page == _origin(_WEB_SCHEMES[scheme], host)


def _listed(text: str) -> Origin:
    origin = parse_origin(text)
    if origin is None:
        raise ValueError(f"{text!r} is no origin: write https://shop.example, with a port but without a path")
    return origin


def cors_headers(origin: str) -> dict[str, str]:
    """What lets a page of this allowed origin read an answer. Credentials forbid `*` everywhere here."""
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Expose-Headers": EXPOSED_HEADERS,
        "Vary": "Origin",
    }


def preflight_headers(origin: str, requested: str) -> dict[str, str]:
    """The headers of the 204 that answers a preflight of this allowed origin.

    `requested` is Access-Control-Request-Headers: the `ce-*` among them are allowed by name, since with
    credentials there is no wildcard.
    """
    names = (each.strip().lower() for each in requested.split(","))
    extensions = sorted({each for each in names if _EXTENSION_HEADER.fullmatch(each)})
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Allow-Methods": ALLOWED_METHODS,
        "Access-Control-Allow-Headers": ", ".join([*ALLOWED_HEADERS, *extensions[:_MAX_EXTENSION_HEADERS]]),
        "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
        "Vary": "Origin, Access-Control-Request-Headers",
    }


def is_loopback(host: str) -> bool:
    """Whether a host without port, as one binds to it or names it, is this machine alone."""
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, section 6.3
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=256)  # asked for every request
def loopback_host(host_header: str) -> bool:
    """Whether a Host header names this machine: what no page of a stranger's domain can send."""
    match = _HOST.fullmatch(host_header)
    return match is not None and is_loopback(match[1])


class ProxyHeaders(ProxyHeadersMiddleware):
    """Believes X-Forwarded-For, -Proto and -Host of trusted proxies, and of nobody else.

    The forwarded host takes the place of the Host header. `scope["state"]["raw_host"]` is the one that
    really came: a page that has rebound its name can set X-Forwarded-Host itself, so a check that a host is
    loopback looks at both. `scope["state"]["hosts"]` counts the Host headers that came.
    """

    def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        """No coroutine of its own: a stream that is open for days need not hold its frame."""
        if scope["type"] == "lifespan":
            return self.app(scope, receive, send)
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        host, hosts, is_forwarded = b"", 0, False
        for name, value in headers:
            if name == b"host":
                host = value
                hosts += 1
            elif name[:12] == b"x-forwarded-":
                is_forwarded = True
        scope.setdefault("state", {}).update(raw_host=host.decode("latin-1"), hosts=hosts)
        if not is_forwarded:
            return self.app(scope, receive, send)
        client = scope.get("client")
        self._forward_host(scope, trusted=bool(client) and client[0] in self.trusted_hosts)
        return super().__call__(scope, receive, send)

    @staticmethod
    def _forward_host(scope: Any, *, trusted: bool) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        # Proxies that add to the header add at its end: what stands before may be the client's own.
        forwarded = _last(headers, b"x-forwarded-host").rpartition(",")[2].strip()
        if trusted and _HOST.fullmatch(forwarded):
            others = [(name, value) for name, value in headers if name != b"host"]
            scope["headers"] = [(b"host", forwarded.encode("latin-1")), *others]


def _last(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    values = [value for key, value in headers if key == name]
    return values[-1].decode("latin-1") if values else ""
