"""Streams read by real processes: frozen and killed ones, and a backlog of a million entries."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import orjson
import pytest

from tests.support.gateway import GatewayProcess
from tests.support.health import memory
from tests.support.redis_server import RedisFactory, RedisServer, wait_until
from tests.support.streams import GROUP, STREAM, Source

LOG: Final = "{gateway}:log"
LEASE: Final = f"{{gateway}}:lease:stream:{STREAM}"
PATIENCE: Final = 90.0
GROWTH: Final = 150 << 20  # bytes
MILLION: Final = 1_000_000


@contextmanager
def process(folder: Path, source: RedisServer, store: RedisServer) -> Iterator[GatewayProcess]:
    folder.mkdir()
    settings = {"store": store.url, "ingest_redis": source.url, "streams": STREAM, "drain_seconds": 0}
    with GatewayProcess(folder, **settings) as gateway:
        yield gateway


def stored(store: RedisServer) -> list[int]:
    """The numbers of the entries, in the log's order."""
    found = []
    for _, fields in store.call("XRANGE", LOG, "-", "+"):
        values = dict(zip(fields[::2], fields[1::2], strict=True))
        found.append(orjson.loads(values[b"e"])["data"][0])
    return found


def length(store: RedisServer) -> int:
    return int(store.call("XLEN", LOG))


def wait_for(source: Source, store: RedisServer) -> None:
    """Until all entries are in the log and acknowledged; then the log has each once and in order."""
    wait_until(lambda: length(store) >= source.added, "the entries are in the log", PATIENCE)
    wait_until(lambda: source.pending == 0, "the entries are acknowledged", PATIENCE)
    assert stored(store) == list(range(source.added))


def freeze_while_it_reads(gateway: GatewayProcess, source: Source) -> None:
    source.add(2000)
    wait_until(lambda: source.pending > 0, "entries are handed out")
    gateway_signal(gateway, signal.SIGSTOP)


def gateway_signal(gateway: GatewayProcess, number: signal.Signals) -> None:
    os.kill(gateway.pid, number)


def test_a_frozen_node_is_relieved_and_does_no_harm_when_it_goes_on(
    tmp_path: Path, redis_factory: RedisFactory
) -> None:
    """It is stopped in the midst of a page; another one has the stream until it is killed itself."""
    source, store = Source(redis_factory.server()), redis_factory.server()
    with process(tmp_path / "a", source.redis, store) as first:
        source.add(10)
        wait_for(source, store)
        with process(tmp_path / "b", source.redis, store) as second:
            freeze_while_it_reads(first, source)
            wait_for(source, store)
            source.add(500)
            gateway_signal(first, signal.SIGCONT)
            source.add(500)
            wait_for(source, store)
            source.add(2000)
            second.kill9()
            wait_for(source, store)


@pytest.mark.torture
@pytest.mark.timeout(600)
def test_nodes_that_are_frozen_and_killed_in_turn_keep_the_order(
    tmp_path: Path, redis_factory: RedisFactory
) -> None:
    """Over and over, while entries come."""
    source, store = Source(redis_factory.server()), redis_factory.server()
    with process(tmp_path / "a", source.redis, store) as a, process(tmp_path / "b", source.redis, store) as b:
        for _ in range(6):
            for gateway in (a, b):
                freeze_while_it_reads(gateway, source)
                for _ in range(20):
                    source.add(25)
                wait_for(source, store)
                gateway_signal(gateway, signal.SIGCONT)
                source.add(25)
                gateway.kill9()
                source.add(1000)
                gateway.start()
        wait_for(source, store)


@pytest.mark.torture
@pytest.mark.timeout(900)
def test_a_million_entries_are_worked_off_in_bounded_memory(
    tmp_path: Path, redis_factory: RedisFactory
) -> None:
    """The gateway grows by less than 150 MB; no entry is missing."""
    source, store = Source(redis_factory.server()), redis_factory.server()
    with process(tmp_path / "idle", source.redis, store) as gateway:
        source.add(1)
        wait_for(source, store)
        before = peak = memory(gateway.pid)
        gateway.kill9()
    store.call("FLUSHALL")
    source = Source(redis_factory.server())
    while source.added < MILLION:
        source.add(20_000, size=150)
    with process(tmp_path / "a", source.redis, store) as gateway:
        deadline = time.monotonic() + 600
        while not is_worked_off(source):
            assert time.monotonic() < deadline, f"{length(store)} of {MILLION} entries"
            peak = max(peak, memory(gateway.pid))
            time.sleep(0.05)
        peak = max(peak, memory(gateway.pid))
        assert store.call("HGET", "{gateway}:meta", "head") == str(MILLION).encode()
    assert peak - before < GROWTH, f"grown by {(peak - before) >> 20} MiB"


def is_worked_off(source: Source) -> bool:
    (group,) = source.redis.call("XINFO", "GROUPS", STREAM) or [None]
    if group is None:
        return False
    told = dict(zip(group[::2], group[1::2], strict=True))
    assert told[b"name"] == GROUP.encode()
    return bool(told[b"pending"] == 0 and told[b"lag"] == 0)
