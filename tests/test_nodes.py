"""Several gateways on one Redis log: what is said to one of them holds on all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from gateway import access
from gateway.connection import Connection
from gateway.log import Revocation
from gateway.neighbours import Neighbours
from gateway.wire import Lines
from tests.support.app import InProcess, in_process
from tests.support.core import Peer
from tests.support.redis_server import RedisServer
from tests.support.tokens import EVERYTHING, SECRET, admin_token, bearer, make_token
from tests.support.waiting import until

ADMIN = bearer(admin_token())
ANN: dict[str, Any] = {"subscribe": (EVERYTHING,), "publish": ("*",)}
SETTINGS: dict[str, Any] = {"jwt_secret": SECRET, "publish_rate": 0.5, "max_connections_per_token": 2}


class Nodes:
    """Gateways that share a log."""

    def __init__(self, redis_server: RedisServer, stack: AsyncExitStack) -> None:
        self.redis = redis_server
        self._stack = stack

    async def start(self, **settings: Any) -> InProcess:
        options = {"store": self.redis.url, **SETTINGS, **settings}
        return await self._stack.enter_async_context(in_process(**options))


@pytest.fixture
async def nodes(redis_server: RedisServer) -> AsyncIterator[Nodes]:
    async with AsyncExitStack() as stack:
        yield Nodes(redis_server, stack)


@pytest.fixture
async def one(nodes: Nodes) -> InProcess:
    return await nodes.start()


@pytest.fixture
async def two(nodes: Nodes) -> InProcess:
    return await nodes.start()


async def connect(app: InProcess, token: str) -> tuple[Connection, Peer]:
    """A stream of this token's bearer."""
    peer = Peer()
    principal = await app.node.authenticator.bearer(token)
    await app.node.connections.admit(principal)
    connection = Connection(app.node.streams, peer, Lines(), principal)
    peer.watch(connection)
    app.node.connections.add(connection)
    return connection, peer


async def test_a_revocation_ends_streams_on_every_node(one: InProcess, two: InProcess) -> None:
    """At once, and the token opens nothing there any more; other users' streams live on."""
    token = make_token(sub="ann", **ANN)
    peers = [(await connect(app, token))[1] for app in (one, two)]
    _, bob = await connect(two, make_token(sub="bob", **ANN))
    assert (await two.http.get("/orders", headers=bearer(token))).status_code == 200
    response = await one.http.post("/revocations", json={"sub": "ann"}, headers=ADMIN)
    assert response.status_code == 200
    await until(lambda: all(peer.closed for peer in peers))
    assert [peer.closed for peer in peers] == [(4001, "token revoked")] * 2
    assert bob.closed is None
    assert (await two.http.get("/orders", headers=bearer(token))).status_code == 401


async def test_a_revocation_that_nobody_was_told_of_is_found(
    one: InProcess, two: InProcess, nodes: Nodes
) -> None:
    """In the log, when a node's connection was broken."""
    _, peer = await connect(two, make_token(jti="7", **ANN))
    await one.node.log.revoke(Revocation("jti", "7", 1.0))
    assert peer.closed is None
    nodes.redis.call("CLIENT", "KILL", "TYPE", "normal")
    await until(lambda: peer.closed)
    assert peer.closed == (4001, "token revoked")


