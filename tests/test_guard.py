"""The guard: hosts, ports, prefixes and origins, before any path is looked at."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.support.app import Exchange, InProcess, in_process
from tests.support.tokens import SECRET, admin_token, bearer

SHOP = "https://shop.example"


@pytest.fixture
async def app() -> AsyncIterator[InProcess]:
    async with in_process() as running:
        yield running


# Host names


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "127.0.0.1:9",
        "127.8.9.10",
        "[::1]:8000",
        "a.localhost",
        "localhost.:80",
    ],
)
async def test_an_open_gateway_answers_to_loopback_names(app: InProcess, host: str) -> None:
    """Whatever the port."""
    assert (await app.http.get("/livez", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "10.0.0.1",
        "127.0.0.1.evil.example",
        "",
        "localhost@evil.example",
        "[::2]",
        "0.0.0.0",
        "localhost:8000:9",
    ],
)
@pytest.mark.parametrize("path", ["/livez", "/events", "/nothing", "/"])
async def test_and_to_no_other(app: InProcess, host: str, path: str) -> None:
    """421 on every path: no page of a stranger reaches it by rebinding its name."""
    response = await app.http.get(path, headers={"host": host})
    assert (response.status_code, response.json()["code"]) == (421, "misdirected_request")
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("host", "forwarded"),
    [
        ("evil.example", "localhost"),
        ("localhost", "evil.example"),
        ("evil.example", "evil.example, localhost"),
    ],
)
async def test_a_forwarded_host_does_not_help(app: InProcess, host: str, forwarded: str) -> None:
    """A page that has rebound its name can set X-Forwarded-Host, and its requests come from this machine."""
    response = await app.http.get("/livez", headers={"host": host, "x-forwarded-host": forwarded})
    assert response.status_code == 421


async def test_with_keys_every_name_is_served() -> None:
    """Tokens say who may do what; so does --insecure-open on an outer address that nobody must."""
    for options in ({"jwt_secret": SECRET}, {"insecure_open": True, "host": "0.0.0.0"}):
        async with in_process(**options) as app:
            assert (await app.http.get("/livez", headers={"host": "gateway.example"})).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_insecure_open_changes_nothing_on_loopback(host: str) -> None:
    """It is for other addresses; here a page that has rebound its name would be let in without a warning."""
    async with in_process(insecure_open=True, host=host) as app:
        assert (await app.http.get("/livez", headers={"host": "evil.example"})).status_code == 421
        assert (await app.http.get("/livez")).status_code == 200


@pytest.mark.parametrize("options", [{"jwt_secret": SECRET}, {}], ids=["keys", "open"])
async def test_a_request_names_its_host_once(options: dict[str, Any]) -> None:
    """RFC 9112, section 3.2: two or none are 400 in HTTP/1.1, forwarded or not; HTTP/1.0 may leave it out."""
    one = (b"host", b"localhost")
    forwarded = (b"x-forwarded-host", b"localhost")
    async with in_process(**options) as app:
        for headers, version, status in (
            ([one, one], "1.1", 400),
            ([], "1.1", 400),
            ([one, one, forwarded], "1.1", 400),
            ([forwarded], "1.1", 400),
            ([one], "1.1", 200),
            ([], "2", 200 if options else 421),
            ([], "1.0", 200 if options else 421),
        ):
            exchange = Exchange(app.gateway, "/livez")
            exchange.scope |= {"headers": headers, "http_version": version}
            async with exchange:
                await exchange.done()
            assert exchange.status == status, (headers, version)


async def test_a_websocket_is_misdirected_too(app: InProcess) -> None:
    """Its handshake is refused with the same answer."""
    async with Exchange(app.gateway, "/ws", kind="websocket", headers={"host": "evil.example"}) as exchange:
        await exchange.done()
    assert (exchange.sent[0]["type"], exchange.status) == ("websocket.http.response.start", 421)


# The prefix of a proxy


@pytest.mark.parametrize("prefix", ["", "/gw"], ids=["taken off", "passed on"])
async def test_behind_a_prefix(prefix: str) -> None:
    """Works with a proxy that takes the prefix off as well as with one that passes it on."""
    async with in_process(root_path="/gw") as app:
        assert (await app.http.get(f"{prefix}/livez")).status_code == 200
        assert (await app.http.get(f"{prefix}/")).status_code == 200
        assert (await app.http.post(f"{prefix}/events", json={"type": "a"})).status_code == 202
        assert (await app.http.get(f"{prefix}/static/board.js")).status_code == 200
        poll = await app.http.get(f"{prefix}/events?since=earliest", headers={"accept": "application/json"})
        assert len(poll.json()["events"]) == 1
        assert (await app.http.get("/gwx/livez")).status_code == 404


async def test_the_bare_prefix_leads_to_the_page() -> None:
    """To the slash after it, without which the page's relative links would lead past the prefix."""
    async with in_process(root_path="/gw") as app:
        for method in ("GET", "HEAD"):
            for query in ("", "?a=1&b=%20"):
                response = await app.http.request(method, f"/gw{query}")
                assert (response.status_code, response.headers["location"]) == (308, f"/gw/{query}")
        assert (await app.http.post("/gw")).status_code == 405
        assert (
            (await app.http.get("/gw", follow_redirects=True)).headers["content-type"].startswith("text/html")
        )


# The port for operations


async def on_port(app: InProcess, port: int, method: str, path: str) -> httpx.Response:
    headers = bearer(admin_token())
    return await app.http.request(method, f"http://127.0.0.1:{port}{path}", headers=headers)


