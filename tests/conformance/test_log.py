"""What every log does, whatever it stores into. A new implementation is one line in IMPLEMENTATIONS."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.event import Event
from gateway.filters import keys_at
from gateway.log import (
    Appended,
    ConflictError,
    DeadLetter,
    Entry,
    Expect,
    Fence,
    KeyTakenError,
    Log,
    LogStats,
    LogUnavailableError,
    Lookup,
    OnAppend,
    Remember,
    Reply,
    Retention,
    Revocation,
)
from gateway.log.redis import RedisLog
from gateway.log.sqlite import SqliteLog
from gateway.redis_clients import RedisClients
from tests.support.redis_server import RedisCluster, RedisServer

INDEX = ("data.customerId", "data.items.*.sku")


@dataclass(slots=True)
class Clock:
    """Seconds since 1970, moved by the test."""

    seconds: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass(frozen=True, slots=True)
class Setup:
    """What a log is made with."""

    directory: Path
    clock: Clock
    retention: Retention
    stats: LogStats
    redis_url: str


def sqlite_file(setup: Setup) -> Log:
    return SqliteLog(
        str(setup.directory / "log.db"),
        retention=setup.retention,
        index=INDEX,
        now=setup.clock,
        stats=setup.stats,
    )


def sqlite_memory(setup: Setup) -> Log:
    return SqliteLog(None, retention=setup.retention, index=INDEX, now=setup.clock, stats=setup.stats)


def redis(setup: Setup) -> Log:
    return RedisLog(
        RedisClients(setup.redis_url),
        retention=setup.retention,
        index=INDEX,
        now=setup.clock,
        stats=setup.stats,
    )


IMPLEMENTATIONS: dict[str, Callable[[Setup], Log]] = {
    "sqlite file": sqlite_file,
    "sqlite memory": sqlite_memory,
    "redis": redis,
    "redis cluster": redis,
}


@dataclass(slots=True)
class Bench:
    """An open log, its clock, and all that it has announced."""

    log: Log
    clock: Clock
    stats: LogStats
    announced: list[Entry] = field(default_factory=list)

    async def append(self, *events: Event, **kwargs: Any) -> Appended:
        return await self.log.append(events, **kwargs)

    async def settle(self, first: int) -> None:
        """Waits until retention has done what is due: it follows each write, and `first` tells."""
        for _ in range(2):
            await self.log.use_once("settle", 0)
        async with asyncio.timeout(30):
            while self.log.first != first:
                await self.log.use_once("settle", 0)


Open = Callable[..., Awaitable[Bench]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def redis_url(request: pytest.FixtureRequest) -> str:
    """Where an empty Redis is, for an implementation that needs one."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        return server.url
    if request.param == "redis cluster":
        nodes: RedisCluster = request.getfixturevalue("cluster")
        for node in nodes.nodes:
            node.call("FLUSHALL")
        return nodes.url
    return ""


@pytest.fixture(params=IMPLEMENTATIONS)
async def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    url = redis_url(request)
    opened: list[Log] = []

    async def open_(retention: Retention | None = None, on_append: OnAppend | None = None) -> Bench:
        clock, stats = Clock(), LogStats()
        setup = Setup(tmp_path, clock, retention or Retention(), stats, url)
        bench = Bench(IMPLEMENTATIONS[request.param](setup), clock, stats)
        await bench.log.open(on_append or bench.announced.extend)
        opened.append(bench.log)
        return bench

    yield open_
    for log in opened:
        await log.close()


def event(
    id: str,  # noqa: A002 -- the attribute's name
    subject: str | None = None,
    *,
    type: str = "order.updated",  # noqa: A002 -- the attribute's name
    source: str = "/events",
    **data: Any,
) -> Event:
    body: dict[str, Any] = {"id": id, "source": source, "type": type, "data": data}
    if subject is not None:
        body["subject"] = subject
    return Event(source, id, type, subject, body, orjson.dumps(body))


def told(entry: Entry) -> tuple[int, int, int, bytes]:
    return entry.offset, entry.prev, entry.accepted, entry.json


# Appending and reading


async def test_a_new_log_is_empty_and_has_an_identity(open_log: Open) -> None:
    """A new log has an epoch, a secret, no head, and answers every question with nothing."""
    log = (await open_log()).log
    assert 1 <= len(log.epoch) <= 16
    assert set(log.epoch) <= set("0123456789abcdefghijklmnopqrstuvwxyz")
    assert len(log.secret) == 32
    assert (log.first, log.head) == (1, 0)
    page = await log.read(0, 10)
    assert (page.first, page.head, list(page.entries)) == (1, 0, [])
    assert await log.latest(None, after=0, upto=99, limit=9) == []
    assert await log.get([1, 2]) == {}
    assert await log.order("o-1") is None
    assert await log.offset_at(0) == 0
    assert await log.check() is None


