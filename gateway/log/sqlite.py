"""SqliteLog: the log in one SQLite file, or in memory; the embedded default.

Here is the event loop's side. Writes go to one thread (`_writer.py`), reads to two others with
connections of their own, which see the last commit and wait for nobody.
"""

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

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
    Retention,
    Revocation,
    always,
    nothing,
)
from gateway.log import _letters as dead_letters
from gateway.log import _queries as queries
from gateway.log._append import REMEMBERED_SECONDS, Transaction
from gateway.log._database import Pool, State, bounds, connect, lock, open_database
from gateway.log._retention import Retainer
from gateway.log._writer import Commit, Health, Outcome, Write, Writer
from gateway.logs import Sparing

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_WAITING: Final = 64 << 20  # bytes of JSON that wait to be written; further appends wait for room
_READERS: Final = 2  # threads
_CHECK_SECONDS: Final = 5.0
_PROBE_BYTES: Final = 1 << 16
_DROPPED_SECONDS: Final = 60.0  # between two lines about dropped dead letters


class SqliteLog:
    """The `Log` in a SQLite file; `path` None is a log in memory, gone with the process.

    `index` are the payload paths by which latest events are found. `now` gives seconds since 1970.
    """

    def __init__(
        self,
        path: str | None,
        *,
        retention: Retention,
        index: Sequence[str] = ("data.customerId",),
        now: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
        stats: LogStats | None = None,
    ) -> None:
        self._path = path
        self._paths = tuple(each for each in index if each not in ("subject", "type"))
        self._retention = retention
        self._now = now
        self._random = random
        self._stats = stats or LogStats()
        self._health = Health(path or "the log in memory")
        self._epoch = ""
        self._secret = b""
        self._first = 1
        self._head = 0
        self._on_append: OnAppend = _ignore
        self._is_open = False
        self._notes: dict[str, str] = {}
        self._dropped = Sparing(_DROPPED_SECONDS)
        self._lock: int | None = None
        self._waiting = 0  # bytes of JSON
        self._door = asyncio.Lock()  # those who wait for room go in the order in which they came
        self._room = asyncio.Event()

    @property
    def epoch(self) -> str:
        return self._epoch

    @property
    def secret(self) -> bytes:
        return self._secret

    @property
    def first(self) -> int:
        return self._first

    @property
    def head(self) -> int:
        return self._head

    async def open(
        self,
        on_append: OnAppend,
        on_reset: OnReset = nothing,  # noqa: ARG002 -- a file is never lost under an open log
        *,
        wants_previous: Callable[[], bool] = always,  # noqa: ARG002 -- it costs nothing here
    ) -> None:
        """Opens the file, or makes it. Raises LogCorruptError, LogUnavailableError."""
        self._on_append = on_append
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._open)
        self._is_open = True
        self._writer.start()

    def _open(self) -> None:
        self._lock = lock(self._path) if self._path else None
        try:
            db, state = open_database(self._path, self._paths, self._random)
        except BaseException:
            self._unlock()
            raise
        self._pool = self._readers = Pool([db])
        if self._path:
            self._readers = Pool([connect(self._path) for _ in range(_READERS)])
        self._epoch, self._secret = state.epoch, state.secret
        self._first, self._head = state.first, state.head
        self._executor = ThreadPoolExecutor(_READERS, thread_name_prefix="log-reader")
        self._writer = self._make_writer(state)

    def _make_writer(self, state: State) -> Writer:
        return Writer(
            self._pool,
            self._readers if self._path else None,
            path=self._path,
            paths=self._paths,
            state=state,
            retainer=Retainer(self._retention, self._microseconds, state.first),
            health=self._health,
            now=self._microseconds,
            post=self._post,
        )

    async def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._room.set()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writer.stop()
        self._executor.shutdown()
        if self._readers is not self._pool:
            self._readers.close()
        self._pool.close()  # the last connection of a file: SQLite moves the write-ahead log into it
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _microseconds(self) -> int:
        return int(self._now() * 1_000_000)

    # Writing

    async def append(
        self,
        events: Sequence[Event],
        *,
        expect: Expect | None = None,
        remember: Remember | None = None,
        fence: Fence | None = None,  # noqa: ARG002 -- leases are never lost here
        on_stored: Callable[[], None] | None = None,
    ) -> Appended:
        def apply(work: Transaction) -> Appended:
            return work.append(events, expect, remember)

        size = sum(len(event.json) for event in events)
        await self._wait_for_room(size)
        subjects = [expect.subject] if expect else []
        appended: Appended = await self._write(apply, events=events, subjects=subjects, size=size)
        if on_stored is not None:
            on_stored()
        return appended

    async def remember(self, remember: Remember) -> None:
        await self._write(lambda work: work.remember(remember))

    async def use_once(self, token: str, seconds: float) -> bool:
        is_first: bool = await self._write(lambda work: work.use_once(token, seconds))
        return is_first

    async def revoke(self, revocation: Revocation, *, remember: Remember | None = None) -> None:
        await self._write(lambda work: work.revoke(revocation, remember))

    # Leases: a file has one gateway, so whoever asks has it

    async def lease(self, name: str, seconds: float, note: str = "") -> Fence | None:  # noqa: ARG002 -- it never ends
        self._notes[name] = note
        return Fence(name, 1)

    async def release(self, fence: Fence) -> None:
        pass

    async def lease_note(self, name: str) -> str:
        return self._notes.get(name, "")

    async def is_leased(self, _name: str) -> bool:
        return False

    # Dead letters

    async def bury(
        self,
        letters: Sequence[DeadLetter],
        *,
        fence: Fence | None = None,  # noqa: ARG002 -- leases are never lost here
    ) -> None:
        size = sum(len(letter.payload) for letter in letters)
        await self._wait_for_room(size)
        dropped: int = await self._write(
            lambda work: dead_letters.bury(work.db, letters, self._retention), size=size
        )
        if told := self._dropped.take(dropped):
            logger.warning(
                "%s: the oldest dead letters made room for new ones, %d of them", self._health.name, told
            )

    async def dead_letters(
        self, origin: str | None = None, *, after: str = "", limit: int = 100
    ) -> Sequence[DeadLetter]:
        return await self._read(lambda db: dead_letters.page(db, origin, after, limit))

    async def dead_letter(self, id: str) -> DeadLetter | None:  # noqa: A002 -- what the outside calls it
        return await self._read(lambda db: dead_letters.find(db, id))

    async def unbury(self, ids: Sequence[str]) -> int:
        found: int = await self._write(lambda work: dead_letters.unbury(work.db, ids))
        return found

    async def _wait_for_room(self, size: int) -> None:
        async with self._door:
            while self._is_open and self._waiting and self._waiting + size > MAX_WAITING:
                self._room.clear()
                await self._room.wait()

    def _write(
        self,
        apply: Callable[[Transaction], Any],
        *,
        events: Sequence[Event] = (),
        subjects: Sequence[str] = (),
        size: int = 0,
    ) -> asyncio.Future[Any]:
        self._check_open()
        future = self._loop.create_future()
        self._waiting += size
        self._stats.waiting += len(events)
        self._writer.put(Write(apply, future, events, subjects, size))
        return future

    def _post(self, commit: Commit) -> None:
        """From the writer's thread: has the commit announced on the loop."""
        try:
            self._loop.call_soon_threadsafe(self._announce, commit)
        except RuntimeError:  # the loop is closed: nobody is there to hear of it
            logger.debug("a commit was announced to a closed loop")

    def _announce(self, commit: Commit) -> None:
        self._first, self._head = commit.first, commit.head
        for write, _ in commit.outcomes:
            self._waiting -= write.size
            self._stats.waiting -= len(write.events)
        if commit.entries:
            self._stats.observe_append(commit.seconds)
            try:
                self._on_append(commit.entries)
            except Exception:
                logger.exception("a listener of the log failed")
        for write, outcome in commit.outcomes:
            _settle(write.future, outcome)
        self._room.set()

    # Reading

    async def read(self, after: int, limit: int) -> Page:
        announced = self._head
        return await self._read(lambda db: queries.read(db, after, limit, announced))

    async def catch_up(self, offset: int) -> None:
        """There is no other node that could know more."""

    async def get(self, offsets: Sequence[int]) -> dict[int, Entry]:
        return await self._read(lambda db: queries.get(db, offsets))

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
        span = queries.Range(after, upto, limit, newest_first, orders)
        return await self._read(lambda db: queries.latest(db, lookup, self._paths, span))

    async def latest_offsets(self, subjects: Sequence[str]) -> dict[str, int]:
        return await self._read(lambda db: queries.latest_offsets(db, subjects))

    async def order(self, subject: str) -> Entry | None:
        return await self._read(lambda db: queries.order(db, subject))

    async def offset_at(self, accepted: int) -> int:
        return await self._read(lambda db: queries.offset_at(db, accepted))

    async def recall(self, key: str) -> Remembered | None:
        since = self._microseconds() - REMEMBERED_SECONDS * 1_000_000
        return await self._read(lambda db: queries.recall(db, key, since))

    async def revocations(self) -> Sequence[Revocation]:
        return await self._read(queries.revocations)

    async def check(self) -> str | None:
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await self._read(bounds)
                if self._health.fault:  # a write of some size tells whether its cause is gone
                    await self._write(lambda work: work.probe(_PROBE_BYTES))
                    await self._write(lambda work: work.probe(0))
        except LogUnavailableError as error:
            return str(error)
        except TimeoutError:
            return f"{self._health.name} has not answered for {_CHECK_SECONDS:.0f} s"
        return self._health.damage

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()
        try:
            return await self._loop.run_in_executor(self._executor, self._query, query)
        except sqlite3.Error as error:
            raise LogUnavailableError(self._health.explain(error)) from None

    def _query(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Runs on a reader's thread. All of a query sees the log as of one commit."""
        with self._readers.lease() as db:
            db.execute("BEGIN")
            try:
                return query(db)
            finally:
                if db.in_transaction:  # SQLite itself ends it on some errors
                    db.execute("ROLLBACK")

    def _check_open(self) -> None:
        if not self._is_open:
            raise LogUnavailableError(f"{self._health.name} is closed")


def _ignore(_entries: Sequence[Entry]) -> None:
    pass


def _settle(future: asyncio.Future[Any], outcome: Outcome) -> None:
    if future.done():  # cancelled: what was written stays written
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
