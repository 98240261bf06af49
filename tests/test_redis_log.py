"""Several nodes on one log in Redis, a log that is lost, and one that has lost its end."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from gateway.cursor import Cursors
from gateway.filters import index_key
from gateway.hub import Hub
from gateway.lane import Flusher
from gateway.log import (
    Appended,
    DeadLetter,
    Entry,
    Fence,
    FencedError,
    LogUnavailableError,
    Retention,
)
from gateway.reader import Reader
from gateway.since import Lost, parse_since, resolve
from tests.support.core import Schedule
from tests.support.proxy import Proxy
from tests.support.redis_log import (
    STREAM,
    Clock,
    Node,
    Nodes,
    event,
    events,
    eventually_appended,
    make_node,
    running_nodes,
)
from tests.support.redis_server import RedisFactory, RedisServer
from tests.support.waiting import until


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    async with running_nodes() as running:
        yield running


def told(node: Node) -> list[tuple[int, int, int, bytes, bytes | None]]:
    return [(each.offset, each.prev, each.accepted, each.json, each.previous) for each in node.announced]


async def agree(*nodes: Node, count: int) -> None:
    """Each has announced the same `count` entries, densely, in order, once."""
    for node in nodes:
        await node.told(count)
        assert node.offsets == list(range(1, count + 1))
        assert told(node) == told(nodes[0])


# Nodes that share a log


async def test_all_nodes_tell_the_same_once_and_in_order(nodes: Nodes, redis_server: RedisServer) -> None:
    """Whoever appends: dense offsets, and each entry knows the event before it of its subject on every node."""
    three = [await nodes.open(redis_server.url) for _ in range(3)]
    dice = random.Random(1)

    async def publish(node: Node, name: str) -> None:
        number = 0
        while number < 200:
            size = dice.choice((1, 1, 3, 40))
            given = [event(f"{name}{number + n}", f"o-{dice.randrange(20)}") for n in range(size)]
            number += size
            await node.append(*given)

    await asyncio.gather(*(publish(node, name) for node, name in zip(three, "abc", strict=True)))
    count = int(redis_server.call("XLEN", STREAM))
    await agree(*three, count=count)
    latest: dict[str | None, Entry] = {}
    for each in three[0].announced:
        before = latest.get(each.subject)
        assert (each.prev, each.previous) == ((before.offset, before.json) if before else (0, None))
        latest[each.subject] = each
    assert [node.resets for node in three] == [[], [], []]


async def test_a_cursor_from_another_node_is_no_lost_log(nodes: Nodes, redis_server: RedisServer) -> None:
    """Who comes from a node that is ahead is served from his place on, once this node has come that far."""
    one, two = [await nodes.open(redis_server.url) for _ in range(2)]
    for number in range(50):
        appended = await one.append(*events(40, f"{number}-"))
        cursor = Cursors().encode(one.log.epoch, appended.offset)
        start = await resolve(parse_since(cursor, Cursors()), two.log, Cursors(), two.log.head)
        assert (start.offset, start.lost) == (appended.offset, None)
        assert two.log.head >= appended.offset
    beyond = Cursors().encode(one.log.epoch, 5000)
    lost = (await resolve(parse_since(beyond, Cursors()), two.log, Cursors(), two.log.head)).lost
    assert lost == Lost(beyond, two.log.head, "epoch")


async def test_what_one_node_has_another_counts_as_duplicate(nodes: Nodes, redis_server: RedisServer) -> None:
    """Also where both are given the same events in the same moment: each is in the log once."""
    one, two = [await nodes.open(redis_server.url) for _ in range(2)]
    given = events(300)
    results = await asyncio.gather(
        *(node.append(*given[n : n + 30]) for n in range(0, 300, 30) for node in (one, two))
    )
    assert sum(each.accepted for each in results) == 300
    assert sum(each.duplicates for each in results) == 300
    await agree(one, two, count=300)
    assert sorted(one.ids) == sorted(each.id for each in given)


@pytest.mark.parametrize("seconds", [0, 3600])
async def test_the_event_before_is_told_though_the_log_has_dropped_it(
    seconds: int, nodes: Nodes, redis_server: RedisServer
) -> None:
    """By number or by age, in the very append that supersedes it: the other nodes know it all the same."""
    clock = Clock()
    retention = Retention(events=1_000_000, age=1800) if seconds else Retention(events=6)
    one, two = [await nodes.open(redis_server.url, retention=retention, now=clock) for _ in range(2)]
    first = event("a", "o-1", status="new")
    await one.append(first)
    await two.told(1)
    clock.now += seconds
    await one.append(event("b", "o-1", status="paid"), *events(5))
    await two.told(7)
    assert (two.announced[1].prev, two.announced[1].previous) == (1, first.json)
    assert told(one) == told(two)
    await until(lambda: one.log.first > 1)
    assert await one.log.get([1]) == {}


async def test_a_node_that_starts_knows_the_log_and_tells_what_comes(
    nodes: Nodes, redis_server: RedisServer
) -> None:
    """It is at the log's head; what was before it is read, not announced."""
    one = await nodes.open(redis_server.url)
    await one.append(*events(5))
    two = await nodes.open(redis_server.url)
    assert (two.log.epoch, two.log.head, two.log.secret) == (one.log.epoch, 5, one.log.secret)
    await two.append(event("x"))
    assert two.offsets == [6]
    page = await two.log.read(0, 10)
    assert [each.offset for each in page.entries] == [1, 2, 3, 4, 5, 6]


