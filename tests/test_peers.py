"""What nodes on one Redis tell and ask each other, and what happens when Redis or one of them is away."""

import asyncio
import logging

import pytest

from gateway import peers as module
from gateway.log import LogUnavailableError
from gateway.peers import BUS, NODES, LocalPeers, node_id
from tests.support.peers import PeerNode, peer_nodes
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

# One node alone


async def test_a_node_alone_tells_and_asks_itself() -> None:
    """The same calls, without Redis; what it has no handler for is nothing to it."""
    peers = LocalPeers()
    heard: list[str] = []
    peers.handle("say", heard.append)
    peers.handle("double", lambda number: 2 * number)
    await peers.tell("say", "hello")
    await peers.tell("unknown", "hello")
    assert heard == ["hello"]
    assert (await peers.ask("double", 21)).given == (42,)
    assert (await peers.ask("unknown", 21)).given == (None,)


def test_no_two_processes_have_one_name() -> None:
    """It begins with the machine's."""
    assert len({node_id() for _ in range(100)}) == 100


# Several


async def test_all_nodes_are_told(redis_server: RedisServer) -> None:
    """Each once and in order; the teller before its call returns."""
    async with peer_nodes(redis_server.url, "a", "b", "c") as (a, b, c):
        for number in range(5):
            await a.peers.tell("say", number)
        assert a.heard == list(range(5))
        await until(lambda: len(b.heard) == len(c.heard) == 5)
        assert b.heard == c.heard == list(range(5))
        assert a.heard == list(range(5))


async def test_all_nodes_are_asked(redis_server: RedisServer) -> None:
    """Each gives its answer, the asker first, and nobody is missing."""
    async with peer_nodes(redis_server.url, "a", "b", "c") as (_, b, _c):
        answers = await b.peers.ask("who", {"x": [1, None, "ü"]})
        assert answers.given[0] == ["b", {"x": [1, None, "ü"]}]
        assert sorted(name for name, _ in answers.given) == ["a", "b", "c"]
        assert answers.missing == ()


async def test_one_answer_may_be_enough(redis_server: RedisServer) -> None:
    """Then nobody waits for the others, and where the asker's own is, they are not even asked."""
    async with peer_nodes(redis_server.url, "a", "b") as (a, b):
        redis_server.call("ZADD", NODES, 1e11, "stuck")
        answers = await a.peers.ask("who", 1, wait=60, enough=lambda answer: answer[0] == "b")
        assert [name for name, _ in answers.given] == ["a", "b"]
        assert answers.missing == ("stuck",)
        length = redis_server.call("XLEN", BUS)
        assert (await b.peers.ask("who", 1, wait=60, enough=bool)).given == (["b", 1],)
        assert redis_server.call("XLEN", BUS) == length
        redis_server.call("ZREM", NODES, "stuck")


async def test_many_questions_take_turns(redis_server: RedisServer) -> None:
    """All of them are answered."""
    async with peer_nodes(redis_server.url, "a", "b") as (a, _):
        found = await asyncio.gather(*(a.peers.ask("who", number, wait=30) for number in range(300)))
        assert [each.given for each in found] == [(["a", n], ["b", n]) for n in range(300)]


async def test_who_is_new_is_not_told_what_was_before(redis_server: RedisServer) -> None:
    """And who has left is not waited for."""
    async with peer_nodes(redis_server.url, "a", "b") as (a, b):
        await a.peers.tell("say", "early")
        await until(lambda: b.heard)
        async with peer_nodes(redis_server.url, "late") as (late,):
            await a.peers.tell("say", "now")
            await until(lambda: late.heard)
            assert late.heard == ["now"]
            assert await a.peers.alive() == {"a", "b", "late"}
        assert await a.peers.alive() == {"a", "b"}
        assert (await a.peers.ask("who", 1)).missing == ()


async def test_who_does_not_answer_is_named(redis_server: RedisServer) -> None:
    """After the asker's patience; the others' answers are there."""
    async with peer_nodes(redis_server.url, "a", "b", "c") as (a, b, _):
        await b.freeze()
        answers = await a.peers.ask("who", 1, wait=0.5)
        assert sorted(name for name, _ in answers.given) == ["a", "c"]
        assert answers.missing == ("b",)


