"""Writer: the one way by which a node writes into the Redis log, with group commit.

One call is under way at a time, so that this node's events go in as they came; what waits meanwhile goes into the
next call together. A call whose answer was lost is repeated: an event that is in the log already counts once.
"""

import asyncio
import contextlib
import functools
import hashlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson
from redis import exceptions

from gateway.event import Event
from gateway.filters import keys_at
from gateway.log import (
    Appended,
    ConflictError,
    Expect,
    Fence,
    LogCorruptError,
    LogStats,
    LogUnavailableError,
    Remember,
    Retention,
)
from gateway.log import _redis_scripts as scripts
from gateway.redis_clients import UNREACHABLE, RedisClients

logger = logging.getLogger(__name__)

MAX_EVENTS: Final = 1000  # in one call, unless a single append has more: a call keeps Redis from all others
MAX_BYTES: Final = 2 << 20
GIVE_UP_SECONDS: Final = 5.0  # after this, those who wait are told that Redis is away
_RETRY_SECONDS: Final = 0.05
_MAX_COMPLETING: Final = 2  # calls that were answered and are not announced yet
_RETAIN_SECONDS: Final = 1.0
_RETAIN_LIMIT: Final = 1000  # rows in one step of retention
ORDER: Final = "order."


@dataclass(eq=False, slots=True)
class Append:
    """Events that wait to be written, and who waits for that."""

    events: Sequence[Event]
    expect: Expect | None
    remember: Remember | None
    fence: Fence | None
    size: int  # bytes of JSON
    future: asyncio.Future[Any]
    on_stored: Callable[[], None] | None = None
    places: list[int] = field(default_factory=list)  # the offset of each event, once it is known

    def is_joinable(self, first: "Append") -> bool:
        """Whether it may go into one call with another: what has a condition of its own goes alone."""
        return (
            not (self.expect or self.remember or first.expect or first.remember) and self.fence == first.fence
        )


@dataclass(eq=False, slots=True)
class Call:
    """Any other write: run in turn with the appends."""

    run: Callable[[], Awaitable[Any]]
    future: asyncio.Future[Any]


class Place(Protocol):
    """Where this node is in the log, as the writer needs it."""

    @property
    def epoch(self) -> str: ...

    index: bytes  # the paths by which events are indexed now, as JSON

    @property
    def head(self) -> int:
        """Up to where this node has announced entries."""

    # The events that are being written, by the digest of their identity: what this node reads back need not be
    # parsed again.
    flying: dict[bytes, Event]

    async def reach(self, offset: int, epoch: str) -> None:
        """Returns when everything up to it has been announced. Raises LogUnavailableError."""

    async def look(self) -> None:
        """Finds out which log it is now, and resets the node where it is another one."""

    def retained(self, first: int, epoch: str) -> None:
        """Retention has come this far in the log of that epoch."""


