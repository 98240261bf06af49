"""The log in Redis where Redis does not answer, refuses, or its answers are lost."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.log import (
    Appended,
    ConflictError,
    DeadLetter,
    Expect,
    KeyTakenError,
    LogUnavailableError,
    Remember,
    Reply,
    Retention,
    Revocation,
)
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
from tests.support.waiting import PATIENCE, until

COUNTED = Reply(202, {}, b"body", Appended(0, 0, 0))


@pytest.fixture
async def proxy(redis_server: RedisServer) -> AsyncIterator[Proxy]:
    async with Proxy(redis_server.port) as running:
        yield running


@pytest.fixture
async def nodes(proxy: Proxy) -> AsyncIterator[Nodes]:
    """They are closed before the proxy, which they may be trying to reach."""
    async with running_nodes() as running:
        yield running


@pytest.fixture
async def node(nodes: Nodes, proxy: Proxy) -> Node:
    """A node that reaches Redis through the proxy, and has appended `a` and `b` of subject `o-1`."""
    opened = await nodes.open(through(proxy))
    await opened.append(event("a"))
    await opened.append(event("b"))
    return opened


def through(proxy: Proxy) -> str:
    return f"redis://127.0.0.1:{proxy.port}"


# Answers that are lost


async def answer_lost(
    proxy: Proxy, do: Callable[[], Awaitable[Any]], is_done: Callable[[], object], meanwhile: Any = None
) -> Any:
    """The outcome of what reaches Redis and whose answer is lost with its connection. `meanwhile` is awaited before
    there is a connection again."""
    proxy.lose_answers()
    task = asyncio.ensure_future(do())
    await until(is_done)
    if meanwhile is not None:
        await meanwhile
    await proxy.heal()
    async with asyncio.timeout(PATIENCE):
        return await task


@pytest.mark.parametrize("condition", ["none", "expect", "remember", "fence", "all"])
async def test_an_append_whose_answer_is_lost_counts_once(
    condition: str, node: Node, nodes: Nodes, proxy: Proxy, redis_server: RedisServer
) -> None:
    """Its outcome is that of the first time, whatever its conditions were and whoever appended since."""
    other = await nodes.open(redis_server.url)
    fence = await node.log.lease("ingest", 60)
    given: dict[str, Any] = {
        "expect": Expect("o-1", 2),
        "remember": Remember("key", b"digest", COUNTED),
        "fence": fence,
    }
    if condition != "all":
        given = {name: value for name, value in given.items() if name == condition}
    foreign = await other.append(event("foreign", "o-2"))
    outcome = await answer_lost(
        proxy,
        lambda: node.append(event("foreign", "o-2"), event("c"), event("d"), event("c"), **given),
        lambda: redis_server.call("XLEN", STREAM) == 5,
        other.append(event("e"), event("f")),
    )
    assert (foreign, outcome) == (Appended(1, 0, 3), Appended(2, 2, 5))
    for each in (node, other):
        await each.reached(7)
    assert node.ids == ["a", "b", "foreign", "c", "d", "e", "f"]
    assert node.offsets == [1, 2, 3, 4, 5, 6, 7]
    if "remember" in given:
        recalled = await other.log.recall("key")
        assert recalled is not None
        assert recalled.reply.appended == outcome
        with pytest.raises(KeyTakenError):
            await node.append(event("g"), remember=given["remember"])
    if "expect" in given:
        with pytest.raises(ConflictError):
            await node.append(event("g"), expect=given["expect"])


async def test_an_append_of_nothing_whose_answer_is_lost_is_remembered_once(
    node: Node, proxy: Proxy, redis_server: RedisServer
) -> None:
    """An answer without an event, too, is not taken for that of another request."""
    remember = Remember("key", b"digest", COUNTED)
    outcome = await answer_lost(
        proxy,
        lambda: node.append(remember=remember),
        lambda: redis_server.call("EXISTS", "{gateway}:reply:key"),
    )
    assert outcome == Appended(0, 0, 2)


async def test_other_writes_whose_answers_are_lost_hold(
    node: Node, proxy: Proxy, redis_server: RedisServer
) -> None:
    """A ticket is used by who used it, an answer is stored by who stored it, a revocation is stored."""
    assert await node.log.use_once("warm", 60)
    await node.log.remember(Remember("warm", b"digest", Reply(200, {}, b"")))
    assert await answer_lost(
        proxy,
        lambda: node.log.use_once("ticket", 60),
        lambda: redis_server.call("EXISTS", "{gateway}:used:ticket"),
    )
    assert not await node.log.use_once("ticket", 60)
    remember = Remember("key", b"digest", Reply(200, {}, b"answer"))
    await answer_lost(
        proxy,
        lambda: node.log.revoke(Revocation("jti", "7", 1.5), remember=remember),
        lambda: redis_server.call("EXISTS", "{gateway}:reply:key"),
    )
    with pytest.raises(KeyTakenError):
        await node.log.remember(remember)
    assert await node.log.revocations() == [Revocation("jti", "7", 1.5)]


async def test_connections_that_break_all_the_time_lose_and_double_nothing(
    node: Node, nodes: Nodes, proxy: Proxy, redis_server: RedisServer
) -> None:
    """Two nodes append while every connection of one is reset again and again: each event once, in order."""
    other = await nodes.open(redis_server.url)
    await other.append(event("a"))

    async def publish(to: Node, name: str) -> None:
        for n in range(40):
            outcome = await eventually_appended(to, event(f"{name}{n}", name))
            assert outcome.accepted + outcome.duplicates == 1

    async def disturb() -> None:
        while True:
            proxy.reset()
            await asyncio.sleep(0.05)

    disturbing = asyncio.create_task(disturb())
    await asyncio.gather(publish(node, "x"), publish(other, "y"))
    disturbing.cancel()
    await asyncio.wait((disturbing,))
    await node.told(82)
    await other.told(80)
    assert node.offsets == list(range(1, 83))
    assert other.offsets == list(range(3, 83))
    for name in "xy":
        assert [each for each in node.ids if each[0] == name] == [f"{name}{n}" for n in range(40)]
    assert (node.resets, other.resets) == ([], [])


# Redis does not answer


async def refused(node: Node, *ids: str) -> str:
    """Why these events are refused, each on its own and all at once."""
    async with asyncio.timeout(PATIENCE):
        outcomes = await asyncio.gather(*(node.append(event(each)) for each in ids), return_exceptions=True)
    assert {type(each) for each in outcomes} == {LogUnavailableError}
    (reason,) = {str(each) for each in outcomes}
    assert "\n" not in reason
    return reason


async def test_a_redis_that_hangs_is_away_until_it_answers(
    nodes: Nodes, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Appends are refused, those that come later too; nothing hangs, and it is told once. Afterwards all is well:
    what was on its way into it may be stored, and then counts as duplicate."""
    caplog.set_level(logging.INFO)
    node = await nodes.open(redis_server.url)
    await node.append(event("a"))
    caplog.clear()
    redis_server.pause()
    try:
        assert "does not answer" in await refused(node, "b", "c", "d")
        assert "does not answer" in await refused(node, "e")
        await node.noticed()
        assert "answer" in str(await node.log.check())
        with pytest.raises(LogUnavailableError, match="does not answer"):
            await node.log.read(0, 10)
    finally:
        redis_server.resume()
    given = [event(each) for each in "bcdef"]
    outcome = await eventually_appended(node, *given)
    assert outcome.accepted + outcome.duplicates == 5
    assert sorted(node.ids) == list("abcdef")
    assert node.offsets == [1, 2, 3, 4, 5, 6]
    await until_well(node)
    assert node.resets == []
    assert len(caplog.records) == 3, caplog.text  # the writing, the following, and that it answers again


