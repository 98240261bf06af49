"""The clients of a Redis: every way to reach one, how long they try, and what they say when it is no use."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions

from gateway.redis_clients import UNREACHABLE, RedisClients, RedisRefusedError
from tests.support.certificates import Authority
from tests.support.proxy import Proxy
from tests.support.redis_server import HOST, RedisFactory, RedisServer

SECRET = "pa:ss/w@rd"


@asynccontextmanager
async def clients(url: str) -> AsyncIterator[RedisClients]:
    made = RedisClients(url)
    try:
        yield made
    finally:
        await made.aclose()


async def reason(url: str, *command: Any) -> str:
    """What is said when a Redis is looked at, or a command is tried; never with a secret, always one line."""
    async with clients(url) as made:
        try:
            await (made.writes.execute_command(*command) if command else made.check())
        except RedisRefusedError as error:
            text = str(error)
        except UNREACHABLE as error:
            text = made.explain(error, first=not command)
        else:
            raise AssertionError("it was accepted")
        assert text.startswith(made.name)
    assert "\n" not in text
    assert SECRET not in text
    assert "pa%3Ass" not in text
    return text


@asynccontextmanager
async def serving(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server that does this with each connection; its URL."""
    done: list[asyncio.Event] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        done.append(asyncio.Event())
        mine = done[-1]
        try:
            await handle(reader, writer)
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            pass  # the client is gone
        finally:
            mine.set()

    server = await asyncio.start_server(serve, HOST, 0)
    async with server:
        yield f"redis://{HOST}:{server.sockets[0].getsockname()[1]}"
        for each in done:
            await each.wait()


# Ways to a Redis


async def test_user_password_and_database_stand_in_the_url(redis_factory: RedisFactory) -> None:
    """Percent-encoded where they have characters of a URL's own."""
    redis = redis_factory.server(requirepass="geheim", user=["ann on >pa:ss/w@rd ~* &* +@all"])
    async with clients(redis.url_of("ann", SECRET, db=3)) as made:
        await made.check()
        assert await made.writes.execute_command("ACL", "WHOAMI") in (b"ann", "ann")
        await made.writes.set("x", 1)
    assert redis.call("EXISTS", "x") == 0
    assert "refuses the user or the password" in await reason(redis.url_of("ann", "wrong"))
    assert "wants a password" in await reason(f"redis://{HOST}:{redis.port}")


async def test_what_a_user_may_not_do_is_named(redis_factory: RedisFactory) -> None:
    """So that the rule can be mended."""
    redis = redis_factory.server(user=["bob on >x ~{gateway}:* +@all -flushall"])
    assert "may not" in await reason(redis.url_of("bob", "x"), "FLUSHALL")
    assert "may not" in await reason(redis.url_of("bob", "x"), "SET", "other", "1")


async def test_tls_with_an_authority_of_its_own(redis_factory: RedisFactory, tmp_path: Path) -> None:
    """And a client's certificate, both by the URL's query; each that is wrong is said as such."""
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other", "Other CA")
    redis = redis_factory.server(identity=authority.issue(), tls_auth_clients="yes")
    own, foreign = authority.issue("client"), other.issue("stranger")
    place = f"rediss://{HOST}:{redis.port}"
    login = f"ssl_certfile={own.cert}&ssl_keyfile={own.key}"
    async with clients(f"{place}?ssl_ca_certs={authority.cert}&{login}") as made:
        await made.check()
        pubsub = await made.pubsub()
        await pubsub.subscribe("x")
        await pubsub.aclose()
    assert "not signed by an authority" in await reason(f"{place}?ssl_ca_certs={other.cert}&{login}")
    assert await reason(f"{place}?ssl_ca_certs={authority.cert}")
    assert await reason(
        f"{place}?ssl_ca_certs={authority.cert}&ssl_certfile={foreign.cert}&ssl_keyfile={foreign.key}"
    )
    assert "rediss://" in await reason(f"redis://{HOST}:{redis.port}")


