"""Transaction: what the writer does between BEGIN and COMMIT.

Appends are planned in memory against what one look-up per table found, and written at the end in
bulk: a transaction of many small appends costs little more than one large append.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, Final

import orjson

from gateway.event import Event
from gateway.log import (
    Appended,
    ConflictError,
    Entry,
    Expect,
    KeyTakenError,
    Remember,
    Revocation,
)
from gateway.log._database import chunks, delete_keys, insert, keys_of, select_in

REMEMBERED_SECONDS: Final = 86400
ORDER: Final = "order."

_IDENTITIES: Final = (
    "SELECT e.id, e.source, e.offset FROM (VALUES {}) v"
    " CROSS JOIN events e ON e.id = v.column1 AND e.source = v.column2"
)
_STANDINGS: Final = (
    "SELECT l.subject, l.behind, l.type, l.keys, l.offset, l.prev, l.accepted, coalesce(l.json, e.json)"
    " FROM latest l LEFT JOIN events e ON e.offset = l.offset WHERE l.subject IN ({})"
)


class Row:
    """A row of `latest`. `keys` as `keys_of` gives them; a new row has none until it is written."""

    __slots__ = ("entry", "is_order", "keys", "type")

    def __init__(self, entry: Entry, type_: str, keys: bytes = b"") -> None:
        self.entry = entry
        self.type = type_
        self.is_order = type_.startswith(ORDER)
        self.keys = keys

    def key_rows(self) -> list[tuple[int, str, int]]:
        """Its rows of the table `keys`."""
        offset = self.entry.offset
        return [(number, key, offset) for number, key in orjson.loads(self.keys)]


class Standing:
    """The rows that `latest` has of one subject, as they were found and as they shall be."""

    __slots__ = ("behind", "latest", "was_behind", "was_latest")

    def __init__(self) -> None:
        self.was_latest: Row | None = None
        self.was_behind: Row | None = None
        self.latest: Row | None = None
        self.behind: Row | None = None

    def found(self, row: Row, *, behind: bool) -> None:
        if behind:
            self.was_behind = self.behind = row
        else:
            self.was_latest = self.latest = row

    def put(self, row: Row) -> None:
        if row.is_order:
            self.behind = None
        elif self.latest is not None and self.latest.is_order:
            self.behind = self.latest
        self.latest = row

    def order_offset(self) -> int:
        row = self.latest if self.latest is not None and self.latest.is_order else self.behind
        return row.entry.offset if row else 0


class Transaction:
    """One transaction's work. `head` is the last offset given, `accepted` its time (microseconds)."""

    def __init__(
        self, db: sqlite3.Connection, paths: Sequence[str], *, head: int, accepted: int, now: int
    ) -> None:
        self.db = db
        self.head = head
        self.now = now
        self.accepted = max(accepted, now)  # a clock that is set back never reorders the log
        self.entries: list[Entry] = []
        self._paths = paths
        self._rows: list[tuple[Any, ...]] = []
        self._identities: dict[tuple[str, str], int] = {}
        self._standings: dict[str, Standing] = {}

    def find(self, events: Sequence[Event], subjects: Iterable[str], *, duplicates: bool = True) -> None:
        """Looks up what the log has of these events, and of their and these subjects.

        Without `duplicates` all events are taken for new; `write` raises sqlite3.IntegrityError if one is not.
        """
        for chunk in chunks(events) if duplicates else ():
            sql = _IDENTITIES.format(",".join(["(?,?)"] * len(chunk)))
            identities = chain.from_iterable((each.id, each.source) for each in chunk)
            for id_, source, offset in self.db.execute(sql, tuple(identities)).fetchall():
                self._identities[id_, source] = offset
        wanted = {each.subject for each in events if each.subject is not None}
        wanted.update(subjects)
        self._standings = {subject: Standing() for subject in wanted}
        for subject, behind, type_, keys, *entry in select_in(self.db, _STANDINGS, list(wanted)):
            self._standings[subject].found(Row(Entry(*entry), type_, keys), behind=behind)

    def append(self, events: Sequence[Event], expect: Expect | None, remember: Remember | None) -> Appended:
        """Plans an append of events that `find` has looked up. Raises before anything is planned."""
        # The key first: a request that is repeated shall hear its first answer, not that it conflicts with itself.
        if remember is not None:
            self._check_free(remember.key)
        if expect is not None and self._standings[expect.subject].order_offset() != expect.offset:
            raise ConflictError(expect.subject)
        appended = self._append(events)
        if remember is not None:
            self._store(remember, appended if remember.reply.appended else None)
        return appended

    def _append(self, events: Sequence[Event]) -> Appended:
        before = self.head
        top = 0
        for event in events:
            known = self._identities.setdefault((event.id, event.source), self.head + 1)
            if known > self.head:
                self._place(event)
            top = max(top, known)
        accepted = self.head - before
        return Appended(accepted, len(events) - accepted, top if events else self.head)

    def _place(self, event: Event) -> None:
        self.head += 1
        prev, previous = 0, None
        standing = None if event.subject is None else self._standings[event.subject]
        if standing is not None and standing.latest is not None:
            before = standing.latest.entry
            prev, previous = before.offset, before.json
        entry = Entry(self.head, prev, self.accepted, event.json, body=event.body, previous=previous)
        if standing is not None:
            standing.put(Row(entry, event.type))
        self.entries.append(entry)
        self._rows.append((self.head, prev, self.accepted, event.source, event.id, bytearray(event.json)))

    def write(self) -> None:
        """Writes what was planned. Raises sqlite3.IntegrityError for a duplicate that was not looked for."""
        insert(self.db, "INSERT INTO events", self._rows)
        rows: list[tuple[Any, ...]] = []
        keys = _KeyChanges()
        for subject, it in self._standings.items():
            if it.was_latest is None and it.behind is None:  # a new subject, most often
                if it.latest is not None:
                    keys.new += self._plan(rows, subject, it.latest, behind=False)
                continue
            self._drop_behind(it)
            if it.latest is not None and not it.latest.keys:
                self._plan(rows, subject, it.latest, behind=False)
            if it.behind is not None and not it.behind.keys:
                self._plan(rows, subject, it.behind, behind=True)
            keys.add(it)
        rows.sort(key=itemgetter(0))
        insert(self.db, "REPLACE INTO latest", rows)  # a row that had a subject's place goes
        keys.write(self.db)

    def _plan(
        self, rows: list[tuple[Any, ...]], subject: str, row: Row, *, behind: bool
    ) -> list[tuple[int, str, int]]:
        """Adds a new row of `latest` to `rows`; returns what goes with it into `keys`."""
        entry = row.entry
        pairs = keys_of(entry.body, self._paths)
        row.keys = orjson.dumps(pairs)
        stored = bytearray(row.keys)
        offset, prev = entry.offset, entry.prev
        rows.append((offset, subject, behind, row.is_order, row.type, prev, self.accepted, stored, None))
        return [(number, key, offset) for number, key in pairs]

    def _drop_behind(self, it: Standing) -> None:
        """Makes the place behind the latest event right for what was found."""
        if it.was_behind is not None and it.behind is None:
            self.db.execute("DELETE FROM latest WHERE offset = ?", (it.was_behind.entry.offset,))
        elif it.behind is not None and it.behind is it.was_latest:
            self.db.execute("UPDATE latest SET behind = 1 WHERE offset = ?", (it.behind.entry.offset,))

    def _check_free(self, key: str) -> None:
        since = self.now - REMEMBERED_SECONDS * 1_000_000
        sql = "SELECT 1 FROM remembered WHERE key = ? AND stored > ?"
        if self.db.execute(sql, (key, since)).fetchone():
            raise KeyTakenError(key)

    def _store(self, remember: Remember, appended: Appended | None) -> None:
        reply = remember.reply
        counts = (appended.accepted, appended.duplicates, appended.offset) if appended else (None, None, None)
        headers = orjson.dumps(reply.headers)
        row = (remember.key, self.now, remember.digest, reply.status, headers, reply.body, *counts)
        insert(self.db, "REPLACE INTO remembered", [row])

    def remember(self, remember: Remember) -> None:
        """Raises KeyTakenError."""
        self._check_free(remember.key)
        self._store(remember, remember.reply.appended)

    def use_once(self, token: str, seconds: float) -> bool:
        sql = "SELECT 1 FROM used WHERE token = ? AND expires > ?"
        if self.db.execute(sql, (token, self.now)).fetchone():
            return False
        expires = self.now + int(seconds * 1_000_000)
        self.db.execute("REPLACE INTO used VALUES (?, ?)", (token, expires))
        return True

    def revoke(self, revocation: Revocation, remember: Remember | None) -> None:
        """Raises KeyTakenError, and then revokes nothing."""
        if remember is not None:
            self.remember(remember)
        self.db.execute(
            "INSERT INTO revocations VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET at = max(at, excluded.at)",
            (revocation.kind, revocation.value, revocation.at),
        )

    def probe(self, size: int) -> None:
        """Writes a row of this many bytes, in place of the one before it."""
        self.db.execute("REPLACE INTO meta VALUES ('probe', zeroblob(?))", (size,))


class _KeyChanges:
    """What changes in the table `keys`."""

    def __init__(self) -> None:
        self.new: list[tuple[int, str, int]] = []
        self._gone: list[tuple[int, str, int]] = []
        self._moved: list[tuple[int, int, str, int]] = []

    def add(self, it: Standing) -> None:
        was, now = it.was_latest, it.latest
        if was is None or now is None or was.keys != now.keys or it.behind is not it.was_behind:
            self._add(_rows(was, it.was_behind), _rows(now, it.behind))
        elif was is not now:  # as a rule: o-1 is still of c-1
            self._moved.extend((now.entry.offset, *row) for row in was.key_rows())

    def _add(self, before: list[Row], after: list[Row]) -> None:
        for row in before:
            if row not in after:
                self._gone.extend(row.key_rows())
        for row in after:
            if row not in before:
                self.new.extend(row.key_rows())

    def write(self, db: sqlite3.Connection) -> None:
        delete_keys(db, self._gone)
        db.executemany("UPDATE keys SET offset = ? WHERE path = ? AND key = ? AND offset = ?", self._moved)
        insert(db, "INSERT INTO keys", self.new)


def _rows(*rows: Row | None) -> list[Row]:
    return [row for row in rows if row is not None]
