"""ConsumerGroup: one stream as the gateways read it, entry by entry in the stream's order.

Whoever calls it has the stream's lease, so nobody else stores what it hands out; but somebody who has lost the lease
and does not know may still be given entries. Those are seen by what is pending, and taken back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import ResponseError

from gateway.ingest._entries import Entry
from gateway.redis_clients import RedisClients

GROUP: Final = "gateway"
BLOCK_MS: Final = 1000
_CLAIMED: Final = 1000  # entries claimed at once
_START: Final = "0-0"


@dataclass(frozen=True, slots=True)
class Page:
    """Entries in the stream's order; `gone` are ids of entries that were deleted before they were stored."""

    entries: Sequence[Entry] = ()
    gone: Sequence[str] = ()


class OvertakenError(Exception):
    """Somebody else was given entries that come before those just read."""


class ConsumerGroup:
    """All calls raise what the connection raises."""

    def __init__(self, clients: RedisClients, stream: str, consumer: str) -> None:
        self._clients = clients
        self._stream = stream
        self._consumer = consumer
        self._last = _START  # the newest entry that was handed out

    async def begin(self) -> None:
        """Makes the group where there is none, and takes all that is pending, whoever has it."""
        try:
            await self._clients.writes.execute_command(
                "XGROUP", "CREATE", self._stream, GROUP, "0", "MKSTREAM"
            )
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        self._last, cursor = _START, _START
        while True:
            claim = (
                "XAUTOCLAIM",
                self._stream,
                GROUP,
                self._consumer,
                0,
                cursor,
                "COUNT",
                _CLAIMED,
                "JUSTID",
            )
            reply = await self._clients.writes.execute_command(*claim)
            cursor = reply[0].decode()
            if cursor == _START:
                return

    async def pending(self, after: str, count: int) -> Page:
        """What was handed out and not acknowledged, from the first entry after `after` on."""
        reply = await self._clients.blocking.execute_command(
            *self._read(count), "STREAMS", self._stream, after
        )
        page = _page(reply)
        self._hand_out(page)
        return page

    async def new(self, count: int) -> Page:
        """What nobody was handed out yet; waits for it a little. Raises OvertakenError."""
        pipeline = self._clients.blocking.pipeline(transaction=False)
        pipeline.execute_command(*self._read(count), "BLOCK", BLOCK_MS, "STREAMS", self._stream, ">")
        pipeline.execute_command("XPENDING", self._stream, GROUP, f"({self._last}", "+", 1)
        reply, pending = await pipeline.execute()
        page = _page(reply)
        first = page.entries[0][0] if page.entries else None
        if (pending[0][0].decode() if pending else None) != first:
            raise OvertakenError
        self._hand_out(page)
        return page

    def _read(self, count: int) -> tuple[Any, ...]:
        return ("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", count)

    def _hand_out(self, page: Page) -> None:
        if page.entries:
            self._last = page.entries[-1][0]

    async def acknowledge(self, ids: Sequence[str]) -> None:
        if ids:
            await self._clients.writes.execute_command("XACK", self._stream, GROUP, *ids)


def _page(reply: Any) -> Page:
    items = reply[0][1] if reply else []
    entries = [(id_.decode(), fields) for id_, fields in items if fields is not None]
    return Page(entries, [id_.decode() for id_, fields in items if fields is None])


def raw(reply: Any, **_options: Any) -> Any:
    """As Redis has sent it."""
    return reply


RAW_COMMANDS: Final = ("XREADGROUP", "XPENDING", "XAUTOCLAIM")