async def test_large_events_are_told_too(nodes: Nodes, redis_server: RedisServer) -> None:
    """Whatever their number, and among small ones: pages are bounded by what the last ones were like."""
    one, two = [await nodes.open(redis_server.url) for _ in range(2)]
    given = [
        event(f"s{n}", f"o-{n % 7}", text="x" * (60_000 if n % 50 == 0 or n > 400 else 1)) for n in range(500)
    ]
    for start in range(0, 500, 50):
        await one.append(*given[start : start + 50])
    await agree(one, two, count=500)
    assert two.announced[-1].body == given[-1].body


# A log that is lost


async def assert_lost(node: Node, epoch: str, announced: int) -> None:
    """It was told once that the log is another one, after so many entries."""
    await until(lambda: node.resets)
    assert [(each.epoch == epoch, each.announced) for each in node.resets] == [(False, announced)]
    assert node.log.epoch == node.resets[0].epoch


async def test_flushall_is_told_to_every_node(nodes: Nodes, redis_server: RedisServer) -> None:
    """All go on in the same new log, from its beginning; what comes then is told by all."""
    three = [await nodes.open(redis_server.url) for _ in range(3)]
    epoch = three[0].log.epoch
    await three[0].append(*events(5))
    await agree(*three, count=5)
    redis_server.call("FLUSHALL")
    for node in three:
        await assert_lost(node, epoch, 5)
    assert len({node.log.epoch for node in three}) == 1
    assert await three[1].append(event("x")) == Appended(1, 0, 1)
    for node in three:
        await node.told(6)
        assert (node.offsets[5:], node.ids[5:]) == ([1], ["x"])


async def test_an_append_into_a_lost_log_is_stored_in_the_new_one(
    nodes: Nodes, redis_server: RedisServer
) -> None:
    """Even where nobody has noticed yet; the reset comes before the entry."""
    node = await nodes.open(redis_server.url)
    epoch = node.log.epoch
    await node.append(*events(5))
    redis_server.call("FLUSHALL")
    assert await node.append(event("x")) == Appended(1, 0, 1)
    await assert_lost(node, epoch, 5)
    assert (node.offsets, node.ids[5:]) == ([1, 2, 3, 4, 5, 1], ["x"])


async def test_a_new_log_that_has_grown_beyond_the_old_one_is_told_from_none_of_its_middle(
    nodes: Nodes, redis_server: RedisServer
) -> None:
    """Before this node looked, another one has made the new log and filled it: this node is reset, and says
    nothing of what followed upon another event than the last one it knew."""
    one = await nodes.open(redis_server.url)
    await one.append(*events(3))
    redis_server.call("FLUSHALL")
    two = await nodes.open(redis_server.url)
    await two.append(*events(20, "n"))
    await until(lambda: one.resets)
    assert one.resets == [type(one.resets[0])(two.log.epoch, 20, 3)]
    await two.append(event("x"))
    await one.told(4)
    assert (one.ids[3:], one.offsets[3:]) == (["x"], [21])