async def test_an_append_is_announced_before_it_returns_and_can_be_read(open_log: Open) -> None:
    """Offsets are dense from 1; the announced entry is the stored one and knows its predecessor's JSON."""
    bench = await open_log()
    events = [event("a", "o-1", status="new"), event("b"), event("c", "o-1", status="paid")]
    appended = await bench.append(*events)
    assert appended == Appended(3, 0, 3)
    assert [entry.offset for entry in bench.announced] == [1, 2, 3]
    assert [entry.prev for entry in bench.announced] == [0, 0, 1]
    assert [entry.previous for entry in bench.announced] == [None, None, events[0].json]
    assert bench.announced[2].body is events[2].body
    page = await bench.log.read(0, 10)
    assert [told(entry) for entry in page.entries] == [told(entry) for entry in bench.announced]
    assert (page.first, page.head, bench.log.head) == (1, 3, 3)


async def test_it_is_told_when_events_are_in_the_log(open_log: Open) -> None:
    """Once, before the append returns, also where they were there already; never for an append that is refused."""
    bench = await open_log()
    told: list[str] = []
    stored = asyncio.Event()
    first = asyncio.create_task(bench.append(event("a", "o-1"), on_stored=stored.set))
    await stored.wait()
    second = await bench.append(event("b"), on_stored=lambda: told.append("b"))
    assert (await first, second) == (Appended(1, 0, 1), Appended(1, 0, 2))
    assert await bench.append(event("b"), on_stored=lambda: told.append("b again")) == Appended(0, 1, 2)
    with pytest.raises(ConflictError):
        await bench.append(event("c", "o-1"), expect=Expect("o-1", 7), on_stored=lambda: told.append("c"))
    assert told == ["b", "b again"]


async def test_duplicates_keep_their_first_place(open_log: Open) -> None:
    """An event already in the log, or twice in one append, counts once; the offset is the highest of all."""
    bench = await open_log()
    await bench.append(event("a", "o-1"), event("b", "o-1"), event("c", "o-1"))
    assert await bench.append(event("a", "o-1"), event("b", "o-1")) == Appended(0, 2, 2)
    assert await bench.append(event("c"), event("d"), event("d")) == Appended(1, 2, 4)
    assert await bench.append(event("a", source="/other")) == Appended(1, 0, 5)
    assert await bench.append() == Appended(0, 0, 5)
    assert [entry.offset for entry in bench.announced] == [1, 2, 3, 4, 5]


async def test_text_is_kept_as_it_is(open_log: Open) -> None:
    """Ids and subjects are compared code point by code point: NUL, quotes and astral planes included."""
    bench = await open_log()
    names = ["a", "a\0", "a\0b", "A", "ä", "a\u0308", "\U0001f6d2", '"', "'); --", "%", "é" * 5000]
    assert await bench.append(*[event(name, name) for name in names]) == Appended(len(names), 0, len(names))
    assert await bench.append(*[event(name, name) for name in names]) == Appended(0, len(names), len(names))
    offsets = {name: number for number, name in enumerate(names, 1)}
    assert await bench.log.latest_offsets([*names, "nobody"]) == offsets
    for name in names:
        lookup = ("subject", frozenset({"s:" + name}))
        assert [e.subject for e in await bench.log.latest(lookup, after=0, upto=99, limit=9)] == [name]


async def test_an_expectation_that_does_not_hold_appends_nothing(open_log: Open) -> None:
    """`expect` is about the subject's latest order event, whatever else came after it."""
    bench = await open_log()
    with pytest.raises(ConflictError):
        await bench.append(event("a", "o-1"), expect=Expect("o-1", 7))
    await bench.append(event("a", "o-1"), expect=Expect("o-1", 0))
    await bench.append(event("b", "o-1", type="note.added"))
    with pytest.raises(ConflictError):
        await bench.append(event("c", "o-1"), expect=Expect("o-1", 2))
    assert await bench.append(event("d", "o-1"), expect=Expect("o-1", 1)) == Appended(1, 0, 3)
    assert bench.log.head == 3
    assert [entry.body["id"] for entry in bench.announced] == ["a", "b", "d"]


async def test_of_rivals_with_one_expectation_one_wins(open_log: Open) -> None:
    """Appends at the same time that expect the same place: the first goes in, the others conflict."""
    bench = await open_log()
    rivals = [bench.append(event(f"e{n}", "o-1"), expect=Expect("o-1", 0)) for n in range(20)]
    results = await asyncio.gather(*rivals, return_exceptions=True)
    assert [type(result) for result in results].count(Appended) == 1
    assert [type(result) for result in results].count(ConflictError) == 19
    assert bench.log.head == 1


async def test_a_failing_listener_loses_no_answer(open_log: Open, caplog: pytest.LogCaptureFixture) -> None:
    """Where `on_append` raises, the append returns all the same, and the log says so."""

    def fail(_entries: Sequence[Entry]) -> None:
        raise ZeroDivisionError

    bench = await open_log(on_append=fail)
    with caplog.at_level(logging.ERROR):
        assert (await bench.append(event("a"))).accepted == 1
    assert bench.log.head == 1
    assert any(record.exc_info for record in caplog.records)


