"""All streaming clients of a node: who is let in, how long they stay, and how they are sent away."""

import asyncio
from collections.abc import Awaitable

import pytest

from gateway.connection import Connection, Streams
from gateway.connections import Connections, Heartbeat, Limits, retry_ms
from gateway.cursor import Cursors
from gateway.errors import GatewayError
from gateway.filters import parse_filter
from gateway.hub import Hub
from gateway.lane import Flusher
from gateway.log import Retention
from gateway.log.sqlite import SqliteLog
from gateway.metrics import Metrics
from gateway.principal import OPEN, Principal
from gateway.wire import Blocks, Lines
from tests.support.core import NOON, Clock, Peer, Schedule
from tests.support.waiting import until

TYPE_A = parse_filter({"exact": {"type": "a"}})


class Node:
    """The registry with a clock turned by hand, and connections that need no server."""

    def __init__(self, *, total: int = 1000, per_token: int = 100) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        hub = Hub(Flusher(Schedule(), 0), Cursors())
        hub.begin("e", 0)
        log = SqliteLog(None, retention=Retention())
        self.streams = Streams(log, hub, Cursors(), frozenset(), self.metrics)
        self.connections = Connections(Limits(total, per_token), self.metrics, now=self.clock)

    async def connect(
        self, principal: Principal | None = OPEN, *, sse: bool = False
    ) -> tuple[Connection, Peer]:
        await self.connections.admit(principal)
        peer = Peer()
        connection = Connection(self.streams, peer, Blocks() if sse else Lines(), principal)
        self.connections.add(connection)
        return connection, peer

    def series(self, line: str) -> float:
        lines = self.metrics.render().decode().splitlines()
        return next((float(each.rpartition(" ")[2]) for each in lines if each.startswith(line + " ")), 0.0)


def user(sub: str = "ann", *, left: float = 600, admin: bool = False) -> Principal:
    return Principal(sub=sub, expires=NOON + left, subscribe=TYPE_A, admin=admin)


async def code_of(call: Awaitable[object]) -> str:
    with pytest.raises(GatewayError) as caught:
        await call
    return caught.value.code


# Limits


async def test_a_node_takes_so_many_connections() -> None:
    """Streams and polls together; who leaves makes room."""
    node = Node(total=3)
    first, _ = await node.connect()
    await node.connect()
    async with node.connections.poll(OPEN):
        assert await code_of(node.connect()) == "too_many_connections"
    await node.connect()
    assert await code_of(node.connect()) == "too_many_connections"
    node.connections.remove(first)
    await node.connect()
    assert len(node.connections) == 3


async def test_a_token_takes_so_many() -> None:
    """Counted by its user; others are not concerned, and without keys there is no such limit."""
    node = Node(per_token=2)
    first, _ = await node.connect(user())
    async with node.connections.poll(user()):
        assert await code_of(node.connect(user())) == "too_many_connections"
        await node.connect(user("bob"))
    await node.connect(user())
    assert await code_of(node.connect(user())) == "too_many_connections"
    node.connections.remove(first)
    node.connections.remove(first)
    await node.connect(user())
    assert await code_of(node.connect(user())) == "too_many_connections"
    for _ in range(5):
        await node.connect(OPEN)


async def test_who_says_who_it_is_later_is_counted_then() -> None:
    """It took a place on the node before, and takes one of its user's now."""
    node = Node(per_token=1)
    early, _ = await node.connect(None)
    late, _ = await node.connect(None)
    await node.connections.identify(early, user())
    assert await code_of(node.connections.identify(late, user())) == "too_many_connections"
    assert late.principal is None
    node.connections.remove(early)
    await node.connections.identify(late, user())


async def test_counters_follow_connections() -> None:
    """Open ones by transport, closed ones by code; a code that a client made up is `other`."""
    node = Node()
    for number, sse in ((1000, False), (4200, True), (4999, False)):
        connection, _ = await node.connect(sse=sse)
        connection.code = number
        node.connections.remove(connection)
        node.connections.remove(connection)
    await node.connect()
    async with node.connections.poll(OPEN):
        assert node.series('gateway_connections{transport="longpoll"}') == 1
    assert node.series('gateway_connections{transport="websocket"}') == 1
    assert node.series('gateway_connections{transport="sse"}') == 0
    assert node.series('gateway_connections{transport="longpoll"}') == 0
    assert node.series('gateway_connections_opened_total{transport="websocket"}') == 3
    for transport, code in (
        ("websocket", "1000"),
        ("sse", "4200"),
        ("websocket", "other"),
        ("longpoll", "1000"),
    ):
        line = f'gateway_connections_closed_total{{code="{code}",transport="{transport}"}}'
        assert node.series(line) == 1


# Tokens that expire