async def test_certificates_are_looked_at(redis_factory: RedisFactory, tmp_path: Path) -> None:
    """Their end, and the name in them."""
    authority = Authority(tmp_path / "ca")
    expired = authority.issue("expired", valid_for=timedelta(days=-1))
    elsewhere = authority.issue("elsewhere", hosts=("redis.example",))
    for identity, words in ((expired, "expired"), (elsewhere, "for another")):
        redis = redis_factory.server(identity=identity, tls_auth_clients="no")
        assert words in await reason(f"rediss://{HOST}:{redis.port}?ssl_ca_certs={authority.cert}")


async def test_tls_where_there_is_none(redis_server: RedisServer) -> None:
    """Says so."""
    assert "does not speak TLS" in await reason(f"rediss://{HOST}:{redis_server.port}")


async def test_a_sentinel_names_the_master_and_the_next_one(redis_factory: RedisFactory) -> None:
    """After a failover the same clients write to the new master."""
    master = redis_factory.server()
    replica = redis_factory.replica(master)
    sentinel = redis_factory.sentinel(master)
    sentinel.wait_for_replicas(1)
    async with clients(sentinel.url) as made:
        await made.check()
        await made.writes.set("x", 1)
        await asyncio.to_thread(master.kill9)
        async with asyncio.timeout(60):
            while True:
                try:
                    await made.writes.set("x", 2)
                    break
                except UNREACHABLE:
                    await asyncio.sleep(0.05)
        pubsub = await made.pubsub()
        await pubsub.subscribe("y")
        await pubsub.aclose()
    assert replica.call("GET", "x") == b"2"
    assert sentinel.service in await reason(sentinel.url.replace(str(sentinel.port), "1"))


async def test_a_cluster_is_asked_at_the_node_that_has_the_key(redis_factory: RedisFactory) -> None:
    """Scripts, streams, pipelines and blocking reads; subscribers are with the node of the log's keys."""
    cluster = redis_factory.cluster()
    key = "{gateway}:x"
    async with clients(cluster.url) as made:
        await made.check()
        for client in (made.commands, made.blocking):
            client.set_response_callback("XREAD", lambda reply, **_: reply)
        await made.writes.eval("redis.call('XADD', KEYS[1], '1-0', 'a', 1) return 1", 1, key)
        reply = await made.blocking.execute_command("XREAD", "BLOCK", 100, "STREAMS", key, "0")
        assert reply == [[key.encode(), [[b"1-0", [b"a", b"1"]]]]]
        pipeline = made.commands.pipeline(transaction=False)
        pipeline.hset("{gateway}:h", "a", "1")
        pipeline.hget("{gateway}:h", "a")
        assert await pipeline.execute() == [1, b"1"]
        pubsub = await made.pubsub()
        await pubsub.subscribe("{gateway}:mark")
        assert cluster.owner("{gateway}").call("PUBSUB", "CHANNELS") == [b"{gateway}:mark"]
        await pubsub.aclose()
    single = cluster.nodes[0]
    assert "redis+cluster://" in await reason(single.url)
    assert cluster.owner(key).call("XLEN", key) == 1


# What is refused


async def test_a_redis_that_is_no_master_or_no_cluster(redis_factory: RedisFactory) -> None:
    """Is refused with what to write in its place."""
    master = redis_factory.server()
    replica = redis_factory.replica(master)
    assert "replica" in await reason(replica.url)
    assert "replica" in await reason(replica.url, "SET", "x", "1")
    assert await reason(master.url.replace("redis://", "redis+cluster://"))


async def test_what_speaks_against_a_redis_is_told(redis_factory: RedisFactory) -> None:
    """One that forgets, or drops keys."""
    safe = redis_factory.server(appendonly="yes")
    async with clients(safe.url) as made:
        assert await made.check() == []
    unsafe = redis_factory.server(maxmemory="100mb", maxmemory_policy="allkeys-lru")
    async with clients(unsafe.url) as made:
        assert [("maxmemory-policy" in each, "appendonly" in each) for each in await made.check()] == [
            (True, False),
            (False, True),
        ]