async def test_a_cancelled_append_is_stored_as_a_whole_or_not_at_all(open_log: Open) -> None:
    """Who stops waiting takes nothing out of the log, and later appends are not disturbed."""
    bench = await open_log()
    tasks = [
        asyncio.create_task(bench.append(*[event(f"{n}-{m}", "o-1") for m in range(10)])) for n in range(20)
    ]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await bench.append(event("last"))
    ids = [entry.body["id"] for entry in (await bench.log.read(0, 1000)).entries]
    assert ids == [entry.body["id"] for entry in bench.announced]
    kept = [n for n in range(20) if f"{n}-0" in ids]
    assert ids == [f"{n}-{m}" for n in kept for m in range(10)] + ["last"]
    assert set(range(1, 20, 2)) <= set(kept)


async def test_many_at_once(open_log: Open) -> None:
    """Dense offsets, each caller's order kept, every entry announced once, in order, before callers and readers."""
    bench = await open_log()
    seen = 0

    async def publish(caller: int) -> list[int]:
        nonlocal seen
        offsets = []
        for n in range(25):
            size = 1 + (n + caller) % 3
            batch = [event(f"{caller}-{n}-{m}", f"o-{caller % 4}") for m in range(size)]
            appended = await bench.append(*batch)
            assert bench.log.head >= appended.offset
            assert bench.announced[appended.offset - 1].body is batch[-1].body
            offsets.append(appended.offset)
            seen += size
        return offsets

    async def read_on() -> None:
        while True:
            page = await bench.log.read(max(0, bench.log.head - 10), 1000)
            assert len(bench.announced) >= page.head
            assert [entry.offset for entry in page.entries][-1:] in ([], [page.head])

    async def watch() -> None:
        while True:
            assert len(bench.announced) == bench.log.head
            await asyncio.sleep(0)

    watchers = [asyncio.create_task(read_on()), asyncio.create_task(watch())]
    for offsets in await asyncio.gather(*(publish(caller) for caller in range(24))):
        assert offsets == sorted(offsets)
    for watcher in watchers:
        assert not watcher.done()
        watcher.cancel()
    assert [entry.offset for entry in bench.announced] == list(range(1, seen + 1))
    assert bench.stats.waiting == 0
    stored = [entry for page in range(0, seen, 500) for entry in (await bench.log.read(page, 500)).entries]
    assert [told(entry) for entry in stored] == [told(entry) for entry in bench.announced]
    last: dict[str | None, Entry] = {}
    for entry in bench.announced:
        before = last.get(entry.subject)
        assert (entry.prev, entry.previous) == ((before.offset, before.json) if before else (0, None))
        last[entry.subject] = entry


async def test_more_than_may_wait_is_written_in_order(open_log: Open) -> None:
    """Appends beyond the memory that waiting ones may take are held back, not refused, and keep their order."""
    bench = await open_log()
    text = "x" * (9 << 20)
    tasks = [bench.append(event(f"e{n}", text=text if n % 3 else "")) for n in range(16)]
    assert [appended.offset for appended in await asyncio.gather(*tasks)] == list(range(1, 17))


async def test_commits_are_counted(open_log: Open) -> None:
    """The time of each commit is observed, and nothing waits after it."""
    bench = await open_log()
    seconds: list[float] = []
    bench.stats.observe_append = seconds.append
    await bench.append(event("a"))
    assert len(seconds) == 1
    assert seconds[0] > 0
    assert bench.stats.waiting == 0


# Latest events


async def test_orders_are_found_behind_later_events_of_other_types(open_log: Open) -> None:
    """`orders` tells the latest order event of each subject, `latest` the latest of any type."""
    bench = await open_log()
    await bench.append(
        event("a", "o-1", customerId="c-1"),
        event("b", "o-2", customerId="c-2"),
        event("c", "o-1", type="note.added", customerId="c-9"),
        event("d", "o-1", type="note.added"),
        event("e", "o-3", type="note.added"),
    )

    async def ids(lookup: Lookup | None = None, **kwargs: Any) -> list[str]:
        entries = await bench.log.latest(lookup, after=0, upto=99, limit=9, **kwargs)
        return [entry.body["id"] for entry in entries]

    assert await ids() == ["b", "d", "e"]
    assert await ids(orders=True) == ["a", "b"]
    assert await ids(orders=True, newest_first=True) == ["b", "a"]
    assert await ids(("data.customerId", frozenset({"s:c-1"}))) == []
    assert await ids(("data.customerId", frozenset({"s:c-1"})), orders=True) == ["a"]
    assert await ids(("subject", frozenset({"s:o-1"}))) == ["d"]
    assert await ids(("subject", frozenset({"s:o-1", "17"})), orders=True) == ["a"]
    assert await ids(("type", frozenset({"s:note.added"}))) == ["d", "e"]
    found = await bench.log.order("o-1")
    assert found is not None
    assert found.body["id"] == "a"
    await bench.append(event("f", "o-1", customerId="c-1"))
    assert await ids(orders=True) == ["b", "f"]
    assert await ids(("data.customerId", frozenset({"s:c-1"}))) == ["f"]


async def test_a_lookup_without_an_index_leaves_nothing_out(open_log: Open) -> None:
    """By a path that is not indexed all latest events are told; with no keys at all none fits."""
    bench = await open_log()
    await bench.append(event("a", "o-1", status="new"), event("b", "o-2", status="paid"))
    lookup = ("data.status", frozenset({"s:paid"}))
    assert {e.offset for e in await bench.log.latest(lookup, after=0, upto=9, limit=9)} >= {2}
    assert await bench.log.latest(("type", frozenset()), after=0, upto=9, limit=9) == []


