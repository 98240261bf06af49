"""Probes, the board and its files."""

from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.operations import CSP, static_directory
from tests.support.app import Exchange, InProcess, in_process

FILES = sorted(each.name for each in static_directory().iterdir())


@pytest.fixture
async def app() -> AsyncIterator[InProcess]:
    async with in_process() as running:
        yield running


async def test_livez_depends_on_nothing(app: InProcess) -> None:
    """Neither on the store nor on whether the node drains."""
    app.node.connections.drain_began.set()
    await app.node.log.close()
    assert (await app.http.get("/livez")).json() == {"status": "ok"}


async def test_readyz_tells_each_check(app: InProcess) -> None:
    """All of them hold."""
    response = await app.http.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ready",
        "checks": {name: {"ok": True, "reason": None} for name in ("store", "ingests", "draining")},
    }


async def test_readyz_is_503_without_its_store(app: InProcess) -> None:
    """With the reason; the metric says it too."""
    await app.node.log.close()
    response = await app.http.get("/readyz")
    assert response.status_code == 503
    store = response.json()["checks"]["store"]
    assert (store["ok"], store["reason"]) == (False, "the log in memory is closed")
    assert b"\ngateway_store_up 0.0\n" in app.node.metrics.render()


async def test_readyz_is_503_while_it_drains(app: InProcess) -> None:
    """So that no new client is sent here."""
    app.node.connections.drain_began.set()
    response = await app.http.get("/readyz")
    assert (response.status_code, response.json()["checks"]["draining"]["ok"]) == (503, False)


async def test_metrics_are_in_the_text_format(app: InProcess) -> None:
    """With the values of this moment."""
    await app.publish({"type": "a"})
    response = await app.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'gateway_events_ingested_total{ingest="http",result="accepted"} 1.0' in response.text
    assert "\ngateway_log_lag_events 0.0\n" in response.text


def check_page(response: httpx.Response) -> None:
    """What a browser is told about a page and its files."""
    assert response.headers["content-security-policy"] == CSP
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-cache"


def test_the_policy_allows_only_what_is_served_here() -> None:
    """No inline script or style, no eval, no frame around it, no other host."""
    rules = dict(each.split(" ", 1) for each in CSP.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert "unsafe" not in CSP
    assert "*" not in CSP


async def test_the_board(app: InProcess) -> None:
    """It is the page at the root, and names only files that are served."""
    response = await app.http.get("/")
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    check_page(response)


@pytest.mark.parametrize("name", FILES)
async def test_each_file_is_served_by_its_name(app: InProcess, name: str) -> None:
    """With the type that a browser needs."""
    response = await app.http.get(f"/static/{name}")
    assert response.status_code == 200
    assert response.content == (static_directory() / name).read_bytes()
    kind = response.headers["content-type"].partition(";")[0]
    suffixes = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "html": "text/html"}
    assert kind == suffixes.get(name.rpartition(".")[2], kind)
    check_page(response)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../gateway/app.py", "/static/../../etc/passwd", "/static//etc/passwd", "/static/..", "/static/.",
        "/static/%2e%2e/pyproject.toml", "/static/..\\pyproject.toml", "/static/board.js/", "/static/./board.js",
        "/static/board.js\x00", "/static/board.js\x00.html", "/static/", "/static/.hidden", "/static/" + "a" * 5000,
        "/static/C:\\x", "/static/~", "/static/\n",
    ],
)  # fmt: skip
async def test_nothing_else_is_served(app: InProcess, path: str) -> None:
    """No path leads out of the directory, and none is more than a 404."""
    async with Exchange(app.gateway, path) as exchange:
        await exchange.done()
    assert exchange.status == 404
    assert exchange.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("value", ["bytes=0-1", "bytes=abc", "bytes=9-1", "bytes=99999999-", "lines=1"])
async def test_a_range_is_the_whole_file(app: InProcess, value: str) -> None:
    """A server may ignore Range (RFC 9110, section 14.2), and files are small."""
    for path in ("/", "/static/board.js"):
        response = await app.http.get(path, headers={"range": value})
        assert response.status_code == 200
