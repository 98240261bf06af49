"""Nodes that listen to one Redis's pub/sub and append to the log in it, each with clients of its own, in one process."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from gateway.ingest._kept import Kept
from gateway.ingest.pubsub import PubSub
from gateway.intake import Intake, Sizes
from gateway.log import Entry, Retention
from gateway.log.redis import RedisLog
from gateway.metrics import Metrics
from gateway.redis_clients import RedisClients
from gateway.tasks import end
from tests.support.redis_server import RedisServer
from tests.support.waiting import until


class CountingLog(RedisLog):
    """`asked` is how often the lease's note was read."""

    asked = 0

    async def lease_note(self, name: str) -> str:
        self.asked += 1
        return await super().lease_note(name)


class Listener:
    """One node. `url` is where it listens, by default where the log is."""

    def __init__(self, store: str, names: Sequence[str], *, url: str = "", kept: Kept | None = None) -> None:
        self.clients = RedisClients(url or store)
        self.log = CountingLog(RedisClients(store), retention=Retention())
        self.pubsub = PubSub(self.clients, names, self.log, Intake(self.log, Metrics(), Sizes()), kept=kept)
        self.entries: list[Entry] = []  # that the log has told since this node opened it

    async def start(self) -> None:
        """It hears, and what was published before is in the log, when this returns."""
        await self.log.open(self.entries.extend)
        self._task = asyncio.create_task(self.pubsub.run())
        await until(lambda: self.pubsub.fault() is None)

    @property
    def leads(self) -> bool:
        """Whether this node is the one that appends, as far as it knows."""
        return self.pubsub._fence is not None

    async def kill(self) -> None:
        """It ends at once, without a word to the others."""
        await end(self._task)
        await self.clients.aclose()
        await self.log.close()

    async def end(self) -> None:
        """It ends in order."""
        await self.pubsub.stop()
        await self.kill()


@asynccontextmanager
async def listeners(redis: RedisServer, *names: str) -> AsyncIterator["Listeners"]:
    """None yet; those that are there at the end are ended."""
    nodes = Listeners(redis, names)
    try:
        yield nodes
    finally:
        for each in nodes.alive:
            await each.kill()


class Listeners:
    def __init__(self, redis: RedisServer, names: Sequence[str]) -> None:
        self._redis = redis
        self._names = names
        self.alive: list[Listener] = []

    async def start(self, **options: Any) -> Listener:
        node = Listener(self._redis.url, self._names, **options)
        self.alive.append(node)
        await node.start()
        return node

    async def leader(self) -> Listener:
        """The node that appends, as soon as there is one."""
        await until(lambda: any(each.leads for each in self.alive))
        return next(each for each in self.alive if each.leads)

    async def kill(self, node: Listener) -> None:
        self.alive.remove(node)
        await node.kill()

    async def end(self, node: Listener) -> None:
        self.alive.remove(node)
        await node.end()