# Idempotency, tickets, revocations


def remember(key: str, *, digest: bytes = b"d", appended: Appended | None = None) -> Remember:
    return Remember(key, digest, Reply(201, {"Location": "/orders/ö"}, b'{"a":1}', appended))


async def test_an_answer_is_stored_with_its_effect(open_log: Open) -> None:
    """What an append did stands in a remembered reply that tells it; a taken key appends nothing."""
    bench = await open_log()
    assert await bench.log.recall("k") is None
    appended = await bench.append(event("a"), remember=remember("k", appended=Appended(0, 0, 0)))
    remembered = await bench.log.recall("k")
    assert remembered is not None
    assert remembered.digest == b"d"
    assert remembered.reply == Reply(201, {"Location": "/orders/ö"}, b'{"a":1}', appended)
    assert appended == Appended(1, 0, 1)
    with pytest.raises(KeyTakenError):
        await bench.append(event("b"), remember=remember("k"))
    with pytest.raises(ConflictError):
        await bench.append(event("c"), expect=Expect("o", 5), remember=remember("k2"))
    assert await bench.log.recall("k2") is None
    assert bench.log.head == 1


async def test_an_answer_without_effect_is_stored_for_a_day(open_log: Open) -> None:
    """A reply can be stored alone; its key is free again after 24 hours, and not before."""
    bench = await open_log()
    await bench.log.remember(remember("k"))
    remembered = await bench.log.recall("k")
    assert remembered is not None
    assert remembered.reply.appended is None
    with pytest.raises(KeyTakenError):
        await bench.log.remember(remember("k"))
    bench.clock.seconds += 86_399
    assert await bench.log.recall("k") is not None
    bench.clock.seconds += 1
    assert await bench.log.recall("k") is None
    await bench.log.remember(remember("k", digest=b"other"))
    again = await bench.log.recall("k")
    assert again is not None
    assert again.digest == b"other"


async def test_of_rivals_with_one_key_one_wins(open_log: Open) -> None:
    """Requests at the same time under one key: one has its effect, the others hear that it is taken."""
    bench = await open_log()
    rivals = [bench.append(event(f"e{n}"), remember=remember("k", digest=b"%d" % n)) for n in range(20)]
    results = await asyncio.gather(*rivals, return_exceptions=True)
    winners = [n for n, result in enumerate(results) if isinstance(result, Appended)]
    assert len(winners) == 1
    assert [type(result) for result in results].count(KeyTakenError) == 19
    remembered = await bench.log.recall("k")
    assert remembered is not None
    assert remembered.digest == b"%d" % winners[0]
    assert [entry.body["id"] for entry in bench.announced] == [f"e{winners[0]}"]


async def test_a_token_is_used_once_until_it_is_forgotten(open_log: Open) -> None:
    """`use_once` is true for the first of many, and again when its seconds have passed."""
    bench = await open_log()
    uses = await asyncio.gather(*(bench.log.use_once("t", 30) for _ in range(10)))
    assert sorted(uses) == [False] * 9 + [True]
    bench.clock.seconds += 29
    assert not await bench.log.use_once("t", 30)
    bench.clock.seconds += 1
    assert await bench.log.use_once("t", 30)


async def test_revocations_are_kept(open_log: Open) -> None:
    """A later revocation of the same replaces the earlier, never the reverse, and may carry a remembered reply."""
    bench = await open_log()
    await bench.log.revoke(Revocation("jti", "a", 10.5))
    await bench.log.revoke(Revocation("sub", "a", 20.0), remember=remember("k"))
    await bench.log.revoke(Revocation("jti", "a", 30.25))
    await bench.log.revoke(Revocation("jti", "a", 5.0))
    with pytest.raises(KeyTakenError):
        await bench.log.revoke(Revocation("sub", "b", 1.0), remember=remember("k"))
    assert set(await bench.log.revocations()) == {Revocation("jti", "a", 30.25), Revocation("sub", "a", 20.0)}
    assert await bench.log.recall("k") is not None


# Time and retention


async def test_times_never_decrease(open_log: Open) -> None:
    """A clock that is set back does not reorder the log: `accepted` stays, `offset_at` finds the place."""
    bench = await open_log()
    await bench.append(event("a"))
    bench.clock.seconds -= 100
    await bench.append(event("b"))
    bench.clock.seconds += 200
    await bench.append(event("c"))
    times = [entry.accepted for entry in bench.announced]
    assert times == [1_700_000_000_000_000, 1_700_000_000_000_000, 1_700_000_100_000_000]
    assert await bench.log.offset_at(0) == 0
    assert await bench.log.offset_at(times[0]) == 0
    assert await bench.log.offset_at(times[0] + 1) == 2
    assert await bench.log.offset_at(times[2]) == 2
    assert await bench.log.offset_at(times[2] + 1) == 3


