"""`/connections` of a node that is alone: who is there, and how an operator ends a stream."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway import connections_api
from gateway.connection import Connection
from gateway.connections_api import _joined
from gateway.peers import Answers
from gateway.transports.websocket import AUTH_SECONDS
from gateway.wire import Lines
from tests.support.app import Exchange, InProcess, in_process
from tests.support.core import Peer
from tests.support.gateway import make_settings, running_gateway
from tests.support.http_clients import SseClient
from tests.support.tokens import EVERYTHING, SECRET, admin_token, bearer, make_token, reader
from tests.support.waiting import until

ADMIN = bearer(admin_token())
PAID = {"exact": {"data.status": "paid"}}


@pytest.fixture
async def app() -> AsyncIterator[InProcess]:
    async with in_process(jwt_secret=SECRET) as running:
        running.http.headers.update(ADMIN)
        yield running


async def connect(app: InProcess, sub: str = "ann", **options: Any) -> tuple[Connection, Peer]:
    """A stream with one live subscription."""
    peer = Peer(**options)
    principal = await app.node.authenticator.bearer(make_token(sub=sub, subscribe=(EVERYTHING,)))
    await app.node.connections.admit(principal)
    connection = Connection(app.node.streams, peer, Lines(), principal)
    peer.watch(connection)
    app.node.connections.add(connection)
    subscription = connection.open(app.node.hub.open(principal.restrict(None), latest=True))
    await connection.start(subscription, "live", lambda _start: None)
    return connection, peer


async def listed(app: InProcess, **query: Any) -> Any:
    response = await app.http.get("/connections", params=query)
    assert response.status_code == 200, response.text
    return response.json()


async def test_who_is_there(app: InProcess) -> None:
    """Each stream with its user, what it has subscribed to, and how far it has come."""
    connection, _ = await connect(app)
    await app.publish({"type": "a"})
    answer = await listed(app)
    (told,) = answer["connections"]
    assert (answer["next"], answer["missing"]) == (None, [])
    assert 0 <= told.pop("age") < 60
    (subscription,) = told.pop("subscriptions")
    assert told.pop("sent") >= 0
    assert told.pop("buffered") >= 0
    assert told == {
        "id": connection.id,
        "node": app.node.id,
        "transport": "websocket",
        "user": "ann",
        "lag": 0,
    }
    assert subscription == {
        "sub": next(iter(connection.subscriptions)),
        "filter": {"exists": {"type": True}},
        "deliver": "latest",
        "leave": False,
        "state": "live",
        "lag": 0,
    }


async def test_who_is_behind_and_how_far(app: InProcess) -> None:
    """In events, up to the newest that this node has."""
    _, peer = await connect(app, room=10)
    for _ in range(3):
        await app.publish({"type": "a", "data": "x" * 100}, {"type": "a", "data": "x" * 100})
    assert peer.paused
    (told,) = (await listed(app))["connections"]
    assert told["lag"] == told["subscriptions"][0]["lag"] == 6 - 2
    assert told["subscriptions"][0]["state"] == "behind"
    assert told["buffered"] > 100


async def test_who_has_not_said_who_it_is(app: InProcess) -> None:
    """Is there all the same: no user, no subscription."""
    async with Exchange(app.gateway, "/ws", kind="websocket") as talk:
        talk.give({"type": "websocket.connect"})
        await talk.sent_at_least(2)
        (told,) = (await listed(app))["connections"]
        assert (told["user"], told["subscriptions"], told["lag"]) == (None, [], 0)
        assert told["age"] < AUTH_SECONDS


async def test_pages_follow_each_other(app: InProcess) -> None:
    """By id: each stream once, and the last page says that it is the last."""
    ids = sorted([(await connect(app, f"user-{number}"))[0].id for number in range(7)])
    pages: list[list[str]] = []
    after: str | None = ""
    while after is not None:
        answer = await listed(app, limit=3, after=after)
        pages.append([each["id"] for each in answer["connections"]])
        after = answer["next"]
    assert pages == [ids[:3], ids[3:6], ids[6:]]
    assert (await listed(app, limit=7))["next"] is None
    assert await listed(app, after=ids[-1]) == {"connections": [], "next": None, "missing": []}


async def test_a_page_has_so_many_bytes_at_most(app: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the filters are: it ends early, and the next goes on there."""
    monkeypatch.setattr(connections_api, "MAX_NODE_BYTES", 700)
    ids = sorted([(await connect(app, f"user-{number}"))[0].id for number in range(5)])
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        answer = await listed(app, after=after)
        assert 1 <= len(answer["connections"]) <= 2
        found += [each["id"] for each in answer["connections"]]
        after = answer["next"]
    assert found == ids


