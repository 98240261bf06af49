"""Nodes that read streams, each with a log that it opens itself, and entries for them."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from gateway.ingest.streams import StreamIngest
from gateway.intake import Intake, Sizes
from gateway.log import Entry, Log, Retention
from gateway.log.redis import RedisLog
from gateway.log.sqlite import SqliteLog
from gateway.metrics import Metrics
from gateway.redis_clients import RedisClients
from gateway.tasks import end
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

SUBJECTS: Final = 3
STREAM: Final = "in"
GROUP: Final = "gateway"
_READ: Final = ("XREADGROUP", "GROUP", GROUP)
# Adds ARGV[2] entries whose data are numbers from ARGV[1] on, each with ARGV[3] bytes more.
_ADD: Final = """
for n = tonumber(ARGV[1]), tonumber(ARGV[1]) + tonumber(ARGV[2]) - 1 do
  redis.call('XADD', KEYS[1], '*', 'type', 't', 'subject', 'o-' .. n % 3,
    'data', '[' .. n .. ',"' .. string.rep('x', tonumber(ARGV[3])) .. '"]')
end
"""


class Source:
    """The Redis that has the stream, as those see it who add entries."""

    def __init__(self, redis: RedisServer, stream: str = STREAM) -> None:
        self.redis = redis
        self.stream = stream
        self.added = 0
        self._adding = threading.Lock()

    def add(self, count: int, *, size: int = 0) -> None:
        """So many entries; their data have the numbers that go on over all calls."""
        with self._adding:
            self.redis.call("EVAL", _ADD, 1, self.stream, self.added, count, size)
            self.added += count

    @property
    def pending(self) -> int:
        """How many entries are handed out and not acknowledged."""
        return int(self.redis.call("XPENDING", self.stream, GROUP)[0])

    @property
    def owners(self) -> set[str]:
        """The consumers that have entries."""
        owners = self.redis.call("XPENDING", self.stream, GROUP)[3] or ()
        return {name.decode() for name, _ in owners}

    def read_as(self, consumer: str, count: int) -> None:
        """A consumer is handed entries, with which nothing happens then."""
        self.redis.call(*_READ, consumer, "COUNT", count, "STREAMS", self.stream, ">")

    def claim_as(self, consumer: str, count: int) -> None:
        """A consumer takes what others have."""
        self.redis.call("XAUTOCLAIM", self.stream, GROUP, consumer, 0, "0-0", "COUNT", count, "JUSTID")


@dataclass
class StreamNode:
    """One node; `entries` are those that its log has told it of."""

    ingest: StreamIngest
    log: Log
    running: "asyncio.Task[None]"
    entries: list[Entry] = field(default_factory=list)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the entries, as `Source` gave them, in the log's order."""
        return [entry.body["data"][0] for entry in self.entries]

    @property
    def holds(self) -> bool:
        return self.ingest._held() > 0

    async def crash(self) -> None:
        """Ends it where it stands, with its leases."""
        await end(self.running)

    async def has(self, count: int) -> None:
        """Returns when the log has these entries, in order, each once, and nothing else."""
        await until(lambda: len(self.entries) >= count)
        assert self.numbers == list(range(count))


@asynccontextmanager
async def stream_node(
    source: str, store: str | None = None, *, streams: Sequence[str] = (STREAM,), consumer: str = "node"
) -> AsyncIterator[StreamNode]:
    """A node that reads streams of `source`. `store` is a Redis for its log; None: one in memory of its own."""
    log: Log
    if store is None:
        log = SqliteLog(None, retention=Retention())
    else:
        log = RedisLog(RedisClients(store), retention=Retention())
    entries: list[Entry] = []
    clients = RedisClients(source)
    await log.open(entries.extend)
    ingest = StreamIngest(clients, streams, consumer, log, Intake(log, Metrics(), Sizes()))
    node = StreamNode(ingest, log, asyncio.create_task(ingest.run()), entries)
    try:
        yield node
        if not node.running.done():
            await ingest.stop()
    finally:
        await end(node.running)
        await log.close()
        await clients.aclose()


async def trickle(source: Source, turns: int, counts: Sequence[int] = (1, 7, 2, 40)) -> None:
    """Adds entries turn by turn, some each time, while the others go on."""
    for _, count in zip(range(turns), itertools.cycle(counts), strict=False):
        await asyncio.to_thread(source.add, count)
