"""Several nodes on one Redis that hear the same messages, of which each enters the log once, whatever becomes of them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import redis.asyncio as aioredis

from gateway.ingest.pubsub import TURN_SECONDS
from tests.support.listeners import Listener, listeners
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

EQUAL = b'{"orderId":"o-1"}'


class Publisher:
    """Publishes numbers to `numbers`, and after each one the same bytes to `equal`. `sent` counts the numbers."""

    def __init__(self, client: aioredis.Redis) -> None:
        self._client = client
        self.sent = 0

    async def publish(self, count: int, pause: float = 0.0) -> None:
        for number in range(self.sent, self.sent + count):
            await self._client.publish("numbers", number)
            await self._client.publish("equal", EQUAL)
            self.sent += 1
            await asyncio.sleep(pause)

    async def run(self) -> None:
        """For ever, about 1,000 messages a second."""
        while True:
            await self.publish(5, 0.001)

    async def progress(self, count: int) -> None:
        target = self.sent + count
        await until(lambda: self.sent >= target)


@contextlib.asynccontextmanager
async def publisher(server: RedisServer) -> AsyncIterator[Publisher]:
    async with aioredis.Redis.from_url(server.url) as client:
        yield Publisher(client)


@contextlib.asynccontextmanager
async def traffic(server: RedisServer) -> AsyncIterator[Publisher]:
    """Messages come as long as it lasts. None is under way when it ends."""
    async with publisher(server) as publishes:
        going = asyncio.Event()

        async def run() -> None:
            while not going.is_set():
                await publishes.publish(5, 0.001)

        task = asyncio.create_task(run())
        try:
            yield publishes
        finally:
            going.set()
            await task


async def judge(node: Listener, sent: int) -> None:
    """Each message is in the log once, the numbers in their order."""
    await until(lambda: node.log.head >= 2 * sent)
    assert node.log.head == 2 * sent
    bodies, after = [], 0
    while after < node.log.head:
        page = await node.log.read(after, 10_000)
        bodies += [each.body for each in page.entries]
        after = page.entries[-1].offset
    assert [each["data"] for each in bodies if each["type"] == "numbers"] == list(range(sent))
    assert sum(each["type"] == "equal" for each in bodies) == sent


async def test_the_leader_may_die_again_and_again(redis_server: RedisServer) -> None:
    """With every kill another node has just joined; messages of the same bytes are among thousands of them."""
    async with listeners(redis_server, "numbers", "e*") as nodes:
        await nodes.start()
        await nodes.start()
        async with traffic(redis_server) as publishing:
            for _ in range(4):
                await publishing.progress(200)
                await nodes.kill(await nodes.leader())
                await nodes.start()
        assert publishing.sent > 1000
        await judge(nodes.alive[0], publishing.sent)


async def test_a_connection_of_one_node_may_break(redis_server: RedisServer) -> None:
    """Of the leader's and of the other's in turn: what it misses the other one has heard."""
    async with listeners(redis_server, "numbers", "equal") as nodes:
        await nodes.start()
        await nodes.start()
        async with traffic(redis_server) as publishing:
            for _ in range(4):
                await publishing.progress(100)
                leader = await nodes.leader()
                await cut(redis_server, leader)
                await until(lambda: all(each.pubsub.fault() is None for each in nodes.alive))
        await judge(nodes.alive[0], publishing.sent)


async def cut(server: RedisServer, node: Listener) -> None:
    """As CLIENT KILL TYPE pubsub does, for this node's subscription alone."""
    holes = node.pubsub._kept.holes
    for port in await ports(node):
        server.call("CLIENT", "KILL", "ADDR", f"127.0.0.1:{port}")
    await until(lambda: node.pubsub._kept.holes > holes)


async def ports(node: Listener) -> list[int]:
    pool = node.clients.blocking.connection_pool
    connections = [each for each in pool._in_use_connections if each.is_connected]
    return [each._writer.get_extra_info("sockname")[1] for each in connections]


async def test_a_node_that_ends_leaves_at_once(redis_server: RedisServer) -> None:
    """It gives the lease away while messages come, long before that would have ended by itself."""
    async with listeners(redis_server, "numbers", "equal") as nodes:
        await nodes.start()
        await nodes.start()
        async with traffic(redis_server) as publishing:
            for _ in range(3):
                await publishing.progress(50)
                leader = await nodes.leader()
                nodes.alive.remove(leader)
                await leader.pubsub.stop()
                assert not await nodes.alive[0].log.is_leased("pubsub") or nodes.alive[0].leads
                await leader.kill()
                await nodes.start()
        await judge(nodes.alive[0], publishing.sent)


async def test_who_only_follows_asks_the_log_now_and_then(redis_server: RedisServer) -> None:
    """By the clock, and not for each message that it hears."""
    async with listeners(redis_server, "numbers", "equal") as nodes:
        await nodes.start()
        follower = await nodes.start()
        asked, began = follower.log.asked, time.monotonic()
        async with publisher(redis_server) as publishing:
            await publishing.publish(500, 0.002)
        await judge(follower, 500)
        turns = (time.monotonic() - began) / TURN_SECONDS
        assert not follower.leads
        assert follower.log.asked - asked <= turns + 2
