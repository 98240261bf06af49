"""Peers: what a node tells all nodes on the same log, and asks of them. Events do not go this way.

A node is one gateway process. On Redis the nodes follow a stream, the bus, each from its own place: a broken connection
costs latency and, as long as the bus reaches back far enough, no message. Without Redis a node is alone.
"""

import asyncio
import logging
import random
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from gateway.redis_clients import BLOCK_MS, UNREACHABLE, RedisClients

logger = logging.getLogger(__name__)

Json = Any
Handler = Callable[[Json], Json]

ANSWER_SECONDS: Final = 2.0  # how long an asker waits for the others
ALIVE_SECONDS: Final = 15  # a node that has not been heard of for so long is dead
BEAT_SECONDS: Final = 5.0
NODES: Final = "{gateway}:nodes"  # a sorted set: when each node was last heard of, by Redis' clock
BUS: Final = "{gateway}:bus"
BUS_LENGTH: Final = 10_000
_ANSWER: Final = "{gateway}:answer:"
_ANSWER_KEPT: Final = 10  # seconds; the asker is long gone then
_PAGE: Final = 100
_AT_ONCE: Final = 32  # questions on their way, each of which holds a connection to Redis
_AGAIN: Final = (0.1, 2.0)  # seconds until the bus is tried again, at least and at most

_BEAT: Final = """
local now = redis.call('TIME')
now = now[1] + now[2] / 1000000
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
"""
_ALIVE: Final = """
local now = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now[1] + now[2] / 1000000 - ARGV[1])
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""
_REPLY: Final = """
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""


def node_id() -> str:
    """A name for this process that no other has, which tells an operator where it is."""
    return f"{socket.gethostname()[:64]}-{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True)
class Answers:
    """What the nodes that answered said, this one first; `missing` are the names of those that did not."""

    given: tuple[Json, ...]
    missing: tuple[str, ...] = ()


Enough = Callable[[Json], bool]


def never(_answer: Json) -> bool:
    return False


class Peers(Protocol):
    """All nodes on one log, this one included. What goes between them are JSON values."""

    def handle(self, kind: str, handler: Handler) -> None:
        """From now on messages of this kind are given to `handler`, and what it returns answers who asks.

        It is called on the loop, must not block, and may get a message twice.
        """

    async def tell(self, kind: str, payload: Json) -> None:
        """Gives the message to all nodes: to this one before it returns, and as soon as they can to the others.

        Where they cannot be reached, that is logged. Raises what this node's own handler raises.
        """

    async def ask(
        self, kind: str, payload: Json, wait: float = ANSWER_SECONDS, *, enough: Enough = never
    ) -> Answers:
        """Gives the message to all nodes and gathers what they answer within `wait` seconds.

        One answer that is `enough` ends the waiting; where this node's own is, the others are not asked. Where they
        cannot be reached, `missing` names the Redis. Raises what this node's own handler raises.
        """


