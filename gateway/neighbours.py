"""Neighbours: what a node has in common with the others on its Redis, beside the log: the bus and the limits."""

import asyncio

from gateway.log import LogUnavailableError
from gateway.peers import RedisPeers
from gateway.redis_clients import UNREACHABLE, RedisClients
from gateway.shared_limits import SharedLimits


class Neighbours:
    """`open`, then keep `peers.follow`, `peers.beat` and `limits.run` running; `close` at the end.

    `missed` is set whenever what the others told may have been missed.
    """

    def __init__(self, clients: RedisClients, node: str) -> None:
        """The clients are closed with it; `node` is this node's id."""
        self._clients = clients
        self.missed = asyncio.Event()
        self.limits = SharedLimits(clients, node)
        self.peers = RedisPeers(clients, node, self._gap)

    def _gap(self) -> None:
        self.limits.resend()
        self.missed.set()

    async def open(self) -> None:
        """From now on the others count on this node. Raises LogUnavailableError."""
        try:
            await self.peers.open()
        except UNREACHABLE as error:
            raise LogUnavailableError(self._clients.explain(error)) from None

    async def close(self) -> None:
        await asyncio.gather(self.peers.close(), self.limits.close())
        await self._clients.aclose()
