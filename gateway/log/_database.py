"""The SQLite file: its pragmas, the lock that one gateway holds on it, and how it is opened.

What is wrong with a file is found here, before anything is written to it, and told in one line.
"""

import fcntl
import json
import logging
import os
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Final

import orjson

from gateway.filters import keys_at
from gateway.log import LogCorruptError, LogUnavailableError
from gateway.log._schema import SCHEMA, VERSION, create_tables, is_schema

logger = logging.getLogger(__name__)

APPLICATION_ID: Final = 0x6F676C67
BUSY_SECONDS: Final = 1.0  # how long a statement waits for a lock that another program holds
WAL_BYTES: Final = 64 << 20  # what the write-ahead log may keep on disk
_CHECKED_BYTES: Final = 32 << 20  # a file up to this size is checked whole at open; that takes 0.1 s
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"

# Pages of 8 KiB and a checkpoint each 16 MiB: measured, a fifth less CPU per event than SQLite's
# 4 KiB and 4 MiB. FULL: a commit is on the disk when it returns.
_PRAGMAS: Final = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "wal_autocheckpoint = 2000",
    f"journal_size_limit = {WAL_BYTES}",
    "cache_size = -32768",
    "secure_delete = OFF",
)

_BOUNDS: Final = "SELECT first, max(head, coalesce((SELECT max(offset) FROM events), 0)) FROM state"
_ACCEPTED: Final = (
    "SELECT max(accepted, coalesce((SELECT accepted FROM events ORDER BY offset DESC LIMIT 1), 0)) FROM state"
)


@dataclass(frozen=True, slots=True)
class State:
    """What a log was given when it was made, and where it stands. `accepted` is its last event's (microseconds)."""

    epoch: str
    secret: bytes
    first: int
    head: int
    accepted: int


def connect(path: str | None) -> sqlite3.Connection:
    """A connection without implicit transactions. Whoever uses it leases it from a `Pool`, one at a time."""
    return sqlite3.connect(
        path or ":memory:",
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )


class Pool:
    """Connections, each leased to one thread at a time; those who wait are served in order, so none starves."""

    def __init__(self, connections: Sequence[sqlite3.Connection]) -> None:
        self._size = len(connections)
        self._free = list(connections)
        self._waiting: deque[queue.SimpleQueue[sqlite3.Connection]] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def lease(self) -> Iterator[sqlite3.Connection]:
        db = self._take()
        try:
            yield db
        finally:
            self._give(db)

    @contextmanager
    def lease_all(self) -> Iterator[None]:
        """Waits until nobody uses a connection, and lets nobody begin. For one thread only."""
        taken = [self._take() for _ in range(self._size)]
        try:
            yield
        finally:
            for each in taken:
                self._give(each)

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._free:
                return self._free.pop()
            ticket: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
            self._waiting.append(ticket)
        return ticket.get()

    def _give(self, db: sqlite3.Connection) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().put(db)
            else:
                self._free.append(db)

    def close(self) -> None:
        for _ in range(self._size):
            self._take().close()


_ROWS: Final = (256, 32, 4, 1)  # that one statement writes or looks up