async def test_what_is_too_much_goes_oldest_first(open_log: Open) -> None:
    """The log keeps the newest events; an evicted one may come again, and is new."""
    bench = await open_log(Retention(events=3))
    await bench.append(*[event(f"e{n}", "o-1") for n in range(5)])
    await bench.settle(3)
    page = await bench.log.read(0, 10)
    assert (page.first, page.head, [e.offset for e in page.entries]) == (3, 5, [3, 4, 5])
    assert set(await bench.log.get([1, 2, 3, 5, 6])) == {3, 5}
    assert await bench.append(event("e0"), event("e4")) == Appended(1, 1, 6)


async def test_the_latest_outlives_the_log(open_log: Open) -> None:
    """Evicted from the log, a subject's latest events stay until they are too old themselves."""
    bench = await open_log(Retention(age=100, latest_age=1000))
    await bench.append(event("a", "o-1", customerId="c-1"), event("b", "o-1", type="note.added"))
    bench.clock.seconds += 200
    await bench.settle(3)
    assert (await bench.log.read(0, 9)).entries == []
    assert bench.log.head == 2
    assert [e.offset for e in await bench.log.latest(None, after=0, upto=9, limit=9)] == [2]
    lookup = ("data.customerId", frozenset({"s:c-1"}))
    assert [e.offset for e in await bench.log.latest(lookup, after=0, upto=9, limit=9, orders=True)] == [1]
    await bench.append(event("c", "o-1", type="note.added"))
    assert bench.announced[-1].prev == 2
    assert bench.announced[-1].previous == bench.announced[1].json
    bench.clock.seconds += 900
    await bench.settle(4)
    assert await bench.log.latest(None, after=0, upto=9, limit=9, orders=True) == []
    assert await bench.log.order("o-1") is None
    assert [e.offset for e in await bench.log.latest(None, after=0, upto=9, limit=9)] == [3]
    bench.clock.seconds += 900
    await bench.settle(4)
    assert await bench.log.latest(None, after=0, upto=9, limit=9) == []
    await bench.append(event("d", "o-1"))
    assert (bench.announced[-1].offset, bench.announced[-1].prev) == (4, 0)


async def test_appends_go_on_while_much_is_taken_out(open_log: Open) -> None:
    """A log that has thousands of events too many takes new ones meanwhile and ends where it should."""
    bench = await open_log(Retention(age=100))
    for n in range(10):
        await bench.append(*[event(f"old-{n}-{m}", f"o-{m % 50}") for m in range(1000)])
    bench.clock.seconds += 200
    await asyncio.gather(*(bench.append(event(f"new-{n}", "o-1")) for n in range(100)))
    await bench.settle(10_001)
    page = await bench.log.read(0, 1000)
    assert [entry.offset for entry in page.entries] == list(range(10_001, 10_101))


async def test_a_closed_log_refuses(open_log: Open) -> None:
    """After `close` every call says that the log is closed; closing again does nothing."""
    bench = await open_log()
    await bench.append(event("a"))
    await bench.log.close()
    await bench.log.close()
    with pytest.raises(LogUnavailableError, match="closed"):
        await bench.append(event("b"))
    with pytest.raises(LogUnavailableError, match="closed"):
        await bench.log.read(0, 1)
    assert "closed" in (await bench.log.check() or "")


async def test_close_writes_what_was_accepted(open_log: Open) -> None:
    """Appends that wait when the log is closed are written, and their callers hear it."""
    bench = await open_log()
    tasks = [asyncio.create_task(bench.append(event(f"e{n}"))) for n in range(50)]
    await asyncio.sleep(0)
    await bench.log.close()
    assert [appended.offset for appended in await asyncio.gather(*tasks)] == list(range(1, 51))


# Leases


async def test_a_lease_is_proof_for_writes(open_log: Open) -> None:
    """One that nobody holds is granted, renewed by asking again, and what is stored with it is stored."""
    bench = await open_log()
    fence = await bench.log.lease("ingest", 60)
    assert fence is not None
    assert fence.name == "ingest"
    assert await bench.append(event("a"), fence=fence) == Appended(1, 0, 1)
    await bench.log.bury([letter("x")], fence=fence)
    renewed = await bench.log.lease("ingest", 60)
    assert renewed is not None
    assert await bench.append(event("b"), fence=renewed) == Appended(1, 0, 2)
    assert await bench.log.dead_letter("x") == letter("x")


async def test_a_released_lease_can_be_had_again(open_log: Open) -> None:
    """At once; to release what is no longer one's own does nothing."""
    bench = await open_log()
    first = await bench.log.lease("ingest", 60)
    assert first is not None
    await bench.log.release(first)
    second = await bench.log.lease("ingest", 60)
    assert second is not None
    await bench.log.release(Fence("ingest", second.token + 1))
    assert await bench.append(event("a"), fence=second) == Appended(1, 0, 1)


async def test_the_note_of_a_lease_outlives_it(open_log: Open) -> None:
    """It is the one that was given last, each lease has its own, and there is none before."""
    log = (await open_log()).log
    assert await log.lease_note("ingest") == ""
    await log.lease("other", 60, "o")
    fence = await log.lease("ingest", 60, "first")
    assert await log.lease_note("ingest") == "first"
    fence = await log.lease("ingest", 60, "17-0 \U0001f6d2")
    assert fence is not None
    await log.release(fence)
    assert await log.lease_note("ingest") == "17-0 \U0001f6d2"
    assert await log.lease_note("other") == "o"