async def test_a_restart_without_persistence_is_a_lost_log(nodes: Nodes, redis_server: RedisServer) -> None:
    """Every node is told, and goes on by itself."""
    one, two = [await nodes.open(redis_server.url) for _ in range(2)]
    epoch = one.log.epoch
    await one.append(*events(5))
    await two.told(5)
    redis_server.kill9()
    redis_server.start()
    for node in (one, two):
        await assert_lost(node, epoch, 5)
    assert await eventually_appended(two, event("x")) == Appended(1, 0, 1)
    await one.told(6)
    assert one.ids[5:] == ["x"]


async def test_a_restart_with_persistence_loses_nothing(nodes: Nodes, redis_factory: RedisFactory) -> None:
    """With appendfsync always a killed Redis has all that it confirmed: same log, and nobody is reset."""
    server = redis_factory.server(appendonly="yes", appendfsync="always")
    one, two = [await nodes.open(server.url) for _ in range(2)]
    await one.append(*events(5))
    server.kill9()
    server.start()
    assert (await eventually_appended(two, event("x"))).offset == 6
    await agree(one, two, count=6)
    assert (one.resets, two.resets) == ([], [])
    assert await eventually_appended(one, *events(5)) == Appended(0, 5, 5)


@pytest.mark.parametrize("appended", [0, 1, 2, 5])
async def test_a_log_that_has_lost_its_end_is_another_one(appended: int, redis_server: RedisServer) -> None:
    """Redis comes back as it was before the last two events, and a new node appends before those that knew them
    are back: short of their place, up to it, beyond it. All nodes go on in one new log that has what it has."""
    async with Proxy(redis_server.port) as proxy, running_nodes() as nodes:
        one, two = [await nodes.open(f"redis://127.0.0.1:{proxy.port}") for _ in range(2)]
        await one.append(*events(8))
        redis_server.call("SAVE")
        await one.append(*events(2, "lost"))
        await agree(one, two, count=10)
        epoch = one.log.epoch
        proxy.cut()
        redis_server.kill9()
        redis_server.start()
        three = await nodes.open(redis_server.url)
        assert (three.log.epoch, three.log.head) == (epoch, 8)
        if appended:
            await three.append(*events(appended, "new"))
        await proxy.heal()
        for node in (one, two):
            await assert_lost(node, epoch, 10)
        await until(lambda: three.resets)
        assert len({node.log.epoch for node in (one, two, three)}) == 1
        assert {node.resets[0].head for node in (one, two, three)} == {8 + appended}
        await eventually_appended(one, event("x"))
        for node in (one, two, three):
            await node.reached(9 + appended)
            assert node.ids[-1] == "x"
            assert (node.offsets[-1], len(node.resets)) == (9 + appended, 1)


async def test_no_lease_outlives_the_end_of_its_log(nodes: Nodes, redis_server: RedisServer) -> None:
    """What was to stand behind lost events is refused, though Redis still had the lease: they come again first."""
    node = await nodes.open(redis_server.url)
    fence = await node.log.lease("ingest", 600)
    await node.append(*events(8), fence=fence)
    redis_server.call("SAVE")
    await node.append(*events(2, "lost"), fence=fence)
    epoch = node.log.epoch
    redis_server.kill9()
    redis_server.start()
    assert redis_server.call("EXISTS", "{gateway}:lease:ingest")
    await assert_lost(node, epoch, 10)
    with pytest.raises(FencedError):
        await node.append(event("behind them"), fence=fence)
    again = await node.log.lease("ingest", 600)
    assert await node.append(*events(2, "lost"), fence=again) == Appended(2, 0, 10)


