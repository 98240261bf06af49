"""Streams that pass from node to node: nothing is lost or doubled, and the log has the stream's order."""

import asyncio
import functools
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from gateway.ingest._group import START, ConsumerGroup, OvertakenError
from gateway.ingest.streams import StreamIngest
from gateway.redis_clients import RedisClients
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisFactory, RedisServer
from tests.support.streams import STREAM, Source, StreamNode, stream_node, trickle
from tests.support.waiting import until


@pytest.fixture
def source(redis_server: RedisServer) -> Source:
    return Source(redis_server)


@pytest.fixture
async def group(source: Source) -> AsyncIterator[ConsumerGroup]:
    clients = RedisClients(source.redis.url)
    StreamIngest(clients, [], "own", None, None)  # type: ignore[arg-type]  # has the clients give answers as they come
    yield ConsumerGroup(clients, STREAM, "own")
    await clients.aclose()


# What the group notices


async def test_what_another_claims_before_it_is_read_is_noticed(source: Source, group: ConsumerGroup) -> None:
    """A node that was frozen while it claimed goes on to do so: its entries are not passed over."""
    await group.begin()
    source.add(20)
    source.read_as("own", 20)
    page = await group.pending(START, 5)
    assert len(page.entries) == 5
    source.claim_as("frozen", 8)  # the first ones, three of which are not read yet
    with pytest.raises(OvertakenError):
        await group.pending(page.last or "", 5)
    await group.begin()
    assert source.owners == {"own"}
    assert len((await group.pending(START, 100)).entries) == 20


async def test_what_another_claims_at_the_end_is_noticed(source: Source, group: ConsumerGroup) -> None:
    """Also where nothing else is pending."""
    await group.begin()
    source.add(2)
    source.read_as("own", 2)
    source.claim_as("frozen", 2)
    with pytest.raises(OvertakenError):
        await group.pending(START, 5)


async def test_what_another_claims_after_it_was_read_is_no_matter(
    source: Source, group: ConsumerGroup
) -> None:
    """It is stored and acknowledged by the node that has the lease, whoever it is pending for."""
    await group.begin()
    source.add(4)
    page = await group.new(2)
    source.claim_as("frozen", 2)
    assert len((await group.new(2)).entries) == 2
    await group.acknowledge([id_ for id_, _ in page.entries])
    assert source.pending == 2


async def test_what_was_deleted_while_pending_is_told(source: Source, group: ConsumerGroup) -> None:
    """When it is claimed, and when it is read again."""
    await group.begin()
    source.add(6)
    source.read_as("dead", 3)
    ids = [id_.decode() for id_, _ in source.redis.call("XRANGE", STREAM, "-", "+")]
    source.redis.call("XDEL", STREAM, ids[0])
    assert await group.begin() == 1
    source.redis.call("XDEL", STREAM, ids[2])
    page = await group.pending(START, 10)
    assert ([id_ for id_, _ in page.entries], page.gone, page.last) == ([ids[1]], [ids[2]], ids[2])


async def test_a_stream_that_was_made_anew_is_noticed(source: Source, group: ConsumerGroup) -> None:
    """Its ids may be lower than those that were handed out before."""
    await group.begin()
    source.redis.call("XADD", STREAM, "9-0", "type", "t")
    assert len((await group.new(2)).entries) == 1
    source.redis.call("DEL", STREAM)
    source.redis.call("XADD", STREAM, "1-0", "type", "t")
    source.redis.call("XGROUP", "CREATE", STREAM, "gateway", "0")
    with pytest.raises(OvertakenError):
        await group.new(2)
    await group.begin()
    assert len((await group.pending(START, 2)).entries) == 1


# A node whose stream somebody else touches


async def test_the_order_is_kept_though_a_frozen_node_is_given_entries(source: Source) -> None:
    """Again and again, new ones and those that others have; each time they come in their place."""
    chance = random.Random(1)
    async with stream_node(source.redis.url) as node:
        source.add(1)
        await node.has(1)
        adding = asyncio.create_task(trickle(source, 150))
        while not adding.done():
            await asyncio.to_thread(source.read_as, "frozen", chance.randint(1, 5))
            if chance.random() < 0.3:
                await asyncio.to_thread(source.claim_as, "frozen", 10)
        await adding
        await node.has(source.added)
        await until(lambda: source.pending == 0)