# Dead letters


def letter(
    id: str,  # noqa: A002 -- the field's name
    payload: bytes = b"{",
    *,
    origin: str = "redis:orders",
    reason: str = "not JSON",
    time: float = 1_700_000_000.125,
    tries: int = 1,
) -> DeadLetter:
    return DeadLetter(id, origin, "message", reason, time, tries, payload)


async def letters_of(log: Log, origin: str | None = None, limit: int = 100) -> list[DeadLetter]:
    """All of them, page by page."""
    found: list[DeadLetter] = []
    after = ""
    while page := await log.dead_letters(origin, after=after, limit=limit):
        assert len(page) <= limit
        found += page
        after = page[-1].id
    return found


async def test_a_log_without_letters_has_none(open_log: Open) -> None:
    """No question about letters is an error."""
    log = (await open_log()).log
    assert list(await log.dead_letters()) == []
    assert list(await log.dead_letters("redis:orders", after="x", limit=1)) == []
    assert await log.dead_letter("x") is None
    assert await log.unbury(["x"]) == 0
    assert await log.unbury([]) == 0
    await log.bury([])


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"\0", b"\xff\xfe\x00\r\n", bytes(range(256)), "ä\u2028\U0001f6d2".encode(), b"x" * 300_000],
)
async def test_a_letter_keeps_its_bytes(open_log: Open, payload: bytes) -> None:
    """Whatever they are, UTF-8 or not; and all that is known of it."""
    log = (await open_log()).log
    one = letter("x", payload, reason='it says "no":\n\U0001f6d2', time=1_700_000_000.123456, tries=3)
    await log.bury([one])
    assert await log.dead_letter("x") == one
    assert list(await log.dead_letters()) == [one]


async def test_the_same_id_replaces_a_letter(open_log: Open) -> None:
    """All of it, its origin too; of two in one call the later one stays."""
    log = (await open_log()).log
    await log.bury([letter("x", b"1"), letter("y")])
    newer = letter("x", b"22", origin="redis:other", reason="still not", tries=2, time=1_700_000_001.0)
    await log.bury([letter("x", b"0"), newer])
    assert await log.dead_letter("x") == newer
    assert await letters_of(log) == [newer, letter("y")]
    assert await letters_of(log, "redis:orders") == [letter("y")]
    assert await letters_of(log, "redis:other") == [newer]


async def test_letters_come_by_id_and_in_pages(open_log: Open) -> None:
    """In the order of code points, whenever they were buried; `after` need not be a letter."""
    log = (await open_log()).log
    ids = ["0", "A", "a", "a/b", "a\0", "a b", "aa", "b", "ä", "\ufb01", "\U0001f6d2"]
    for each in random.Random(1).sample(ids, len(ids)):
        await log.bury([letter(each)])
    expected = sorted(ids)
    assert [each.id for each in await log.dead_letters()] == expected
    for limit in (1, 2, 3, 100):
        assert [each.id for each in await letters_of(log, limit=limit)] == expected
    assert [each.id for each in await log.dead_letters(after="a0", limit=2)] == ["aa", "b"]


async def test_letters_of_one_origin(open_log: Open) -> None:
    """The origin is the whole word, not a prefix or a pattern."""
    log = (await open_log()).log
    origins = ["redis:orders", "redis:orders:eu", "redis:*", "webhook:7", "redis:ä"]
    await log.bury([letter(f"{n:03}", origin=origins[n % 5]) for n in range(50)])
    for number, origin in enumerate(origins):
        assert [each.id for each in await letters_of(log, origin, limit=3)] == [
            f"{n:03}" for n in range(number, 50, 5)
        ]
    assert await letters_of(log, "redis:") == []


async def test_pages_of_large_letters_are_short(open_log: Open) -> None:
    """So that no page needs much memory; one that is larger than a page comes alone, and none is left out."""
    log = (await open_log()).log
    letters = [letter(f"{n:02}", b"x" * (1 << 20)) for n in range(24)] + [letter("99", b"y" * (9 << 20))]
    for each in letters:
        await log.bury([each])
    page = await log.dead_letters()
    assert 1 <= len(page) <= 16
    assert list(await log.dead_letters(after="98")) == letters[-1:]
    assert await letters_of(log) == letters


async def test_unburied_letters_are_gone(open_log: Open) -> None:
    """Those that there were are counted, each once."""
    log = (await open_log()).log
    await log.bury([letter(f"{n:04}", origin=f"redis:{n % 2}") for n in range(500)])
    assert await log.unbury(["0000", "0001", "nobody", "0001"]) == 2
    assert await log.unbury([f"{n:04}" for n in range(490)]) == 488
    assert [each.id for each in await letters_of(log)] == [f"{n:04}" for n in range(490, 500)]
    assert [each.id for each in await letters_of(log, "redis:1")] == [f"{n:04}" for n in range(491, 500, 2)]


