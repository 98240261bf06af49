"""How a node reads Redis streams: what is acknowledged when, and what happens when something is away."""

import dataclasses
import json
import logging
from typing import Any

import pytest

from gateway.ingest import streams
from gateway.intake import Intake, Sizes
from gateway.metrics import Metrics
from tests.support.redis_server import RedisFactory, RedisServer
from tests.support.streams import STREAM, Source, StreamNode, stream_node
from tests.support.waiting import until

AOF: Any = {"appendonly": "yes", "appendfsync": "always"}


@pytest.fixture
def source(redis_server: RedisServer) -> Source:
    return Source(redis_server)


async def fails(node: StreamNode, words: str) -> None:
    """Returns when the node tells a fault with these words."""
    await until(lambda: words in (node.ingest.fault() or ""))


async def is_worked_off(source: Source) -> None:
    await until(lambda: source.pending == 0)


# Acknowledging


async def test_nothing_is_acknowledged_that_the_log_has_not(
    source: Source, redis_factory: RedisFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """While the log is away entries stay pending and the node says why, once; then they are stored, each once."""
    store = redis_factory.server(**AOF)
    async with stream_node(source.redis.url, store.url) as node:
        source.add(5)
        await node.has(5)
        await is_worked_off(source)
        store.kill9()
        source.add(2500)
        await fails(node, "Redis at")
        await until(lambda: source.pending > 0)
        length = source.redis.call("XLEN", STREAM)
        assert length == 2505
        store.start()
        await node.has(2505)
        await is_worked_off(source)
        await until(lambda: node.ingest.fault() is None)
    said = [each.getMessage() for each in caplog.records if "cannot be read" in each.getMessage()]
    assert len(said) == 1


async def test_entries_that_were_stored_and_not_acknowledged_are_in_the_log_once(
    source: Source, redis_factory: RedisFactory
) -> None:
    """A node ends between the two: the next one takes its entries again, and the log knows them."""
    store = redis_factory.server()
    source.redis.call("ACL", "SETUSER", "default", "-xack")
    async with stream_node(source.redis.url, store.url, consumer="a") as first:
        source.add(150)
        await first.has(150)
        await fails(first, "xack")
        await first.crash()
        assert source.pending == 150
        source.redis.call("ACL", "SETUSER", "default", "+xack")
        async with stream_node(source.redis.url, store.url, consumer="b") as second:
            await is_worked_off(source)
            source.add(10)
            await until(lambda: len(second.entries) == 10)  # since it opened the log
            await first.has(160)


async def test_entries_deleted_while_pending_are_passed_over_with_a_warning(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    """They are gone from what is pending too."""
    source.add(10)
    source.redis.call("XGROUP", "CREATE", STREAM, "gateway", "0")
    source.read_as("dead", 6)
    source.read_as("node", 2)
    ids = [id_ for id_, _ in source.redis.call("XRANGE", STREAM, "-", "+")]
    source.redis.call("XDEL", STREAM, ids[1], ids[7])
    with caplog.at_level(logging.WARNING):
        async with stream_node(source.redis.url) as node:
            await until(lambda: len(node.entries) == 8)
            assert node.numbers == [0, 2, 3, 4, 5, 6, 8, 9]
            await is_worked_off(source)
    assert "2 entries of stream in were deleted before they were stored" in caplog.text


async def test_entries_that_are_no_events_are_buried_between_the_others(source: Source) -> None:
    """A whole page of them is acknowledged; each can be read again as it came."""
    source.add(1)
    for n in range(250):
        source.redis.call("XADD", STREAM, "*", "type", "t", "data", f"no JSON \xff {n}".encode("latin-1"))
    source.add(1)
    async with stream_node(source.redis.url) as node:
        await node.has(2)
        await is_worked_off(source)
        letters = await node.log.dead_letters(limit=1000)
        assert len(letters) == 250
        assert {each.origin for each in letters} == {"redis:in"}
        fields = json.loads(letters[0].payload)
        assert set(fields) == {"stream", "id", "fields_base64"}


async def test_a_redriven_entry_is_the_same_event_each_time(source: Source) -> None:
    """It has the id that it would have had at once."""
    source.redis.call("XADD", STREAM, "1780000000000-7", "type", "t", "data", "[1")
    async with stream_node(source.redis.url) as node:
        await until(lambda: _letters(node))
        (letter,) = await node.log.dead_letters()
        mended = dataclasses.replace(letter, payload=letter.payload.replace(b"[1", b"[1]"))
        intake = Intake(node.log, Metrics(), Sizes())
        once, again = (streams.read_again(intake, mended) for _ in range(2))
        assert once == again
        assert once[0].body["data"] == [1]
        assert once[0].body["time"] == "2026-05-28T20:26:40.000Z"


async def _letters(node: StreamNode) -> bool:
    return bool(await node.log.dead_letters())


# Backlogs


async def test_a_backlog_is_read_in_pages_that_grow(source: Source) -> None:
    """Twenty thousand entries that were there before the node, in the order of the stream."""
    source.add(20_000)
    async with stream_node(source.redis.url) as node:
        await node.has(20_000)
        await is_worked_off(source)
        assert node.ingest._streams[0]._count() == 1000


async def test_pages_of_large_entries_are_small(source: Source) -> None:
    """From the first page with large ones on; small ones afterwards make them grow little by little."""
    source.add(1500)
    async with stream_node(source.redis.url) as node:
        await node.has(1500)
        source.add(300, size=60_000)
        await node.has(1800)
        assert node.ingest._streams[0]._count() == (2 << 20) // 60_020
        source.add(1)
        await node.has(1801)
        assert 30 < node.ingest._streams[0]._count() < 60


# What goes wrong outside


async def test_a_redis_that_starts_anew_loses_and_doubles_nothing(redis_factory: RedisFactory) -> None:
    """It keeps what it was told; the node reads on where it was."""
    source = Source(redis_factory.server(**AOF))
    async with stream_node(source.redis.url) as node:
        for turn in range(3):
            source.add(300)
            if turn % 2:
                await node.has(source.added)
            source.redis.kill9()
            source.redis.start()
        source.add(300)
        await node.has(1200)
        await is_worked_off(source)
        await until(lambda: node.ingest.fault() is None)


async def test_a_redis_that_does_not_answer_is_noticed(source: Source) -> None:
    """The node says so, and reads on when it does."""
    async with stream_node(source.redis.url) as node:
        source.add(3)
        await node.has(3)
        source.redis.pause()
        try:
            await fails(node, "Redis at")
        finally:
            source.redis.resume()
        source.add(3)
        await node.has(6)
        await until(lambda: node.ingest.fault() is None)


async def test_what_cannot_be_mended_by_trying_is_tried_slowly(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    """A key that is no stream: said once, tried every few seconds."""
    source.redis.call("SET", STREAM, "text")
    async with stream_node(source.redis.url) as node:
        await fails(node, "WRONGTYPE")
        await until(lambda: node.ingest._streams[0]._pause == streams._PAUSES[1])
        source.redis.call("DEL", STREAM)
        source.add(1)
        await node.has(1)
        await until(lambda: node.ingest._streams[0]._pause == streams._PAUSES[0])
    assert len([each for each in caplog.records if "cannot be read" in each.getMessage()]) == 1


async def test_a_stream_that_is_flushed_away_is_read_when_it_is_there_again(source: Source) -> None:
    """With the group, which is made anew."""
    async with stream_node(source.redis.url) as node:
        for _ in range(3):
            source.add(20)
            await node.has(source.added)
            source.redis.call("FLUSHALL")
        source.add(20)
        await node.has(80)


async def test_a_password_that_is_wrong_is_said(redis_factory: RedisFactory) -> None:
    """Without the password."""
    redis = redis_factory.server(requirepass="opensesame")
    async with stream_node(redis.url_of(password="abracadabra")) as node:
        await fails(node, "password")
        assert "abracadabra" not in str(node.ingest.fault())


# Ending


async def test_a_node_that_stops_ends_its_leases_and_has_acknowledged_what_it_stored(
    source: Source, redis_factory: RedisFactory
) -> None:
    """In the midst of what is pending, and it does not begin again."""
    store = redis_factory.server()
    source.add(20_000)
    source.redis.call("XGROUP", "CREATE", STREAM, "gateway", "0")
    source.read_as("dead", 20_000)
    async with stream_node(source.redis.url, store.url) as node:
        await until(lambda: node.entries)
        await node.ingest.stop()
        stored = len(node.entries)
        assert 0 < stored < 20_000
        assert source.pending == 20_000 - stored
        assert not await node.log.is_leased(f"stream:{STREAM}")
        assert not node.running.done()  # whoever supervises it would start it again
