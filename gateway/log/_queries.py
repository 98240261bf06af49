"""What is read from the log: plain functions on a connection within a read transaction.

Each fetches all its rows before it returns, so that no open statement keeps the write-ahead log from
being reused.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.log import Appended, Entry, Lookup, Page, Remembered, Reply, Revocation
from gateway.log._database import bounds, select_in

PAGE_BYTES: Final = 8 << 20  # of JSON in a page: a page of large events is shorter

_BY_KEY: Final = "SELECT k.offset FROM keys k CROSS JOIN latest l ON l.offset = k.offset WHERE k.path = ? AND k.key = ? AND "
_BY_TYPE: Final = "SELECT l.offset FROM latest l WHERE l.type = ? AND "
_BY_SUBJECT: Final = "SELECT l.offset FROM latest l WHERE l.subject IN ({}) AND "
_LATEST: Final = (
    "SELECT l.offset, l.prev, l.accepted, coalesce(l.json, e.json)"
    " FROM latest l LEFT JOIN events e ON e.offset = l.offset WHERE "
)


@dataclass(frozen=True, slots=True)
class Range:
    """Which of the latest events: after < offset <= upto, oldest or newest first; `orders` as in `Log.latest`."""

    after: int
    upto: int
    limit: int
    newest_first: bool
    orders: bool

    def where(self, table: str) -> str:
        """SQL for the rows of `latest` l in range, by the offset of `table`; takes `values`."""
        order = "DESC" if self.newest_first else "ASC"
        offset = f"{table}.offset"
        return f"{offset} > ? AND {offset} <= ? AND {self.kind} ORDER BY {offset} {order} LIMIT ?"

    @property
    def kind(self) -> str:
        return "l.is_order" if self.orders else "NOT l.behind"

    @property
    def values(self) -> tuple[int, int, int]:
        return self.after, self.upto, self.limit


def read(db: sqlite3.Connection, after: int, limit: int, announced: int) -> Page:
    """A page that ends where the loop's own knowledge did when it asked."""
    first, head = bounds(db)
    head = max(min(head, announced), first - 1)
    rows = db.execute(
        "SELECT offset, prev, accepted, json FROM events WHERE offset > ? AND offset <= ? ORDER BY offset LIMIT ?",
        (after, head, limit),
    )
    entries: list[Entry] = []
    size = 0
    for row in rows:
        entries.append(Entry(*row))
        size += len(row[3])
        if size >= PAGE_BYTES:
            break
    rows.close()
    return Page(first, head, entries)


def get(db: sqlite3.Connection, offsets: Sequence[int]) -> dict[int, Entry]:
    sql = "SELECT offset, prev, accepted, json FROM events WHERE offset IN ({})"
    return {row[0]: Entry(*row) for row in select_in(db, sql, offsets)}


def latest(db: sqlite3.Connection, lookup: Lookup | None, paths: Sequence[str], span: Range) -> list[Entry]:
    offsets = _offsets(db, lookup, paths, span) if lookup else None
    if offsets is None:
        return [Entry(*row) for row in db.execute(_LATEST + span.where("l"), span.values).fetchall()]
    chosen = sorted(offsets, reverse=span.newest_first)[: span.limit]
    rows = select_in(db, _LATEST + "l.offset IN ({})", chosen)
    return sorted((Entry(*row) for row in rows), key=_offset, reverse=span.newest_first)


def _offsets(db: sqlite3.Connection, lookup: Lookup, paths: Sequence[str], span: Range) -> set[int] | None:
    """What an index tells, at least the first `limit` in range; None where there is no index."""
    path, keys = lookup
    if path == "subject":
        return _by_subject(db, keys, span)
    if path == "type":
        return _by_type(db, keys, span)
    return _by_path(db, paths.index(path), keys, span) if path in paths else None


def _by_subject(db: sqlite3.Connection, keys: frozenset[str], span: Range) -> set[int]:
    subjects = [key[2:] for key in keys if key.startswith("s:")]  # as index_key writes strings
    rows = select_in(db, _BY_SUBJECT + span.kind, subjects)
    return {offset for (offset,) in rows if span.after < offset <= span.upto}


def _by_type(db: sqlite3.Connection, keys: frozenset[str], span: Range) -> set[int]:
    sql = _BY_TYPE + span.where("l")
    types = [key[2:] for key in keys if key.startswith("s:")]
    return {offset for each in types for (offset,) in db.execute(sql, (each, *span.values)).fetchall()}


def _by_path(db: sqlite3.Connection, number: int, keys: frozenset[str], span: Range) -> set[int]:
    """Up to `limit` offsets of each key, in order: the first `limit` of all are among them."""
    sql = _BY_KEY + span.where("k")
    return {offset for key in keys for (offset,) in db.execute(sql, (number, key, *span.values)).fetchall()}


def latest_offsets(db: sqlite3.Connection, subjects: Sequence[str]) -> dict[str, int]:
    sql = "SELECT subject, offset FROM latest WHERE subject IN ({}) AND NOT behind"
    return dict(select_in(db, sql, subjects))


def order(db: sqlite3.Connection, subject: str) -> Entry | None:
    row = db.execute(_LATEST + "l.subject = ? AND l.is_order", (subject,)).fetchone()
    return Entry(*row) if row else None


def offset_at(db: sqlite3.Connection, accepted: int) -> int:
    """Found by halving: times never decrease with the offset, so they need no index."""
    first, head = bounds(db)
    while first <= head:
        middle = (first + head) // 2
        (at,) = db.execute("SELECT accepted FROM events WHERE offset = ?", (middle,)).fetchone()
        if at < accepted:
            first = middle + 1
        else:
            head = middle - 1
    return head


def recall(db: sqlite3.Connection, key: str, since: int) -> Remembered | None:
    """The answer under a key, stored after `since` (microseconds since 1970)."""
    row = db.execute(
        "SELECT digest, status, headers, body, accepted, duplicates, offset FROM remembered"
        " WHERE key = ? AND stored > ?",
        (key, since),
    ).fetchone()
    if row is None:
        return None
    digest, status, headers, body, *counts = row
    appended = None if counts[0] is None else Appended(*counts)
    return Remembered(digest, Reply(status, orjson.loads(headers), body, appended))


def revocations(db: sqlite3.Connection) -> list[Revocation]:
    rows: list[Any] = db.execute(
        "SELECT kind, value, at FROM revocations ORDER BY at, kind, value"
    ).fetchall()
    return [Revocation(*row) for row in rows]


def _offset(entry: Entry) -> int:
    return entry.offset