@pytest.mark.parametrize("retention", [Retention(letters=10), Retention(letter_bytes=10_000)])
async def test_the_oldest_letters_make_room(
    open_log: Open, retention: Retention, caplog: pytest.LogCaptureFixture
) -> None:
    """By their time, not their id; one line says so, however many they are."""
    log = (await open_log(retention)).log
    letters = [letter(f"{99 - n}", b"x" * 1000, time=1_700_000_000.0 + n) for n in range(30)]
    await log.bury(letters[:12])
    assert await letters_of(log) == letters[11:1:-1]
    for each in letters[12:]:
        await log.bury([each])
    assert await letters_of(log) == letters[:-11:-1]
    warnings = [each for each in caplog.records if "dead letters" in each.getMessage()]
    assert [each.levelno for each in warnings] == [logging.WARNING]


@pytest.mark.parametrize("seed", range(4))
async def test_letters_do_what_a_plain_dict_does(open_log: Open, seed: int) -> None:
    """Random burying, replacing, dropping and unburying leaves the letters that plain Python gives."""
    dice = random.Random(seed)
    retention = Retention(letters=15, letter_bytes=3000)
    log = (await open_log(retention)).log
    model: dict[str, DeadLetter] = {}
    for step in range(150):
        if dice.random() < 0.2:
            ids = [f"{dice.randrange(40):02}" for _ in range(dice.randint(1, 4))]
            assert await log.unbury(ids) == len({each for each in ids if model.pop(each, None)})
        else:
            buried = [
                letter(
                    f"{dice.randrange(40):02}",
                    dice.randbytes(dice.choice([0, 10, 100, 1000])),
                    origin=f"redis:{dice.randrange(3)}",
                    time=step + n / 10,
                )
                for n in range(dice.choice([1, 1, 2, 7]))
            ]
            await log.bury(buried)
            model |= {each.id: each for each in buried}
            keep_newest(model, retention)
        origin = dice.choice([None, "redis:1"])
        expected = [each for _, each in sorted(model.items()) if origin in (None, each.origin)]
        assert await letters_of(log, origin, limit=dice.choice([1, 4, 100])) == expected


def keep_newest(letters: dict[str, DeadLetter], retention: Retention) -> None:
    for oldest in sorted(letters.values(), key=lambda each: each.time):
        if (
            len(letters) <= retention.letters
            and sum(len(each.payload) for each in letters.values()) <= retention.letter_bytes
        ):
            return
        del letters[oldest.id]


