"""Limits of one token over all nodes on one Redis: how many connections it has, how often it publishes.

Each node keeps its own counts in a hash that ends by itself soon after the node: a node that was killed leaves nothing
behind, and what a broken connection has garbled is put right by the next write. Where Redis does not answer, a node goes
by what it knows itself: each node then grants what all of them would.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

from gateway.limits import Rates
from gateway.peers import ALIVE_SECONDS, BEAT_SECONDS, NODES
from gateway.redis_clients import UNREACHABLE, RedisClients

logger = logging.getLogger(__name__)

T = TypeVar("T")

_HELD: Final = "{gateway}:held:"  # with the node's id: its connections by token
_RATE: Final = "{gateway}:rate:"  # with the token: when its bucket is full again, in microseconds
_ASK_SECONDS: Final = 1.0  # how long a client waits for Redis before the node decides alone
_AWAY_SECONDS: Final = 2.0  # how long Redis is not asked after it did not answer
_AT_ONCE: Final = 32  # questions on their way: when all clients come back, they take turns
_SETTLE_SECONDS: Final = 0.05  # who leaves is told together with those who leave at about the same time

# KEYS: the nodes, this node's counts. ARGV: the token, how many it has here with the new one, the limit, this node,
# what begins the keys of counts, seconds that they live. Answers whether there is room.
_TAKE: Final = """
local total = tonumber(ARGV[2])
for _, node in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if node ~= ARGV[4] then total = total + (redis.call('HGET', ARGV[5] .. node, ARGV[1]) or 0) end
end
if total > tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[6])
return 1
"""
# KEYS: this node's counts. ARGV: seconds that they live, whether these are all, then tokens and their counts in turn.
# Answers whether Redis has all now: it has not where the node was thought dead, or Redis was.
_PUT: Final = """
for i = 3, #ARGV, 2 do
  if ARGV[i + 1] == '0' then redis.call('HDEL', KEYS[1], ARGV[i])
  else redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
if ARGV[2] == '1' then redis.call('HSET', KEYS[1], 'all', 1) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return redis.call('HEXISTS', KEYS[1], 'all')
"""
# The generic cell rate algorithm. KEYS: the bucket. ARGV: microseconds from one to the next, microseconds that a
# burst may be ahead. Answers the microseconds until there is one, 0 where one was taken.
_RATE_TAKE: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local full = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0))
local early = full - now - ARGV[2]
if early > 0 then return math.ceil(early) end
redis.call('SET', KEYS[1], string.format('%.0f', full + ARGV[1]), 'PX', math.ceil((full + ARGV[1] - now) / 1000))
return 0
"""


class SharedLimits:
    """The limits' part of Redis. Keep `run` running; `close` at the end. `node` is this node's id."""

    def __init__(
        self, clients: RedisClients, node: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clients = clients
        self._node = node
        self._clock = clock
        self._counts: Mapping[str, int] = {}
        self._changed: set[str] = set()  # tokens whose count Redis does not have yet
        self._wake = asyncio.Event()
        self._away_until = 0.0
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def watch(self, counts: Mapping[str, int]) -> None:
        """`counts` is what this node has of each token; whoever changes it calls `changed`."""
        self._counts = counts

    def changed(self, token: str) -> None:
        """Redis gets the token's count soon."""
        self._changed.add(token)
        self._wake.set()

    def resend(self) -> None:
        """Redis may have lost what it was told."""
        self._changed.update(self._counts)
        self._wake.set()

    async def take(self, token: str, limit: int) -> bool:
        """Whether all nodes together have room for the connection that this node's count has already.

        True where Redis does not answer. Cancelled, it leaves the caller to take the connection off the count.
        """
        count = self._counts[token]
        args = (_digest(token), count, limit, self._node, _HELD, ALIVE_SECONDS)
        try:
            room = await self._ask(
                lambda: self._clients.commands.eval(_TAKE, 2, NODES, _HELD + self._node, *args), 1
            )
        finally:
            if self._counts.get(token, 0) != count:  # meanwhile: which of the two came last, nobody knows
                self.changed(token)
        return bool(room)

    async def take_rate(self, user: str, rate: float) -> float | None:
        """As `Bucket.take`, of a bucket that all nodes share; None where Redis does not answer."""
        step, ahead = 1e6 / rate, (max(1.0, rate) - 1.0) * 1e6 / rate
        wait = await self._ask(
            lambda: self._clients.commands.eval(_RATE_TAKE, 1, _RATE + _digest(user), step, ahead), None
        )
        return None if wait is None else wait / 1e6

    async def _ask(self, call: Callable[[], Awaitable[Any]], otherwise: T) -> Any | T:
        """What Redis answers, or `otherwise` where it does not: then it is left alone for a while."""
        async with self._turns:
            if self._clock() < self._away_until:
                return otherwise
            try:
                async with asyncio.timeout(_ASK_SECONDS):
                    return await call()
            except UNREACHABLE as error:
                self._away_until = self._clock() + _AWAY_SECONDS
                self.resend()
                logger.warning("limits hold on this node alone: %s", self._clients.explain(error))
                return otherwise

    # Background work

    async def run(self) -> None:
        """Writes counts that have changed, and keeps all of them alive, until it is cancelled."""
        while True:
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._wake.wait()
                    await asyncio.sleep(_SETTLE_SECONDS)
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self._put()
            except UNREACHABLE as error:
                logger.info("the counts of this node wait: %s", self._clients.explain(error))
                await asyncio.sleep(_AWAY_SECONDS)

    async def _put(self) -> None:
        tokens, self._changed = self._changed, set()
        pairs = [item for each in tokens for item in (_digest(each), self._counts.get(each, 0))]
        args = (ALIVE_SECONDS, int(self._counts.keys() <= tokens), *pairs)
        try:
            has_all = await self._clients.commands.eval(_PUT, 1, _HELD + self._node, *args)
        except BaseException:
            self._changed |= tokens
            self._wake.set()
            raise
        if not has_all:
            self.resend()

    async def close(self) -> None:
        """This node has nothing any more."""
        try:
            await self._clients.commands.delete(_HELD + self._node)
        except UNREACHABLE as error:
            logger.info("the counts of this node end by themselves: %s", self._clients.explain(error))


class SharedRates:
    """`limits.Rates` over all nodes, and this node's own where Redis does not answer."""

    def __init__(self, shared: SharedLimits, rate: float) -> None:
        self._shared = shared
        self._rate = rate
        self._own = Rates(rate)

    async def take(self, user: str) -> float:
        """As `Bucket.take`, of this user's."""
        wait = await self._shared.take_rate(user, self._rate)
        return await self._own.take(user) if wait is None else wait


def _digest(token: str) -> str:
    """A user's name in a key or field: short, and nobody's name."""
    return hashlib.blake2b(token.encode(), digest_size=16).hexdigest()