@pytest.mark.parametrize("path", ["/metrics", "/console", "/connections", "/explain", "/connections/x"])
async def test_operations_are_on_their_port_alone(path: str) -> None:
    """The public port has nothing there, whoever asks."""
    async with in_process(ops_port=9000, jwt_secret=SECRET) as app:
        outside = await on_port(app, 8000, "GET", path)
        assert (outside.status_code, outside.json()["detail"]) == (404, "this path is served on another port")
        inside = await on_port(app, 9000, "GET", path)
        assert inside.status_code == 200 or inside.json()["detail"] != outside.json()["detail"]


async def test_nothing_else_is_on_that_port() -> None:
    """But the probes, which are on both; a stream's new token comes to the public one."""
    async with in_process(ops_port=9000, jwt_secret=SECRET) as app:
        for method, path in (
            ("GET", "/"),
            ("POST", "/events"),
            ("GET", "/orders"),
            ("POST", "/connections/x/token"),
        ):
            assert (await on_port(app, 9000, method, path)).json()[
                "detail"
            ] == "this path is served on another port"
        assert (
            "you have no such" in (await on_port(app, 8000, "POST", "/connections/x/token")).json()["detail"]
        )
        for port in (8000, 9000):
            for path in ("/livez", "/readyz"):
                assert (await on_port(app, port, "GET", path)).status_code == 200


async def test_metrics_need_no_token_on_the_inner_port() -> None:
    """It is meant for the inside; without such a port they need an admin's."""
    async with in_process(ops_port=9000, jwt_secret=SECRET) as app:
        assert (await app.http.get("http://127.0.0.1:9000/metrics")).status_code == 200
    async with in_process(jwt_secret=SECRET) as app:
        assert (await app.http.get("/metrics")).status_code == 401
        assert (await on_port(app, 8000, "GET", "/metrics")).status_code == 200


# Origins


@pytest.fixture
async def shop() -> AsyncIterator[InProcess]:
    async with in_process(origins=SHOP, jwt_secret=SECRET) as running:
        yield running


@pytest.mark.parametrize("method", ["POST", "PATCH", "GET"])
@pytest.mark.parametrize("path", ["/events", "/orders/x/status", "/nothing"])
async def test_a_preflight_of_an_allowed_origin(shop: InProcess, path: str, method: str) -> None:
    """204 without any token: methods, headers and credentials are granted by name."""
    asked = "authorization, content-type, last-event-id, idempotency-key, if-match, ce-type, ce-tenant"
    response = await shop.http.options(
        path,
        headers={
            "origin": SHOP,
            "access-control-request-method": method,
            "access-control-request-headers": asked,
        },
    )
    assert response.status_code == 204
    headers = response.headers
    assert headers["access-control-allow-origin"] == SHOP
    assert headers["access-control-allow-credentials"] == "true"
    assert method in headers["access-control-allow-methods"].split(", ")
    granted = headers["access-control-allow-headers"].lower().split(", ")
    assert set(asked.split(", ")) <= set(granted)
    assert "Origin" in headers["vary"]


@pytest.mark.parametrize("path", ["/events", "/orders", "/nothing", "/", "/livez"])
async def test_answers_to_an_allowed_origin_may_be_read(shop: InProcess, path: str) -> None:
    """Errors as well; with ETag, Location and Retry-After; and caches keep origins apart."""
    response = await shop.http.get(path, headers={"origin": SHOP})
    assert response.headers["access-control-allow-origin"] == SHOP
    assert response.headers["access-control-allow-credentials"] == "true"
    exposed = response.headers["access-control-expose-headers"].split(", ")
    assert {"ETag", "Location", "Retry-After"} <= set(exposed)
    assert "Origin" in response.headers["vary"]


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://shop.example", f"{SHOP}:444", f"{SHOP}.evil.example", "*", ""],
)
async def test_answers_to_other_origins_may_not(shop: InProcess, origin: str) -> None:
    """No CORS header at all, for a preflight neither."""
    for method in ("GET", "OPTIONS"):
        response = await shop.http.request(
            method, "/events", headers={"origin": origin, "access-control-request-method": "POST"}
        )
        assert response.status_code >= 400
        assert not [name for name in response.headers if name.startswith("access-control")]


async def test_the_own_origin_is_allowed(app: InProcess) -> None:
    """Also behind a trusted proxy that ends TLS and tells the scheme and the host."""
    response = await app.http.get("/livez", headers={"origin": "http://127.0.0.1:8000"})
    assert response.headers["access-control-allow-origin"] == "http://127.0.0.1:8000"
    async with in_process(jwt_secret=SECRET) as proxied:
        headers = {"origin": SHOP, "x-forwarded-host": "shop.example", "x-forwarded-proto": "https"}
        response = await proxied.http.get("/livez", headers=headers)
        assert response.headers["access-control-allow-origin"] == SHOP
    async with in_process(jwt_secret=SECRET, trusted_proxies="10.0.0.1") as proxied:
        response = await proxied.http.get("/livez", headers=headers)
        assert "access-control-allow-origin" not in response.headers


async def test_a_websocket_of_another_origin_is_refused(app: InProcess) -> None:
    """Cookie or not; a client without an Origin is no browser."""
    for origin, status in (("https://evil.example", 403), ("null", 403), (None, None)):
        headers: dict[str, Any] = {"origin": origin} if origin else {}
        async with Exchange(app.gateway, "/ws", kind="websocket", headers=headers) as exchange:
            exchange.give({"type": "websocket.connect"})
            if status:
                await exchange.done()
                assert exchange.status == status
            else:
                await exchange.sent_at_least(1)
                assert exchange.sent[0]["type"] == "websocket.accept"