class LocalPeers:
    """The only node there is."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def handle(self, kind: str, handler: Handler) -> None:
        self._handlers[kind] = handler

    async def tell(self, kind: str, payload: Json) -> None:
        self._take(kind, payload)

    async def ask(
        self,
        kind: str,
        payload: Json,
        wait: float = ANSWER_SECONDS,  # noqa: ARG002 - there is nobody to wait for
        *,
        enough: Enough = never,  # noqa: ARG002 - as above
    ) -> Answers:
        return Answers((self._take(kind, payload),))

    def _take(self, kind: str, payload: Json) -> Json:
        """What this node answers; None to what it does not know, as nodes of other versions may send."""
        handler = self._handlers.get(kind)
        return None if handler is None else handler(payload)


@dataclass(slots=True)
class _Question:
    """What is asked, and how far it has been answered: by whom, and by whom it is to be."""

    kind: str
    payload: Json
    given: dict[str, Json]
    expected: set[str]
    enough: Enough

    @property
    def answered(self) -> bool:
        return self.expected <= self.given.keys() or any(map(self.enough, self.given.values()))

    @property
    def answers(self) -> Answers:
        return Answers(tuple(self.given.values()), tuple(sorted(self.expected - self.given.keys())))


class RedisPeers(LocalPeers):
    """The nodes on one Redis. `open`, then keep `follow` and `beat` running; `close` at the end.

    `on_gap` is called whenever messages may have been missed: who must not miss any then looks for itself.
    """

    def __init__(self, clients: RedisClients, node: str, on_gap: Callable[[], None]) -> None:
        super().__init__()
        self._clients = clients
        self._node = node
        self._on_gap = on_gap
        self._place = "0-0"
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def open(self) -> None:
        """From now on the node is one of those that are asked. Raises what redis-py raises."""
        self._place = await self._end_of_bus()
        await self._beat()

    async def close(self) -> None:
        """The others need not wait for this node any more."""
        try:
            await self._clients.commands.zrem(NODES, self._node)
        except UNREACHABLE as error:
            logger.info("this node could not take its leave: %s", self._clients.explain(error))

    # This node and the others

    async def tell(self, kind: str, payload: Json) -> None:
        self._take(kind, payload)
        try:
            await self._send(kind, payload)
        except UNREACHABLE as error:
            logger.warning("the other nodes could not be told (%s): %s", kind, self._clients.explain(error))

    async def ask(
        self, kind: str, payload: Json, wait: float = ANSWER_SECONDS, *, enough: Enough = never
    ) -> Answers:
        own = self._take(kind, payload)
        if enough(own):
            return Answers((own,))
        question = _Question(kind, payload, {self._node: own}, {self._clients.name}, enough)
        try:
            # A server that hangs does not keep its own deadlines.
            async with asyncio.timeout(wait + 0.5), self._turns:
                question.expected = await self.alive()
                await self._gather(question, asyncio.get_running_loop().time() + wait)
        except UNREACHABLE as error:
            logger.warning("the other nodes could not be asked (%s): %s", kind, self._clients.explain(error))
        return question.answers

    async def _gather(self, question: "_Question", deadline: float) -> None:
        if question.answered:
            return
        loop = asyncio.get_running_loop()
        ask = secrets.token_hex(16)
        await self._send(question.kind, question.payload, ask)
        while not question.answered and (left := deadline - loop.time()) > 0:
            popped = await self._clients.blocking.blpop([_ANSWER + ask], timeout=max(left, 0.01))
            if popped is not None:
                node, answer = orjson.loads(popped[1])
                question.given.setdefault(node, answer)

    async def alive(self) -> set[str]:
        """The nodes that have been heard of lately. Raises what redis-py raises."""
        nodes = await self._clients.commands.eval(_ALIVE, 1, NODES, ALIVE_SECONDS)
        return {each.decode() for each in nodes}

    async def _send(self, kind: str, payload: Json, ask: str = "") -> None:
        message = {"from": self._node, "kind": kind, "payload": orjson.dumps(payload), "ask": ask}
        await self._clients.commands.xadd(BUS, message, maxlen=BUS_LENGTH, approximate=True)

    # Background work

    async def beat(self) -> None:
        """Tells that this node is alive, until it is cancelled."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                await self._beat()
            except UNREACHABLE as error:
                logger.info("no heartbeat: %s", self._clients.explain(error))

    async def _beat(self) -> None:
        await self._clients.commands.eval(_BEAT, 1, NODES, self._node, ALIVE_SECONDS)

    async def follow(self) -> None:
        """Takes what comes over the bus, until it is cancelled."""
        while True:
            try:
                while True:
                    await self._read()
            except UNREACHABLE as error:
                logger.warning("the other nodes are out of reach: %s", self._clients.explain(error))
            await self._reconnect()
            logger.info("the other nodes are within reach again")
            self._on_gap()

    async def _read(self) -> None:
        found = await self._clients.blocking.xread({BUS: self._place}, count=_PAGE, block=BLOCK_MS)
        for _, messages in found:
            for place, message in messages:
                self._place = place.decode()
                if message[b"from"] != self._node.encode():
                    await self._answer(message)

    async def _answer(self, message: dict[bytes, bytes]) -> None:
        kind = message[b"kind"].decode()
        try:
            answer = self._take(kind, orjson.loads(message[b"payload"]))
        except Exception:
            logger.exception("a message of another node failed (%s)", kind)
            return
        if message[b"ask"]:
            key = _ANSWER + message[b"ask"].decode()
            told = orjson.dumps([self._node, answer])
            await self._clients.commands.eval(_REPLY, 1, key, told, _ANSWER_KEPT)

    async def _reconnect(self) -> None:
        """Returns when the bus can be read again. A Redis that has lost its data begins a new one."""
        least, most = _AGAIN
        pause = least
        while True:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            pause = min(pause * 2, most)
            try:
                end = await self._end_of_bus()
                await self._beat()
            except UNREACHABLE:
                continue
            self._place = min(self._place, end, key=_order)
            return

    async def _end_of_bus(self) -> str:
        newest = await self._clients.commands.xrevrange(BUS, count=1)
        return newest[0][0].decode() if newest else "0-0"


def _order(place: str) -> tuple[int, ...]:
    """Places of a stream, `milliseconds-number`, in their order."""
    return tuple(map(int, place.split("-")))
