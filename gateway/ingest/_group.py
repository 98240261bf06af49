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
START: Final = "0-0"


@dataclass(frozen=True, slots=True)
class Page:
    """Entries in the stream's order; `gone` are ids of entries that were deleted before they were stored.

    `last` is the id of the last one of all, None where there is none.
    """

    entries: Sequence[Entry] = ()
    gone: Sequence[str] = ()
    last: str | None = None


class OvertakenError(Exception):
    """Somebody else has entries that come before those just read, or in their midst."""


class ConsumerGroup:
    """All calls raise what the connection raises."""

    def __init__(self, clients: RedisClients, stream: str, consumer: str) -> None:
        self._clients = clients
        self._stream = stream
        self._consumer = consumer
        self._last = START  # the newest entry that was handed out
        self._done: list[str] = []  # to be acknowledged with the next read

    async def begin(self) -> int:
        """Makes the group where there is none, and takes all that is pending, whoever has it.

        Returns how many of the pending entries were deleted from the stream; they are not pending any more.
        """
        try:
            await self._clients.writes.execute_command(
                "XGROUP", "CREATE", self._stream, GROUP, "0", "MKSTREAM"
            )
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        self._last, self._done = START, []
        cursor, deleted = START, 0
        while True:
            cursor, _, gone = await self._claim(cursor)
            deleted += len(gone)
            if cursor == START.encode():
                return deleted

    async def _claim(self, cursor: Any) -> Any:
        """The next cursor, the ids that were claimed and those that were deleted."""
        page = (cursor, "COUNT", _CLAIMED, "JUSTID")
        return await self._clients.writes.execute_command(
            "XAUTOCLAIM", self._stream, GROUP, self._consumer, 0, *page
        )

    async def pending(self, after: str, count: int) -> Page:
        """What was handed out and not acknowledged, from the first entry after `after` on.

        Raises OvertakenError.
        """
        reply, pending = await self._look(after, count, "STREAMS", self._stream, after)
        page = _page(reply)
        given = {*(id_ for id_, _ in page.entries), *page.gone}
        for id_ in pending:
            if page.last is not None and _order(id_) > _order(page.last):
                break
            if id_ not in given:  # claimed by a node that was frozen while it did so
                raise OvertakenError
        self._last = page.last or self._last
        return page

    async def new(self, count: int) -> Page:
        """What nobody was handed out yet; waits for it a little. Raises OvertakenError."""
        reply, pending = await self._look(self._last, count, "BLOCK", BLOCK_MS, "STREAMS", self._stream, ">")
        page = _page(reply)
        first = page.entries[0][0] if page.entries else None
        if (pending[0] if pending else None) != first:
            raise OvertakenError
        self._last = page.last or self._last
        return page

    async def _look(self, after: str, count: int, *what: Any) -> tuple[Any, list[str]]:
        """What a read answers, and then the ids that are pending after `after`, whoever has them."""
        pipeline = self._clients.blocking.pipeline(transaction=False)
        if self._done:
            pipeline.execute_command("XACK", self._stream, GROUP, *self._done)
            self._done = []  # where it fails they stay pending
        pipeline.execute_command("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", count, *what)
        limit = 1 if what[-1] == ">" else count
        pipeline.execute_command("XPENDING", self._stream, GROUP, f"({after}", "+", limit)
        *_, reply, pending = await pipeline.execute()
        return reply, [each[0].decode() for each in pending]

    def acknowledge_soon(self, ids: Sequence[str]) -> None:
        """With the next read: where reads follow each other this saves Redis a write to its disk."""
        self._done += ids

    async def acknowledge(self, ids: Sequence[str] = ()) -> None:
        """These, and those that were to be soon."""
        ids, self._done = [*self._done, *ids], []
        if ids:
            await self._clients.writes.execute_command("XACK", self._stream, GROUP, *ids)


def _page(reply: Any) -> Page:
    items = reply[0][1] if reply else []
    entries = [(id_.decode(), fields) for id_, fields in items if fields is not None]
    gone = [id_.decode() for id_, fields in items if fields is None]
    return Page(entries, gone, items[-1][0].decode() if items else None)


def _order(id_: str) -> tuple[int, int]:
    milliseconds, _, number = id_.partition("-")
    return int(milliseconds), int(number)


def raw(reply: Any, **_options: Any) -> Any:
    """As Redis has sent it."""
    return reply


RAW_COMMANDS: Final = ("XREADGROUP", "XPENDING", "XAUTOCLAIM")
