"""What only a log in a file must do: outlive its process, notice what is wrong with its file, stay bounded."""

import asyncio
import contextlib
import os
import random
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.event import Event
from gateway.log import (
    Appended,
    DeadLetter,
    Entry,
    LogCorruptError,
    LogUnavailableError,
    Remember,
    Reply,
    Retention,
    Revocation,
    _writer,
)
from gateway.log._database import connect
from gateway.log._retention import STEP, Retainer
from gateway.log.sqlite import SqliteLog
from tests.conformance.test_log import Clock, event, told

INDEX = ("data.customerId",)


@asynccontextmanager
async def opened(
    path: Path | str, announced: list[Entry] | None = None, **kwargs: Any
) -> AsyncIterator[SqliteLog]:
    log = SqliteLog(str(path), **{"retention": Retention(), "index": INDEX, **kwargs})
    await log.open((announced if announced is not None else []).extend)
    try:
        yield log
    finally:
        await log.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


def events(count: int, start: int = 0, size: int = 10) -> list[Event]:
    return [
        event(f"e{n}", f"o-{n % 7}", customerId=f"c-{n % 3}", text="x" * size)
        for n in range(start, start + count)
    ]


async def read_all(log: SqliteLog) -> list[Entry]:
    return [entry for after in range(0, log.head, 100) for entry in (await log.read(after, 100)).entries]


# Reopening


async def test_everything_is_there_again_after_reopening(path: Path) -> None:
    """Events, identity, answers, tokens, revocations and the latest events outlive `close`."""
    announced: list[Entry] = []
    reply = Remember("k", b"d", Reply(200, {"ETag": '"1"'}, b"{}", Appended(0, 0, 0)))
    async with opened(path, announced) as log:
        identity = log.epoch, log.secret
        await log.append(events(10), remember=reply)
        await log.use_once("t", 60)
        await log.revoke(Revocation("sub", "u", 5.0))
        latest = [told(e) for e in await log.latest(None, after=0, upto=10, limit=99)]
    async with opened(path) as log:
        assert (log.epoch, log.secret) == identity
        assert (log.first, log.head) == (1, 10)
        assert [told(e) for e in (await log.read(0, 99)).entries] == [told(e) for e in announced]
        assert [told(e) for e in await log.latest(None, after=0, upto=10, limit=99)] == latest
        remembered = await log.recall("k")
        assert remembered is not None
        assert remembered.reply.appended == Appended(10, 0, 10)
        assert not await log.use_once("t", 60)
        assert await log.revocations() == [Revocation("sub", "u", 5.0)]
        assert await log.append(events(11)) == Appended(1, 10, 11)


async def test_the_place_is_kept_when_everything_was_evicted(path: Path) -> None:
    """An emptied log goes on at its head, with times that never decrease, even if the clock was set back."""
    clock = Clock()
    announced: list[Entry] = []
    async with opened(path, announced, retention=Retention(age=1), now=clock) as log:
        await log.append(events(5))
        clock.seconds += 100
        while log.first != 6:
            await log.use_once("t", 0)
    clock.seconds -= 1000
    async with opened(path, announced, now=clock) as log:
        assert (log.first, log.head) == (6, 5)
        page = await log.read(0, 9)
        assert (page.first, page.head, list(page.entries)) == (6, 5, [])
        await log.append(events(1, start=9))
    assert announced[-1].offset == 6
    assert announced[-1].accepted == announced[-2].accepted


APPENDER = """
import asyncio, sys
from gateway.log import Retention
from gateway.log.sqlite import SqliteLog
from tests.conformance.test_log import event

async def publish(log, caller):
    for n in range(100_000):
        batch = [event(f"{caller}-{n}-{m}", f"o-{caller}") for m in range(1 + n % 4)]
        appended = await log.append(batch)
        print(appended.offset, *(each.id for each in batch), flush=True)

async def main():
    log = SqliteLog(sys.argv[1], retention=Retention())
    await log.open(lambda entries: None)
    await asyncio.gather(*(publish(log, caller) for caller in range(8)))

asyncio.run(main())
"""