async def test_a_client_is_warned_and_then_sent_away() -> None:
    """30 s before its token expires; then 4200."""
    node = Node()
    _, peer = await node.connect(user(left=30))
    await until(lambda: peer.messages)
    assert peer.messages == [{"op": "expiring", "in": 30}]
    assert peer.closed is None
    node = Node()
    _, peer = await node.connect(user(left=10))
    node.clock.now += 10
    await until(lambda: peer.closed)
    assert peer.messages == [{"op": "expiring", "in": 0}]
    assert peer.closed == (4200, "token expired")


async def test_a_newer_token_takes_its_place() -> None:
    """The stream lives on; a token without an end needs no timer."""
    node = Node()
    connection, peer = await node.connect(user(left=10))
    node.connections.renew(connection, user(left=1000))
    node.clock.now += 10
    for _ in range(5):
        await asyncio.sleep(0)
    assert (peer.messages, peer.closed) == ([], None)
    assert connection.principal == user(left=1000)


@pytest.mark.parametrize("newer", [user("bob"), Principal(sub="ann", expires=NOON + 600), OPEN])
async def test_a_newer_token_has_the_same_user_and_filters(newer: Principal) -> None:
    """What the connection has subscribed to stands under the old ones."""
    node = Node()
    connection, _ = await node.connect(user())
    with pytest.raises(GatewayError, match="forbidden"):
        node.connections.renew(connection, newer)
    assert connection.principal == user()


async def test_a_connection_that_is_gone_is_not_warned() -> None:
    """Its timer goes with it."""
    node = Node()
    connection, peer = await node.connect(user(left=10))
    node.connections.remove(connection)
    node.clock.now += 10
    for _ in range(5):
        await asyncio.sleep(0)
    assert peer.messages == []


async def test_a_revocation_ends_what_it_concerns() -> None:
    """At once, with 4001, and says how many; who has not said who it is, is not concerned."""
    node = Node()
    peers = [(await node.connect(each))[1] for each in (user(), user("bob"), None, user())]
    assert node.connections.revoke(lambda principal: principal.sub == "ann") == 2
    assert [peer.closed for peer in peers] == [(4001, "token revoked"), None, None, (4001, "token revoked")]


# Heartbeats


async def test_everybody_is_served_once_a_round() -> None:
    """However they are spread over it; who leaves is not, nor is anybody kept."""
    node = Node()
    served: list[Connection] = []
    heartbeat = Heartbeat(20, served.append)
    connections = [(await node.connect())[0] for _ in range(200)]
    for connection in connections:
        heartbeat.add(connection)
    for connection in connections[:50]:
        heartbeat.remove(connection)
        heartbeat.remove(connection)
    per_tick = []
    for _ in range(40):
        before = len(served)
        heartbeat.tick()
        per_tick.append(len(served) - before)
    assert sorted(map(id, served)) == sorted(map(id, connections[50:]))
    assert max(per_tick) < 30  # 3.75 on average
    for connection in connections[50:]:
        heartbeat.remove(connection)
    heartbeat.tick()
    assert len(served) == 150


async def test_who_goes_while_it_is_served_disturbs_nobody() -> None:
    """A beat may end its own connection."""
    node = Node()
    served = []

    def beat(connection: Connection) -> None:
        served.append(connection)
        heartbeat.remove(connection)

    heartbeat = Heartbeat(20, beat)
    for _ in range(100):
        heartbeat.add((await node.connect())[0])
    for _ in range(80):
        heartbeat.tick()
    assert len(served) == 100


# Drain


@pytest.mark.parametrize("seconds", [0, 0.05])
async def test_a_drain_sends_everybody_away(seconds: float) -> None:
    """With 1012 and when to come back, each at a time of its own; and nobody is let in."""
    node = Node()
    peers = [(await node.connect())[1] for _ in range(100)]
    await node.connections.drain(seconds)
    assert {peer.closed for peer in peers} == {(1012, "service restart")}
    after = {peer.messages[0]["after_ms"] for peer in peers}
    assert len(after) > 10
    assert all(1000 <= each <= 5000 for each in after)
    assert node.connections.draining
    assert await code_of(node.connect()) == "draining"


async def test_a_drain_is_spread_over_its_time() -> None:
    """While it runs some are gone and some are not."""
    node = Node()
    peers = [(await node.connect())[1] for _ in range(100)]
    drain = asyncio.create_task(node.connections.drain(0.2))
    await until(lambda: sum(bool(peer.closed) for peer in peers) > 20)
    assert not all(peer.closed for peer in peers)
    await drain
    assert all(peer.closed for peer in peers)


async def test_a_drain_of_nobody_is_over_at_once() -> None:
    """Polls are told by the event."""
    node = Node()
    await node.connections.drain(1000)
    assert node.connections.drain_began.is_set()


def test_clients_come_back_at_times_of_their_own() -> None:
    """Between 1 and 5 s."""
    moments = {retry_ms() for _ in range(1000)}
    assert len(moments) > 500
    assert min(moments) >= 1000
    assert max(moments) <= 5000
