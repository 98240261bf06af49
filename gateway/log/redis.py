"""RedisLog: the log in Redis, which any number of nodes share.

Here is what the nodes ask of it; writes go through `_redis_writer.py`, new entries come by `_redis_follower.py`,
and what happens at once in Redis is in `lua/`. Redis must keep what it was told: appendonly with appendfsync always
makes an append durable when it returns.
"""

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import orjson

from gateway import tasks
from gateway.event import Event
from gateway.log import (
    Appended,
    DeadLetter,
    Entry,
    Expect,
    Fence,
    LogStats,
    LogUnavailableError,
    Lookup,
    OnAppend,
    OnReset,
    Page,
    Remember,
    Remembered,
    Reply,
    Retention,
    Revocation,
    always,
    nothing,
)
from gateway.log import _redis_scripts as scripts
from gateway.log._redis_follower import Follower
from gateway.log._redis_index import build_index
from gateway.log._redis_letters import Letters
from gateway.log._redis_scripts import META, PREFIX, entries_of_items, entry_of_row, offset_id
from gateway.log._redis_writer import Append, Call, Writer, paths_of, remember_arguments
from gateway.log._room import Room
from gateway.redis_clients import UNREACHABLE, RedisClients, RedisRefusedError

logger = logging.getLogger(__name__)

T = TypeVar("T")

REMEMBERED_SECONDS: Final = 86400
PAGE_BYTES: Final = 8 << 20  # about how much JSON a page has at most
_CHECK_SECONDS: Final = 5.0


