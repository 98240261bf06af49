"""Redis: streams worked off on one core, latency from XADD and PUBLISH over two workers, and what more nodes cost."""

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import mean
from typing import Final

from bench import wire
from bench.client import Client, Commands, Load, Run, sequence
from bench.connection import connect, exchange, wait_for, websocket_steps
from bench.measurements.publishing import publish_lines
from bench.redis_server import Redis, running_redis
from bench.report import Report, Scale, Table, Target, medians
from bench.server import Server, on_redis, running

_STREAM: Final = "bench"
_PREPARED: Final = "bench:prepared"  # where entries wait until they are to be in the stream, all at once
_CHANNEL: Final = "bench:channel"
_EVENTS_PER_SECOND: Final = 30_000.0
_GROWTH_MIB: Final = 150.0
_MIB: Final = 1 << 20
_RATE: Final = 1000.0
_NODES: Final = (1, 2, 4)
_ADDED_TOGETHER: Final = 20_000  # entries of one script: Redis does nothing else meanwhile
_SAMPLE_SECONDS: Final = 0.02
# Adds ARGV[3] entries to a stream: the event ARGV[2] with their numbers from ARGV[1] on in place of the template's.
_FILL: Final = """
local from, event, count, template = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4]
for n = from, from + count - 1 do
  local text = string.gsub(event, template, string.format('%08d', n))
  redis.call('XADD', KEYS[1], '*', 'event', text)
end
return count
"""

# 1 while the append-only file is being rewritten.
_REWRITING: Final = """
return tonumber(string.match(redis.call('INFO', 'persistence'), 'aof_rewrite_in_progress:(%d)'))
"""


def measure_streams(scale: Scale) -> Report:
    table = Table(
        "Redis streams on one core", ("what", "entries", "events/s", "CPU µs/event", "RSS growth MiB")
    )
    rate = _to_socket(scale, table)
    with running_redis() as redis:
        growth = _backlog(redis, scale, table)
    return Report(
        table,
        [
            Target("Events/s from a stream to a socket", rate, _EVENTS_PER_SECOND, at_least=True),
            Target("MiB that the gateway grows by while it works off a backlog", growth, _GROWTH_MIB),
        ],
    )


def _to_socket(scale: Scale, table: Table) -> float:
    """Events a second from the first entry that is there to the last event at a WebSocket."""
    rate, cpu = medians([_time_to_socket(scale) for _ in range(scale.turns)])
    table.rows.append((f"to a socket, median of {scale.turns} turns", f"{scale.lines:,}", rate, cpu, ""))
    return rate


