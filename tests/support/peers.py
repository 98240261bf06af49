"""Nodes on one Redis, as far as they tell and ask each other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gateway.neighbours import Neighbours
from gateway.peers import RedisPeers
from gateway.redis_clients import RedisClients
from gateway.shared_limits import SharedLimits
from gateway.tasks import end


class PeerNode:
    """What a node has with its neighbours. `heard` holds what the others told it."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self.neighbours = Neighbours(RedisClients(url), name)
        self.heard: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.peers.handle("say", self.heard.append)
        self.peers.handle("who", lambda question: [name, question])

    @property
    def peers(self) -> RedisPeers:
        return self.neighbours.peers

    @property
    def limits(self) -> SharedLimits:
        return self.neighbours.limits

    async def start(self) -> None:
        await self.neighbours.open()
        works = (self.peers.follow, self.peers.beat, self.limits.run)
        self._tasks = [asyncio.create_task(work()) for work in works]

    async def freeze(self) -> None:
        """As a process that is stopped or killed: it neither listens nor beats, and takes no leave."""
        await end(*self._tasks)
        self._tasks = []

    async def stop(self) -> None:
        await self.freeze()
        await self.neighbours.close()


@asynccontextmanager
async def peer_nodes(url: str, *names: str) -> AsyncIterator[list[PeerNode]]:
    """These nodes, alive."""
    nodes = [PeerNode(url, name) for name in names]
    try:
        for node in nodes:
            await node.start()
        yield nodes
    finally:
        for node in nodes:
            await node.stop()
