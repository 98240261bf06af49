"""Transaction: what the writer does between BEGIN and COMMIT.

Appends are planned in memory against what one look-up per table found, and written at the end in
bulk: a transaction of many small appends costs little more than one large append.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
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
    "SELECT l.subject, l.behind, l.is_order, l.keys, l.offset, l.prev, l.accepted, coalesce(l.json, e.json)"
    " FROM latest l LEFT JOIN events e ON e.offset = l.offset WHERE l.subject IN ({})"
)

_REPLACE_LATEST: Final = "REPLACE INTO latest (offset, subject, behind, is_order, type, prev, accepted, keys)"


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
        # Of each subject the latest event and the latest order.* event, often the same one: as they shall be, and as
        # they were found. What is new stands at the end of `_latest`, in log order.
        self._latest: dict[str, Entry] = {}
        self._order: dict[str, Entry] = {}
        self._was_latest: dict[str, Entry] = {}
        self._was_order: dict[str, Entry] = {}
        self._was_keys: dict[int, bytes] = {}  # by offset

    def find(self, events: Sequence[Event], subjects: Iterable[str], *, duplicates: bool = True) -> None:
        """Looks up what the log has of these events, and of their and these subjects.

        Without `duplicates` all events are taken for new; `write` raises sqlite3.IntegrityError if one is not.
        """
        if duplicates:
            self._identities = self._find_identities(events)
        wanted = {each.subject for each in events}
        wanted.update(subjects)
        wanted.discard(None)
        for subject, behind, is_order, keys, *values in select_in(self.db, _STANDINGS, list(wanted)):
            entry = Entry(*values)
            self._was_keys[entry.offset] = keys
            if not behind:
                self._latest[subject] = entry
            if is_order:
                self._order[subject] = entry
        self._was_latest, self._was_order = self._latest.copy(), self._order.copy()

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
        if expect is not None:
            order = self._order.get(expect.subject)
            if expect.offset != (order.offset if order else 0):
                raise ConflictError(expect.subject)
        appended = self._append(events)
        if remember is not None:
            self._store(remember, appended if remember.reply.appended else None)
        return appended

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
            prev, previous = 0, None
            if subject in latest:
                before = latest.pop(subject)  # its place is at the end now
                prev, previous = before.offset, before.json
            entry = Entry(offset, prev, accepted, json, body, previous)
            entries.append(entry)
            values += (offset, prev, accepted, source, id_, bytearray(json))
            if subject is not None:
                latest[subject] = entry
                if type_.startswith(ORDER):
                    self._order[subject] = entry
        self.head += len(events)

    def write(self) -> None:
        """Writes what was planned. Raises sqlite3.IntegrityError for a duplicate that was not looked for."""
        insert_values(self.db, "INSERT INTO events", 6, self._events)
        changes = _LatestChanges(self._paths, self._was_keys)
        for subject, entry in self._latest.items():
            was = self._was_latest.get(subject)
            if entry is was:
                continue
            order, was_order = self._order.get(subject), self._was_order.get(subject)
            changes.add(subject, entry, is_order=1 if entry is order else 0, behind=0)
            if was is not None or was_order is not None or order is not entry:  # most subjects are new
                behind = None if order is entry else order
                was_behind = None if was_order is was else was_order
                changes.replace(subject, was, was_behind, behind)
        changes.write(self.db)

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


class _LatestChanges:
    """What changes in the tables `latest` and `keys`. `was_keys` are the keys of the rows that were found."""

    def __init__(self, paths: Sequence[str], was_keys: Mapping[int, bytes]) -> None:
        self._paths = paths
        self._was_keys = was_keys
        # Of new rows the values, one after the other.
        self._rows: list[Any] = []
        self._keys: list[Any] = []
        self._gone: list[tuple[int]] = []
        self._moved: list[tuple[int]] = []
        self._keys_gone: list[tuple[int, str, int]] = []

    def add(self, subject: str, entry: Entry, *, is_order: int, behind: int) -> None:
        """A new row, in place of the one that the subject had there, if any."""
        body, offset = entry.body, entry.offset
        pairs = keys_of(body, self._paths)
        for number, key in pairs:
            self._keys += (number, key, offset)
        keys = bytearray(orjson.dumps(pairs))
        self._rows += (offset, subject, behind, is_order, body["type"], entry.prev, entry.accepted, keys)

    def replace(
        self, subject: str, was: Entry | None, was_behind: Entry | None, behind: Entry | None
    ) -> None:
        """What becomes of the rows that a subject had, and of the place behind its latest event, which is new."""
        if was is not None and was is behind:
            self._moved.append((was.offset,))
        elif was is not None:
            self._drop_keys(was)
        if was_behind is not None and was_behind is not behind:
            self._drop_keys(was_behind)
            self._gone.append((was_behind.offset,))
        if behind is not None and behind is not was and behind is not was_behind:
            self.add(subject, behind, is_order=1, behind=1)

    def _drop_keys(self, entry: Entry) -> None:
        self._keys_gone += key_rows(self._was_keys[entry.offset], entry.offset)

    def write(self, db: sqlite3.Connection) -> None:
        if self._keys_gone:
            delete_keys(db, self._keys_gone)
        if self._gone:
            db.executemany("DELETE FROM latest WHERE offset = ?", self._gone)
        if self._moved:
            db.executemany("UPDATE latest SET behind = 1 WHERE offset = ?", self._moved)
        insert_values(db, _REPLACE_LATEST, 8, self._rows)
        insert_values(db, "INSERT INTO keys", 3, self._keys)
