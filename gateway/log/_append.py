"""Transaction: what the writer does between BEGIN and COMMIT.

Appends are planned in memory against what one look-up per table found, and written at the end in
bulk: a transaction of many small appends costs little more than one large append.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final, TypeAlias

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
from gateway.log._database import chunks, insert, keys_of, select_in

REMEMBERED_SECONDS: Final = 86400
ORDER: Final = "order."
Keys: TypeAlias = set[tuple[int, str]]

_IDENTITIES: Final = (
    "SELECT e.id, e.source, e.offset FROM (VALUES {}) v"
    " CROSS JOIN events e ON e.id = v.column1 AND e.source = v.column2"
)
_STANDINGS: Final = (
    "SELECT l.subject, l.behind, l.is_order, l.offset, l.prev, l.accepted, coalesce(l.json, e.json)"
    " FROM latest l LEFT JOIN events e ON e.offset = l.offset WHERE l.subject IN ({})"
)


class Standing:
    """The rows that `latest` has of one subject, as they were found and as they shall be."""

    __slots__ = ("behind", "is_order", "latest", "was_behind", "was_latest")

    def __init__(self) -> None:
        self.was_latest: Entry | None = None
        self.was_behind: Entry | None = None
        self.latest: Entry | None = None
        self.behind: Entry | None = None
        self.is_order = False  # whether `latest` is an order event

    def found(self, entry: Entry, *, behind: bool, is_order: bool) -> None:
        if behind:
            self.was_behind = self.behind = entry
        else:
            self.was_latest = self.latest = entry
            self.is_order = is_order

    def put(self, entry: Entry, *, is_order: bool) -> None:
        if is_order:
            self.behind = None
        elif self.is_order:
            self.behind = self.latest
        self.latest = entry
        self.is_order = is_order

    def order_offset(self) -> int:
        entry = self.latest if self.is_order else self.behind
        return entry.offset if entry else 0


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

    def find(self, events: Sequence[Event], subjects: Iterable[str]) -> None:
        """Looks up what the log has of these events, and of their and these subjects."""
        for chunk in chunks(events):
            sql = _IDENTITIES.format(",".join(["(?,?)"] * len(chunk)))
            identities = chain.from_iterable((each.id, each.source) for each in chunk)
            for id_, source, offset in self.db.execute(sql, tuple(identities)).fetchall():
                self._identities[id_, source] = offset
        wanted = {each.subject for each in events if each.subject is not None}
        wanted.update(subjects)
        self._standings = {subject: Standing() for subject in wanted}
        for subject, behind, is_order, *entry in select_in(self.db, _STANDINGS, list(wanted)):
            self._standings[subject].found(Entry(*entry), behind=behind, is_order=is_order)

    def append(self, events: Sequence[Event], expect: Expect | None, remember: Remember | None) -> Appended:
        """Plans an append of events that `find` has looked up. Raises before anything is planned."""
        if expect is not None and self._standings[expect.subject].order_offset() != expect.offset:
            raise ConflictError(expect.subject)
        if remember is not None:
            self._check_free(remember.key)
        appended = self._append(events)
        if remember is not None:
            self._store(remember, appended)
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
            prev, previous = standing.latest.offset, standing.latest.json
        entry = Entry(self.head, prev, self.accepted, event.json, body=event.body, previous=previous)
        if standing is not None:
            standing.put(entry, is_order=event.type.startswith(ORDER))
        self.entries.append(entry)
        self._rows.append((self.head, prev, self.accepted, event.source, event.id, event.json))

    def write(self) -> None:
        """Writes what was planned."""
        insert(self.db, "INSERT INTO events", self._rows)
        touched = [each for each in self._standings.items() if each[1].latest is not each[1].was_latest]
        self._write_latest(touched)
        self._write_keys([standing for _, standing in touched])

    def _write_latest(self, touched: Sequence[tuple[str, Standing]]) -> None:
        rows: list[tuple[Any, ...]] = []
        for subject, it in touched:
            if it.behind is not None and it.behind is it.was_latest:
                self.db.execute("UPDATE latest SET behind = 1 WHERE offset = ?", (it.behind.offset,))
            elif it.behind is not None and it.behind is not it.was_behind:
                rows.append((it.behind.offset, subject, 1, 1, it.behind.prev, self.accepted, None))
            elif it.behind is None and it.was_behind is not None:
                self.db.execute("DELETE FROM latest WHERE offset = ?", (it.was_behind.offset,))
            if it.latest is not None:
                rows.append((it.latest.offset, subject, 0, it.is_order, it.latest.prev, self.accepted, None))
        rows.sort(key=_first)
        # REPLACE: the row that had this subject's place goes.
        insert(self.db, "REPLACE INTO latest", rows)

    def _write_keys(self, touched: Sequence[Standing]) -> None:
        gone: list[tuple[int, str, int]] = []
        new: list[tuple[int, str, int]] = []
        moved: list[tuple[int, int, str, int]] = []
        for it in touched:
            old = None if it.was_latest is it.behind else it.was_latest
            before, after = self._keys(old), self._keys(it.latest)
            if old is not None and it.latest is not None:
                moved.extend((it.latest.offset, *key, old.offset) for key in before & after)
            gone.extend(_at(old, before - after))
            new.extend(_at(it.latest, after - before))
            if it.behind is not it.was_behind:
                gone.extend(_at(it.was_behind, self._keys(it.was_behind)))
                if it.behind is not it.was_latest:
                    new.extend(_at(it.behind, self._keys(it.behind)))
        self.db.executemany("DELETE FROM keys WHERE path = ? AND key = ? AND offset = ?", gone)
        self.db.executemany("UPDATE keys SET offset = ? WHERE path = ? AND key = ? AND offset = ?", moved)
        insert(self.db, "INSERT INTO keys", new)

    def _keys(self, entry: Entry | None) -> Keys:
        return keys_of(entry.body, self._paths) if entry is not None else set()

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


def _first(row: tuple[Any, ...]) -> int:
    offset: int = row[0]
    return offset


def _at(entry: Entry | None, keys: Keys) -> list[tuple[int, str, int]]:
    return [(*key, entry.offset) for key in keys] if entry is not None else []
