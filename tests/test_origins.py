"""Origins, CORS answers, loopback names and what trusted proxies forward."""

from typing import Any

import pytest

from gateway.origins import (
    Origins,
    ProxyHeaders,
    cors_headers,
    loopback_host,
    parse_origin,
    preflight_headers,
)


@pytest.mark.parametrize(
    ("origin", "scheme", "host", "allowed"),
    [
        # the same origin, with default ports left out or written, over every scheme
        ("http://gw.example", "http", "gw.example", True),
        ("http://gw.example:80", "http", "gw.example", True),
        ("http://GW.example", "ws", "gw.EXAMPLE:80", True),
        ("https://gw.example", "wss", "gw.example:443", True),
        ("http://127.0.0.1:8000", "ws", "127.0.0.1:8000", True),
        ("http://[::1]:8000", "http", "[::1]:8000", True),
        # another scheme, host or port is another origin
        ("https://gw.example", "http", "gw.example", False),
        ("http://gw.example:8080", "http", "gw.example", False),
        ("http://gw.example.evil.example", "http", "gw.example", False),
        ("http://evil-gw.example", "http", "gw.example", False),
        ("http://gw.example.", "http", "gw.example", False),
        # listed origins
        ("https://shop.example", "http", "gw.example", True),
        ("https://shop.example:443", "http", "gw.example", True),
        ("https://shop.example:8443", "http", "gw.example", False),
        ("http://shop.example", "http", "gw.example", False),
        ("http://dev.example:3000", "wss", "gw.example", True),
        ("https://sub.shop.example", "http", "gw.example", False),
        # what is no origin
        ("null", "http", "gw.example", False),
        ("", "http", "gw.example", False),
        ("*", "http", "gw.example", False),
        ("file://", "http", "gw.example", False),
        ("http://user@gw.example", "http", "gw.example", False),
        ("http://gw.example/", "http", "gw.example", False),
        ("http://gw.example:80x", "http", "gw.example", False),
        ("http://gw.example\n", "http", "gw.example", False),
        ("gw.example", "http", "gw.example", False),
        # a Host that is no host has no origin
        ("http://gw.example", "http", "", False),
        ("http://gw.example", "http", "gw.example/x", False),
        ("http://gw.example", "ftp", "gw.example", False),
    ],
)
def test_an_origin_is_compared_by_scheme_host_and_port(
    origin: str, scheme: str, host: str, allowed: bool
) -> None:
    """The gateway's own or a listed one, exactly; `null` never."""
    origins = Origins(["https://shop.example", "http://dev.example:3000"])
    assert origins.allows(origin, scheme, host) is allowed


@pytest.mark.parametrize(
    "text", ["null", "*", "shop.example", "https://shop.example/", "https://*.shop.example"]
)
def test_only_origins_can_be_listed(text: str) -> None:
    """A pattern or a path in the list is an error, not an entry that never matches."""
    with pytest.raises(ValueError, match="no origin"):
        Origins([text])


def test_a_parsed_origin_has_its_port() -> None:
    """The default port of its scheme, where none is written."""
    parsed = parse_origin("HTTPS://Shop.Example")
    assert parsed is not None
    assert (parsed.scheme, parsed.host, parsed.port) == ("https", "shop.example", 443)


def test_cors_answers_name_the_origin() -> None:
    """With credentials there is no `*`, and caches are told that the answer varies."""
    headers = cors_headers("https://shop.example")
    assert headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert headers["Access-Control-Allow-Credentials"] == "true"
    assert headers["Vary"] == "Origin"
    exposed = headers["Access-Control-Expose-Headers"].split(", ")
    assert exposed == ["ETag", "Location", "Retry-After", "Idempotent-Replayed"]


def test_a_preflight_allows_the_methods_and_headers_of_the_gateway() -> None:
    """`ce-*` headers are allowed by the names that were asked for, and nothing else is added."""
    headers = preflight_headers("https://shop.example", "ce-type, CE-Tenant, x-evil, ce-bad_name, ce-")
    allowed = headers["Access-Control-Allow-Headers"].split(", ")
    assert allowed == [
        "Authorization",
        "Content-Type",
        "Last-Event-ID",
        "Idempotency-Key",
        "If-Match",
        "ce-tenant",
        "ce-type",
    ]
    assert {"PATCH", "DELETE", "PUT", "POST", "GET"} <= set(
        headers["Access-Control-Allow-Methods"].split(", ")
    )
    assert headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert int(headers["Access-Control-Max-Age"]) > 0


