"""Tickets, revocations and newer tokens, over HTTP."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.connection import Connection
from gateway.event import is_rfc3339
from gateway.wire import Lines
from tests.support.app import InProcess, in_process
from tests.support.core import Peer
from tests.support.tokens import EVERYTHING, SECRET, admin_token, bearer, make_token

ANN: dict[str, Any] = {"subscribe": (EVERYTHING,), "publish": ("*",)}


@pytest.fixture
async def app() -> AsyncIterator[InProcess]:
    async with in_process(jwt_secret=SECRET) as running:
        yield running


async def connect(app: InProcess, token: str) -> tuple[Connection, Peer]:
    """A stream of this token's bearer."""
    peer = Peer()
    principal = await app.node.authenticator.bearer(token)
    connection = Connection(app.node.streams, peer, Lines(), principal)
    peer.watch(connection)
    app.node.connections.add(connection)
    return connection, peer


async def poll(app: InProcess, query: str) -> int:
    response = await app.http.get(f"/events?{query}", headers={"accept": "application/json"})
    return response.status_code


async def test_a_ticket_opens_once(app: InProcess) -> None:
    """Any stream, within 30 s, in the place of the token."""
    response = await app.http.post("/tickets", headers=bearer(make_token(**ANN)))
    assert response.status_code == 201
    assert response.headers["cache-control"] == "no-store"
    ticket, expires = response.json()["ticket"], response.json()["expires"]
    assert is_rfc3339(expires)
    assert [await poll(app, f"since=earliest&wait=0&ticket={ticket}") for _ in range(2)] == [200, 401]


async def test_a_ticket_for_a_stream_opens_it_as_often_as_asked(app: InProcess) -> None:
    """Just that path and query, until the token expires or is revoked."""
    target = "since=earliest&wait=0&type=order.*"
    token = bearer(make_token(sub="ann", **ANN))
    response = await app.http.post("/tickets", json={"for": f"/events?{target}"}, headers=token)
    ticket = response.json()["ticket"]
    assert [await poll(app, f"{target}&ticket={ticket}") for _ in range(3)] == [200, 200, 200]
    assert await poll(app, f"since=earliest&wait=0&ticket={ticket}") == 401
    revoked = await app.http.post("/revocations", json={"sub": "ann"}, headers=bearer(admin_token()))
    assert revoked.status_code == 200
    assert await poll(app, f"{target}&ticket={ticket}") == 401


@pytest.mark.parametrize("named", ["", "/gw"])
@pytest.mark.parametrize("asked", ["", "/gw"])
async def test_a_ticket_is_for_the_url_that_the_browser_uses(named: str, asked: str) -> None:
    """With the proxy's prefix or without it, and whether the proxy takes it off or passes it on."""
    async with in_process(root_path="/gw", jwt_secret=SECRET) as app:
        ann = bearer(make_token(**ANN))
        query = "since=earliest&wait=0&type=a"
        response = await app.http.post("/gw/tickets", json={"for": f"{named}/events?{query}"}, headers=ann)
        url = f"{asked}/events?{query}&ticket={response.json()['ticket']}"
        assert (await app.http.get(url, headers={"accept": "application/json"})).status_code == 200
        for other in ("/gwx/events", "/gw/gw/events", "/gw", "/gw/"):
            refused = await app.http.post("/tickets", json={"for": other}, headers=ann)
            assert refused.status_code == 422


async def test_a_ticket_opens_lists_too(app: InProcess) -> None:
    """Whose own parameters are all that they take otherwise."""
    for path in ("/orders?limit=1&", "/orders?"):
        ticket = (await app.http.post("/tickets", headers=bearer(make_token(**ANN)))).json()["ticket"]
        assert (await app.http.get(f"{path}ticket={ticket}")).status_code == 200


async def test_a_refused_ticket_comes_with_its_challenge(app: InProcess) -> None:
    """RFC 9110, section 15.5.2, whatever was wrong with it; and on every call."""
    used = (await app.http.post("/tickets", headers=bearer(make_token(**ANN)))).json()["ticket"]
    assert await poll(app, f"wait=0&ticket={used}") == 200
    for ticket in (used, "nonsense", "", "ü"):
        for path in ("/events", "/orders"):
            response = await app.http.get(path, params={"ticket": ticket})
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'