class Writer:
    """Takes writes; a task of its own sends them. `fault` is why the last one failed, None where it did not."""

    def __init__(
        self,
        clients: RedisClients,
        place: Place,
        *,
        retention: Retention,
        node: str,
        now: Callable[[], int],
        stats: LogStats,
        settled: Callable[[Append], None],
    ) -> None:
        """`now` gives microseconds since 1970; `settled` is called for each append that no longer waits."""
        self.fault: str | None = None
        self._stopping = False
        self._clients = clients
        self._place = place
        self._retention = retention
        self._node = node
        self._now = now
        self._stats = stats
        self._settled = settled
        self._waiting: deque[Append | Call] = deque()
        self._wanted = asyncio.Event()
        self._completing: set[asyncio.Task[None]] = set()
        self._calls = itertools.count(1)
        self._looked = 0  # when retention was seen to, microseconds
        self._more = False  # whether it was left unfinished

    def put(self, write: Append | Call) -> None:
        if self._stopping:
            self._settle([write], LogUnavailableError(f"the log in {self._clients.name} is closed"))
            return
        self._waiting.append(write)
        self._wanted.set()

    def lease_value(self, fence: Fence) -> str:
        """What stands in Redis while this node has the lease."""
        return f"{self._node} {fence.token}"

    async def stop(self, running: "asyncio.Task[None]") -> None:
        """Has the task of `run` write what waits, and end."""
        self._stopping = True
        self._wanted.set()
        await asyncio.wait((running,))

    async def run(self) -> None:
        while self._waiting or self._completing or not self._stopping:
            if self._waiting:
                await self._write()
            elif self._completing and self._stopping:
                await asyncio.wait(self._completing)
            else:
                self._wanted.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0 if self._more else _RETAIN_SECONDS):
                        await self._wanted.wait()
                        continue  # what has come goes first
            if not self._stopping:
                await self._retain()

    async def _write(self) -> None:
        batch = self._take()
        if not self._completing:
            self._place.flying.clear()  # those that were refused: all others were read back
        try:
            await self._attempt(batch)
            self.fault = None
        except UNREACHABLE as error:
            self._refuse(batch, self._clients.explain(error))
        except (LogUnavailableError, LogCorruptError) as error:
            self._refuse(batch, str(error))
        except Exception as error:
            if not isinstance(error, scripts.REFUSALS):
                logger.exception("the log failed")
                error = LogUnavailableError("the log failed: see the gateway's log")
            self._settle(batch, error)

    def _take(self) -> list[Append | Call]:
        """The next call, or appends that go into one."""
        first = self._waiting.popleft()
        taken = [first]
        if isinstance(first, Append):
            events, size = len(first.events), first.size
            while self._waiting:
                each = self._waiting[0]
                if not isinstance(each, Append) or not each.is_joinable(first):
                    break
                events, size = events + len(each.events), size + each.size
                if events > MAX_EVENTS or size > MAX_BYTES:
                    break
                taken.append(self._waiting.popleft())
        return taken

    def _refuse(self, batch: Sequence[Append | Call], reason: str) -> None:
        """Redis is away: who waits behind has waited as long, and shall not wait once more."""
        if self.fault is None:
            logger.warning("the log cannot be written: %s", reason)
        self.fault = reason
        self._settle([*batch, *self._waiting], LogUnavailableError(reason))
        self._waiting.clear()

    def _settle(self, batch: Sequence[Append | Call], error: Exception) -> None:
        for each in batch:
            if isinstance(each, Append):
                self._settled(each)
            if not each.future.done():
                each.future.set_exception(error)

    async def _attempt(self, batch: Sequence[Append | Call]) -> None:
        """Repeats for a while what failed for want of a connection, unless Redis was away before."""
        deadline = time.monotonic() + (GIVE_UP_SECONDS if self.fault is None else 0)
        pause, number, repeated = _RETRY_SECONDS, next(self._calls), False
        while True:
            epoch = self._place.epoch
            try:
                await self._send(batch, number, repeated=repeated)
                return
            except (scripts.OtherLogError, scripts.OtherIndexError):
                await self._place.look()
                expect = batch[0].expect if isinstance(batch[0], Append) else None
                if expect and self._place.epoch != epoch:  # a place in the log that is gone
                    raise ConflictError(expect.subject) from None
            except (exceptions.ConnectionError, OSError) as error:
                if isinstance(error, TimeoutError) or time.monotonic() + pause > deadline:
                    raise
                await asyncio.sleep(pause)
                pause, repeated = 2 * pause, True

    async def _send(self, batch: Sequence[Append | Call], number: int, *, repeated: bool) -> None:
        """By its number Redis knows a call that is repeated, where it was the answer alone that was lost."""
        first = batch[0]
        if isinstance(first, Call):
            result = await first.run()
            if not first.future.done():
                first.future.set_result(result)
            return
        appends = [each for each in batch if isinstance(each, Append)]
        started, epoch = time.perf_counter(), self._place.epoch
        head = await self._append(appends, number, repeated=repeated)
        self._stats.observe_append(time.perf_counter() - started)
        while len(self._completing) >= _MAX_COMPLETING:
            await asyncio.wait(self._completing, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(self._complete(appends, head, epoch))
        self._completing.add(task)
        task.add_done_callback(self._completing.discard)

    async def _complete(self, appends: Sequence[Append], base: int, epoch: str) -> None:
        """Answers when what was written has been announced. Redis has the next call meanwhile."""
        try:
            last = max((place for each in appends for place in each.places), default=0)
            await self._place.reach(last, epoch)
        except LogUnavailableError as error:
            self._settle(appends, error)
        else:
            self._answer(appends, base)

    async def _append(self, appends: Sequence[Append], number: int, *, repeated: bool) -> int:
        """Returns the head before it; the appends know their places then."""
        events = [event for each in appends for event in each.events]
        epoch, index = self._place.epoch, self._place.index
        paths = paths_of(index)
        args = [*self._arguments(appends[0]), self._node, number, int(repeated), len(events), index]
        for event in events:
            self._add(args, event, paths)
        head, log_first, places = await scripts.APPEND.run(self._clients.writes, *args)
        self._place.retained(log_first, epoch)
        start = 0
        for each in appends:
            each.places = places[start : start + len(each.events)]
            start += len(each.events)
            if each.on_stored is not None:
                each.on_stored()
        return int(head)

    def _answer(self, appends: Sequence[Append], base: int) -> None:
        counted: set[int] = set()
        for each in appends:
            self._settled(each)
            appended = _appended(each, base, counted, self._place.head)
            if appended.duplicates:  # which are not read back
                for event in each.events:
                    self._place.flying.pop(digest_of(event.source, event.id), None)
            if not each.future.done():
                each.future.set_result(appended)

    def _arguments(self, first: Append) -> list[Any]:
        """What `lua/append.lua` takes before the number of the call."""
        now, keep = self._now(), self._retention
        lease = (first.fence.name, self.lease_value(first.fence)) if first.fence else ("", "")
        expect = (first.expect.subject, first.expect.offset) if first.expect else ("", 0)
        return [
            self._place.epoch,
            self._place.head,
            now,
            keep.events,
            now - int(keep.age * 1_000_000),
            keep.events // 20 + MAX_EVENTS,
            *lease,
            *expect,
            *remember_arguments(first.remember),
            int(first.remember is not None and first.remember.reply.appended is not None),
        ]

    def _add(self, args: list[Any], event: Event, paths: Sequence[str]) -> None:
        digest = digest_of(event.source, event.id)
        self._place.flying[digest] = event
        if event.subject is None:
            args += (digest, event.json, b"", b"", b"")
            return
        keys = [f"type\0s:{event.type}"]
        if paths:
            keys += index_keys(event.body, paths)
        is_order = b"1" if event.type.startswith(ORDER) else b""
        args += (digest, event.json, event.subject, is_order, orjson.dumps(keys))

    # Retention

    async def _retain(self) -> None:
        """A step, where one is due; each node sees to it, so that it goes on whichever of them is there."""
        now = self._now()
        if not self._more and abs(now - self._looked) < _RETAIN_SECONDS * 1_000_000:
            return
        self._looked, self._more = now, False
        keep, epoch = self._retention, self._place.epoch
        since, latest_since = now - int(keep.age * 1_000_000), now - int(keep.latest_age * 1_000_000)
        try:
            _, first, more = await scripts.RETAIN.run(
                self._clients.writes, epoch, keep.events, since, latest_since, _RETAIN_LIMIT
            )
        except (TimeoutError, exceptions.TimeoutError) as error:
            self._refuse([], self._clients.explain(error))  # who came meanwhile has waited long enough
            return
        except (*UNREACHABLE, scripts.OtherLogError) as error:
            logger.debug("retention waits: %r", error)  # who writes or follows says it aloud
            return
        except Exception:
            logger.exception("retention failed")
            return
        self._more = bool(more)
        self._place.retained(first, epoch)


def digest_of(source: str, id_: str) -> bytes:
    """An identity in 16 bytes; a source has no NUL."""
    return hashlib.blake2b(f"{source}\0{id_}".encode(), digest_size=16).digest()


def remember_arguments(remember: Remember | None) -> tuple[Any, ...]:
    """A key and the answer stored under it, as the scripts take them."""
    if remember is None:
        return "", "", 0, "", ""
    reply = remember.reply
    return remember.key, remember.digest, reply.status, orjson.dumps(reply.headers), reply.body


@functools.lru_cache(4)
def paths_of(index: bytes) -> tuple[str, ...]:
    """The payload paths of an index."""
    return tuple(orjson.loads(index))


def index_keys(body: dict[str, Any], paths: Sequence[str]) -> list[str]:
    """The index keys of an event, each with its path before it."""
    return [f"{path}\0{key}" for path in paths for key in keys_at(body, path)]


def _appended(append: Append, base: int, counted: set[int], head: int) -> Appended:
    """What an append did: places beyond `base` are new, unless an append before it has them `counted`."""
    if not append.places:
        return Appended(0, 0, head)
    new = {place for place in append.places if place > base} - counted
    counted |= new
    return Appended(len(new), len(append.places) - len(new), max(append.places))