def test_a_preflight_answer_is_bounded() -> None:
    """However many names are asked for."""
    headers = preflight_headers("https://shop.example", ",".join(f"ce-x{number}" for number in range(10_000)))
    assert len(headers["Access-Control-Allow-Headers"]) < 2000


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "app.localhost:1",
        "127.0.0.1",
        "127.9.8.7:80",
        "[::1]",
        "[::1]:8000",
    ],
)
def test_loopback_names_are_this_machine(host: str) -> None:
    """What no page of a stranger's domain can send as Host."""
    assert loopback_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "127.0.0.1@evil.example",
        "127.0.0.1:80:80",
        "0.0.0.0",
        "10.0.0.1",
        "[::2]",
        "::1",
        "[127.0.0.1",
        "127.1",
        "2130706433",
        "localhost/",
    ],
)
def test_other_names_are_not_loopback(host: str) -> None:
    """Also those that only look like it."""
    assert not loopback_host(host)


async def forwarded(
    headers: list[tuple[str, str]], client: str | None, trusted: str = "127.0.0.1"
) -> dict[str, Any]:
    """The scope that the application sees."""
    seen: dict[str, Any] = {}

    async def application(scope: Any, _receive: Any, _send: Any) -> None:
        seen.update(scope)

    scope = {
        "type": "http",
        "scheme": "http",
        "client": None if client is None else (client, 1),
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    }
    await ProxyHeaders(application, trusted)(scope, None, None)
    return seen


def host_of(scope: dict[str, Any]) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == b"host"]


FORWARDED = [
    ("host", "127.0.0.1:8000"),
    ("x-forwarded-host", "gw.example"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-for", "192.0.2.7"),
]


async def test_a_trusted_proxy_says_how_the_gateway_was_reached() -> None:
    """Host, scheme and client are the ones it forwards; the Host that came is kept beside."""
    scope = await forwarded(FORWARDED, "127.0.0.1")
    assert host_of(scope) == [b"gw.example"]
    assert scope["scheme"] == "https"
    assert scope["client"][0] == "192.0.2.7"
    assert scope["state"]["raw_host"] == "127.0.0.1:8000"


@pytest.mark.parametrize("client", ["192.0.2.1", None])
async def test_nobody_else_is_believed(client: str | None) -> None:
    """From any other address the headers say nothing."""
    scope = await forwarded(FORWARDED, client)
    assert host_of(scope) == [b"127.0.0.1:8000"]
    assert scope["scheme"] == "http"
    assert scope["client"] == (None if client is None else (client, 1))
    assert scope["state"]["raw_host"] == "127.0.0.1:8000"


async def test_the_nearest_proxys_host_counts() -> None:
    """A client's own X-Forwarded-Host stands before what the proxy added."""
    headers = [("host", "inner"), ("x-forwarded-host", "evil.example, gw.example:8443")]
    assert host_of(await forwarded(headers, "127.0.0.1")) == [b"gw.example:8443"]
    headers = [("host", "inner"), ("x-forwarded-host", "evil.example"), ("x-forwarded-host", "gw.example")]
    assert host_of(await forwarded(headers, "127.0.0.1")) == [b"gw.example"]


@pytest.mark.parametrize("value", ["", "a b", "gw.example/x", "user@gw.example", "gw.example:port"])
async def test_a_forwarded_host_that_is_none_is_left(value: str) -> None:
    """The Host header stays."""
    headers = [("host", "inner"), ("x-forwarded-host", value)]
    assert host_of(await forwarded(headers, "127.0.0.1")) == [b"inner"]


async def test_the_lifespan_passes_through() -> None:
    """It has no headers."""
    seen = []

    async def application(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope["type"])

    await ProxyHeaders(application, "*")({"type": "lifespan"}, None, None)
    assert seen == ["lifespan"]
