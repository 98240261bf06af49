"""The tables of the SQLite file, version by version: each adds to those before it."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Final

# `state` is written by retention alone; until then the head is the last event's.
# `latest` has the latest event of each subject (behind = 0) and the latest order.* event where it stands
# behind a later one of another type (behind = 1). Its rows lie in log order, so a snapshot is a scan of
# it, and so does an index on it. `json` is null as long as `events` has the event, so that nothing is
# written twice; `keys` tells which rows of the table `keys` are its own: [[path, key], ...] as JSON.
# `keys` has a row for each row of `latest`, path of the index (by its number) and key there.
_LOG: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE state (first INTEGER NOT NULL, head INTEGER NOT NULL, accepted INTEGER NOT NULL);
INSERT INTO state VALUES (1, 0, 0);
CREATE TABLE events (
  offset INTEGER PRIMARY KEY, prev INTEGER NOT NULL, accepted INTEGER NOT NULL,
  source TEXT NOT NULL, id TEXT NOT NULL, json BLOB NOT NULL
);
CREATE UNIQUE INDEX events_identity ON events (id, source);
CREATE TABLE latest (
  offset INTEGER PRIMARY KEY, subject TEXT NOT NULL, behind INTEGER NOT NULL, is_order INTEGER NOT NULL,
  type TEXT NOT NULL, prev INTEGER NOT NULL, accepted INTEGER NOT NULL, keys BLOB NOT NULL, json BLOB
);
CREATE UNIQUE INDEX latest_subject ON latest (subject, behind);
CREATE INDEX latest_type ON latest (type);
CREATE TABLE keys (
  path INTEGER NOT NULL, key TEXT NOT NULL, offset INTEGER NOT NULL, PRIMARY KEY (path, key, offset)
) WITHOUT ROWID;
CREATE TABLE remembered (
  key TEXT PRIMARY KEY, stored INTEGER NOT NULL, digest BLOB NOT NULL, status INTEGER NOT NULL,
  headers BLOB NOT NULL, body BLOB NOT NULL, accepted INTEGER, duplicates INTEGER, offset INTEGER
);
CREATE INDEX remembered_stored ON remembered (stored);
CREATE TABLE used (token TEXT PRIMARY KEY, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX used_expires ON used (expires);
CREATE TABLE revocations (
  kind TEXT NOT NULL, value TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (kind, value)
) WITHOUT ROWID;
"""

# `dead_letters_kept` has one row, which tells how many letters there are and the bytes of their payloads.
_DEAD_LETTERS: Final = """
CREATE TABLE dead_letters (
  id TEXT PRIMARY KEY, origin TEXT NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL,
  time REAL NOT NULL, tries INTEGER NOT NULL, payload BLOB NOT NULL
);
CREATE INDEX dead_letters_origin ON dead_letters (origin, id);
CREATE INDEX dead_letters_time ON dead_letters (time);
CREATE TABLE dead_letters_kept (letters INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO dead_letters_kept VALUES (0, 0);
"""

SCHEMA: Final = (_LOG, _DEAD_LETTERS)
VERSION: Final = len(SCHEMA)  # kept as PRAGMA user_version

_OBJECTS: Final = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name"


def create_tables(db: sqlite3.Connection, schema: Sequence[str]) -> None:
    for statement in ";".join(schema).split(";"):
        db.execute(statement)


def is_schema(db: sqlite3.Connection, version: int) -> bool:
    """Whether `db` has the tables of that version, and no others."""
    with closing(sqlite3.connect(":memory:")) as model:
        create_tables(model, SCHEMA[:version])
        return _objects(db) == _objects(model)


def _objects(db: sqlite3.Connection) -> list[Any]:
    return db.execute(_OBJECTS).fetchall()