async def test_a_call_without_members_says_so(app: InProcess) -> None:
    """Of a body that it does not take: it names no empty list of what is known."""
    response = await app.http.post(
        "/connections/x/token", json={"token": "x"}, headers=bearer(make_token(**ANN))
    )
    assert response.status_code == 422
    assert response.json()["detail"] == "token: is unknown here: this call takes no members"


@pytest.mark.parametrize(
    "body",
    [
        {"for": "/orders"},
        {"for": "https://evil.example/events"},
        {"for": ""},
        {"for": 5},
        {"path": "/events"},
        [],
        5,
    ],
)
async def test_a_ticket_for_something_else_is_422(app: InProcess, body: Any) -> None:
    """It opens streams of this gateway and nothing else."""
    response = await app.http.post("/tickets", json=body, headers=bearer(make_token(**ANN)))
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    (name,) = body if type(body) is dict else ("",)
    assert [each["pointer"] for each in response.json()["errors"]] == [f"#/{name}" if name else "#"]


async def test_a_revocation_ends_live_streams_at_once(app: InProcess) -> None:
    """Of this user alone; the token opens nothing any more, and one that is issued later does."""
    token = make_token(sub="ann", **ANN)
    connection, peer = await connect(app, token)
    _, other = await connect(app, make_token(sub="bob", **ANN))
    response = await app.http.post("/revocations", json={"sub": "ann"}, headers=bearer(admin_token()))
    assert response.status_code == 200
    assert (peer.closed, other.closed) == ((4001, "token revoked"), None)
    assert app.node.connections.get(connection.id) is connection  # until its transport is gone
    assert (await app.http.get("/orders", headers=bearer(token))).status_code == 401
    later = make_token(sub="ann", iat=time.time() + 5, **ANN)
    assert (await app.http.get("/orders", headers=bearer(later))).status_code == 200


async def test_a_revocation_of_one_token(app: InProcess) -> None:
    """By its id; the user's other tokens live on."""
    first, second = (make_token(jti=jti, **ANN) for jti in ("1", "2"))
    _, one = await connect(app, first)
    _, two = await connect(app, second)
    await app.http.post("/revocations", json={"jti": "1"}, headers=bearer(admin_token()))
    assert one.closed == (4001, "token revoked")
    assert two.closed is None
    statuses = [(await app.http.get("/orders", headers=bearer(each))).status_code for each in (first, second)]
    assert statuses == [401, 200]
    assert [each.value for each in await app.node.log.revocations()] == ["1"]


@pytest.mark.parametrize("body", [{}, {"sub": "a", "jti": "b"}, {"sub": ""}, {"sub": 5}, {"user": "a"}, []])
async def test_a_revocation_names_one_thing(app: InProcess, body: Any) -> None:
    """Else it is 422, and nothing is revoked."""
    response = await app.http.post("/revocations", json=body, headers=bearer(admin_token()))
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert response.json()["errors"]
    assert await app.node.log.revocations() == []


async def test_a_stream_gets_a_newer_token(app: InProcess) -> None:
    """The caller's own: it lives as long as the new one."""
    connection, peer = await connect(app, make_token(lives=60, **ANN))
    path = f"/connections/{connection.id}/token"
    response = await app.http.post(path, headers=bearer(make_token(lives=600, **ANN)))
    assert response.status_code == 200
    assert connection.principal is not None
    assert (connection.principal.expires or 0) > time.time() + 500
    assert is_rfc3339(response.json()["expires"])
    assert peer.closed is None


async def test_a_stream_gets_no_other_users_token(app: InProcess) -> None:
    """Of a stranger's stream one learns nothing; the same user's other rights need a new stream."""
    connection, _ = await connect(app, make_token(**ANN))
    path = f"/connections/{connection.id}/token"
    stranger = await app.http.post(path, headers=bearer(make_token(sub="bob", **ANN)))
    unknown = await app.http.post("/connections/none/token", headers=bearer(make_token(**ANN)))
    assert (stranger.status_code, unknown.status_code) == (404, 404)
    assert stranger.json() == unknown.json()
    other = await app.http.post(path, headers=bearer(make_token(subscribe=({"exact": {"type": "a"}},))))
    assert (other.status_code, other.json()["code"]) == (403, "forbidden")