# Against a model


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry as the model knows it."""

    offset: int
    prev: int
    accepted: int
    event: Event
    previous: bytes | None


@dataclass(slots=True)
class Model:
    """The log as plain Python, its retention at once."""

    retention: Retention
    clock: Clock
    entries: list[Stored] = field(default_factory=list)
    latest: dict[str, Stored] = field(default_factory=dict)
    orders: dict[str, Stored] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    head: int = 0
    accepted: int = 0

    @property
    def first(self) -> int:
        return self.entries[0].offset if self.entries else self.head + 1

    def now(self) -> int:
        return int(self.clock() * 1_000_000)

    def append(self, events: Sequence[Event], expect: Expect | None, key: str | None) -> Appended | type:
        if key in self.keys:
            return KeyTakenError
        order = self.orders.get(expect.subject) if expect else None
        if expect and expect.offset != (order.offset if order else 0):
            return ConflictError
        if key:
            self.keys.add(key)
        accepted, top = 0, 0 if events else self.head
        self.accepted = max(self.accepted, self.now())
        for each in events:
            places = [
                s.offset for s in self.entries if (s.event.source, s.event.id) == (each.source, each.id)
            ]
            if not places:
                self._put(each)
                accepted += 1
            top = max(top, *(places or [self.head]))
        return Appended(accepted, len(events) - accepted, top)

    def _put(self, each: Event) -> None:
        self.head += 1
        before = self.latest.get(each.subject) if each.subject else None
        stored = Stored(
            self.head,
            before.offset if before else 0,
            self.accepted,
            each,
            before.event.json if before else None,
        )
        self.entries.append(stored)
        if each.subject:
            self.latest[each.subject] = stored
            if each.type.startswith("order."):
                self.orders[each.subject] = stored

    def retain(self) -> None:
        cutoff = self.now() - int(self.retention.age * 1_000_000)
        while self.entries and (
            len(self.entries) > self.retention.events or self.entries[0].accepted < cutoff
        ):
            self.entries.pop(0)
        cutoff = self.now() - int(self.retention.latest_age * 1_000_000)
        for table in (self.latest, self.orders):
            for subject, stored in list(table.items()):
                if stored.offset < self.first and stored.accepted < cutoff:
                    del table[subject]

    def select(
        self, lookup: Lookup | None, *, after: int, upto: int, limit: int, newest_first: bool, orders: bool
    ) -> list[Stored]:
        found = [s for s in (self.orders if orders else self.latest).values() if after < s.offset <= upto]
        if lookup:
            found = [s for s in found if lookup[1] & set(_keys(s.event, lookup[0]))]
        return sorted(found, key=lambda s: s.offset, reverse=newest_first)[:limit]


def _keys(each: Event, path: str) -> list[str]:
    if path in ("subject", "type"):
        return [f"s:{each.subject if path == 'subject' else each.type}"]
    return keys_at(each.body, path)


def as_told(stored: Stored) -> tuple[int, int, int, bytes]:
    return stored.offset, stored.prev, stored.accepted, stored.event.json


class Play:
    """Random operations on a log and on the model, compared after each."""

    def __init__(self, bench: Bench, retention: Retention, seed: int) -> None:
        self.bench = bench
        self.model = Model(retention, bench.clock)
        self.dice = random.Random(seed)

    def event(self) -> Event:
        dice = self.dice
        skus = [{"sku": dice.choice("abc")} for _ in range(dice.randrange(4))]
        return event(
            f"e{dice.randrange(60)}",
            dice.choice([None, *(f"o-{n}" for n in range(6))]),
            type=dice.choice(["order.created", "order.updated", "note.added", "ordering"]),
            source=dice.choice(["/events", "/redis/x"]),
            customerId=dice.choice(["c-1", "c-2", 1, 1.0, None, True, ["c-1"]]),
            items=skus,
        )

    def lookup(self) -> Lookup | None:
        path, keys = self.dice.choice(
            [
                ("subject", [f"s:o-{n}" for n in range(6)]),
                ("type", ["s:order.created", "s:order.updated", "s:note.added", "s:ordering"]),
                (INDEX[0], ["s:c-1", "s:c-2", "1", "null", "true"]),
                (INDEX[1], ["s:a", "s:b", "s:c"]),
            ]
        )
        return self.dice.choice([None, (path, frozenset(self.dice.sample(keys, self.dice.randint(1, 3))))])

    async def step(self) -> None:
        if self.dice.random() < 0.2:
            self.bench.clock.seconds += self.dice.choice([1, 5, 60, 300])
        else:
            await self.append()
        self.model.retain()
        await self.bench.settle(self.model.first)
        await self.compare()

    async def append(self) -> None:
        events = [self.event() for _ in range(self.dice.choice([1, 1, 2, 5, 12]))]
        subject = f"o-{self.dice.randrange(6)}"
        stored = self.model.orders.get(subject)
        offset = self.dice.choice([stored.offset if stored else 0, self.dice.randint(0, self.model.head)])
        expect = self.dice.choice([None, None, Expect(subject, offset)])
        key = self.dice.choice([None, None, f"k{self.dice.randrange(40)}"])
        before = self.model.head
        expected = self.model.append(events, expect, key)
        try:
            got: Any = await self.bench.append(
                *events, expect=expect, remember=remember(key) if key else None
            )
        except (ConflictError, KeyTakenError) as refusal:
            got = type(refusal)
        assert got == expected
        new = [s for s in self.model.entries if s.offset > before]
        announced = self.bench.announced[before:]
        assert [told(e) for e in announced] == [as_told(s) for s in new]
        assert [e.previous for e in announced] == [s.previous for s in new]

    async def compare(self) -> None:
        log, model, dice = self.bench.log, self.model, self.dice
        assert log.head == model.head
        after, limit = dice.randint(0, model.head), dice.choice([1, 5, 1000])
        page = await log.read(after, limit)
        assert (page.first, page.head) == (model.first, model.head)
        expected = [s for s in model.entries if s.offset > after][:limit]
        assert [told(e) for e in page.entries] == [as_told(s) for s in expected]
        kept = {s.offset: as_told(s) for s in model.entries}
        offsets = [dice.randint(0, model.head + 1) for _ in range(5)]
        got = {offset: told(e) for offset, e in (await log.get(offsets)).items()}
        assert got == {offset: kept[offset] for offset in offsets if offset in kept}
        assert await log.latest_offsets([f"o-{n}" for n in range(7)]) == {
            subject: s.offset for subject, s in model.latest.items()
        }
        order = await log.order("o-1")
        assert (told(order) if order else None) == (
            as_told(model.orders["o-1"]) if "o-1" in model.orders else None
        )
        await self.compare_latest()
        await self.compare_times()

    async def compare_latest(self) -> None:
        dice, head = self.dice, self.model.head
        lookup = self.lookup()
        span: dict[str, Any] = {
            "after": dice.choice([0, dice.randint(0, head)]),
            "upto": dice.choice([head, dice.randint(0, head)]),
            "limit": dice.choice([1, 2, 1000]),
            "newest_first": dice.random() < 0.5,
            "orders": dice.random() < 0.5,
        }
        got = await self.bench.log.latest(lookup, **span)
        assert [told(e) for e in got] == [as_told(s) for s in self.model.select(lookup, **span)]

    async def compare_times(self) -> None:
        at = self.model.accepted - self.dice.choice([0, 1, 70_000_000, -1])
        later = [s.offset for s in self.model.entries if s.accepted >= at]
        assert await self.bench.log.offset_at(at) == (later[0] - 1 if later else self.model.head)


@pytest.mark.parametrize("seed", range(6))
async def test_it_does_what_a_plain_model_does(open_log: Open, seed: int) -> None:
    """Random appends, refusals, clock jumps and questions get the same answers as plain Python gives."""
    retention = Retention(events=20, age=400, latest_age=1500)
    play = Play(await open_log(retention), retention, seed)
    for _ in range(120):
        await play.step()