def _time_to_socket(scale: Scale) -> tuple[float, float]:
    """Events a second, and CPU microseconds of the gateway per event."""
    with (
        running_redis() as redis,
        running(on_redis(redis.url, "--streams", _STREAM)) as server,
        Client(server) as client,
    ):
        client.subscribe([websocket_steps(server)])
        _receive(redis, client, scale.lines // 10)
        cpu = server.cpu()
        seconds = _receive(redis, client, scale.lines)
        return scale.lines / seconds, (server.cpu() - cpu) / scale.lines * 1e6


def _receive(redis: Redis, client: Client, count: int) -> float:
    """Seconds from the moment in which so many entries are in the stream to the last event at the client."""
    numbers = _numbers(count)
    client.expect(numbers)
    _fill(redis, numbers, _PREPARED)
    redis.call("XGROUP", "CREATE", _PREPARED, "gateway", "0")
    while redis.call("EVAL", _REWRITING, 0) != b":0\r\n":  # what the preparation has set off is no part of it
        time.sleep(_SAMPLE_SECONDS)
    began = time.monotonic()
    redis.call("RENAME", _PREPARED, _STREAM)
    client.receive()
    return time.monotonic() - began


def _numbers(count: int) -> range:
    first = next(sequence)
    for _ in range(count - 1):
        next(sequence)
    return range(first, first + count)


def _fill(redis: Redis, numbers: range, key: str = _STREAM) -> None:
    template = 99_999_999
    event = wire.event(template)
    for start in range(numbers.start, numbers.stop, _ADDED_TOGETHER):
        count = min(_ADDED_TOGETHER, numbers.stop - start)
        redis.call("EVAL", _FILL, 1, key, start, event, count, template)


def _backlog(redis: Redis, scale: Scale, table: Table) -> float:
    """MiB that the gateway grows by, from idle, while it works off what waits when it starts."""
    with running(on_redis(redis.url)) as idle:
        before = idle.rss()
    _fill(redis, _numbers(scale.many_subjects))
    with running(on_redis(redis.url, "--streams", _STREAM)) as server:
        began, cpu, peak = time.monotonic(), server.cpu(), 0
        while _unacknowledged(redis) or peak == 0:
            peak = max(peak, server.rss())
            time.sleep(_SAMPLE_SECONDS)
        seconds, cpu = time.monotonic() - began, server.cpu() - cpu
    growth = (peak - before) / _MIB
    count = scale.many_subjects
    table.rows.append(("a backlog at start", f"{count:,}", count / seconds, cpu / count * 1e6, growth))
    return growth


_LEFT: Final = """
local groups = redis.call('XINFO', 'GROUPS', KEYS[1])
if not groups[1] then return 1 end
local last = redis.call('XINFO', 'STREAM', KEYS[1])[8]
return (groups[1][8] == last and groups[1][6] == 0) and 0 or 1
"""


def _unacknowledged(redis: Redis) -> bool:
    """Whether the group has entries left to read or to acknowledge."""
    return redis.call("EVAL", _LEFT, 1, _STREAM) != b":0\r\n"


def measure_latency(scale: Scale) -> Report:
    table = Table(
        f"From Redis to {scale.subscribers:,} WebSocket subscribers over two workers, {_RATE:,.0f} events/s",
        ("from", "each event to", "events/s", "p50 ms", "p99 ms"),
    )
    for command in (("XADD", _STREAM, "*", "event"), ("PUBLISH", _CHANNEL)):
        for receivers in (1, scale.subscribers):
            run = _latency(scale, command, receivers)
            whom = "one of them" if receivers == 1 else "all"
            table.rows.append((command[0], whom, run.published / run.seconds, *run.percentiles(50, 99)))
    return Report(table)


def _latency(scale: Scale, command: tuple[str, ...], receivers: int) -> Run:
    flags = ("--workers", "2", "--streams", _STREAM, "--pubsub", _CHANNEL)
    with (
        running_redis() as redis,
        running(on_redis(redis.url, *flags)) as server,
        Client(server, Commands(redis, command)) as client,
    ):
        orders = range(scale.subscribers)
        client.subscribe(
            [websocket_steps(server, {"subject": f"o-{n}"} if receivers == 1 else None) for n in orders]
        )
        load = Load(subjects=orders, receivers=receivers)
        client.open_loop(_RATE, _for(scale.warm_up), load)
        return client.open_loop(_RATE, _for(scale.seconds), load)


def _for(seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() < until


def measure_nodes(scale: Scale) -> Report:
    table = Table(
        "CPU of more nodes on one Redis, events as NDJSON to one of them",
        ("nodes", "events", "publishing node µs/event", "each other node µs/event", "redis-server µs/event"),
    )
    for nodes in _NODES:
        with running_redis() as redis, ExitStack() as stack:
            servers = [stack.enter_context(running(on_redis(redis.url))) for _ in range(nodes)]
            _follow(redis, servers, scale, table)
    return Report(table)


def _follow(redis: Redis, servers: Sequence[Server], scale: Scale, table: Table) -> None:
    """Every node has one subscriber, who waits for the last event alone."""
    with ExitStack() as stack:
        waiting = [stack.enter_context(connect(each)) for each in servers]
        for server, connection in zip(servers, waiting, strict=True):
            _wait_for_order(server, connection, scale.lines - 1)
        before = [each.cpu() for each in servers]
        redis_before = redis.cpu()
        lines = [wire.event(next(sequence), subject=order) + b"\n" for order in range(scale.lines)]
        publish_lines(servers[0], scale.lines, [b"".join(lines)])
        for connection in waiting:
            wait_for(connection, wire.MARK)
        costs = [(each.cpu() - cpu) / scale.lines * 1e6 for each, cpu in zip(servers, before, strict=True)]
        redis_cost = (redis.cpu() - redis_before) / scale.lines * 1e6
    others: str | float = mean(costs[1:]) if costs[1:] else ""
    table.rows.append((str(len(servers)), f"{scale.lines:,}", costs[0], others, redis_cost))


def _wait_for_order(server: Server, connection: socket.socket, order: int) -> None:
    exchange(connection, wire.upgrade(server.port), wire.HEAD_END)
    exchange(connection, wire.subscribe({"subject": f"o-{order}"}), wire.SUBSCRIBED)