# Several nodes


async def test_nodes_that_lose_their_lease_again_and_again_keep_the_order(
    source: Source, redis_factory: RedisFactory
) -> None:
    """In the midst of reading and storing, without their knowledge, while entries of few subjects come."""
    store = redis_factory.server()
    async with (
        stream_node(source.redis.url, store.url, consumer="a") as a,
        stream_node(source.redis.url, store.url, consumer="b") as b,
        stream_node(source.redis.url, store.url, consumer="c"),
    ):
        adding = asyncio.create_task(trickle(source, 300))
        holders: list[bytes | None] = []
        while not adding.done() or len(holders) < 20:
            await until(lambda: holder(store))
            holders.append(holder(store))
            await asyncio.to_thread(end_lease, store)
            await asyncio.to_thread(source.add, 3)
            await until(functools.partial(has_more, a, len(a.entries)))
        await adding
        await a.has(source.added)
        await b.has(source.added)
        await until(lambda: source.pending == 0)
        assert len(set(holders)) > 1


_LEASE = f"{{gateway}}:lease:stream:{STREAM}"


def has_more(node: StreamNode, count: int) -> bool:
    return len(node.entries) > count


def holder(store: RedisServer) -> bytes | None:
    """The node that has the lease and its token, as the log keeps them."""
    value: bytes | None = store.call("GET", _LEASE)
    return value.split()[0] if value else None


def end_lease(store: RedisServer) -> None:
    """The lease ends as if its time were over, and is another's before its holder knows."""
    store.call("DEL", _LEASE)


async def test_a_node_that_was_cut_off_stores_nothing_more(
    source: Source, redis_factory: RedisFactory
) -> None:
    """Its stream is read by another one meanwhile; when it is back, each of them may read."""
    store = redis_factory.server()
    async with (
        Proxy(source.redis.port) as to_source,
        Proxy(store.port) as to_store,
        stream_node(_through(to_source), _through(to_store), consumer="a") as cut,
    ):
        source.add(50)
        await cut.has(50)
        async with stream_node(source.redis.url, store.url, consumer="b") as other:
            to_store.stall()
            to_source.stall()
            source.add(50)
            await until(lambda: len(other.entries) == 50)
            assert other.holds
            await to_store.heal()
            await to_source.heal()
            source.add(50)
            await cut.has(150)
            await until(lambda: cut.ingest.fault() is None)
            await until(lambda: source.pending == 0)


def _through(proxy: Proxy) -> str:
    return f"redis://127.0.0.1:{proxy.port}/0"


async def test_a_node_that_does_not_read_tells_no_fault(source: Source, redis_factory: RedisFactory) -> None:
    """After both have failed with the log, the one that reads no more is well."""
    store = redis_factory.server(appendonly="yes", appendfsync="always")
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(stream_node(source.redis.url, store.url, consumer=name))
            for name in ("a", "b")
        ]
        source.add(1)
        await nodes[0].has(1)
        store.kill9()
        await until(lambda: all(each.ingest.fault() for each in nodes))
        store.start()
        await until(lambda: not any(each.ingest.fault() for each in nodes))
        await until(lambda: sum(each.holds for each in nodes) == 1)
        source.add(1)
        await nodes[0].has(2)


async def test_nodes_that_start_together_share_the_streams(
    redis_server: RedisServer, redis_factory: RedisFactory
) -> None:
    """And when one of them stops, the other has them all at once."""
    store = redis_factory.server()
    names = [f"in-{n}" for n in range(8)]
    async with stream_node(redis_server.url, store.url, streams=names, consumer="a") as a:
        async with stream_node(redis_server.url, store.url, streams=names, consumer="b") as b:
            await until(lambda: held(a) + held(b) == 8)
            assert held(a) > 0
            assert held(b) > 0
        await until(lambda: held(a) == 8)
        for name in names:
            Source(redis_server, name).add(1)
        await until(lambda: len(a.entries) == 8)


def held(node: StreamNode) -> int:
    return node.ingest._held()
