"""Transaction: what the writer does between BEGIN and COMMIT.

Appends are planned in memory against what one look-up per table found, and written at the end in
bulk: a transaction of many small appends costs little more than one large append.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain
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
from gateway.log._database import chunks, delete_keys, insert, insert_values, key_rows, keys_of, select_in

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

_REPLACE_LATEST: Final = "REPLACE INTO latest (offset, subject, behind, is_order, type, prev, accepted, keys)"


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
        return key_rows(self.keys, self.entry.offset)


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
        self._events: list[Any] = []  # the values of the new rows of `events`, one after the other
        self._identities: dict[tuple[str, str], int] | None = None
        # The rows of `latest` of each subject: as they shall be, and as they were found. What is new stands at the
        # end of `_latest`, in log order.
        self._latest: dict[str, Row] = {}
        self._behind: dict[str, Row] = {}
        self._was_latest: dict[str, Row] = {}
        self._was_behind: dict[str, Row] = {}

    def find(self, events: Sequence[Event], subjects: Iterable[str], *, duplicates: bool = True) -> None:
        """Looks up what the log has of these events, and of their and these subjects.

        Without `duplicates` all events are taken for new; `write` raises sqlite3.IntegrityError if one is not.
        """
        if duplicates:
            self._identities = self._find_identities(events)
        wanted = {each.subject for each in events}
        wanted.update(subjects)
        wanted.discard(None)
        for subject, behind, type_, keys, *entry in select_in(self.db, _STANDINGS, list(wanted)):
            (self._behind if behind else self._latest)[subject] = Row(Entry(*entry), type_, keys)
        self._was_latest, self._was_behind = self._latest.copy(), self._behind.copy()

    def _find_identities(self, events: Sequence[Event]) -> dict[tuple[str, str], int]:
        found = {}
        for chunk in chunks(events):
            sql = _IDENTITIES.format(",".join(["(?,?)"] * len(chunk)))
            identities = chain.from_iterable((each.id, each.source) for each in chunk)
            for id_, source, offset in self.db.execute(sql, tuple(identities)).fetchall():
                found[id_, source] = offset
        return found

    def append(self, events: Sequence[Event], expect: Expect | None, remember: Remember | None) -> Appended:
        """Plans an append of events that `find` has looked up. Raises before anything is planned."""
        # The key first: a request that is repeated shall hear its first answer, not that it conflicts with itself.
        if remember is not None:
            self._check_free(remember.key)
        if expect is not None and self._order_offset(expect.subject) != expect.offset:
            raise ConflictError(expect.subject)
        appended = self._append(events)
        if remember is not None:
            self._store(remember, appended if remember.reply.appended else None)
        return appended

    def _order_offset(self, subject: str) -> int:
        row = self._latest.get(subject)
        if row is None or not row.is_order:
            row = self._behind.get(subject)
        return row.entry.offset if row else 0

    def _append(self, events: Sequence[Event]) -> Appended:
        before = self.head
        if self._identities is None:
            self._place(events)
            return Appended(len(events), 0, self.head)
        new: list[Event] = []
        top = 0 if events else before
        for event in events:
            free = before + len(new) + 1
            known = self._identities.setdefault((event.id, event.source), free)
            if known == free:
                new.append(event)
            top = max(top, known)
        self._place(new)
        return Appended(len(new), len(events) - len(new), top)

    def _place(self, events: Sequence[Event]) -> None:
        """Plans these at the log's end. Per event it makes few objects and calls: this is the writer's hot path."""
        latest, values, entries, accepted = self._latest, self._events, self.entries, self.accepted
        for offset, event in enumerate(events, self.head + 1):
            source, id_, type_, subject, body, json = event
            prev, previous, before = 0, None, None
            if subject in latest:
                before = latest.pop(subject)  # its place is at the end now
                prev, previous = before.entry.offset, before.entry.json
            entry = Entry(offset, prev, accepted, json, body=body, previous=previous)
            entries.append(entry)
            values += (offset, prev, accepted, source, id_, bytearray(json))
            if subject is not None:
                row = latest[subject] = Row(entry, type_)
                if row.is_order:
                    self._behind.pop(subject, None)
                elif before is not None and before.is_order:
                    self._behind[subject] = before
        self.head += len(events)

    def write(self) -> None:
        """Writes what was planned. Raises sqlite3.IntegrityError for a duplicate that was not looked for."""
        insert_values(self.db, "INSERT INTO events", 6, self._events)
        rows: list[Any] = []
        keys = _KeyChanges()
        for subject, row in self._latest.items():
            was = self._was_latest.get(subject)
            if row is was:
                continue
            self._plan(rows, subject, row, behind=0)
            behind, was_behind = self._behind.get(subject), self._was_behind.get(subject)
            if behind is not was_behind:
                self._drop_behind(was_behind, behind, was)
            if behind is not None and not behind.keys:
                self._plan(rows, subject, behind, behind=1)
            keys.add(was, row, was_behind, behind)
        insert_values(self.db, _REPLACE_LATEST, 8, rows)  # a row that had a subject's place goes
        keys.write(self.db)

    def _plan(self, rows: list[Any], subject: str, row: Row, *, behind: int) -> None:
        """Adds the values of a new row of `latest` to `rows`."""
        entry = row.entry
        row.keys = orjson.dumps(keys_of(entry.body, self._paths))
        is_order = 1 if row.is_order else 0
        rows += (
            entry.offset,
            subject,
            behind,
            is_order,
            row.type,
            entry.prev,
            entry.accepted,
            bytearray(row.keys),
        )

    def _drop_behind(self, was_behind: Row | None, behind: Row | None, was_latest: Row | None) -> None:
        """Makes the place behind the latest event right for what was found."""
        if was_behind is not None and behind is None:
            self.db.execute("DELETE FROM latest WHERE offset = ?", (was_behind.entry.offset,))
        elif behind is not None and behind is was_latest:
            self.db.execute("UPDATE latest SET behind = 1 WHERE offset = ?", (behind.entry.offset,))

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
        self._new: list[Any] = []  # values of rows, one after the other
        self._gone: list[tuple[int, str, int]] = []
        self._moved: list[tuple[int, int, str, int]] = []

    def add(self, was: Row | None, now: Row, was_behind: Row | None, behind: Row | None) -> None:
        if (
            was is not None and was.keys == now.keys and behind is was_behind
        ):  # as a rule: o-1 is still of c-1
            self._moved.extend((now.entry.offset, *row) for row in was.key_rows())
            return
        for row in (was, was_behind):
            if row is not None and row is not behind:
                self._gone += row.key_rows()
        for row in (now, behind):
            if row is not None and row is not was and row is not was_behind:
                for values in row.key_rows():
                    self._new += values

    def write(self, db: sqlite3.Connection) -> None:
        delete_keys(db, self._gone)
        db.executemany("UPDATE keys SET offset = ? WHERE path = ? AND key = ? AND offset = ?", self._moved)
        insert_values(db, "INSERT INTO keys", 3, self._new)