async def test_an_old_redis_is_refused() -> None:
    """There is none to install, so one that only says so."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readline():  # a command: *2, and each word with its length before it
            for _ in range(2 * int(head[1:])):
                await reader.readline()
            text = b"redis_version:6.2.14\r\nrole:master\r\n"
            writer.write(b"$%d\r\n%b\r\n" % (len(text), text))

    async with serving(answer) as url:
        assert "6.2.14: 7.0 or later" in await reason(url)


async def test_a_full_redis_says_so(redis_factory: RedisFactory) -> None:
    """maxmemory is reached."""
    redis = redis_factory.server(maxmemory="3mb")
    while True:
        try:
            redis.call("RPUSH", "fill", b"x" * 500_000)
        except exceptions.ResponseError:
            break
    assert "no memory left" in await reason(redis.url, "RPUSH", "fill", b"x" * 500_000)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://127.0.0.1:1", "nobody listens"),
        ("redis://nowhere.invalid", "name is not known"),
        ("redis+sentinel://127.0.0.1:1/orders", "orders"),
    ],
)
async def test_a_redis_that_is_not_there(url: str, words: str) -> None:
    """Nobody at the port, or no such name."""
    assert words in await reason(url)


# How long they try


@pytest.mark.parametrize("kind", ["redis://", "redis+cluster://", "redis+sentinel://"])
async def test_a_redis_that_does_not_answer_is_asked_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout is never repeated: not the command, not the connection, whatever kind of Redis it is."""
    monkeypatch.setattr("gateway.redis_clients.COMMAND_SECONDS", 0.3)
    monkeypatch.setattr("gateway.redis_clients.CONNECT_SECONDS", 0.3)
    async with Proxy(1) as silent:
        silent.stall()
        service = "/orders" if "sentinel" in kind else ""
        async with clients(f"{kind}{HOST}:{silent.port}{service}") as made:
            with pytest.raises(UNREACHABLE) as caught:
                await made.commands.get("x")
            assert silent.accepted == 1
            assert made.name in made.explain(caught.value)