async def until_well(node: Node) -> None:
    async with asyncio.timeout(PATIENCE):
        while await node.log.check() is not None:  # noqa: ASYNC110 - it has no event of its own
            await asyncio.sleep(0.01)


async def test_a_redis_that_is_gone_is_away_until_it_is_back(
    nodes: Nodes, redis_factory: RedisFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Appends are tried for a while, then refused with a reason; when it is back they go on by themselves."""
    server = redis_factory.server(appendonly="yes", appendfsync="always")
    one, two = [await nodes.open(server.url) for _ in range(2)]
    await one.append(event("a"))
    caplog.clear()
    server.kill9()
    assert "nobody listens there" in await refused(one, "b", "c")
    assert "nobody listens there" in await refused(one, "d")
    assert "nobody listens there" in str(await one.log.check())
    server.start()
    await eventually_appended(one, event("b"))
    await two.told(2)
    await until_well(one)
    await until_well(two)
    assert (one.offsets, two.offsets, one.resets, two.resets) == ([1, 2], [1, 2], [], [])
    assert len(caplog.records) <= 5, caplog.text


async def test_a_short_absence_is_only_a_pause(node: Node, proxy: Proxy) -> None:
    """An append that comes while there is no connection is stored when there is one again."""
    proxy.cut()
    task = asyncio.create_task(node.append(event("c")))
    await asyncio.sleep(0.2)
    assert not task.done()
    await proxy.heal()
    assert await task == Appended(1, 0, 3)


async def test_a_connection_that_is_dead_at_the_other_end_is_given_up(
    node: Node, nodes: Nodes, proxy: Proxy, redis_server: RedisServer
) -> None:
    """Without a word from the network: the node finds out by itself and is back where it was."""
    other = await nodes.open(redis_server.url)
    proxy.stall()
    await other.append(event("c"))
    await node.noticed()
    await proxy.heal()
    await node.told(3)
    assert node.offsets == [1, 2, 3]


async def test_without_redis_there_is_no_log(redis_server: RedisServer) -> None:
    """Opening fails with one line that says where and why."""
    redis_server.kill9()
    node = make_node(redis_server.url)
    with pytest.raises(LogUnavailableError, match="nobody listens there") as caught:
        await node.open()
    assert str(redis_server.port) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(LogUnavailableError, match="closed"):
        await node.append(event("a"))
    await node.log.close()


# Closing


@pytest.mark.parametrize("state", ["well", "gone", "hanging", "unreachable"])
async def test_closing_ends_whatever_redis_does(state: str, redis_server: RedisServer, proxy: Proxy) -> None:
    """In the middle of appends, of which some wait for room: each has its outcome, and what is told as stored is."""
    node = make_node(through(proxy))
    await node.open()
    await node.append(event("a"))
    given = [event(f"e{n}", f"o-{n}", text="x" * 700_000) for n in range(130)]
    if state == "hanging":
        redis_server.pause()
    elif state == "gone":
        redis_server.kill9()
    elif state == "unreachable":
        proxy.stall()
    tasks = [asyncio.create_task(node.append(each)) for each in given]
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(PATIENCE):
            await node.log.close()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        redis_server.resume()
    stored = [each for each in outcomes if isinstance(each, Appended)]
    failed = [each for each in outcomes if isinstance(each, LogUnavailableError)]
    assert len(stored) + len(failed) == 130
    if state == "well":
        assert len(stored) > 80
        assert redis_server.call("XLEN", STREAM) == 1 + len(stored)
    else:
        assert not stored


# Redis refuses


async def test_a_full_redis_takes_no_events_and_is_left_intact(
    nodes: Nodes, redis_server: RedisServer
) -> None:
    """Beyond maxmemory an append is refused as a whole, with a reason that helps; with memory all goes on."""
    node = await nodes.open(redis_server.url)
    await node.append(event("a"))
    redis_server.call("CONFIG", "SET", "maxmemory", 1)
    assert "maxmemory" in await refused(node, "b")
    assert "maxmemory" in str(await node.log.check())
    page = await node.log.read(0, 10)
    assert [each.body["id"] for each in page.entries] == ["a"]
    redis_server.call("CONFIG", "SET", "maxmemory", 0)
    assert await node.append(event("b")) == Appended(1, 0, 2)
    assert await node.log.check() is None


async def test_a_full_redis_is_relieved_by_retention(nodes: Nodes, redis_server: RedisServer) -> None:
    """What is due to go goes, and dead letters can be deleted: both give memory back."""
    clock = Clock()
    node = await nodes.open(redis_server.url, retention=Retention(age=100), now=clock)
    await node.append(*events(10))
    await node.log.bury([DeadLetter("l", "redis:orders", "message", "bad", 1.0, 1, b"?")])
    redis_server.call("CONFIG", "SET", "maxmemory", 1)
    clock.now += 1000
    await until(lambda: redis_server.call("XLEN", STREAM) == 0)
    assert await node.log.unbury(["l"]) == 1
    assert await node.log.dead_letters() == []


async def test_a_replica_takes_no_events(nodes: Nodes, redis_server: RedisServer) -> None:
    """A master that has become a replica is read on; appends are refused until it is the master again."""
    node = await nodes.open(redis_server.url)
    await node.append(event("a"))
    redis_server.call("REPLICAOF", "127.0.0.1", 1)
    assert "replica" in await refused(node, "b")
    assert "replica" in str(await node.log.check())
    page = await node.log.read(0, 10)
    assert [each.body["id"] for each in page.entries] == ["a"]
    redis_server.call("REPLICAOF", "NO", "ONE")
    assert await eventually_appended(node, event("b")) == Appended(1, 0, 2)
    await until_well(node)
    assert node.resets == []


async def test_a_password_that_is_changed_is_told_and_never_shown(
    nodes: Nodes, redis_factory: RedisFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing goes on with the old one; when it holds again all goes on by itself."""
    server = redis_factory.server(user=["ann on >secret-1 ~* &* +@all"])
    node = await nodes.open(server.url_of("ann", "secret-1"))
    await node.append(event("a"))
    caplog.clear()
    server.call("ACL", "SETUSER", "ann", "resetpass", ">secret-2")
    server.call("CLIENT", "KILL", "USER", "ann")
    reason = await refused(node, "b")
    assert "refuses the user or the password" in reason
    assert "refuses the user or the password" in str(await node.log.check())
    server.call("ACL", "SETUSER", "ann", ">secret-1")
    await eventually_appended(node, event("b"))
    await until_well(node)
    assert node.offsets == [1, 2]
    assert "secret" not in caplog.text + reason
    assert len(caplog.records) <= 4, caplog.text


async def test_a_user_that_may_not_read_the_stream_is_told_once(
    nodes: Nodes, redis_factory: RedisFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """What Redis refuses again and again is no line each time."""
    server = redis_factory.server(user=["ann on >pw ~* &* +@all"])
    node = await nodes.open(server.url_of("ann", "pw"))
    await node.append(event("a"))
    caplog.clear()
    server.call("ACL", "SETUSER", "ann", "-xread")
    await node.noticed()
    assert "may not do this" in str(await node.log.check())
    denied = 5
    await until(lambda: len(server.call("ACL", "LOG")) and _denials(server) >= denied)
    assert len(caplog.records) == 1, caplog.text
    server.call("ACL", "SETUSER", "ann", "+xread")
    await eventually_appended(node, event("b"))
    assert node.offsets == [1, 2]


def _denials(server: RedisServer) -> int:
    """How often Redis has said that somebody may not do something."""
    return int(server.call("ACL", "LOG")[0][1])


async def test_a_log_in_another_format_is_left_alone(
    redis_server: RedisServer, nodes: Nodes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where one appears under a running node, it says so in a line, and writes nothing into it."""
    node = await nodes.open(redis_server.url)
    await node.append(event("a"))
    caplog.clear()
    redis_server.call("HSET", "{gateway}:meta", "format", 99, "epoch", "other")
    assert "another format" in await refused(node, "b")
    await node.noticed()
    assert [each.levelno for each in caplog.records] == [logging.WARNING] * 2
    assert redis_server.call("XLEN", STREAM) == 1