class RedisLog:
    """The `Log` in the Redis of `clients`, which it closes with itself.

    `index` are the payload paths by which latest events are found; where nodes differ in them, all events are indexed
    by those of the node that was opened last, and look-ups by others are scans. `now` gives seconds since 1970.
    """

    def __init__(
        self,
        clients: RedisClients,
        *,
        retention: Retention,
        index: Sequence[str] = ("data.customerId",),
        now: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
        stats: LogStats | None = None,
        node: str | None = None,
    ) -> None:
        """`node` names this node, as the holder of a lease; another one for each process."""
        self._clients = clients
        self._now = now
        self._random = random
        self._stats = stats or LogStats()
        self._node = node or secrets.token_hex(8)
        self._room = Room()
        self._is_open = False
        self._mean = 1024.0  # bytes of an entry's JSON, as far as pages have shown
        paths = [each for each in index if each not in ("subject", "type")]
        self._follower = Follower(clients, random, paths)
        self._letters = Letters(clients, retention)
        self._writer = Writer(
            clients,
            self._follower,
            retention=retention,
            node=self._node,
            now=self._microseconds,
            stats=self._stats,
            settled=self._settled,
        )

    @property
    def epoch(self) -> str:
        return self._follower.epoch

    @property
    def secret(self) -> bytes:
        return self._follower.secret

    @property
    def first(self) -> int:
        return self._follower.first

    @property
    def head(self) -> int:
        return self._follower.head

    async def open(
        self,
        on_append: OnAppend,
        on_reset: OnReset = nothing,
        *,
        wants_previous: Callable[[], bool] = always,
    ) -> None:
        """Finds the log, or makes it. Raises LogUnavailableError, LogCorruptError."""
        try:
            for warning in await self._clients.check():
                logger.warning("%s", warning)
            for client in (self._clients.commands, self._clients.blocking):
                for command in ("XRANGE", "XREAD"):
                    client.set_response_callback(command, _as_it_is)
            await self._follower.open(on_append, on_reset, wants_previous)
            await build_index(self._clients, self._follower)
            self._is_open = True
        except RedisRefusedError as error:
            raise LogUnavailableError(str(error)) from None
        except UNREACHABLE as error:
            raise LogUnavailableError(self._clients.explain(error, first=True)) from None
        except scripts.OtherLogError:
            raise LogUnavailableError(f"{self._clients.name} has lost the log") from None
        finally:
            if not self._is_open:
                await self._clients.aclose()
        self._writing = asyncio.create_task(self._writer.run(), name="log writer")
        self._following = asyncio.create_task(self._follower.run(), name="log follower")

    async def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._room.close()
        await asyncio.sleep(0)  # those who were let through come first
        await self._writer.stop(self._writing)
        await tasks.end(self._following)
        await self._clients.aclose()

    def _microseconds(self) -> int:
        return int(self._now() * 1_000_000)

    # Writing

    async def append(
        self,
        events: Sequence[Event],
        *,
        expect: Expect | None = None,
        remember: Remember | None = None,
        fence: Fence | None = None,
        on_stored: Callable[[], None] | None = None,
    ) -> Appended:
        self._check_open()
        size = sum(len(event.json) for event in events)
        await self._room.take(size)
        future = asyncio.get_running_loop().create_future()
        self._stats.waiting += len(events)
        self._writer.put(Append(events, expect, remember, fence, size, future, on_stored))
        appended: Appended = await future
        return appended

    def _settled(self, append: Append) -> None:
        self._room.give(append.size)
        self._stats.waiting -= len(append.events)

    async def _write(self, run: Callable[[], Awaitable[Any]]) -> Any:
        self._check_open()
        future = asyncio.get_running_loop().create_future()
        self._writer.put(Call(run, future))
        return await future

    async def remember(self, remember: Remember) -> None:
        args = (*self._remembered(remember), "", 0, self._random(8))
        await self._write(lambda: scripts.REMEMBER.run(self._clients.writes, *args))

    async def revoke(self, revocation: Revocation, *, remember: Remember | None = None) -> None:
        revoked = (f"{revocation.kind}:{revocation.value}", revocation.at)
        args = (*self._remembered(remember), *revoked, self._random(8))
        await self._write(lambda: scripts.REMEMBER.run(self._clients.writes, *args))

    def _remembered(self, remember: Remember | None) -> tuple[Any, ...]:
        key, *answer = remember_arguments(remember)
        return (key, self._microseconds(), *answer)

    async def use_once(self, token: str, seconds: float) -> bool:
        now, lasts, nonce = self._microseconds(), int(seconds * 1_000_000), self._random(8)
        args = (token, now, lasts, nonce)
        (first,) = await self._write(lambda: scripts.USE_ONCE.run(self._clients.writes, *args))
        return bool(first)

    # Reading

    async def read(self, after: int, limit: int) -> Page:
        announced, count = self.head, max(1, min(limit, int(PAGE_BYTES / self._mean)))
        before, items, epoch = await self._ask(lambda: self._page(after, announced, count))
        if before[0] != epoch or epoch != self.epoch.encode():
            raise LogUnavailableError(f"{self._clients.name} has lost the log")
        entries = entries_of_items(items, {})[0] if items else []
        for each in entries:
            each.previous = None
        if entries:
            self._mean += (sum(len(each.json) for each in entries) / len(entries) - self._mean) / 4
        first = max(int(before[1]), entries[0].offset if entries and entries[0].offset > after + 1 else 0)
        if not entries and after < announced:  # dropped between the two looks
            first = max(first, announced + 1)
        return Page(first, max(announced, first - 1), entries)

    async def _page(self, after: int, upto: int, count: int) -> list[Any]:
        # Between the commands others may write, so what the log was is looked at before and after.
        pipeline = self._clients.commands.pipeline(transaction=False)
        pipeline.hmget(META, "epoch", "first")
        pipeline.execute_command("XRANGE", scripts.LOG, offset_id(after + 1), offset_id(upto), "COUNT", count)
        pipeline.hget(META, "epoch")
        found: list[Any] = await pipeline.execute()
        return found

    async def catch_up(self, offset: int) -> None:
        epoch = self.epoch
        if offset <= self.head:
            return
        head = await self._ask(lambda: self._clients.commands.hget(META, "head"))
        if head is not None and int(head) >= offset:
            await self._follower.reach(offset, epoch)

    async def get(self, offsets: Sequence[int]) -> dict[int, Entry]:
        wanted = [offset for offset in offsets if 0 < offset <= self.head]
        return {each.offset: each for each in await self._ask(lambda: self._follower.get(wanted))}

    async def latest(
        self,
        lookup: Lookup | None,
        *,
        after: int,
        upto: int,
        limit: int,
        newest_first: bool = False,
        orders: bool = False,
    ) -> Sequence[Entry]:
        span = (self.epoch, after, min(upto, self.head), limit, int(newest_first), int(orders))
        try:
            rows = await self._run(scripts.LATEST, *span, *self._keys(lookup))
        except scripts.OtherIndexError:
            rows = await self._run(scripts.LATEST, *span, *self._keys(None))
        return [entry_of_row(row) for row in rows]

    def _keys(self, lookup: Lookup | None) -> Sequence[str | bytes]:
        """What a look-up is to the script: the index that it needs, its kind, and subjects or index keys."""
        path, keys = lookup or ("", frozenset())
        index = self._follower.index
        if path == "subject":
            return b"", "subject", *(key.removeprefix("s:") for key in keys if key.startswith("s:"))
        if path == "type" or path in paths_of(index):
            return b"" if path == "type" else index, "keys", *(f"{path}\0{key}" for key in keys)
        return b"", "none"

    async def latest_offsets(self, subjects: Sequence[str]) -> dict[str, int]:
        if not subjects:
            return {}
        command = ("ZMSCORE", PREFIX + "latest", *subjects)
        scores = await self._ask(lambda: self._clients.commands.execute_command(*command))
        return {
            subject: int(score) for subject, score in zip(subjects, scores, strict=True) if score is not None
        }

    async def order(self, subject: str) -> Entry | None:
        rows = await self._run(scripts.GET, self.epoch, "order", subject)
        return entry_of_row(rows[0]) if rows else None

    async def offset_at(self, accepted: int) -> int:
        offset: int = await self._run(scripts.OFFSET_AT, self.epoch, accepted)
        return offset

    async def recall(self, key: str) -> Remembered | None:
        found = await self._ask(lambda: self._clients.commands.hgetall(f"{PREFIX}reply:{key}"))
        since = self._microseconds() - REMEMBERED_SECONDS * 1_000_000
        if not found or int(found[b"stored"]) <= since:
            return None
        appended = None
        if b"accepted" in found:
            appended = Appended(*(int(found[each]) for each in (b"accepted", b"duplicates", b"offset")))
        headers = orjson.loads(found[b"headers"])
        return Remembered(found[b"digest"], Reply(int(found[b"status"]), headers, found[b"body"], appended))

    async def revocations(self) -> Sequence[Revocation]:
        found = await self._ask(lambda: self._clients.commands.hgetall(PREFIX + "revocations"))
        pairs = ((name.decode().partition(":"), float(at)) for name, at in found.items())
        return [Revocation(kind, value, at) for (kind, _, value), at in pairs]

    async def check(self) -> str | None:
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await self._ask(self._probe)
        except LogUnavailableError as error:
            return str(error)
        except TimeoutError:
            return f"{self._clients.name} has not answered for {_CHECK_SECONDS:.0f} s"
        return self._follower.fault

    async def _probe(self) -> None:
        if self._writer.fault:  # a write tells whether its cause is gone
            await self._clients.writes.set(PREFIX + "probe", 1, px=1000)
        else:
            await self._clients.commands.ping()

    # Leases and dead letters

    async def lease(self, name: str, seconds: float, note: str = "") -> Fence | None:
        token = await self._run(
            scripts.LEASE, name, self._node, int(seconds * 1000), note, 0, client=self._clients.writes
        )
        return Fence(name, token) if token else None

    async def release(self, fence: Fence) -> None:
        await self._run(
            scripts.LEASE, fence.name, self._node, 0, "", fence.token, client=self._clients.writes
        )

    async def lease_note(self, name: str) -> str:
        note = await self._ask(lambda: self._clients.commands.hget(PREFIX + "notes", name))
        return note.decode() if note else ""

    async def is_leased(self, name: str) -> bool:
        return bool(await self._ask(lambda: self._clients.commands.exists(f"{PREFIX}lease:{name}")))

    async def bury(self, letters: Sequence[DeadLetter], *, fence: Fence | None = None) -> None:
        lease = (fence.name, self._writer.lease_value(fence)) if fence else ("", "")
        await self._ask(lambda: self._letters.bury(letters, lease))

    async def dead_letters(
        self, origin: str | None = None, *, after: str = "", limit: int = 100
    ) -> Sequence[DeadLetter]:
        return await self._ask(lambda: self._letters.page(origin, after, limit))

    async def dead_letter(self, id: str) -> DeadLetter | None:  # noqa: A002 -- what the outside calls it
        return await self._ask(lambda: self._letters.get(id))

    async def unbury(self, ids: Sequence[str]) -> int:
        return await self._ask(lambda: self._letters.delete(ids))

    # Asking

    async def _run(self, script: scripts.Script, *args: Any, client: Any = None) -> Any:
        """The one thing that a script returns."""
        reply = await self._ask(lambda: script.run(client or self._clients.commands, *args))
        return reply[0]

    async def _ask(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Raises LogUnavailableError where Redis does not answer, or has another log by now."""
        self._check_open()
        try:
            return await ask()
        except scripts.OtherLogError:
            raise LogUnavailableError(f"{self._clients.name} has lost the log") from None
        except UNREACHABLE as error:
            raise LogUnavailableError(self._clients.explain(error)) from None

    def _check_open(self) -> None:
        if not self._is_open:
            raise LogUnavailableError(f"the log in {self._clients.name} is closed")


def _as_it_is(reply: Any, **_options: Any) -> Any:
    """redis-py makes a dict of each entry, which takes longer than all else here."""
    return reply
