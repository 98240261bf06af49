"""Events that come by Redis, through a whole gateway with its log in memory."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from gateway.ingest._group import ConsumerGroup, OvertakenError
from gateway.ingest.streams import StreamIngest
from gateway.redis_clients import RedisClients
from tests.support.app import InProcess, in_process
from tests.support.redis_server import RedisFactory, RedisServer
from tests.support.waiting import until

Json = dict[str, Any]


@asynccontextmanager
async def gateway(redis: RedisServer, **settings: Any) -> AsyncIterator[InProcess]:
    """One that fetches from this Redis, and is ready."""
    async with in_process(ingest_redis=redis.url, **settings) as app:
        await until(lambda: is_ready(app))
        yield app


async def is_ready(app: InProcess) -> bool:
    return (await app.http.get("/readyz")).status_code == 200


async def log_of(app: InProcess) -> list[Json]:
    return [entry.body for entry in (await app.node.log.read(0, 100_000)).entries]


async def has(app: InProcess, count: int) -> list[Json]:
    """The log when it has so many events."""
    await until(lambda: app.node.log.head >= count)
    events = await log_of(app)
    assert len(events) == count
    return events


def counted(app: InProcess, name: str) -> float:
    lines = app.node.metrics.render().decode().splitlines()
    return next((float(each.rpartition(" ")[2]) for each in lines if each.startswith(name)), 0.0)


# Pub/sub


async def test_what_is_published_is_in_the_log(redis_server: RedisServer) -> None:
    """Events, batches and bare data, by channel and by pattern, in the order in which they were published."""
    async with gateway(redis_server, pubsub=("orders", "eu.*")) as app:
        redis_server.call("PUBLISH", "orders", '{"type":"order.paid","subject":"o-1","id":"x"}')
        redis_server.call("PUBLISH", "eu.new", '{"orderId":"o-2"}')
        redis_server.call("PUBLISH", "us.new", '{"orderId":"o-3"}')
        redis_server.call("PUBLISH", "orders", '[{"type":"a"},{"type":"b"}]')
        redis_server.call("PUBLISH", "orders", "17")
        events = await has(app, 5)
        assert [each["type"] for each in events] == ["order.paid", "eu.new", "a", "b", "orders"]
        assert [each["source"] for each in events[:2]] == ["/redis/orders", "/redis/eu.new"]
        assert counted(app, 'gateway_events_ingested_total{ingest="pubsub",result="accepted"}') == 5


async def test_each_message_counts_once(redis_server: RedisServer) -> None:
    """However many subscriptions it matches; the same bytes published twice are two events."""
    async with gateway(redis_server, pubsub=("*", "orders", "o*")) as app:
        for _ in range(500):
            redis_server.call("PUBLISH", "orders", '{"orderId":"o-1"}')
        redis_server.call("PUBLISH", "last", "1")
        events = await has(app, 501)
        assert events[-1]["type"] == "last"
        assert len({each["id"] for each in events}) == 501


async def test_what_is_no_event_is_put_aside_and_the_next_is_read(redis_server: RedisServer) -> None:
    """Under the channel's name, with the bytes; it can be redriven when it is one."""
    async with gateway(redis_server, pubsub=("bad.*",), streams=("in",)) as app:
        redis_server.call("PUBLISH", "bad.eu", b"{\xff")
        redis_server.call("PUBLISH", "bad.eu", "{}")
        redis_server.call("XADD", "in", "1-1", "event", '{"data":1}')
        redis_server.call("XADD", "in", "1-2", "type", "a", "data", "no JSON")
        redis_server.call("XADD", "in", "1-3", "type", b"\xff", "data", "1")
        redis_server.call("XADD", "in", "1-4", "type", "a", "colour", "1")
        redis_server.call("XADD", "in", "1-5", "event", "{}", "type", "a")
        redis_server.call("XADD", "in", "1-6", "type", "good")
        events = await has(app, 2)
        assert {each["type"] for each in events} == {"bad.eu", "good"}
        await until(lambda: is_acknowledged(redis_server, "1-6"))  # which comes after the letters
        letters = (await app.http.get("/dead-letters")).json()["deadLetters"]
        assert sorted(each["origin"] for each in letters) == ["redis:bad.eu", *["redis:in"] * 5]
        assert all(each["reason"] for each in letters)
        assert counted(app, 'gateway_dead_letters_total{origin="redis:bad.*"}') == 1
        answer = await app.http.post(f"/dead-letters/{letters[0]['id']}/redrive")
        assert answer.status_code == 422