async def answers_until_killed(path: Path) -> list[list[str]]:
    """Runs APPENDER, kills it amid its work; the offset and ids of each answer it printed whole."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", APPENDER, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    lines = [await process.stdout.readline() for _ in range(300)]
    process.kill()
    lines += (await process.stdout.read()).splitlines(keepends=True)
    await process.wait()
    return [line.decode().split() for line in lines if line.endswith(b"\n")]


async def test_what_was_answered_survives_a_kill(path: Path) -> None:
    """After `kill -9` amid appends every answered event is there once, at its place, and offsets are dense."""
    answers = await answers_until_killed(path)
    assert len(answers) >= 300
    async with opened(path) as log:
        stored = await read_all(log)
        assert [entry.offset for entry in stored] == list(range(1, log.head + 1))
        ids = [entry.body["id"] for entry in stored]
        assert len(set(ids)) == len(ids)
        for offset, *answered in answers:
            assert ids[int(offset) - len(answered) : int(offset)] == answered
        assert (await log.append([event(ids[0])])).duplicates == 1


# A file that is not right


def fill(path: Path, content: bytes) -> bytes:
    path.write_bytes(content)
    return content


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def written_by_version_1(path: Path) -> None:
    """A log that version 1 of the format wrote, as SQL."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript((Path(__file__).parent / "data" / "log_version_1.sql").read_text())


async def refused(path: Path | str) -> str:
    """The one line that opening `path` answers."""
    with pytest.raises((LogCorruptError, LogUnavailableError)) as caught:
        async with opened(path):
            pass
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


async def test_one_gateway_holds_the_file(path: Path) -> None:
    """A second log on the same file, by whatever name, hears who has it; after `close` it is free."""
    link = path.with_name("link.db")
    async with opened(path):
        link.symlink_to(path)
        assert f"in use by another gateway (process {os.getpid()})" in await refused(path)
        assert "in use by another gateway" in await refused(link)
    async with opened(link) as log:
        assert log.head == 0


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_file_that_is_no_database_is_left_alone(path: Path, content: bytes) -> None:
    """It is named with what to do, and not a byte of it changes."""
    fill(path, content)
    assert "damaged or no database" in await refused(path)
    assert content_of(path) == content


