"""Publishing into the SQLite log on one core: one NDJSON stream, and single events over 16 connections."""

import time
from collections.abc import Iterable, Iterator
from typing import Final

from bench import wire
from bench.client import Client, sequence
from bench.connection import ClientError, connect, wait_for_response
from bench.report import Report, Scale, Table, Target
from bench.server import GATEWAY, Server, running

ORDERS_PER_CUSTOMER: Final = 10

_CONNECTIONS: Final = 16
_LINES_PER_SECOND: Final = 40_000.0
_POSTS_PER_SECOND: Final = 4_000.0
_PIECE_LINES: Final = 5_000


def measure(scale: Scale) -> Report:
    table = Table("Publishing into the SQLite log", ("way", "events", "events/s", "CPU µs/event"))
    with running(GATEWAY) as server:
        lines = _publish_stream(server, scale, table)
        posts = _publish_singly(server, scale, table)
    return Report(
        table,
        [
            Target("Events/s as NDJSON into SQLite", lines, _LINES_PER_SECOND, at_least=True),
            Target("Events/s one by one into SQLite", posts, _POSTS_PER_SECOND, at_least=True),
        ],
    )


def _publish_stream(server: Server, scale: Scale, table: Table) -> float:
    """Events a second, from the first byte sent to the answer. The bytes are made beforehand."""
    pieces = list(lines_about(scale.lines))
    cpu, began = server.cpu(), time.monotonic()
    publish_lines(server, scale.lines, pieces)
    seconds = time.monotonic() - began
    cpu = (server.cpu() - cpu) / scale.lines * 1e6
    table.rows.append(("NDJSON, one request", f"{scale.lines:,}", scale.lines / seconds, cpu))
    return scale.lines / seconds


def _publish_singly(server: Server, scale: Scale, table: Table) -> float:
    """Events a second; each connection sends its next when its last is answered."""
    with Client(server) as client:
        client.closed_loop(_CONNECTIONS, scale.warm_up)
        run = client.closed_loop(_CONNECTIONS, scale.seconds)
    rate = run.published / run.seconds
    way = f"one event a request, {_CONNECTIONS} connections"
    table.rows.append((way, f"{run.published:,}", rate, run.cpu / run.published * 1e6))
    return rate


def lines_about(subjects: int) -> Iterator[bytes]:
    """NDJSON in pieces: one event for each of `subjects` orders, ten orders to a customer."""
    for start in range(0, subjects, _PIECE_LINES):
        orders = range(start, min(start + _PIECE_LINES, subjects))
        events = (
            wire.event(next(sequence), subject=order, customer=order // ORDERS_PER_CUSTOMER)
            for order in orders
        )
        yield b"".join(event + b"\n" for event in events)


def publish_lines(server: Server, lines: int, pieces: Iterable[bytes]) -> None:
    """Publishes `lines` events in one request and waits for the answer. Raises ClientError."""
    length = lines * (wire.EVENT_BYTES + 1)
    with connect(server) as connection:
        connection.sendall(wire.post_head("/events", server.port, length, "application/x-ndjson"))
        for piece in pieces:
            connection.sendall(piece)
        answer = wait_for_response(connection)
    if b'"accepted":%d,' % lines not in answer:
        raise ClientError(f"not all events were accepted: {answer[:500]!r}")
