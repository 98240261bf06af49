"""Retention: takes out of the log what is too old or too much, in steps so short that no append feels them."""

import sqlite3
from collections.abc import Callable
from typing import Final

from gateway.log import Retention
from gateway.log._append import REMEMBERED_SECONDS
from gateway.log._database import delete_keys, key_rows, transaction

STEP: Final = 300  # rows of each kind that one step takes out at most, unless more were just appended
_PAUSE: Final = 1_000_000  # microseconds between two looks at the clock's work


class Retainer:
    """Knows what is due and does it step by step. Runs on the writer's thread.

    `now` gives microseconds since 1970.
    """

    def __init__(self, retention: Retention, now: Callable[[], int], first: int) -> None:
        self._retention = retention
        self._now = now
        self._looked = 0
        self._more = False
        self.first = first

    def is_due(self, head: int) -> bool:
        too_many = head - self.first + 1 > self._retention.events
        return too_many or self._more or abs(self._now() - self._looked) >= _PAUSE

    def step(self, db: sqlite3.Connection, head: int, accepted: int, appended: int) -> int:
        """Takes out up to a few hundred rows, or twice as many as were just appended; says how many."""
        self._looked = self._now()
        limit = max(STEP, 2 * appended)
        # Not synced: a power cut may undo a step, which is then done again, and the next append syncs it.
        db.execute("PRAGMA synchronous = NORMAL")
        try:
            with transaction(db):
                first = self._drop_events(db, head, limit)
                if first > self.first:
                    db.execute("UPDATE state SET first = ?, head = ?, accepted = ?", (first, head, accepted))
                dropped = [
                    first - self.first,
                    self._drop_latest(db, first, limit),
                    *self._drop_keys(db, limit),
                ]
        finally:
            db.execute("PRAGMA synchronous = FULL")
        self.first = first
        self._more = max(dropped) >= limit
        return sum(dropped)

    def _drop_events(self, db: sqlite3.Connection, head: int, limit: int) -> int:
        """Returns the new first offset."""
        cutoff = self._now() - _microseconds(self._retention.age)
        (last,) = db.execute(
            "SELECT max(offset) FROM (SELECT offset, accepted FROM events ORDER BY offset LIMIT ?)"
            " WHERE offset <= ? OR accepted < ?",
            (limit, head - self._retention.events, cutoff),
        ).fetchone()
        if last is None:
            return self.first
        # What is a subject's latest outlives the log: from here on `latest` has its JSON.
        db.execute(
            "UPDATE latest SET json = (SELECT json FROM events e WHERE e.offset = latest.offset) WHERE offset <= ?"
            " AND offset >= ?",
            (last, self.first),
        )
        db.execute("DELETE FROM events WHERE offset <= ?", (last,))
        return int(last) + 1

    def _drop_latest(self, db: sqlite3.Connection, first: int, limit: int) -> int:
        cutoff = self._now() - _microseconds(self._retention.latest_age)
        rows = db.execute(
            "SELECT offset, keys FROM (SELECT * FROM latest WHERE offset < ? ORDER BY offset LIMIT ?)"
            " WHERE accepted < ?",
            (first, limit, cutoff),
        ).fetchall()
        delete_keys(db, [row for offset, keys in rows for row in key_rows(keys, offset)])
        db.executemany("DELETE FROM latest WHERE offset = ?", [(offset,) for offset, _ in rows])
        return len(rows)

    def _drop_keys(self, db: sqlite3.Connection, limit: int) -> tuple[int, int]:
        now = self._now()
        remembered = db.execute(
            "DELETE FROM remembered WHERE rowid IN (SELECT rowid FROM remembered WHERE stored <= ?"
            " ORDER BY stored LIMIT ?)",
            (now - REMEMBERED_SECONDS * 1_000_000, limit),
        )
        used = db.execute(
            "DELETE FROM used WHERE token IN (SELECT token FROM used WHERE expires <= ? ORDER BY expires LIMIT ?)",
            (now, limit),
        )
        return remembered.rowcount, used.rowcount


def _microseconds(seconds: float) -> int:
    return int(seconds * 1_000_000)