async def test_another_programs_database_is_left_alone(path: Path) -> None:
    """A database that is not ours is neither read nor changed."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE recipes (name)")
    content = content_of(path)
    assert "another program's database" in await refused(path)
    assert content_of(path) == content


async def test_a_newer_format_is_refused(path: Path) -> None:
    """A log that a newer gateway wrote is named as such."""
    async with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    assert "newer gateway (format 99, this one reads 2)" in await refused(path)


async def test_a_log_of_version_1_is_migrated(path: Path) -> None:
    """A file that version 1 wrote keeps all it has, and takes dead letters from then on; the next open is an ordinary one."""
    written_by_version_1(path)
    letter = DeadLetter("a", "redis:x", "message", "no", 1.0, 1, b"{")
    async with opened(path, now=Clock()) as log:
        assert (log.epoch, log.first, log.head) == ("7fnv3bjr", 1, 3)
        assert [entry.body["id"] for entry in await read_all(log)] == ["a", "b", "c"]
        assert await log.append([event("a", "o-1")]) == Appended(0, 1, 1)
        assert await log.recall("k") is not None
        assert await log.revocations() == [Revocation("sub", "u", 5.0)]
        assert await log.dead_letters() == []
        await log.bury([letter])
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
    async with opened(path, now=Clock()) as log:
        assert await log.dead_letters() == [letter]


async def test_a_damaged_log_of_version_1_is_left_at_it(path: Path) -> None:
    """What is no whole log of its version is not migrated."""
    written_by_version_1(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE used")
    assert "is damaged" in await refused(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM sqlite_schema WHERE name LIKE 'dead%'").fetchone() == (0,)


async def test_a_log_without_its_version_is_refused(path: Path) -> None:
    """Neither taken for a new file nor for one of any version."""
    async with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 0")
    assert "its version is missing" in await refused(path)


async def test_a_damaged_schema_is_refused(path: Path) -> None:
    """A log that lacks a table is no log."""
    async with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE used")
    assert "is damaged" in await refused(path)


@pytest.mark.parametrize("damage", ["cut off", "overwritten", "one page"])
async def test_a_damaged_file_is_refused(path: Path, damage: str) -> None:
    """A file cut off, or with pages overwritten, is found at open."""
    async with opened(path) as log:
        await log.append(events(500, size=500))
    content = content_of(path)
    half = len(content) // 2 // 8192 * 8192
    damaged = {
        "cut off": content[:half],
        "overwritten": content[:8192] + b"\xa5" * (len(content) - 8192),
        "one page": content[:half] + b"\xa5" * 8192 + content[half + 8192 :],
    }
    fill(path, damaged[damage])
    assert "is damaged" in await refused(path)


async def test_a_directory_and_a_missing_directory_are_refused(tmp_path: Path) -> None:
    """Where no file can be, the message names the path."""
    assert "is a directory" in await refused(tmp_path)
    assert "cannot be opened" in await refused(tmp_path / "missing" / "log.db")


async def test_after_a_refusal_the_lock_is_free(path: Path) -> None:
    """A log that could not be opened holds nothing: it opens as soon as the file is right, empty for one."""
    fill(path, b"no database at all" * 100)
    await refused(path)
    fill(path, b"")
    async with opened(path) as log:
        assert await log.check() is None


async def test_damage_met_later_is_an_error_of_that_call(path: Path) -> None:
    """A page that went bad while the log is open fails what needs it, `check` says so, other calls go on."""
    async with opened(path) as log:
        await log.append(events(2000, size=500))
    async with opened(path) as log:
        fd = os.open(path, os.O_WRONLY)  # closed after the log: closing it would drop SQLite's own locks
        try:
            for page in range(20, os.fstat(fd).st_size // 8192):
                os.pwrite(fd, b"\xa5" * 8192, page * 8192)
            with pytest.raises(LogUnavailableError, match="malformed"):
                await read_all(log)
            assert "malformed" in (await log.check() or "")
            assert await log.revocations() == []
        finally:
            await log.close()
            os.close(fd)


# Failures that pass


async def test_a_full_disk_refuses_and_recovers(path: Path) -> None:
    """While the disk is full appends are refused as a whole; afterwards they go on without a hole."""
    announced: list[Entry] = []
    async with opened(path, announced) as log:
        await log.append(events(10))
        with log._pool.lease() as db:
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            db.execute(f"PRAGMA max_page_count = {pages}")
        waiting = [log.append(events(100, start=100 * n, size=1000)) for n in range(1, 5)]
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in results] == [LogUnavailableError] * 4
        assert str(path) in str(results[0])
        assert "full" in str(results[0])
        assert "full" in (await log.check() or "")
        assert (log.head, len(announced), log._stats.waiting) == (10, 10, 0)
        with log._pool.lease() as db:
            db.execute("PRAGMA max_page_count = 1000000")
        assert await log.check() is None
        assert await log.append(events(100, start=100)) == Appended(100, 0, 110)
        page = await log.read(0, 1000)
    assert [entry.offset for entry in page.entries] == list(range(1, 111))
    assert [entry.offset for entry in announced] == list(range(1, 111))


async def test_a_foreign_lock_refuses_and_recovers(path: Path) -> None:
    """While another program writes to the file appends are refused, reads are answered, and both go on after."""
    async with opened(path) as log:
        await log.append(events(3))
        with log._pool.lease() as db:
            db.execute("PRAGMA busy_timeout = 0")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LogUnavailableError, match="locked"):
                await log.append(events(1, start=3))
            assert "locked" in (await log.check() or "")
            assert len((await log.read(0, 9)).entries) == 3
            other.execute("ROLLBACK")
        assert await log.check() is None
        assert (await log.append(events(1, start=3))).offset == 4


async def test_a_fault_of_our_own_stops_neither_the_thread_nor_others(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever fails within a transaction, those who wait hear of it and the next one works."""
    async with opened(path) as log:
        with pytest.raises(LogUnavailableError):
            await log.append([Event("/s", "a", "order.x", "o", cast(Any, None), b"no JSON")])
        assert any(record.exc_info for record in caplog.records)
        assert (await log.append(events(1))).offset == 1


