"""Follower: what a node knows of the Redis log, and how it learns of more.

It announces each entry once and in order, whether this node has appended it or another, by reading the stream on
from its own place. A connection that breaks so costs time, never an entry.
"""

import asyncio
import contextlib
import heapq
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson

from gateway.event import Event
from gateway.log import Entry, LogCorruptError, LogUnavailableError, OnAppend, OnReset
from gateway.log import _redis_scripts as scripts
from gateway.log._redis_scripts import entries_of_items, entry_of_row, offset_id
from gateway.log._redis_writer import GIVE_UP_SECONDS
from gateway.redis_clients import BLOCK_MS, UNREACHABLE, RedisClients

logger = logging.getLogger(__name__)

FORMAT: Final = 1
_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_FIRST_COUNT: Final = 16  # entries in the first page after a pause: how large they are is not known yet
_MAX_COUNT: Final = 1024
_PAGE_BYTES: Final = 4 << 20
_READ_SECONDS: Final = BLOCK_MS / 1000 + 2
_LOOK_SECONDS: Final = 2.0  # how soon a lost log is noticed while nothing comes
_PAUSES: Final = (0.05, 2.0)  # seconds until Redis is tried again, the first time and at last


class Follower:
    """This node's place in the log: `head` is up to where entries have been announced."""

    def __init__(
        self, clients: RedisClients, random_bytes: Callable[[int], bytes], index: Sequence[str]
    ) -> None:
        self.epoch = ""
        self.secret = b""
        self.first = 1
        self.head = 0
        self.wanted_index = orjson.dumps(list(index))  # of paths, as JSON, like the next two
        self.index = b""  # what is to be indexed, whichever node appends
        self.built = b""  # what is indexed for all latest events
        self.fault: str | None = None
        self._clients = clients
        self._random = random_bytes
        self.flying: dict[bytes, Event] = {}  # see `_redis_writer.Place`
        self._digest = b""  # of the entry at `head`, b"" where there is none
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._number = 0  # tells waiting futures apart
        self._count = _FIRST_COUNT  # entries in the next page
        self._on_append: OnAppend
        self._on_reset: OnReset
        self.wants_previous: Callable[[], bool] = lambda: True

    async def open(self, on_append: OnAppend, on_reset: OnReset, wants_previous: Callable[[], bool]) -> None:
        """Finds the log, or makes it. Raises LogCorruptError and what the connection raises."""
        self._on_append, self._on_reset, self.wants_previous = on_append, on_reset, wants_previous
        self._adopt(await self._state())

    async def _state(self) -> list[Any]:
        epoch, secret = self._new_epoch(), self._random(32)
        state = await scripts.OPEN.call(self._clients.writes, FORMAT, epoch, secret, self.wanted_index)
        if int(state[0] or 0) != FORMAT:
            raise LogCorruptError(
                f"{self._clients.name} has a log in another format: run the gateway that wrote it, or use another database"
            )
        return state

    def _new_epoch(self) -> str:
        return "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in self._random(8))

    def _adopt(self, state: Sequence[Any]) -> None:
        _, epoch, self.secret, self.head, self.first, self.index, self.built, self._digest = state
        self.epoch = epoch.decode()

    # Announcing

    async def reach(self, offset: int, epoch: str) -> None:
        """Returns when everything up to `offset` has been announced, in the log of that epoch.

        Raises LogUnavailableError where that does not happen in time, or the log was lost.
        """
        if offset > self.head and epoch == self.epoch:
            future = asyncio.get_running_loop().create_future()
            self._number += 1
            heapq.heappush(self._waiting, (offset, self._number, future))
            try:
                async with asyncio.timeout(GIVE_UP_SECONDS):
                    await future
            except TimeoutError:
                reason = self.fault or f"{self._clients.name} does not tell what is new"
                raise LogUnavailableError(reason) from None
        if epoch != self.epoch:
            raise LogUnavailableError(f"{self._clients.name} has lost the log")

    def _tell(self, entries: Sequence[Entry], digest: bytes) -> None:
        """Announces the next entries, in this turn. `digest` is the last one's."""
        self.head, self._digest = entries[-1].offset, digest
        try:
            self._on_append(entries)
        except Exception:
            logger.exception("a listener of the log failed")
        self._release(self.head)

    def _release(self, upto: float) -> None:
        while self._waiting and self._waiting[0][0] <= upto:
            future = heapq.heappop(self._waiting)[2]
            if not future.done():
                future.set_result(None)

    async def _complete(self, entries: Sequence[Entry]) -> None:
        """Gives entries the events before them, where somebody wants those when it returns."""
        complete = False
        while self.wants_previous() and not complete:
            here = {each.offset: each.json for each in entries}
            missing = [each for each in entries if each.prev and each.previous is None]
            far = sorted({each.prev for each in missing} - here.keys())
            here |= {each.offset: each.json for each in await self.get(far)}
            for each in missing:
                each.previous = here.get(each.prev)
            complete = True

    async def get(self, offsets: Sequence[int]) -> list[Entry]:
        """The entries at these offsets, as far as the log has them."""
        if not offsets:
            return []
        (rows,) = await scripts.GET.run(self._clients.commands, self.epoch, *offsets)
        return [entry_of_row(row) for row in rows]

    def retained(self, first: int, epoch: str) -> None:
        if epoch == self.epoch:
            self.first = max(self.first, first)

    # Looking which log it is

    async def look(self, *, parted: bool = False) -> None:
        """Finds out whether it is still the same log; where it is not, resets this node.

        A log that has lost its end gets a new epoch: its offsets may be given a second time. `parted` says that it
        has, and goes on with other entries. Raises what the connection raises.
        """
        epoch, head, digest = self.epoch, self.head, self._digest
        state = await self._state()
        if state[1].decode() == epoch and (parted or _has_lost_its_end(state, head, digest)):
            await scripts.RENEW.run(self._clients.writes, epoch, self._new_epoch())
            state = await self._state()
        if self.epoch != epoch:
            return  # somebody else has seen it meanwhile
        if state[1].decode() != epoch:
            logger.warning(
                "%s has lost the log %s: it goes on as %s", self._clients.name, epoch, state[1].decode()
            )
            self._reset(state)
        elif state[4] > self.head + 1:
            logger.warning("%s has dropped events before this node got them", self._clients.name)
            self._reset(state)
        else:
            self.first = max(self.first, state[4])
            self.index, self.built = state[5:7]

    def _reset(self, state: Sequence[Any]) -> None:
        self._adopt(state)
        try:
            self._on_reset()
        except Exception:
            logger.exception("a listener of the log failed")
        self._release(float("inf"))

    # Following

    async def run(self) -> None:
        """Follows the log until it is cancelled."""
        pause = _PAUSES[0]
        while True:
            try:
                await self.look()
                self._count = _FIRST_COUNT
                await self._step(wait=False)
                self._succeeded()
                pause = _PAUSES[0]
                await self._read_on()
            except LogCorruptError as error:
                self._failed(str(error))
            except UNREACHABLE as error:
                self._failed(self._clients.explain(error))
            except Exception:
                logger.exception("following the log failed and starts again")
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - jitter
            pause = min(_PAUSES[1], 2 * pause)

    def _succeeded(self) -> None:
        if self.fault is not None:
            logger.info("%s answers again", self._clients.name)
        self.fault = None

    def _failed(self, reason: str) -> None:
        if self.fault is None:
            logger.warning("the log cannot be followed: %s", reason)
        self.fault = reason

    async def _read_on(self) -> None:
        looked = time.monotonic()
        while True:
            found = await self._step(wait=True)
            if not found or time.monotonic() - looked >= _LOOK_SECONDS:
                await self.look()
                looked = time.monotonic()

    async def _step(self, *, wait: bool) -> bool:
        """Reads a page and announces it; whether there was one."""
        epoch, head = self.epoch, self.head
        items = await self._read(head, wait=wait)
        if (epoch, head) == (self.epoch, self.head) and items:
            await self._take(items)
        return bool(items)

    async def _read(self, after: int, *, wait: bool) -> list[Any]:
        """A page of the stream. One that does not come in time is given up: its connection may be dead."""
        block = ("BLOCK", BLOCK_MS) if wait else ()
        async with asyncio.timeout(_READ_SECONDS):
            reply = await self._clients.blocking.execute_command(
                "XREAD", "COUNT", self._count, *block, "STREAMS", scripts.LOG, offset_id(after)
            )
        return reply[0][1] if reply else []

    async def _take(self, items: list[Any]) -> None:
        """Announces the items of the stream, where they follow upon what was announced before."""
        epoch, head = self.epoch, self.head
        entries, before, digest = entries_of_items(items, self.flying)
        self._adapt(entries)
        if entries[0].offset != head + 1:
            await self.look()
            if (epoch, head) == (self.epoch, self.head):
                raise LogCorruptError(f"the log in {self._clients.name} has no entry {head + 1}")
        elif before != self._digest:
            await self.look(parted=True)
        else:
            with contextlib.suppress(scripts.OtherLogError):  # the next look tells
                await self._complete(entries)
                if (epoch, head) == (self.epoch, self.head):
                    self._tell(entries, digest)

    def _adapt(self, entries: Sequence[Entry]) -> None:
        """The next page has about `_PAGE_BYTES` at most, as far as this one shows how large entries are."""
        largest = max(len(each.json) + len(each.previous or b"") for each in entries)
        self._count = max(1, min(_MAX_COUNT, 2 * self._count, _PAGE_BYTES // largest))


def _has_lost_its_end(state: Sequence[Any], head: int, digest: bytes) -> bool:
    """Whether a log in this state no longer has the entry at `head`; behind a later head the next page tells."""
    return bool(state[3] < head or (state[3] == head and state[7] != digest))
