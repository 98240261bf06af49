"""Dead letters in the SQLite file: plain functions on a connection, within the caller's transaction."""

import sqlite3
from collections.abc import Sequence
from typing import Final

from gateway.log import DeadLetter, Retention
from gateway.log._database import insert, select_in

PAGE_BYTES: Final = 8 << 20  # of payload in a page: a page of large letters is shorter

_SELECT: Final = "SELECT id, origin, kind, reason, time, tries, payload FROM dead_letters"


def bury(db: sqlite3.Connection, letters: Sequence[DeadLetter], retention: Retention) -> int:
    """Stores letters, each in place of the one with its id; returns how many of the oldest had to go for them."""
    last = {letter.id: letter for letter in letters}
    unbury(db, list(last))
    rows = [
        (each.id, each.origin, each.kind, each.reason, each.time, each.tries, each.payload)
        for each in last.values()
    ]
    insert(db, "INSERT INTO dead_letters", rows)
    _count(db, len(rows), sum(len(each.payload) for each in last.values()))
    return _make_room(db, retention)


def unbury(db: sqlite3.Connection, ids: Sequence[str]) -> int:
    """Deletes letters; returns how many there were."""
    sql = "DELETE FROM dead_letters WHERE id IN ({}) RETURNING length(payload)"
    sizes = [size for (size,) in select_in(db, sql, ids)]
    _count(db, -len(sizes), -sum(sizes))
    return len(sizes)


def page(db: sqlite3.Connection, origin: str | None, after: str, limit: int) -> list[DeadLetter]:
    where, values = (
        (" WHERE id > ?", (after,)) if origin is None else (" WHERE origin = ? AND id > ?", (origin, after))
    )
    rows = db.execute(f"{_SELECT}{where} ORDER BY id LIMIT ?", (*values, limit))
    letters: list[DeadLetter] = []
    size = 0
    for row in rows:
        letters.append(DeadLetter(*row))
        size += len(letters[-1].payload)
        if size >= PAGE_BYTES:
            break
    rows.close()
    return letters


def find(db: sqlite3.Connection, id_: str) -> DeadLetter | None:
    row = db.execute(_SELECT + " WHERE id = ?", (id_,)).fetchone()
    return DeadLetter(*row) if row else None


def _count(db: sqlite3.Connection, letters: int, size: int) -> None:
    db.execute("UPDATE dead_letters_kept SET letters = letters + ?, bytes = bytes + ?", (letters, size))


def _make_room(db: sqlite3.Connection, retention: Retention) -> int:
    """Drops the oldest letters beyond what is kept: as many as came, as a rule, so no step is long."""
    letters, size = db.execute("SELECT letters, bytes FROM dead_letters_kept").fetchone()
    oldest = db.execute("SELECT id, length(payload) FROM dead_letters ORDER BY time, rowid")
    dropped: list[str] = []
    for id_, length in oldest:
        if letters <= retention.letters and size <= retention.letter_bytes:
            break
        dropped.append(id_)
        letters, size = letters - 1, size - length
    oldest.close()
    return unbury(db, dropped)