@pytest.mark.parametrize(
    "limit",
    [
        "0",
        "1001",
        "-1",
        "x",
        "",
        "²",
        "000000000",
        "0000000019999999999",
        "000000001" + "0" * 5000,
        "9" * 5000,
        "1&limit=2",
    ],
    ids=lambda limit: limit[:20],
)
async def test_a_bad_limit_is_400(app: InProcess, limit: str) -> None:
    """From 1 to 1000."""
    response = await app.http.get(f"/connections?limit={limit}")
    assert (response.status_code, response.json()["code"]) == (400, "bad_request")


@pytest.mark.parametrize("query", ["transport=sse", "after=a&after=b", "Limit=1"])
async def test_an_unknown_or_repeated_parameter_is_400(app: InProcess, query: str) -> None:
    """It is named: it may have been meant to narrow the list."""
    response = await app.http.get(f"/connections?{query}")
    assert (response.status_code, response.json()["code"]) == (400, "bad_request")
    assert query.partition("=")[0] in response.json()["detail"]


def part(*ids: str, more: bool) -> Any:
    return {"connections": [{"id": each} for each in ids], "more": more}


def test_a_page_over_nodes_leaves_nobody_out() -> None:
    """It ends where the first node has more to tell, since what the others have beyond may not be next."""
    joined = _joined(Answers((part("1", "4", more=True), part("2", "3", "9", more=False), None), ("x",)), 10)
    assert [each["id"] for each in joined["connections"]] == ["1", "2", "3", "4"]
    assert (joined["next"], joined["missing"]) == ("4", ["x"])
    joined = _joined(Answers((part("1", "4", more=True), part("2", "3", "9", more=False))), 3)
    assert [each["id"] for each in joined["connections"]] == ["1", "2", "3"]
    assert joined["next"] == "3"
    joined = _joined(Answers((part("1", more=False), part(more=False))), 10)
    assert ([each["id"] for each in joined["connections"]], joined["next"]) == (["1"], None)


async def test_an_operator_ends_a_stream(app: InProcess) -> None:
    """With 4003: its client shall not come back by itself. Who is gone already is 404."""
    connection, peer = await connect(app)
    _, other = await connect(app, "bob")
    response = await app.http.delete(f"/connections/{connection.id}")
    assert (response.status_code, response.content) == (204, b"")
    assert (peer.closed, other.closed) == ((4003, "ended by an operator"), None)
    app.node.connections.remove(connection)
    for gone in (connection.id, "none", "a%2Fb"):
        response = await app.http.delete(f"/connections/{gone}")
        assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_it_is_for_admins(app: InProcess) -> None:
    """Nobody else learns who is there, nor ends anything."""
    connection, peer = await connect(app)
    for headers, status in (({}, 401), (bearer(reader()), 403)):
        app.http.headers.pop("Authorization", None)
        assert (await app.http.get("/connections", headers=headers)).status_code == status
        assert (await app.http.delete(f"/connections/{connection.id}", headers=headers)).status_code == status
    assert peer.closed is None


async def test_with_a_port_of_its_own_it_needs_no_token() -> None:
    """There alone; renewing a token stays where clients are."""
    async with in_process(jwt_secret=SECRET, port=9000, ops_port=8000) as app:
        assert (await app.http.get("/connections")).status_code == 200
        assert (await app.http.delete("/connections/none")).status_code == 404
        assert (await app.http.post("/connections/none/token")).status_code == 404
    async with in_process(jwt_secret=SECRET, ops_port=8001) as app:
        app.http.headers.update(ADMIN)
        assert (await app.http.get("/connections")).status_code == 404
        response = await app.http.post("/connections/none/token")
        assert response.json()["detail"] == "you have no such connection"


async def test_what_has_gone_to_a_client_is_known() -> None:
    """By the kernel's count: what its machine has acknowledged, headers and all."""
    async with running_gateway(make_settings()) as gateway, SseClient(gateway.url) as client:
        assert (await anext(client.open(filter=PAID))).kind == "place"
        (connection,) = gateway.node.connections
        await until(lambda: (connection.socket.traffic.sent or 0) > 100)
        told = connections_api.describe(gateway.node, connection)
        assert (told["sent"], told["buffered"]) == (connection.socket.traffic.sent, 0)
        assert told["subscriptions"][0]["filter"] == PAID