async def test_a_log_that_has_lost_its_end_is_noticed_on_a_connection_that_lives(
    nodes: Nodes, redis_server: RedisServer
) -> None:
    """It is the entries that tell, not the connection: one that does not follow upon the last is not told."""
    node = await nodes.open(redis_server.url)
    await node.append(*events(3))
    epoch = node.log.epoch
    redis_server.call(
        "EVAL",
        """
        redis.call('DEL', KEYS[1])
        local one, two, three = string.rep('1', 16), string.rep('2', 16), string.rep('3', 16)
        redis.call('XADD', KEYS[1], '3-0', 'm', two .. one .. '0 1 ', 'e', '{}', 'b', '')
        redis.call('XADD', KEYS[1], '4-0', 'm', three .. two .. '0 1 ', 'e', '{}', 'b', '')
        redis.call('HSET', KEYS[2], 'head', 4, 'last', three)
        """,
        2,
        STREAM,
        "{gateway}:meta",
    )
    await assert_lost(node, epoch, 3)
    assert (node.log.head, node.offsets) == (4, [1, 2, 3])


async def test_a_node_that_was_frozen_too_long_is_reset_and_readers_get_a_gap(
    nodes: Nodes, redis_server: RedisServer
) -> None:
    """The log has dropped what it had not read: it goes on at the head, and who was live is told what is missing."""
    retention, cursors = Retention(events=10), Cursors()
    hub = Hub(Flusher(Schedule(), 0), cursors)
    async with Proxy(redis_server.port) as proxy:
        node = make_node(f"redis://127.0.0.1:{proxy.port}", retention=retention)
        await node.log.open(hub.publish, lambda: hub.reset(node.log.epoch, node.log.head))
        hub.begin(node.log.epoch, 0)
        try:
            other = await nodes.open(redis_server.url, retention=retention)
            await other.append(*events(3))
            await until(lambda: node.log.head == 3)
            epoch = node.log.epoch
            channel = hub.open(None)
            reader = Reader(node.log, hub, channel, 3, epoch=epoch)
            proxy.stall()
            for start in range(0, 60, 20):
                await other.append(*events(20, f"n{start}-"))
            await proxy.heal()
            await until(lambda: hub.position == 63)
            assert (node.log.epoch, node.log.head) == (epoch, 63)
            batch = await reader.read(hub.position)
            assert batch.lost == Lost(f"{epoch}.3", 53, "slow")
            batch = await reader.read(hub.position)
            assert [each.entry.offset for each in batch.told] == list(range(54, 64))
        finally:
            await node.log.close()


# Leases


async def test_one_node_has_a_lease_at_a_time(nodes: Nodes, redis_server: RedisServer) -> None:
    """Who has it may renew it, under the same token; the next holder's token is greater."""
    one, two = [await nodes.open(redis_server.url) for _ in range(2)]
    fence = await one.log.lease("ingest", 60, "mine")
    assert fence is not None
    assert await two.log.lease("ingest", 60) is None
    assert await two.log.lease("other", 60) is not None
    assert await one.log.lease("ingest", 60, "mine") == fence
    assert await two.log.is_leased("ingest")
    assert await two.log.lease_note("ingest") == "mine"
    await two.log.release(Fence("ingest", fence.token))
    assert await one.log.is_leased("ingest")
    await one.log.release(fence)
    assert not await two.log.is_leased("ingest")
    later = await two.log.lease("ingest", 60)
    assert later is not None
    assert later.token > fence.token


async def test_a_lease_ends_and_what_is_done_with_it_is_refused(
    nodes: Nodes, redis_server: RedisServer
) -> None:
    """By itself, when nobody renews it. Events and letters of who had it are not stored, before and after
    another node has it."""
    one, two = [await nodes.open(redis_server.url) for _ in range(2)]
    letter = DeadLetter("l", "redis:orders", "message", "bad", 1.0, 1, b"?")
    fence = await one.log.lease("ingest", 60)
    assert fence is not None
    assert await one.append(event("a"), fence=fence) == Appended(1, 0, 1)
    assert redis_server.call("PEXPIRE", "{gateway}:lease:ingest", 1) == 1
    await until(lambda: not redis_server.call("EXISTS", "{gateway}:lease:ingest"))

    async def refused() -> None:
        with pytest.raises(FencedError):
            await one.append(event("b"), fence=fence)
        with pytest.raises(FencedError):
            await one.log.bury([letter], fence=fence)
        assert (one.log.head, await one.log.dead_letters()) == (1, [])

    await refused()
    later = await two.log.lease("ingest", 60)
    assert later is not None
    assert later.token > fence.token
    await refused()
    await two.append(event("c"), fence=later)
    await two.log.bury([letter], fence=later)
    assert await one.log.dead_letters() == [letter]