# The index


async def test_the_index_is_built_anew_for_other_paths(path: Path) -> None:
    """Other paths at the next start find what was stored before, behind the log's own retention too."""
    clock = Clock()
    async with opened(path, retention=Retention(age=10), now=clock) as log:
        await log.append(
            [event("a", "o-1", customerId="c-1", status="paid"), event("b", "o-2", status="new")]
        )
        await log.append([event("c", "o-1", type="note.added", status="paid")])
        clock.seconds += 60
        while log.first != 4:
            await log.use_once("t", 0)
        await log.append([event("d", "o-3", status="paid")])
    lookup = ("data.status", frozenset({"s:paid"}))
    async with opened(path, index=("data.status",), now=clock) as log:
        assert [e.offset for e in await log.latest(lookup, after=0, upto=9, limit=9)] == [3, 4]
        assert [e.offset for e in await log.latest(lookup, after=0, upto=9, limit=9, orders=True)] == [1, 4]
        await log.append([event("e", "o-3", status="new")])
        assert [e.offset for e in await log.latest(lookup, after=0, upto=9, limit=9)] == [3]
    with contextlib.closing(sqlite3.connect(path)) as db:
        plan = db.execute("SELECT count(*) FROM keys WHERE offset NOT IN (SELECT offset FROM latest)")
        assert plan.fetchone() == (0,)


async def test_the_index_has_exactly_the_latest_events(path: Path) -> None:
    """After updates, displaced orders and eviction no entry of the index is left over or missing."""
    clock = Clock()
    retention = Retention(events=50, latest_age=100)
    async with opened(path, retention=retention, now=clock) as log:
        for n in range(40):
            kinds = ("order.created", "note.added", "order.updated")
            batch = [
                event(f"{n}-{m}", f"o-{(n * m) % 23}", type=kinds[(n + m) % 3], customerId=f"c-{(n + m) % 5}")
                for m in range(9)
            ]
            clock.seconds += 7
            await log.append(batch)
    with contextlib.closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT path, count(*), count(DISTINCT offset) FROM keys GROUP BY path").fetchall()
        (count,) = db.execute("SELECT count(*) FROM latest").fetchone()
        (behind,) = db.execute("SELECT count(*) FROM latest WHERE behind").fetchone()
        orphans = db.execute("SELECT count(*) FROM keys WHERE offset NOT IN (SELECT offset FROM latest)")
        assert orphans.fetchone() == (0,)
    assert rows == [(0, count, count)]
    assert 0 < behind < count


def latest_rows(bodies: list[tuple[str, str, str]]) -> dict[tuple[str, int], tuple[int, str, str]]:
    """What `latest` has to hold after events (subject, type, customer): (offset, type, key) by subject and place."""
    rows: dict[tuple[str, int], tuple[int, str, str]] = {}
    for offset, (subject, type_, customer) in enumerate(bodies, 1):
        before = rows.get((subject, 0))
        if type_.startswith("order."):
            rows.pop((subject, 1), None)
        elif before is not None and before[1].startswith("order."):
            rows[subject, 1] = before
        rows[subject, 0] = (offset, type_, customer)
    return rows