async def test_revocations_are_looked_at_again_and_again(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not a node thinks that it has missed one."""
    monkeypatch.setattr(access, "REFRESH_SECONDS", 0.05)
    app = await nodes.start()
    _, peer = await connect(app, make_token(jti="7", **ANN))
    await app.node.log.revoke(Revocation("jti", "7", 1.0))
    await until(lambda: peer.closed)


async def test_a_revocation_while_a_node_starts_is_found(
    one: InProcess, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it has opened the log, and before it hears the others."""
    monkeypatch.setattr(access, "REFRESH_SECONDS", 3600)
    opened = Neighbours.open

    async def open_late(neighbours: Neighbours) -> None:
        await one.node.log.revoke(Revocation("jti", "7", 1.0))
        await opened(neighbours)

    monkeypatch.setattr(Neighbours, "open", open_late)
    app = await nodes.start()
    principal = await app.node.authenticator.bearer(make_token(**ANN))
    await until(lambda: app.node.revocations.revoked(replace(principal, jti="7")))


async def test_every_node_is_listed(one: InProcess, two: InProcess) -> None:
    """Whichever is asked, with the node that each stream is on; pages go over all of them."""
    where = {}
    for number in range(6):
        app = (one, two)[number % 2]
        connection, _ = await connect(app, make_token(sub=f"user-{number}", **ANN))
        where[connection.id] = app.node.id
    for app in (one, two):
        found: dict[str, str] = {}
        after: str | None = ""
        while after is not None:
            response = await app.http.get("/connections", params={"limit": 4, "after": after}, headers=ADMIN)
            answer = response.json()
            assert answer["missing"] == []
            found |= {each["id"]: each["node"] for each in answer["connections"]}
            after = answer["next"]
        assert found == where
        assert list(found) == sorted(where)


async def test_a_stream_of_another_node_is_ended(one: InProcess, two: InProcess) -> None:
    """And one that nobody has is 404."""
    connection, peer = await connect(two, make_token(**ANN))
    assert (await one.http.delete(f"/connections/{connection.id}", headers=ADMIN)).status_code == 204
    assert peer.closed == (4003, "ended by an operator")
    assert (await one.http.delete("/connections/none", headers=ADMIN)).status_code == 404


async def test_a_stream_of_another_node_gets_a_newer_token(one: InProcess, two: InProcess) -> None:
    """With the checks of its own node: the same user and the same rights."""
    connection, peer = await connect(two, make_token(lives=60, **ANN))
    path = f"/connections/{connection.id}/token"
    response = await one.http.post(path, headers=bearer(make_token(lives=600, **ANN)))
    assert response.status_code == 200
    assert connection.principal is not None
    assert connection.principal.claims["exp"] - connection.principal.claims["iat"] == pytest.approx(600)
    stranger = await one.http.post(path, headers=bearer(make_token(sub="bob", **ANN)))
    assert (stranger.status_code, stranger.json()["detail"]) == (404, "you have no such connection")
    other = await one.http.post(path, headers=bearer(make_token(subscribe=({"exact": {"type": "a"}},))))
    assert (other.status_code, other.json()["code"]) == (403, "forbidden")
    assert peer.closed is None


async def test_no_token_stands_on_the_bus(one: InProcess, two: InProcess, nodes: Nodes) -> None:
    """Claims do, since Redis is trusted with those; who has them cannot sign them."""
    connection, _ = await connect(two, make_token(**ANN))
    token = make_token(**ANN)
    await one.http.post(f"/connections/{connection.id}/token", headers=bearer(token))
    messages = nodes.redis.call("XRANGE", "{gateway}:bus", "-", "+")
    assert messages
    assert token.rpartition(".")[2].encode() not in b"".join(
        item for _, fields in messages for item in fields
    )


async def test_where_a_node_does_not_answer_nobody_knows(
    one: InProcess, two: InProcess, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503, to be tried again; what another node has is done all the same."""
    connection, _ = await connect(one, make_token(**ANN))
    nodes.redis.call("ZADD", "{gateway}:nodes", 1e11, "stuck")
    for method, path in (("DELETE", "/connections/none"), ("POST", "/connections/none/token")):
        response = await one.http.request(method, path, headers=ADMIN)
        assert (response.status_code, response.json()["code"]) == (503, "unavailable")
        assert "stuck" in response.json()["detail"]
        assert int(response.headers["Retry-After"]) > 0
    assert (await one.http.get("/connections", headers=ADMIN)).json()["missing"] == ["stuck"]
    assert (await two.http.delete(f"/connections/{connection.id}", headers=ADMIN)).status_code == 204


async def test_a_user_has_so_many_connections_on_all_nodes(one: InProcess, two: InProcess) -> None:
    """Polls and streams together, wherever they are."""
    token = make_token(**ANN)
    held = [(await connect(app, token))[0] for app in (one, two)]
    headers = {**bearer(token), "Accept": "application/json"}
    for app in (one, two):
        response = await app.http.get("/events?since=earliest&wait=0", headers=headers)
        assert (response.status_code, response.json()["code"]) == (503, "too_many_connections")
    two.node.connections.remove(held[1])
    assert held[1].principal is not None
    async with asyncio.timeout(60):
        while (await one.http.get("/events?wait=0", headers=headers)).status_code != 200:  # noqa: ASYNC110 - the other node tells it a moment later
            await asyncio.sleep(0.02)


async def test_a_user_publishes_so_often_on_all_nodes(one: InProcess, two: InProcess) -> None:
    """Once in two seconds here, whichever node is asked."""
    headers = bearer(make_token(**ANN))
    answers = [await app.http.post("/events", json={"type": "a"}, headers=headers) for app in (one, two, one)]
    assert [each.status_code for each in answers] == [202, 429, 429]
    assert all(1 <= int(each.headers["Retry-After"]) <= 2 for each in answers[1:])


async def test_without_keys_nothing_is_counted(nodes: Nodes) -> None:
    """Everybody is the same user then."""
    app = await nodes.start(jwt_secret=None, max_connections_per_token=1, publish_rate=0.01)
    for _ in range(3):
        assert (await app.http.post("/events", json={"type": "a"})).status_code == 202
    assert not nodes.redis.call("KEYS", "{gateway}:rate:*")


async def test_a_node_that_stops_takes_its_leave(one: InProcess, nodes: Nodes) -> None:
    """Nobody waits for it."""
    other = nodes.start()
    app = await other
    assert nodes.redis.call("ZCARD", "{gateway}:nodes") == 2
    assert app.node.neighbours is not None
    await app.node.neighbours.peers.close()
    assert nodes.redis.call("ZRANGE", "{gateway}:nodes", 0, -1) == [one.node.id.encode()]
