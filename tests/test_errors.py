"""Errors: one table of codes, and problem details for every one of them, whatever the path and method."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.errors import KINDS, GatewayError, Problem, pointer
from gateway.log.sqlite import SqliteLog
from tests.support.app import InProcess, in_process
from tests.support.tokens import EVERYTHING, SECRET, bearer, make_token

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"]
PATHS = [
    "/", "/events", "/orders", "/orders/x", "/orders/x/status", "/tickets", "/revocations", "/connections/x/token",
    "/ws", "/livez", "/readyz", "/metrics", "/static/board.js", "/static/none.js", "/nothing", "/events/", "/orders/",
    "/orders//status", "/EVENTS", "/static/", "/static", "/%00", "/caf%C3%A9",
]  # fmt: skip
RETRIED = {"rate_limited", "draining", "too_many_connections", "unavailable"}


@pytest.fixture
async def app() -> AsyncIterator[InProcess]:
    async with in_process() as running:
        yield running


def check_problem(response: httpx.Response) -> Any:
    """RFC 9457, with the members that this gateway adds."""
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == response.status_code
    kind = KINDS[problem["code"]]
    assert problem["title"] == kind.title
    assert problem["type"].endswith(f"/docs#{problem['code']}")
    assert problem["detail"]
    return problem


def test_every_code_is_well_formed() -> None:
    """Snake case; an HTTP error status; a close code that tells a client what to do, or none."""
    for code, kind in KINDS.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code)
        assert 400 <= kind.status < 600
        assert kind.title
        assert kind.close in (0, 1009, 1011, 1012) or 4000 <= kind.close < 4300


def test_a_problem_has_its_members() -> None:
    """Type, title, status, detail, code, what is particular to it, and each fault of an input."""
    error = GatewayError(
        "invalid_event", "type: is required", errors=[Problem("#/1/type", "is required")], members={"line": 2}
    )
    assert error.problem("/gw/docs") == {
        "type": "/gw/docs#invalid_event",
        "title": "The event is not valid",
        "status": 422,
        "detail": "type: is required",
        "code": "invalid_event",
        "line": 2,
        "errors": [{"pointer": "#/1/type", "detail": "is required"}],
    }
    assert "errors" not in GatewayError("not_found", "nothing").problem()


def test_pointers_are_escaped() -> None:
    """RFC 6901: ~ and / of a name are no separators."""
    assert pointer() == "#"
    assert pointer(1, "a/b", "~c") == "#/1/a~1b/~0c"


@pytest.mark.parametrize("path", PATHS)
async def test_every_error_is_a_problem(path: str, app: InProcess) -> None:
    """404 and 405 included; a 405 names the methods that are not answered with 405."""
    asked = {"accept": "text/plain"}  # which a GET of the events is not acceptable by, and so no stream
    for method in METHODS:
        response = await app.http.request(method, path, headers=asked)
        if response.status_code < 400:
            continue
        assert response.status_code < 500
        assert response.headers["content-type"] == "application/problem+json"
        if method != "HEAD":  # which has no body
            check_problem(response)
        if response.status_code == 405:
            allowed = response.headers["allow"].split(", ")
            assert method not in allowed
            for each in allowed:
                assert (await app.http.request(each, path, headers=asked)).status_code != 405


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/", {"GET", "HEAD"}),
        ("/events", {"GET", "HEAD", "POST"}),
        ("/orders", {"GET", "HEAD", "POST"}),
        ("/orders/x", {"GET", "HEAD"}),
        ("/orders/x/status", {"PATCH"}),
        ("/tickets", {"POST"}),
    ],
)
async def test_405_names_the_methods(app: InProcess, path: str, allowed: set[str]) -> None:
    """All of the path's, HEAD with GET."""
    response = await app.http.delete(path)
    assert set(response.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", PATHS)
async def test_what_is_not_public_wants_a_token(path: str) -> None:
    """Without one it is 401 with its challenge, before anything is said about the request."""
    public = {"/", "/ws", "/livez", "/readyz"}
    async with in_process(jwt_secret=SECRET) as app:
        for method in ("GET", "POST", "PATCH"):
            response = await app.http.request(method, path, content=b"nonsense")
            if response.status_code in (404, 405) or path in public or path.startswith("/static/"):
                continue
            assert (response.status_code, check_problem(response)["code"]) == (401, "unauthorized")
            assert response.headers["www-authenticate"].startswith("Bearer")


async def test_a_bad_token_is_401_everywhere() -> None:
    """Of another key, expired, or no token at all."""
    forged = [make_token(secret="another secret of thirty-two bytes"), make_token(lives=-1), "nonsense"]
    async with in_process(jwt_secret=SECRET) as app:
        for token in forged:
            for method, path in (
                ("POST", "/events"),
                ("GET", "/orders"),
                ("GET", "/events"),
                ("GET", "/metrics"),
            ):
                response = await app.http.request(method, path, headers=bearer(token))
                assert response.status_code == 401
                assert check_problem(response)["code"] in ("unauthorized", "token_expired")
                assert "invalid_token" in response.headers["www-authenticate"]


async def test_no_right_is_403() -> None:
    """A token without any claim opens nothing."""
    async with in_process(jwt_secret=SECRET) as app:
        nobody = bearer(make_token())
        for method, path, body in (
            ("POST", "/events", {"type": "a"}),
            ("POST", "/orders", {"items": [1]}),
            ("PATCH", "/orders/x/status", {"status": "a"}),
            ("GET", "/orders", None),
            ("GET", "/orders/x", None),
            ("GET", "/events", None),
            ("GET", "/metrics", None),
            ("POST", "/revocations", {"sub": "ann"}),
        ):
            response = await app.http.request(method, path, json=body, headers=nobody)
            assert (response.status_code, check_problem(response)["code"]) == (403, "forbidden")


async def test_a_failure_of_ours_says_nothing_of_its_inside(
    app: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """500 with a problem; the log has the rest."""

    class Broken(SqliteLog):
        async def order(self, subject: str) -> Any:
            raise RuntimeError("a secret of the inside")

    app.node.log.__class__ = Broken
    response = await app.http.get("/orders/x")
    assert (response.status_code, check_problem(response)["code"]) == (500, "internal")
    assert "secret" not in response.text
    assert "a secret of the inside" in caplog.text


async def test_a_store_that_is_away_is_503_with_retry_after(app: InProcess) -> None:
    """On every path that needs it, and not on the one that must not."""
    await app.node.log.close()
    for method, path, body in (
        ("POST", "/events", {"type": "a"}),
        ("POST", "/orders", {"items": [1]}),
        ("PATCH", "/orders/x/status", {"status": "a"}),
        ("GET", "/orders", None),
        ("GET", "/orders/x", None),
        ("GET", "/events?since=2026-05-01T12:00:00Z", None),
        ("POST", "/revocations", {"sub": "ann"}),
    ):
        accept = {"accept": "application/json"}
        response = await app.http.request(method, path, json=body, headers=accept)
        assert (response.status_code, check_problem(response)["code"]) == (503, "unavailable")
        assert int(response.headers["retry-after"]) > 0
    assert (await app.http.get("/livez")).status_code == 200


async def test_the_docs_are_under_the_prefix() -> None:
    """A problem's type leads through the proxy."""
    async with in_process(root_path="/gw") as app:
        for path in ("/gw/nothing", "/nothing", "/gw/orders/x"):
            assert check_problem(await app.http.get(path))["type"] == "/gw/docs#not_found"


async def test_a_path_for_websockets_asks_for_the_upgrade(app: InProcess) -> None:
    """426 names the protocol to change to, in a header that belongs to the connection (RFC 9110, section 15.5.22)."""
    response = await app.http.get("/ws")
    assert response.status_code == 426
    assert (response.headers["upgrade"], response.headers["connection"]) == ("websocket", "Upgrade")
    assert "handshake" in check_problem(response)["detail"]


def test_titles_fit_every_use_of_their_code() -> None:
    """An origin is refused without a token, and a request that wants an upgrade is well formed."""
    assert "token" not in KINDS["forbidden"].title
    assert "malformed" not in KINDS["bad_request"].title


async def test_head_is_get_without_its_body(app: InProcess) -> None:
    """Same status and headers; a server cuts the body off."""
    await app.publish({"type": "order.x", "subject": "o-1", "data": {}})
    for path in ("/", "/orders", "/orders/o-1", "/livez", "/readyz", "/static/board.js"):
        get, head = await asyncio.gather(app.http.get(path), app.http.head(path))
        assert head.status_code == get.status_code == 200
        assert head.headers["content-type"] == get.headers["content-type"]


async def test_a_ticket_is_for_streams_only() -> None:
    """It stands in a URL, and opens no call that changes or lists anything."""
    async with in_process(jwt_secret=SECRET) as app:
        ann = bearer(make_token(subscribe=(EVERYTHING,), publish=("*",)))
        ticket = (await app.http.post("/tickets", headers=ann)).json()["ticket"]
        response = await app.http.post(f"/events?ticket={ticket}", json={"type": "a"})
        assert (response.status_code, check_problem(response)["code"]) == (401, "unauthorized")