async def test_a_dead_node_is_not_waited_for(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has not been heard of for a while is none of them any more, until it is heard of again."""
    monkeypatch.setattr(module, "ALIVE_SECONDS", 1)
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    async with peer_nodes(redis_server.url, "a", "b") as (a, b):
        await b.freeze()
        await until(lambda: redis_server.call("ZRANGE", NODES, 0, -1) == [b"a"])
        assert (await a.peers.ask("who", 1)).missing == ()
        await b.start()
        assert len((await a.peers.ask("who", 1)).given) == 2


async def test_a_handler_that_fails_harms_nobody_else(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The node counts as one that did not answer, and goes on."""
    async with peer_nodes(redis_server.url, "a", "b") as (a, b):

        def fail(_payload: object) -> None:
            raise ValueError("what is that?")

        b.peers.handle("who", fail)
        assert (await a.peers.ask("who", 1, wait=0.5)).missing == ("b",)
        await a.peers.tell("say", "on we go")
        await until(lambda: b.heard)
        assert "a message of another node failed (who)" in caplog.text


async def test_a_node_that_was_away_gets_what_was_told(redis_server: RedisServer) -> None:
    """A broken connection costs latency and no message; that it may have missed something is told it."""
    async with peer_nodes(redis_server.url, "a", "b") as (a, b):
        await b.freeze()
        for number in range(250):  # more than it reads at once
            await a.peers.tell("say", number)
        b._tasks = [asyncio.create_task(b.peers.follow())]
        await until(lambda: len(b.heard) == 250)
        assert b.heard == list(range(250))
        assert not b.neighbours.missed.is_set()
        redis_server.call("CLIENT", "KILL", "TYPE", "normal")
        await until(b.neighbours.missed.is_set)
        await a.peers.tell("say", "after")
        await until(lambda: b.heard[-1] == "after")


async def test_a_redis_that_lost_its_data_is_followed_on(redis_server: RedisServer) -> None:
    """Its bus begins anew, perhaps before the place that a node has reached on the old one."""
    async with peer_nodes(redis_server.url, "a", "b") as (a, b):
        redis_server.call(
            "XADD", BUS, "99999999999999-1", "from", "a", "kind", "say", "payload", "1", "ask", ""
        )
        await until(lambda: b.heard == [1])
        await asyncio.to_thread(redis_server.kill9)
        await asyncio.to_thread(redis_server.start)
        await until(lambda: a.neighbours.missed.is_set() and b.neighbours.missed.is_set())
        await a.peers.tell("say", 2)
        await until(lambda: b.heard == [1, 2])


async def test_without_redis_nodes_are_alone(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """They tell and ask themselves, and say whom they could not reach."""
    async with peer_nodes(redis_server.url, "a", "b") as (a, _):
        await asyncio.to_thread(redis_server.kill9)
        await a.peers.tell("say", "to myself")
        assert a.heard == ["to myself"]
        assert "the other nodes could not be told (say)" in caplog.text
        answers = await a.peers.ask("who", 1)
        assert answers.given == (["a", 1],)
        assert answers.missing == (f"Redis at 127.0.0.1:{redis_server.port}",)


async def test_a_redis_that_hangs_does_not_hold_up_an_asker(redis_server: RedisServer) -> None:
    """Beyond its patience and a moment."""
    async with peer_nodes(redis_server.url, "a", "b") as (a, _):
        redis_server.pause()
        try:
            answers = await a.peers.ask("who", 1, wait=0.5)
        finally:
            redis_server.resume()
        assert answers.given == (["a", 1],)
        assert len(answers.missing) == 1


async def test_a_node_cannot_start_without_redis(redis_server: RedisServer) -> None:
    """The error names the Redis."""
    redis_server.kill9()
    node = PeerNode(redis_server.url, "a")
    with pytest.raises(LogUnavailableError, match=f"Redis at 127.0.0.1:{redis_server.port}"):
        await node.start()
    await node.stop()


async def test_the_bus_does_not_grow_without_end(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Old messages go; answers and the names of dead nodes too."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "BUS_LENGTH", 100)
    async with peer_nodes(redis_server.url, "a", "b") as (a, _):
        for number in range(1000):
            await a.peers.tell("nothing", number)
        assert redis_server.call("XLEN", BUS) < 500
        redis_server.call("ZADD", NODES, 1, "long dead")
        await a.peers.ask("who", 1)
        assert redis_server.call("ZRANGE", NODES, 0, -1) == [b"a", b"b"]
    assert redis_server.call("ZRANGE", NODES, 0, -1) == []
    assert redis_server.call("KEYS", "*") == [BUS.encode()]
