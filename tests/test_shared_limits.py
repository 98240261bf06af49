"""Limits of one token over all nodes on one Redis."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from gateway import shared_limits as module
from gateway.connection import Connection, Streams
from gateway.connections import Connections, Limits
from gateway.cursor import Cursors
from gateway.errors import GatewayError
from gateway.hub import Hub
from gateway.lane import Flusher
from gateway.log import Retention
from gateway.log.sqlite import SqliteLog
from gateway.metrics import Metrics
from gateway.peers import NODES
from gateway.principal import Principal
from gateway.shared_limits import SharedLimits, SharedRates
from gateway.wire import Lines
from tests.support.core import Peer, Schedule
from tests.support.peers import PeerNode, peer_nodes
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

ANN, BOB = Principal(sub="ann"), Principal(sub="bob")
LIMIT = 3


class Door:
    """A node's registry of connections, which need no server here."""

    def __init__(self, shared: SharedLimits) -> None:
        metrics = Metrics()
        hub = Hub(Flusher(Schedule(), 0), Cursors())
        hub.begin("e", 0)
        log = SqliteLog(None, retention=Retention())
        self.revoked: set[Principal] = set()
        self._streams = Streams(log, hub, Cursors(), frozenset(), metrics)
        self.registry = Connections(
            Limits(1000, LIMIT), metrics, shared=shared, revoked=lambda principal: principal in self.revoked
        )

    async def enter(self, principal: Principal | None = ANN) -> Connection:
        await self.registry.admit(principal)
        connection = Connection(self._streams, Peer(), Lines(), principal)
        self.registry.add(connection)
        return connection


class Site:
    """Nodes by name, each with its door."""

    def __init__(self, nodes: list[PeerNode], redis_server: RedisServer) -> None:
        self.nodes = nodes
        self.doors = [Door(node.limits) for node in nodes]
        self._server = redis_server

    def known(self, name: str) -> list[int]:
        """The counts that Redis has of a node."""
        rows = self._server.call("HGETALL", f"{{gateway}}:held:{name}")
        return sorted(int(value) for key, value in zip(rows[::2], rows[1::2], strict=True) if key != b"all")


@asynccontextmanager
async def site(redis_server: RedisServer, *names: str) -> AsyncIterator[Site]:
    async with peer_nodes(redis_server.url, *names) as nodes:
        yield Site(nodes, redis_server)


async def refused(call: Awaitable[object]) -> str:
    with pytest.raises(GatewayError) as caught:
        await call
    return caught.value.code


async def test_a_token_has_so_many_over_all_nodes(redis_server: RedisServer) -> None:
    """Wherever they are; another token is not concerned, and who leaves makes room everywhere."""
    async with site(redis_server, "a", "b", "c") as here:
        first = await here.doors[0].enter()
        await here.doors[1].enter()
        await here.doors[1].enter()
        for door in here.doors:
            assert await refused(door.enter()) == "too_many_connections"
        await here.doors[2].enter(BOB)
        here.doors[0].registry.remove(first)
        await until(lambda: here.known("a") == [])
        await here.doors[2].enter()
        assert await refused(here.doors[0].enter()) == "too_many_connections"


async def test_many_at_once_do_not_pass_one_by_one(redis_server: RedisServer) -> None:
    """Neither on one node nor over two."""
    async with site(redis_server, "a", "b") as here:
        outcomes = await asyncio.gather(
            *(door.enter() for door in here.doors for _ in range(20)), return_exceptions=True
        )
        assert sum(isinstance(each, Connection) for each in outcomes) == LIMIT
        await until(lambda: sum(here.known("a") + here.known("b")) == LIMIT)


async def test_polls_and_late_tokens_count_too(redis_server: RedisServer) -> None:
    """A poll while it runs, and a WebSocket when it has said who it is."""
    async with site(redis_server, "a", "b") as here:
        one, two = (door.registry for door in here.doors)
        late = await here.doors[1].enter(None)
        async with one.poll(ANN), one.poll(ANN), one.poll(ANN):
            assert await refused(two.identify(late, ANN)) == "too_many_connections"
            assert late.principal is None
        await until(lambda: here.known("a") == [])
        await two.identify(late, ANN)
        assert here.known("b") == [1]
        two.remove(late)
        await until(lambda: here.known("b") == [])


async def test_who_gives_up_while_it_is_admitted_leaves_nothing(redis_server: RedisServer) -> None:
    """Cancelled, revoked, gone, or met by a drain while Redis is asked: the count is what it was."""
    async with site(redis_server, "a") as here:
        (door,) = here.doors
        redis_server.pause()
        entering = [asyncio.create_task(door.enter()) for _ in range(2)]
        late = asyncio.create_task(door.enter(BOB))
        await until(lambda: door.registry._asking == 3)
        entering[0].cancel()
        door.revoked.add(BOB)
        redis_server.resume()
        await asyncio.wait([*entering, late])
        assert entering[0].cancelled()
        assert await refused(late) == "unauthorized"
        door.registry.remove(await entering[1])
        door.registry.drain_began.set()
        assert await refused(door.enter()) == "draining"
        await until(lambda: here.known("a") == [])
        assert door.registry._per_token == {}
        assert door.registry._asking == 0