async def test_a_node_of_a_cluster_that_hangs_is_asked_once(
    redis_factory: RedisFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By commands and by pipelines, which redis-py would repeat."""
    monkeypatch.setattr("gateway.redis_clients.COMMAND_SECONDS", 0.3)
    monkeypatch.setattr("gateway.redis_clients.CONNECT_SECONDS", 0.3)
    cluster = redis_factory.cluster(cluster_node_timeout=60_000)
    async with clients(cluster.url) as made:
        await made.commands.set("{gateway}:x", "1")
        asked = 0
        node = made.commands.get_node_from_key("{gateway}:x")
        execute, execute_pipeline = node.execute_command, node.execute_pipeline

        class Counting(type(node)):  # type: ignore[misc]  # redis-py's own node, whose class has slots
            __slots__ = ()

            async def execute_command(self, *args: Any, **options: Any) -> Any:
                nonlocal asked
                asked += args[0] == "GET"
                return await execute(*args, **options)

            async def execute_pipeline(self, commands: Any) -> Any:
                nonlocal asked
                asked += 1
                return await execute_pipeline(commands)

        node.__class__ = Counting
        cluster.owner("{gateway}:x").pause()
        with pytest.raises(exceptions.TimeoutError):
            await made.commands.get("{gateway}:x")
        pipeline = made.commands.pipeline(transaction=False)
        pipeline.get("{gateway}:x")
        with pytest.raises(exceptions.TimeoutError):
            await pipeline.execute()
        assert asked == 2


async def test_a_wrong_password_is_tried_once(redis_factory: RedisFactory) -> None:
    """It gets no better, and Redis logs each."""
    redis = redis_factory.server(requirepass="right")
    async with Proxy(redis.port) as proxy, clients(f"redis://:wrong@{HOST}:{proxy.port}") as made:
        with pytest.raises(exceptions.AuthenticationError):
            await made.commands.get("x")
        assert proxy.accepted == 1


async def test_a_subscriber_never_connects_again(redis_server: RedisServer) -> None:
    """Whoever reads is told, and so is whoever sends: what was published meanwhile would be missing."""
    async with Proxy(redis_server.port) as proxy, clients(f"redis://{HOST}:{proxy.port}") as made:
        pubsub = await made.pubsub()
        await pubsub.subscribe("x")
        assert (await pubsub.get_message(timeout=30))["type"] == "subscribe"
        connections = proxy.accepted
        proxy.reset()
        for _ in range(3):
            with pytest.raises(UNREACHABLE):
                await pubsub.get_message(timeout=30)
        for _ in range(3):
            with contextlib.suppress(*UNREACHABLE):  # the first may be taken by the kernel
                await pubsub.ping()
        with pytest.raises(UNREACHABLE):
            await pubsub.get_message(timeout=30)
        await pubsub.aclose()
        assert redis_server.call("PUBSUB", "NUMSUB", "x") == [b"x", 0]
        assert proxy.accepted <= connections + 3  # those that a sender made are closed at once


async def test_a_subscriber_goes_where_the_key_has_gone(redis_factory: RedisFactory) -> None:
    """In a cluster whose slots have moved since the last command."""
    cluster = redis_factory.cluster()
    async with clients(cluster.url) as made:
        await (await made.pubsub()).aclose()
        source = cluster.owner("{gateway}:mark")
        target = next(node for node in cluster.nodes if node is not source)
        slot, new = source.call("CLUSTER", "KEYSLOT", "{gateway}:mark"), target.call("CLUSTER", "MYID")
        for node in (target, source, *cluster.nodes):
            node.call("CLUSTER", "SETSLOT", slot, "NODE", new)
        pubsub = await made.pubsub()
        await pubsub.subscribe("{gateway}:mark")
        assert (await pubsub.get_message(timeout=30))["type"] == "subscribe"
        assert target.call("PUBSUB", "CHANNELS") == [b"{gateway}:mark"]
        await pubsub.aclose()


async def test_a_master_that_became_a_replica_is_looked_up_again(redis_server: RedisServer) -> None:
    """Behind its name there may be another master by now: the connection is not used again."""
    async with Proxy(redis_server.port) as proxy, clients(f"redis://{HOST}:{proxy.port}") as made:
        await made.writes.set("x", 1)
        redis_server.call("REPLICAOF", HOST, "1")
        with pytest.raises(exceptions.ReadOnlyError):
            await made.writes.set("x", 2)
        redis_server.call("REPLICAOF", "NO", "ONE")
        before = proxy.accepted
        await made.writes.set("x", 3)
        assert proxy.accepted == before + 1


async def test_clients_of_a_redis_that_hangs_can_be_closed(
    redis_factory: RedisFactory, tmp_path: Path
) -> None:
    """With TLS too, where a goodbye would be waited for."""
    identity = Authority(tmp_path / "ca").issue()
    redis = redis_factory.server(identity=identity)
    made = RedisClients(f"rediss://{HOST}:{redis.port}?ssl_ca_certs={identity.ca}")
    await made.writes.set("x", 1)
    redis.pause()
    await made.aclose()


async def test_short_commands_outlive_a_lost_connection_and_writes_do_not(redis_server: RedisServer) -> None:
    """Who writes decides himself whether it may have been done."""
    async with Proxy(redis_server.port) as proxy, clients(f"redis://{HOST}:{proxy.port}") as made:
        for client in (made.commands, made.writes):
            await client.ping()
        redis_server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await made.commands.ping()
        proxy.cut()
        with pytest.raises((exceptions.ConnectionError, OSError)):
            await made.writes.set("x", 1)