def is_acknowledged(redis: RedisServer, last: str) -> bool:
    """Whether the group `gateway` has been given the stream `in` up to this entry, and all of it is stored."""
    group = redis.call("XINFO", "GROUPS", "in")[0]
    facts = dict(zip(group[::2], group[1::2], strict=True))
    return bool(facts[b"last-delivered-id"] == last.encode() and facts[b"pending"] == 0)


async def test_a_lost_subscription_is_made_anew(redis_server: RedisServer) -> None:
    """After CLIENT KILL, and after a restart of Redis, what is published is heard again; readiness tells between."""
    async with gateway(redis_server, pubsub=("orders",)) as app:
        for number, harm in enumerate(
            (lambda: redis_server.call("CLIENT", "KILL", "TYPE", "pubsub"), redis_server.restart), 1
        ):
            harm()
            await until(lambda: _subscribers(redis_server) == 1)
            await until(lambda: is_ready(app))
            redis_server.call("PUBLISH", "orders", number)
            assert (await has(app, number))[-1]["data"] == number


def _subscribers(redis: RedisServer) -> int:
    return int(redis.call("PUBSUB", "NUMSUB", "orders")[1])


async def test_a_redis_that_is_silent_is_noticed(redis_server: RedisServer) -> None:
    """A connection that stays open and brings nothing is given up, and readiness says so."""
    async with gateway(redis_server, pubsub=("orders",)) as app:
        redis_server.pause()
        await until(lambda: _is_deaf(app))
        redis_server.resume()
        await until(lambda: is_ready(app))
        redis_server.call("PUBLISH", "orders", "1")
        await has(app, 1)


async def _is_deaf(app: InProcess) -> bool:
    check = (await app.http.get("/readyz")).json()["checks"]["ingests"]
    return not check["ok"] and check["reason"].startswith("pubsub: ")


# Streams


def add(redis: RedisServer, stream: str, numbers: range, subjects: int = 3) -> None:
    for n in numbers:
        redis.call("XADD", stream, f"{n + 1}-0", "type", "t", "subject", f"o-{n % subjects}", "data", n)


async def test_a_stream_is_read_from_its_first_entry_and_acknowledged(redis_server: RedisServer) -> None:
    """Both forms of an entry; what it lacks follows from the entry, so to read it again makes the same event."""
    event = {"type": "order.paid", "id": "x", "subject": "o-9", "data": {"total": 1}}
    redis_server.call("XADD", "in", "1780000000000-0", "event", json.dumps(event))
    async with gateway(redis_server, streams=("in", "other")) as app:
        redis_server.call(
            "XADD", "in", "1780000000001-0", "type", "a", "subject", "o-1", "data", "[1]", "id", "y"
        )
        redis_server.call("XADD", "in", "1780000000002-0", "type", "b")
        first, second, third = await has(app, 3)
        assert (first["id"], first["data"], first["source"]) == ("x", {"total": 1}, "/redis/in")
        assert (second["type"], second["subject"], second["data"], second["id"]) == ("a", "o-1", [1], "y")
        assert third["time"] == "2026-05-28T20:26:40.002Z"
        await until(lambda: redis_server.call("XPENDING", "in", "gateway")[0] == 0)


async def test_what_a_dead_consumer_had_comes_first(redis_server: RedisServer) -> None:
    """In the stream's order, before what nobody was given; entries that are gone meanwhile are passed over."""
    add(redis_server, "in", range(10))
    redis_server.call("XGROUP", "CREATE", "in", "gateway", "0")
    redis_server.call("XREADGROUP", "GROUP", "gateway", "dead", "COUNT", 4, "STREAMS", "in", ">")
    redis_server.call("XDEL", "in", "2-0")
    async with gateway(redis_server, streams=("in",)) as app:
        assert [each["data"] for each in await has(app, 9)] == [0, 2, 3, 4, 5, 6, 7, 8, 9]
        await until(lambda: redis_server.call("XPENDING", "in", "gateway")[0] == 0)


async def test_a_backlog_is_worked_off_in_order(redis_server: RedisServer) -> None:
    """More than a page of small entries, and large ones among them."""
    script = "for n = 1, 20000 do redis.call('XADD', 'in', '*', 'type', 't', 'data', n) end"
    redis_server.call("EVAL", script, 0)
    for n in range(20_001, 20_061):
        redis_server.call("XADD", "in", "*", "type", "t", "data", json.dumps(n), "subject", "x" * 60_000)
    async with gateway(redis_server, streams=("in",)) as app:
        assert [each["data"] for each in await has(app, 20_060)] == list(range(1, 20_061))