async def test_who_is_gone_before_it_was_admitted_is_not_counted(redis_server: RedisServer) -> None:
    """A WebSocket that hangs up after its token."""
    async with site(redis_server, "a") as here:
        (door,) = here.doors
        late = await door.enter(None)
        redis_server.pause()
        identifying = asyncio.create_task(door.registry.identify(late, ANN))
        await until(lambda: door.registry._per_token)
        door.registry.remove(late)
        redis_server.resume()
        await identifying
        await until(lambda: here.known("a") == [])
        assert late.principal is None
        assert door.registry._per_token == {}


async def test_a_killed_node_holds_nothing_for_long(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its counts end by themselves; one that was only slow tells them again."""
    monkeypatch.setattr(module, "ALIVE_SECONDS", 1)
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.1)
    async with site(redis_server, "a", "b") as here:
        for _ in range(LIMIT):
            await here.doors[0].enter()
        assert await refused(here.doors[1].enter()) == "too_many_connections"
        await here.nodes[0].freeze()
        await until(lambda: redis_server.call("EXISTS", "{gateway}:held:a") == 0)
        await here.doors[1].enter()
        await here.nodes[0].start()
        await until(lambda: here.known("a") == [LIMIT])
        assert await refused(here.doors[1].enter()) == "too_many_connections"


async def test_counts_live_as_long_as_their_node(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody comes or goes, and they are still there long after they would have ended."""
    monkeypatch.setattr(module, "ALIVE_SECONDS", 1)
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.1)
    async with site(redis_server, "a", "b") as here:
        for _ in range(LIMIT):
            await here.doors[0].enter()
        ends = asyncio.get_running_loop().time() + 2
        await until(lambda: asyncio.get_running_loop().time() > ends)
        assert here.known("a") == [LIMIT]
        assert await refused(here.doors[1].enter()) == "too_many_connections"


async def test_without_redis_a_node_counts_alone(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so, and tells its counts when Redis is there again."""
    async with site(redis_server, "a", "b") as here:
        await here.doors[0].enter()
        await asyncio.to_thread(redis_server.kill9)
        await here.doors[0].enter()
        await here.doors[0].enter()
        assert "limits hold on this node alone" in caplog.text
        assert await refused(here.doors[0].enter()) == "too_many_connections"
        await here.doors[1].enter()
        await asyncio.to_thread(redis_server.start)
        await until(lambda: (here.known("a"), here.known("b")) == ([LIMIT], [1]))
        await until(lambda: redis_server.call("ZCARD", NODES) == 2)
        here.nodes[1].limits._away_until = 0.0
        assert await refused(here.doors[1].enter()) == "too_many_connections"


async def test_redis_learns_nobodys_name(redis_server: RedisServer) -> None:
    """Only digests stand there."""
    async with site(redis_server, "a") as here:
        await here.doors[0].enter()
        await SharedRates(here.nodes[0].limits, 1).take("ann")
        keys = redis_server.call("KEYS", "*")
        rows = redis_server.call("HGETALL", "{gateway}:held:a")
        assert b"ann" not in b" ".join([*keys, *rows])


# Rates


async def test_a_rate_holds_over_all_nodes(redis_server: RedisServer) -> None:
    """A burst of a second's worth for all of them together; the answer says when there is one again."""
    async with site(redis_server, "a", "b") as here:
        one, two = (SharedRates(node.limits, 0.5) for node in here.nodes)
        assert await one.take("ann") == 0
        waits = [await two.take("ann"), await one.take("ann")]
        assert all(1 < wait <= 2 for wait in waits)
        assert await two.take("bob") == 0


async def test_a_burst_over_nodes(redis_server: RedisServer) -> None:
    """As many as the rate has in a second, however they are spread; the bucket ends by itself when it is full."""
    async with site(redis_server, "a", "b") as here:
        rates = [SharedRates(node.limits, 1000.0) for node in here.nodes]
        takes = [rates[number % 2].take("ann") for number in range(2000)]
        began = asyncio.get_running_loop().time()
        waits = await asyncio.gather(*takes)
        took = asyncio.get_running_loop().time() - began
        assert 1000 <= waits.count(0) <= 1000 + 1000 * took + 1
        await until(lambda: not redis_server.call("KEYS", "{gateway}:rate:*"))


async def test_without_redis_a_rate_is_the_nodes_own(redis_server: RedisServer) -> None:
    """Redis is asked once and then left alone for a while."""
    async with AsyncExitStack() as stack:
        (node,) = await stack.enter_async_context(peer_nodes(redis_server.url, "a"))
        await asyncio.to_thread(redis_server.kill9)
        rates = SharedRates(node.limits, 0.001)
        assert await rates.take("ann") == 0
        assert await rates.take("ann") > 900
        assert node.limits._away_until > 0