@pytest.mark.parametrize("seed", range(6))
async def test_the_tables_hold_what_plain_python_gives(path: Path, seed: int) -> None:
    """Whatever comes in one transaction: new and known subjects, duplicates, orders displaced and back again."""
    dice = random.Random(seed)
    bodies: list[tuple[str, str, str]] = []
    ids: list[str] = []
    async with opened(path) as log:
        for _ in range(40):
            batch = []
            for _ in range(dice.choice([1, 2, 9, 40])):
                id_ = f"e{len(ids)}"
                if ids and dice.random() < 0.02:
                    id_ = dice.choice(ids)
                subject, customer = f"o-{dice.randrange(30)}", f"c-{dice.randrange(3)}"
                type_ = dice.choice(["order.created", "order.updated", "note.added"])
                batch.append(event(id_, subject, type=type_, customerId=customer))
                if id_ not in ids:
                    ids.append(id_)
                    bodies.append((subject, type_, customer))
            cut = dice.randrange(len(batch) + 1)  # two appends, which may share a transaction or not
            await asyncio.gather(log.append(batch[:cut]), log.append(batch[cut:]))
    rows = latest_rows(bodies)
    with contextlib.closing(sqlite3.connect(path)) as db:
        found = db.execute("SELECT subject, behind, offset, type, is_order FROM latest").fetchall()
        keys = db.execute("SELECT offset, key FROM keys").fetchall()
    assert {(subject, behind): (offset, type_) for subject, behind, offset, type_, _ in found} == {
        place: (offset, type_) for place, (offset, type_, _) in rows.items()
    }
    assert all(bool(is_order) == type_.startswith("order.") for _, _, _, type_, is_order in found)
    assert sorted(keys) == sorted((offset, f"s:{customer}") for offset, _, customer in rows.values())


# Bounds


async def test_retention_takes_few_rows_at_a_time(path: Path) -> None:
    """One step takes out a few hundred rows of each kind, or twice as many as were just appended."""
    async with opened(path, retention=Retention()) as log:
        for n in range(4):
            await log.append(events(1000, start=1000 * n))
    db = connect(str(path))
    with contextlib.closing(db):
        retainer = Retainer(Retention(events=0, latest_age=0), lambda: 1 << 60, 1)
        firsts = []
        for appended in (0, 10, 1000, 0):
            retainer.step(db, 4000, 5, appended)
            firsts.append(retainer.first)
            assert retainer.is_due(4000)
        assert firsts == [1 + STEP, 1 + 2 * STEP, 2001 + 2 * STEP, 2001 + 3 * STEP]
        assert db.execute("SELECT count(*) FROM events").fetchone() == (2000 - 3 * STEP,)


async def test_answers_and_tokens_are_forgotten(path: Path) -> None:
    """Stored answers go after 24 hours, tokens after their seconds: neither table grows for ever."""
    clock = Clock()
    async with opened(path, now=clock) as log:
        for n in range(10):
            await log.remember(Remember(f"k{n}", b"", Reply(200, {}, b"")))
            await log.use_once(f"t{n}", 30)
        clock.seconds += 86_400
        for _ in range(2):  # retention follows each write
            await log.use_once("last", 30)
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM remembered").fetchone() == (0,)
        assert db.execute("SELECT token FROM used").fetchall() == [("last",)]


async def test_the_write_ahead_log_stays_bounded_while_others_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers that follow each other without a pause do not let the file beside the log grow."""
    bound = 4 << 20
    monkeypatch.setattr(_writer, "WAL_BYTES", bound)
    monkeypatch.setattr(_writer, "_WAL_LOOK_BYTES", 1 << 20)
    wal = path.with_name("log.db-wal")
    async with opened(path) as log:
        done = False

        async def read_on() -> int:
            pages = 0
            while not done:
                pages += bool((await log.read(max(0, log.head - 50), 50)).entries)
            return pages

        readers = [asyncio.create_task(read_on()) for _ in range(4)]
        largest = 0
        for n in range(80):
            await log.append(events(100, start=100 * n, size=4000))
            largest = max(largest, wal.stat().st_size)
        done = True
        assert sum(await asyncio.gather(*readers)) > 0
    assert largest < 4 * bound
    assert not wal.exists()