async def test_a_stream_that_is_gone_is_read_when_it_is_there_again(redis_server: RedisServer) -> None:
    """FLUSHALL takes the group with it."""
    async with gateway(redis_server, streams=("in",)) as app:
        add(redis_server, "in", range(3))
        await has(app, 3)
        redis_server.call("FLUSHALL")
        add(redis_server, "in", range(3, 6))
        assert [each["data"] for each in await has(app, 6)] == [0, 1, 2, 3, 4, 5]


async def test_a_key_that_is_no_stream_is_said_and_the_others_are_read(redis_server: RedisServer) -> None:
    """Until it is one."""
    redis_server.call("SET", "in", "text")
    async with in_process(ingest_redis=redis_server.url, streams=("in", "other")) as app:
        add(redis_server, "other", range(2))
        await has(app, 2)
        await until(lambda: _reason_of(app, "WRONGTYPE"))
        redis_server.call("DEL", "in")
        add(redis_server, "in", range(2, 3))
        await has(app, 3)
        await until(lambda: is_ready(app))


async def _reason_of(app: InProcess, words: str) -> bool:
    return words in str((await app.http.get("/readyz")).json()["checks"]["ingests"]["reason"])


@pytest.fixture
async def group(redis_server: RedisServer) -> AsyncIterator[ConsumerGroup]:
    clients = RedisClients(redis_server.url)
    StreamIngest(clients, [], "own", None, None)  # type: ignore[arg-type]  # has the clients give answers as they come
    yield ConsumerGroup(clients, "in", "own")
    await clients.aclose()


async def test_what_another_was_given_in_between_comes_first(
    redis_server: RedisServer, group: ConsumerGroup
) -> None:
    """A node that was frozen and has lost its lease may still be given entries: they are seen and taken back."""
    await group.begin()
    add(redis_server, "in", range(2))
    assert [id_ for id_, _ in (await group.new(10)).entries] == ["1-0", "2-0"]
    add(redis_server, "in", range(2, 6))
    redis_server.call("XREADGROUP", "GROUP", "gateway", "frozen", "COUNT", 2, "STREAMS", "in", ">")
    with pytest.raises(OvertakenError):
        await group.new(10)
    await group.begin()
    assert [id_ for id_, _ in (await group.pending("0-0", 10)).entries] == [
        "1-0",
        "2-0",
        "3-0",
        "4-0",
        "5-0",
        "6-0",
    ]
    await group.acknowledge(["1-0", "2-0", "3-0", "4-0", "5-0", "6-0"])
    redis_server.call("XADD", "in", "9-0", "type", "t")
    redis_server.call("XREADGROUP", "GROUP", "gateway", "frozen", "COUNT", 2, "STREAMS", "in", ">")
    with pytest.raises(OvertakenError):  # also where nothing is left for this node
        await group.new(10)


# Several nodes on one log


@asynccontextmanager
async def node(redis: RedisServer, number: int) -> AsyncIterator[InProcess]:
    async with in_process(store=redis.url, streams=("in",), pubsub=("orders",), port=8000 + number) as app:
        await until(lambda: is_ready(app))
        yield app


async def test_nodes_that_come_and_go_lose_and_double_nothing(redis_factory: RedisFactory) -> None:
    """Each in turn ends in order while another listens; a stream's order is the log's."""
    redis = redis_factory.server(appendonly="yes", appendfsync="always")
    nodes: list[AbstractAsyncContextManager[InProcess]] = []
    sent = 0

    async def publish(count: int) -> None:
        nonlocal sent
        for n in range(sent, sent + count):
            await asyncio.to_thread(
                redis.call, "XADD", "in", "*", "type", "s", "subject", f"o-{n % 3}", "data", n
            )
            await asyncio.to_thread(redis.call, "PUBLISH", "orders", '{"orderId":"o-1"}')
        sent += count

    async with node(redis, 0) as watcher:
        for number in range(1, 4):
            nodes.append(node(redis, number))
            await nodes[-1].__aenter__()
            publishing = asyncio.create_task(publish(150))
            if number > 1:
                await nodes[-2].__aexit__(None, None, None)
            await publishing
        await nodes[-1].__aexit__(None, None, None)
        await publish(20)
        events = await has(watcher, 2 * sent)
        assert [each["data"] for each in events if each["type"] == "s"] == list(range(sent))
        assert len({each["id"] for each in events if each["type"] == "orders"}) == sent