def chunks(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The rows in pieces of few sizes, so that the statements made for these sizes stay prepared.

    Many rows to a statement: each one gives up the interpreter's lock, and to win it back from a busy
    event loop may take 5 ms.
    """
    start = 0
    for size in _ROWS:
        while len(rows) - start >= size:
            yield rows[start : start + size]
            start += size


def insert(db: sqlite3.Connection, into: str, rows: Sequence[Sequence[Any]]) -> None:
    """Runs `into` ("INSERT INTO table") for all the rows."""
    if rows:
        insert_values(db, into, len(rows[0]), list(chain.from_iterable(rows)))


def insert_values(db: sqlite3.Connection, into: str, width: int, values: Sequence[Any]) -> None:
    """The same for rows of so many columns whose values follow each other in one list.

    sqlite3 looks for an adapter of all that is not exactly an int, a float, a str or a bytearray, which costs half a
    microsecond each time: a bool is best given as an int, `bytes` as a bytearray, and None as a column left out.
    """
    start = 0
    for rows in _ROWS:
        while len(values) - start >= rows * width:
            db.execute(_insert(into, width, rows), values[start : start + rows * width])
            start += rows * width


@lru_cache(maxsize=64)
def _insert(into: str, width: int, rows: int) -> str:
    row = "(" + ",".join("?" * width) + ")"
    return f"{into} VALUES {','.join([row] * rows)}"


def select_in(db: sqlite3.Connection, sql: str, values: Sequence[Any]) -> Iterator[Any]:
    """The rows of `sql`, which has `IN ({})`, for all the values."""
    for chunk in chunks(values):
        yield from db.execute(sql.format(",".join("?" * len(chunk))), chunk).fetchall()


def keys_of(body: dict[str, Any], paths: Sequence[str]) -> list[tuple[int, str]]:
    """The index entries of an event: (path's number, key), .... `latest` stores them as JSON."""
    return [(number, key) for number, path in enumerate(paths) for key in keys_at(body, path)]


def key_rows(keys: bytes, offset: int) -> list[tuple[int, str, int]]:
    """The rows of the table `keys` for the JSON of what `keys_of` gave."""
    return [(number, key, offset) for number, key in orjson.loads(keys)]


def delete_keys(db: sqlite3.Connection, rows: Sequence[tuple[int, str, int]]) -> None:
    db.executemany("DELETE FROM keys WHERE path = ? AND key = ? AND offset = ?", rows)


def is_damage(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


def lock(path: str) -> int:
    """Takes the advisory lock of a log; the operating system frees it with the process.

    A file of its own: to close the database file anywhere in this process would drop SQLite's own locks.
    Raises LogUnavailableError where another process holds it.
    """
    name = os.path.realpath(path) + "-lock"
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LogUnavailableError(
            f"{name} cannot be opened ({error.strerror}): check the directory"
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(fd, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise LogUnavailableError(
            f"{path} is in use by another gateway (process {holder}): stop that one, or name another file"
        ) from None
    os.truncate(fd, 0)
    os.write(fd, str(os.getpid()).encode())
    return fd


def open_database(
    path: str | None, paths: Sequence[str], random: Callable[[int], bytes]
) -> tuple[sqlite3.Connection, State]:
    """Opens the file, and makes it a log where it is new or empty.

    Raises LogCorruptError for a file that is no log that this gateway can read, and LogUnavailableError
    for one that cannot be opened or written now.
    """
    name = path or "the log in memory"
    if path and Path(path).is_dir():
        raise LogCorruptError(f"{path} is a directory: name a file")
    try:
        db = connect(path)
    except sqlite3.Error as error:
        raise _opening_error(name, error) from None
    try:
        return db, _prepare(db, name, paths, random)
    except sqlite3.Error as error:
        db.close()
        raise _opening_error(name, error) from None
    except BaseException:
        db.close()
        raise


def _opening_error(name: str, error: sqlite3.Error) -> Exception:
    if is_damage(error) or not hasattr(error, "sqlite_errorcode"):  # the latter: found by ourselves
        return LogCorruptError(
            f"{name} is damaged or no database ({error}): put back a copy, or move it away to begin a new log"
        )
    return LogUnavailableError(f"{name} cannot be opened ({error}): check the path, its rights and the disk")


def _prepare(
    db: sqlite3.Connection, name: str, paths: Sequence[str], random: Callable[[int], bytes]
) -> State:
    version = _version(db, name)
    if version == 0:
        db.execute("PRAGMA page_size = 8192")
    for pragma in _PRAGMAS:
        db.execute(f"PRAGMA {pragma}").fetchall()
    if version == 0:
        _create(db, random)
    else:
        if not is_schema(db, version):
            raise sqlite3.OperationalError("its tables are not those of a log")
        _check_pages(db, name)
        _migrate(db, name, version)
    with transaction(db):
        db.execute("UPDATE state SET first = first")  # where nothing can be written, say so now
        _index(db, paths)
    first, head = bounds(db)
    (accepted,) = db.execute(_ACCEPTED).fetchone()
    return State(_meta(db, "epoch").decode(), _meta(db, "secret"), first, head, accepted)


def bounds(db: sqlite3.Connection) -> tuple[int, int]:
    """The offsets of the first kept event and of the head."""
    first, head = db.execute(_BOUNDS).fetchone()
    return first, head


def _version(db: sqlite3.Connection, name: str) -> int:
    """The version of the file's schema, 0 where it holds nothing yet. Raises LogCorruptError for what is no log."""
    tables, application, version = (
        db.execute(sql).fetchone()[0]
        for sql in ("SELECT count(*) FROM sqlite_schema", "PRAGMA application_id", "PRAGMA user_version")
    )
    if tables == application == version == 0:
        return 0
    if application != APPLICATION_ID:
        raise LogCorruptError(f"{name} is another program's database: name another file")
    if version > VERSION:
        raise LogCorruptError(
            f"{name} was written by a newer gateway (format {version}, this one reads {VERSION}): "
            "run that one, or name another file"
        )
    if version < 1:
        raise sqlite3.OperationalError("its version is missing")
    return int(version)


def _create(db: sqlite3.Connection, random: Callable[[int], bytes]) -> None:
    epoch = "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in random(8))
    with transaction(db):
        create_tables(db, SCHEMA)
        db.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            [("epoch", epoch.encode()), ("secret", random(32)), ("index", b"")],
        )
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {VERSION}")


def _migrate(db: sqlite3.Connection, name: str, version: int) -> None:
    """Makes a log of an older version one of this: as a whole, or not at all."""
    if version == VERSION:
        return
    with transaction(db):
        create_tables(db, SCHEMA[version:])
        db.execute(f"PRAGMA user_version = {VERSION}")
    logger.info("%s was of format %d and is of format %d from now on", name, version, VERSION)


def _check_pages(db: sqlite3.Connection, name: str) -> None:
    """Reads a small file whole; in a large one damage is met when it is read."""
    pages, size = (db.execute(f"PRAGMA {each}").fetchone()[0] for each in ("page_count", "page_size"))
    if pages * size > _CHECKED_BYTES:
        return
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise LogCorruptError(
            f"{name} is damaged ({' '.join(found.split())}): put back a copy, or move it away to begin a new log"
        )


def _meta(db: sqlite3.Connection, key: str) -> bytes:
    row = db.execute("SELECT value FROM meta WHERE name = ?", (key,)).fetchone()
    if row is None:
        raise sqlite3.OperationalError(f"its {key} is missing")
    return bytes(row[0])


def _index(db: sqlite3.Connection, paths: Sequence[str]) -> None:
    """Builds the index anew where it was built for other paths."""
    wanted = json.dumps(list(paths)).encode()
    built = _meta(db, "index")
    if built == wanted:
        return
    if built:
        logger.info("the index of latest events is built anew for %s", ", ".join(paths) or "the type alone")
    db.execute("DELETE FROM keys")
    for offset, event in _scan(db):
        keys = orjson.dumps(keys_of(orjson.loads(event), paths))
        db.execute("UPDATE latest SET keys = ? WHERE offset = ?", (keys, offset))
        insert(db, "INSERT INTO keys", key_rows(keys, offset))
    db.execute("UPDATE meta SET value = ? WHERE name = 'index'", (wanted,))


def _scan(db: sqlite3.Connection) -> Iterable[Any]:
    sql = (
        "SELECT l.offset, coalesce(l.json, e.json) FROM latest l LEFT JOIN events e ON e.offset = l.offset"
        " WHERE l.offset > ? ORDER BY l.offset LIMIT 1000"
    )
    after = 0
    while rows := db.execute(sql, (after,)).fetchall():
        yield from rows
        after = rows[-1][0]


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """A write transaction: committed at the end, rolled back by any exception."""
    if db.in_transaction:  # the disk failed even the last one's end
        db.execute("ROLLBACK")
        db.execute("PRAGMA synchronous = FULL")
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite itself rolls back on some errors
            db.execute("ROLLBACK")
        raise
