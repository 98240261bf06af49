"""Writer: the one thread that writes, with group commit: all that waits goes into one transaction.

It outlives every failure: what waited is refused with the reason, and the next transaction tries again.
"""

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from gateway.event import Event
from gateway.log import ConflictError, Entry, KeyTakenError, LogUnavailableError
from gateway.log._append import Transaction
from gateway.log._database import WAL_BYTES, Pool, State, is_damage, transaction
from gateway.log._retention import Retainer

logger = logging.getLogger(__name__)

MAX_EVENTS: Final = 5000  # in one transaction, unless a single append has more
_EXPECTING_DUPLICATES: Final = 50
_IDLE_SECONDS: Final = 1.0  # between two looks at retention where nothing is written
_WAL_LOOK_BYTES: Final = 16 << 20  # of JSON between two looks at the size of the write-ahead log


@dataclass(frozen=True, slots=True)
class Write:
    """Something to do in a transaction, and who waits for it. `events` and `subjects` are looked up before."""

    apply: Callable[[Transaction], Any]
    future: asyncio.Future[Any]
    events: Sequence[Event] = ()
    subjects: Sequence[str] = ()
    size: int = 0  # bytes of JSON


Outcome: TypeAlias = Any  # what `apply` returned, or the exception that it raised


@dataclass(frozen=True, slots=True)
class Commit:
    """What a transaction did, for the event loop. `entries` are the new ones; `seconds` how long it took."""

    first: int
    head: int
    entries: Sequence[Entry] = ()
    outcomes: Sequence[tuple[Write, Outcome]] = ()
    seconds: float = 0.0


class Health:
    """What keeps the log from working, as far as it is known. Shared by all threads of a log."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.damage: str | None = None  # stays until the log is opened again
        self.fault: str | None = None  # of the last transaction

    def explain(self, error: Exception) -> str:
        """One line for an exception; damage is kept in mind."""
        if type(error) not in (sqlite3.OperationalError, sqlite3.DatabaseError):  # our fault, not the disk's
            logger.error("the log failed", exc_info=error)
        reason = f"{self.name}: {' '.join(str(error).split()) or type(error).__name__}"
        if isinstance(error, sqlite3.Error) and is_damage(error):
            self.damage = reason
        return reason


class Writer:
    """Takes writes from the event loop and posts a `Commit` back for each transaction, by `post`.

    `now` gives microseconds since 1970.
    """

    def __init__(
        self,
        pool: Pool,
        readers: Pool | None,
        *,
        path: str | None,
        paths: Sequence[str],
        state: State,
        retainer: Retainer,
        health: Health,
        now: Callable[[], int],
        post: Callable[[Commit], None],
    ) -> None:
        self._pool = pool
        self._readers = readers
        self._wal = Path(path + "-wal") if path else None
        self._paths = paths
        self._head = state.head
        self._accepted = state.accepted
        self._retainer = retainer
        self._health = health
        self._now = now
        self._post = post
        self._queue: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self._stopping = False
        self._expecting_duplicates = 0  # commits for which they are looked for before they are written
        self._retention_failed = False
        self._unlooked = 0
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, write: Write) -> None:
        self._queue.put(write)

    def stop(self) -> None:
        """Writes what was put, then ends the thread; waits for that."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        wait = 0.0
        while not self._stopping:
            writes = self._take(wait)
            appended = self._commit(writes) if writes else 0
            wait = 0.0 if self._retain(appended) else _IDLE_SECONDS

    def _take(self, wait: float) -> list[Write]:
        """All that waits, up to MAX_EVENTS; nothing where nothing came for `wait` seconds."""
        taken: list[Write] = []
        events = 0
        try:
            while events < MAX_EVENTS:
                block = wait > 0 and not taken
                write = self._queue.get(block=block, timeout=wait if block else None)
                if write is None:
                    self._stopping = True
                    break
                taken.append(write)
                events += len(write.events)
        except queue.Empty:
            pass
        return taken

    def _commit(self, writes: Sequence[Write]) -> int:
        """Returns how many events were appended."""
        started = time.perf_counter()
        entries: Sequence[Entry] = ()
        try:
            work, outcomes = self._transact(writes)
        except Exception as error:  # noqa: BLE001 -- whatever it is, those who wait must hear of it
            reason = self._health.fault = self._health.explain(error)
            outcomes = [(write, LogUnavailableError(reason)) for write in writes]
        else:
            self._health.fault = None
            entries = work.entries
            if entries:
                self._head, self._accepted = entries[-1].offset, entries[-1].accepted
            self._trim_wal(sum(write.size for write in writes))
        seconds = time.perf_counter() - started
        self._post(Commit(self._retainer.first, self._head, entries, outcomes, seconds))
        return len(entries)

    def _transact(self, writes: Sequence[Write]) -> tuple[Transaction, list[tuple[Write, Outcome]]]:
        """Most events are new: taking them for that saves a look-up of each, and the index tells when it is not so.

        Duplicates come in runs, when a producer sends again, so for a while they are looked for then.
        """
        with self._pool.lease() as db:
            if self._expecting_duplicates == 0:
                try:
                    with transaction(db):
                        return self._apply(db, writes, duplicates=False)
                except sqlite3.IntegrityError:
                    self._expecting_duplicates = _EXPECTING_DUPLICATES
            self._expecting_duplicates -= 1
            with transaction(db):
                return self._apply(db, writes, duplicates=True)

    def _apply(
        self, db: sqlite3.Connection, writes: Sequence[Write], *, duplicates: bool
    ) -> tuple[Transaction, list[tuple[Write, Outcome]]]:
        work = Transaction(db, self._paths, head=self._head, accepted=self._accepted, now=self._now())
        work.find(
            [event for write in writes for event in write.events],
            [subject for write in writes for subject in write.subjects],
            duplicates=duplicates,
        )
        outcomes: list[tuple[Write, Outcome]] = []
        for write in writes:
            try:
                outcomes.append((write, write.apply(work)))
            except (ConflictError, KeyTakenError) as refusal:
                outcomes.append((write, refusal))
        work.write()
        return work, outcomes

    def _retain(self, appended: int) -> bool:
        """A step of retention, where one is due. Returns whether another is due at once."""
        if not self._retainer.is_due(self._head):
            return False
        try:
            with self._pool.lease() as db:
                dropped = self._retainer.step(db, self._head, self._accepted, appended)
        except Exception as error:  # noqa: BLE001 -- tried again later; meanwhile the log only keeps more
            reason = self._health.explain(error)
            if not self._retention_failed:  # said once, not each second
                logger.warning("retention failed: %s", reason)
            self._retention_failed = True
            return False
        self._retention_failed = False
        if dropped:
            self._post(Commit(self._retainer.first, self._head))
        return self._retainer.is_due(self._head)

    def _trim_wal(self, written: int) -> None:
        """Cuts the write-ahead log where readers that follow each other closely kept it from beginning anew."""
        self._unlooked += written
        if self._wal is None or self._readers is None or self._unlooked < _WAL_LOOK_BYTES:
            return
        self._unlooked = 0
        try:
            if self._wal.stat().st_size > WAL_BYTES:
                with self._readers.lease_all(), self._pool.lease() as db:
                    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except (OSError, sqlite3.Error) as error:
            logger.warning("the write-ahead log could not be cut: %s", error)
