"""Nodes on one Redis log, each with all that it has announced."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from gateway.event import Event
from gateway.log import Appended, Entry, LogUnavailableError, Retention
from gateway.log.redis import RedisLog
from gateway.redis_clients import RedisClients
from tests.support.waiting import PATIENCE, until

STREAM: Final = "{gateway}:log"


class Clock:
    """Seconds since 1970, moved by the test."""

    def __init__(self, now: float = 1_780_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, slots=True)
class Reset:
    """That a node was told to go on in the log `epoch` after `head`, when it had announced so many entries."""

    epoch: str
    head: int
    announced: int


@dataclass(slots=True)
class Node:
    """A node's log, all the entries that it has announced, and its resets."""

    log: RedisLog
    announced: list[Entry] = field(default_factory=list)
    resets: list[Reset] = field(default_factory=list)

    async def append(self, *events: Event, **conditions: Any) -> Appended:
        return await self.log.append(events, **conditions)

    async def open(self) -> None:
        await self.log.open(self.announced.extend, self._reset)

    def _reset(self) -> None:
        self.resets.append(Reset(self.log.epoch, self.log.head, len(self.announced)))

    @property
    def ids(self) -> list[str]:
        """The ids of the announced events."""
        return [each.body["id"] for each in self.announced]

    @property
    def offsets(self) -> list[int]:
        return [each.offset for each in self.announced]

    async def reached(self, offset: int) -> None:
        """Waits until the log's head is there for this node."""
        await until(lambda: self.log.head == offset)

    async def noticed(self) -> None:
        """Waits until it knows that it does not hear of what is new."""
        await until(lambda: self.log._follower.fault)

    async def told(self, count: int) -> None:
        """Waits until so many entries have been announced."""
        await until(lambda: len(self.announced) >= count)


class Nodes:
    """Opens nodes, and closes them in the end."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def open(self, url: str, **options: Any) -> Node:
        node = make_node(url, **options)
        await node.open()
        self._stack.push_async_callback(node.log.close)
        return node


@asynccontextmanager
async def running_nodes() -> AsyncIterator[Nodes]:
    async with AsyncExitStack() as stack:
        yield Nodes(stack)


def make_node(
    url: str,
    *,
    retention: Retention | None = None,
    index: Sequence[str] = ("data.customerId",),
    **options: Any,
) -> Node:
    """A node that is not open yet. `options` are those of RedisLog."""
    return Node(RedisLog(RedisClients(url), retention=retention or Retention(), index=index, **options))


def event(id_: str, subject: str | None = "o-1", *, type_: str = "order.updated", **data: Any) -> Event:
    body: dict[str, Any] = {"id": id_, "source": "/events", "type": type_, "data": data}
    if subject is not None:
        body["subject"] = subject
    return Event("/events", id_, type_, subject, body, orjson.dumps(body))


def events(count: int, prefix: str = "e") -> list[Event]:
    """Each of another subject."""
    return [event(f"{prefix}{number}", f"{prefix}-{number}") for number in range(count)]


async def eventually_appended(node: Node, *given: Event) -> Appended:
    """As a producer does it: again, until the log takes them."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await node.append(*given)
            except LogUnavailableError:
                await asyncio.sleep(0.02)
