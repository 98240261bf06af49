"""Redis streams: what backend services add is read by a consumer group and acknowledged when it is in the log.

One node at a time reads a stream, so its order is kept; several streams are read by several nodes. An entry that is
read again, after whatever went wrong, is the same event again, which the log has once.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway import tasks
from gateway.errors import GatewayError
from gateway.event import Event
from gateway.ingest._entries import KIND, event_of, letter_of, read_again
from gateway.ingest._group import RAW_COMMANDS, START, ConsumerGroup, OvertakenError, Page, raw
from gateway.intake import Intake
from gateway.log import DeadLetter, Fence, FencedError, Log, LogUnavailableError
from gateway.redis_clients import UNREACHABLE, RedisClients

__all__ = ["KIND", "StreamIngest", "read_again"]

logger = logging.getLogger(__name__)

LEASE_SECONDS: Final = 5.0
_RENEW_SECONDS: Final = 1.0
_PAUSES: Final = (0.1, 5.0)  # seconds until Redis or the log is tried again, the first time and at last
_STAGGER_SECONDS: Final = 0.05  # between the first looks at two streams
_MAX_STORING: Final = 3  # pages that are being appended, told and acknowledged
_MAX_PAGE: Final = 1000
_FIRST_PAGE: Final = 100
_PAGE_BYTES: Final = 2 << 20


class StreamIngest:
    """All streams of a node. `consumer` names the node within the group and stays the same over restarts."""

    name = "streams"

    def __init__(
        self,
        clients: RedisClients,
        names: Sequence[str],
        consumer: str,
        log: Log,
        intake: Intake,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        for command in RAW_COMMANDS:
            for client in (clients.writes, clients.blocking):
                client.set_response_callback(command, raw)
        self._streams = [
            _Stream(
                name,
                ConsumerGroup(clients, name, consumer),
                log,
                intake,
                clients=clients,
                now=now,
                held=self._held,
            )
            for name in names
        ]

    def _held(self) -> int:
        """How many streams this node reads."""
        return sum(each.fence is not None for each in self._streams)

    def fault(self) -> str | None:
        """Why a stream is not read here though it could be, in one line."""
        return next((each.fault for each in self._streams if each.fault), None)

    async def run(self) -> None:
        """Reads until it is cancelled."""
        # Each node in an order of its own, so that nodes that start together share the streams.
        order = random.sample(self._streams, len(self._streams))
        running = [
            asyncio.create_task(each.run(place * _STAGGER_SECONDS), name=f"stream {each.name}")
            for place, each in enumerate(order)
        ]
        try:
            await asyncio.get_running_loop().create_future()  # also when all are stopped
        finally:
            await tasks.end(*running)

    async def stop(self) -> None:
        """Stores what was read, and leaves the streams to others."""
        await asyncio.gather(*(each.stop() for each in self._streams))


class _Stream:
    """One stream. `fence` is the lease while it is read here."""

    def __init__(
        self,
        name: str,
        group: ConsumerGroup,
        log: Log,
        intake: Intake,
        *,
        clients: RedisClients,
        now: Callable[[], float],
        held: Callable[[], int],
    ) -> None:
        self.name = name
        self.fence: Fence | None = None
        self.fault: str | None = None
        self._clients = clients
        self._group = group
        self._log = log
        self._intake = intake
        self._now = now
        self._held = held
        self._renewed = 0.0
        self._pause = _PAUSES[0]
        self._bytes = _PAGE_BYTES / _FIRST_PAGE  # of an entry, as far as pages have shown
        self._stopping = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self, delay: float) -> None:
        """Returns when it is stopped. The first look comes after about `delay` seconds."""
        self._idle.clear()
        try:
            await self._wait(delay)
            while not self._stopping.is_set():
                await self._take_turn()
        finally:
            self._idle.set()

    async def stop(self) -> None:
        self._stopping.set()
        await self._idle.wait()
        if self.fence is not None:
            fence, self.fence = self.fence, None
            try:
                await self._log.release(fence)
            except LogUnavailableError as error:
                logger.debug("the lease of stream %s ends by itself: %s", self.name, error)

    async def _take_turn(self) -> None:
        """Reads the stream until something goes wrong, or waits for a moment while another node reads it."""
        try:
            if await self._take_lease():
                await self._work()
            else:
                self.fault = None  # it is the other node's to tell
                await self._wait(_RENEW_SECONDS * (1 + self._held()))
            return
        except (FencedError, OvertakenError):
            pass  # another node has it, or had it and was given entries: look again
        except LogUnavailableError as error:
            self._failed(str(error))
        except UNREACHABLE as error:
            self._failed(self._clients.explain(error))
        except Exception:
            # A fault of ours: said with its traceback, and tried again, since the entries still wait.
            logger.exception("reading stream %s failed", self.name)
            self._failed("it failed: see the gateway's log")
        await self._wait(self._pause)
        self._pause = min(_PAUSES[1], 2 * self._pause)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds * random.uniform(0.5, 1)):  # noqa: S311 - jitter
                await self._stopping.wait()
        except TimeoutError:
            pass

    def _failed(self, reason: str) -> None:
        if self.fault is None:
            logger.warning("stream %s cannot be read: %s", self.name, reason)
        self.fault = reason

    async def _take_lease(self) -> bool:
        self.fence = await self._log.lease(f"stream:{self.name}", LEASE_SECONDS)
        self._renewed = time.monotonic()
        return self.fence is not None

    async def _renew(self) -> None:
        """Raises FencedError where the lease was lost meanwhile."""
        if time.monotonic() - self._renewed < _RENEW_SECONDS:
            return
        before = self.fence
        if not await self._take_lease() or self.fence != before:
            raise FencedError(self.name)

    # Reading

    async def _work(self) -> None:
        """Reads the stream as long as it has the lease: first what is pending, in order, then what is new."""
        self._warn_of_deleted(await self._group.begin())
        await self._work_off_pending()
        if self._stopping.is_set():
            return
        if self.fault:
            logger.info("stream %s is read again", self.name)
        self.fault = None
        self._pause = _PAUSES[0]
        await self._read_on()

    async def _work_off_pending(self) -> None:
        after = START
        while not self._stopping.is_set():
            page = await self._group.pending(after, self._count())
            if page.last is None:
                return
            self._warn_of_deleted(len(page.gone))
            await self._group.acknowledge(page.gone)
            await self._store(self._parse(page), asyncio.Event())
            after = page.last

    def _warn_of_deleted(self, count: int) -> None:
        if count:
            logger.warning("%d entries of stream %s were deleted before they were stored", count, self.name)

    async def _read_on(self) -> None:
        """The next pages are read and parsed while those before are stored; each is appended behind the one before."""
        storing: deque[asyncio.Task[None]] = deque()
        stopped = asyncio.create_task(self._stopping.wait())
        reading = asyncio.create_task(self._group.new(self._count()))
        stored = asyncio.Event()  # whether the last page is in the log, or never will be
        stored.set()
        try:
            while True:
                await asyncio.wait((reading, stopped), return_when=asyncio.FIRST_COMPLETED)
                if stopped.done():
                    break
                page = await reading
                reading = asyncio.create_task(self._group.new(self._count()))
                await asyncio.sleep(0)  # asked for before this page is parsed, which keeps the loop from it
                batch = self._parse(page)
                await stored.wait()
                if storing and storing[-1].done():
                    storing[-1].result()  # raises why it is not in the log, so that nothing overtakes it
                while storing and (storing[0].done() or len(storing) >= _MAX_STORING):
                    await storing.popleft()
                stored = asyncio.Event()
                storing.append(asyncio.create_task(self._store(batch, stored)))
        finally:
            await tasks.end(reading, stopped)  # what it was given is pending
            await asyncio.gather(reading, *storing, return_exceptions=True)
        for each in storing:
            each.result()
        await self._group.acknowledge()

    def _count(self) -> int:
        return max(1, min(_MAX_PAGE, int(_PAGE_BYTES / self._bytes)))

    def _parse(self, page: Page) -> "_Batch":
        batch = _Batch([id_ for id_, _ in page.entries])
        for entry in page.entries:
            try:
                batch.events.append(event_of(self._intake, self.name, entry))
            except GatewayError as error:
                batch.letters.append(letter_of(self.name, entry, error, self._now()))
        if page.entries:
            mean = sum([sum(map(len, fields)) for _, fields in page.entries]) / len(page.entries)
            self._bytes = max(mean, self._bytes + (mean - self._bytes) / 4)  # large ones are heeded at once
        return batch

    async def _store(self, batch: "_Batch", stored: asyncio.Event) -> None:
        """Appends the events, in order, and then acknowledges the entries. Sets `stored` as soon as those behind
        may follow, and at once where it fails."""
        try:
            await self._renew()
            if batch.events:
                await self._intake.append("streams", batch.events, fence=self.fence, on_stored=stored.set)
        finally:
            stored.set()
        await self._intake.bury("streams", f"redis:{self.name}", batch.letters, fence=self.fence)
        if len(batch.ids) == _MAX_PAGE:  # there is more, or soon will be
            self._group.acknowledge_soon(batch.ids)
        else:
            await self._group.acknowledge(batch.ids)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What a page has become."""

    ids: Sequence[str]
    events: list[Event] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
