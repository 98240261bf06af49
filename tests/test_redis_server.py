"""The Redis of the tests is what it says: else what is tested with it would prove nothing."""

import os
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.certificates import Authority
from tests.support.redis_server import RedisFactory, RedisServer, wait_until


def test_a_server_keeps_its_port_and_what_it_persisted(redis_factory: RedisFactory) -> None:
    """Over a stop, and over a kill where each write is synced."""
    server = redis_factory.server(appendonly="yes", appendfsync="always")
    port, first = server.port, server.pid
    server.call("SET", "a", "1")
    server.restart()
    server.call("SET", "b", "2")
    server.kill9()
    with pytest.raises(redis.exceptions.ConnectionError):
        server.call("PING")
    server.start()
    assert server.call("MGET", "a", "b") == [b"1", b"2"]
    assert server.port == port
    assert server.pid != first


def test_servers_do_not_share_a_port(redis_factory: RedisFactory) -> None:
    """One that finds its port taken looks for another."""
    first = redis_factory.server()
    second = RedisServer(first.folder.parent / "second")
    assert not second._try_start(first.port, float("inf"))
    assert int(first.info("server")["process_id"]) == first.pid


def test_wrong_options_are_told_at_once(tmp_path: Path) -> None:
    """With what Redis said."""
    with pytest.raises(AssertionError, match="Bad directive"):
        RedisServer(tmp_path, nonsense="yes").start()


def test_a_paused_server_hangs_until_it_resumes(redis_server: RedisServer) -> None:
    """Its connections stay open."""
    with redis.Redis(port=redis_server.port, socket_timeout=0.2, retry=Retry(NoBackoff(), 0)) as client:
        client.ping()
        redis_server.pause()
        with pytest.raises(redis.exceptions.TimeoutError):
            client.ping()
        redis_server.resume()
        wait_until(lambda: redis_server.call("PING") == b"PONG", "it answers again")


def test_passwords_users_and_tls(redis_factory: RedisFactory, tmp_path: Path) -> None:
    """A URL has the password, percent-encoded."""
    identity = Authority(tmp_path / "ca").issue()
    server = redis_factory.server(
        identity=identity, requirepass="p@ss/word", user=["ann on >secret ~orders* +get"]
    )
    assert server.url == f"rediss://:p%40ss%2Fword@127.0.0.1:{server.port}/0"
    assert server.url_of("ann", "secret") == f"rediss://ann:secret@127.0.0.1:{server.port}/0"
    assert server.call("ACL", "USERS") == [b"ann", b"default"]


def test_a_sentinel_replaces_a_master_that_died(redis_factory: RedisFactory) -> None:
    """By its replica, which has what the master had."""
    master = redis_factory.server(requirepass="secret")
    master.call("SET", "a", "1")
    replica = redis_factory.replica(master, requirepass="secret")
    sentinel = redis_factory.sentinel(master)
    assert sentinel.master_port == master.port
    sentinel.wait_for_replicas(1)
    master.kill9()
    wait_until(lambda: sentinel.master_port == replica.port, "the replica is the master")
    assert replica.call("GET", "a") == b"1"


def test_a_cluster_is_whole(redis_factory: RedisFactory) -> None:
    """Each key has its node, also after a restart of all."""
    cluster = redis_factory.cluster(3)
    for key in ("a", "b", "c", "{gateway}:mark"):
        assert cluster.owner(key).call("SET", key, "1") == b"OK"
    for node in cluster.nodes:
        node.kill9()
    cluster.start()
    assert cluster.url.count(",") == 2


def test_nothing_is_left_running(tmp_path: Path) -> None:
    """The factory ends by the ids of its own processes."""
    factory = RedisFactory(tmp_path)
    pid = factory.server().pid
    factory.kill9()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