# The index of latest events


async def latest_ids(node: Node, path: str, value: str, *, orders: bool = False) -> list[str]:
    rows = await node.log.latest(
        (path, frozenset([index_key(value)])), after=0, upto=node.log.head, limit=100, orders=orders
    )
    return [each.body["id"] for each in rows]


async def test_the_index_is_built_anew_for_other_paths(nodes: Nodes, redis_server: RedisServer) -> None:
    """A look-up by the new path finds what was appended before, whatever the log has dropped since."""
    retention = Retention(events=5)
    old = make_node(redis_server.url, retention=retention)
    await old.open()
    for n in range(500):
        await old.append(
            event(f"a{n}", f"o-{n}", customerId=f"c{n % 5}", region=f"r{n % 50}"),
            event(f"b{n}", f"o-{n}", type_="note.added", region=f"r{(n + 1) % 50}"),
        )
    assert len(await latest_ids(old, "data.customerId", "c1", orders=True)) == 100
    await old.log.close()
    new = await nodes.open(redis_server.url, retention=retention, index=("data.region",))
    assert await latest_ids(new, "data.region", "r3") == [f"b{n}" for n in range(2, 500, 50)]
    assert await latest_ids(new, "data.region", "r3", orders=True) == [f"a{n}" for n in range(3, 500, 50)]
    await new.append(event("x", "o-2", region="r9"))
    assert await latest_ids(new, "data.region", "r3") == [f"b{n}" for n in range(52, 500, 50)]
    assert (await latest_ids(new, "data.region", "r9"))[-1] == "x"


async def test_nodes_with_other_paths_index_for_the_one_that_came_last(
    nodes: Nodes, redis_server: RedisServer
) -> None:
    """While a change of GATEWAY_INDEX is rolled out: what the old node appends is found by the new path, and what
    the old node looks up is right, though it is no longer indexed."""
    old = await nodes.open(redis_server.url, index=("data.customerId",))
    await old.append(event("a", "o-1", customerId="c", region="r"))
    new = await nodes.open(redis_server.url, index=("data.region",))
    await old.append(event("b", "o-2", customerId="c", region="r"))
    await new.append(event("d", "o-3", customerId="c", region="r"))
    await old.reached(3)
    await new.reached(3)
    for node in (old, new):
        for path, value in (("data.region", "r"), ("data.customerId", "c")):
            found = await latest_ids(node, path, value)
            assert [each for each in ("a", "b", "d") if each in found] == ["a", "b", "d"]
    key = "{gateway}:x:data.region\0" + index_key("r")
    assert redis_server.call("ZCARD", key) == 3
    assert redis_server.call("EXISTS", "{gateway}:x:data.customerId\0" + index_key("c")) == 0


async def test_a_log_that_is_lost_under_nodes_with_other_paths_is_indexed_by_one(
    nodes: Nodes, redis_server: RedisServer
) -> None:
    """Whichever node makes the new log: both append, and both find all of it."""
    one = await nodes.open(redis_server.url, index=("data.customerId",))
    two = await nodes.open(redis_server.url, index=("data.region",))
    redis_server.call("FLUSHALL")
    await eventually_appended(one, event("a", "o-1", customerId="c", region="r"))
    await eventually_appended(two, event("b", "o-2", customerId="c", region="r"))
    for node in (one, two):
        await node.reached(2)
        for path, value in (("data.region", "r"), ("data.customerId", "c")):
            assert set(await latest_ids(node, path, value)) == {"a", "b"}


async def test_a_key_of_another_type_is_told_in_one_line(redis_server: RedisServer) -> None:
    """Whose database it is not: the gateway does not open it."""
    redis_server.call("SET", "{gateway}:meta", "mine")
    node = make_node(redis_server.url)
    with pytest.raises(LogUnavailableError, match="another type") as caught:
        await node.open()
    assert "\n" not in str(caught.value)
