"""Publishing into the SQLite log on one core: one NDJSON stream, and single events over 16 connections."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from bench import wire
from bench.client import Client, sequence
from bench.connection import ClientError, connect, wait_for_response
from bench.report import Report, Scale, Table, Target, medians
from bench.server import GATEWAY, Server, running

ORDERS_PER_CUSTOMER: Final = 10

_CONNECTIONS: Final = 16
_LINES_PER_SECOND: Final = 40_000.0
_POSTS_PER_SECOND: Final = 4_000.0
_PIECE_LINES: Final = 5_000


_Turn = tuple[int, float, float]  # events, events a second, CPU microseconds per event


def measure(scale: Scale) -> Report:
    streamed: list[_Turn] = []
    single: list[_Turn] = []
    for _ in range(scale.turns):
        with running(GATEWAY) as server:
            streamed.append(_publish_stream(server, scale))
            single.append(_publish_singly(server, scale))
    table = Table(
        f"Publishing into the SQLite log, medians of {scale.turns} turns",
        ("way", "events", "events/s", "CPU µs/event"),
    )
    rates = [
        _add_row(table, "NDJSON, one request", streamed),
        _add_row(table, f"one event a request, {_CONNECTIONS} connections", single),
    ]
    return Report(
        table,
        [
            Target("Events/s as NDJSON into SQLite", rates[0], _LINES_PER_SECOND, at_least=True),
            Target("Events/s one by one into SQLite", rates[1], _POSTS_PER_SECOND, at_least=True),
        ],
    )


def _add_row(table: Table, way: str, turns: Sequence[_Turn]) -> float:
    """Returns the events a second."""
    events, rate, cpu = medians(turns)
    table.rows.append((way, f"{events:,.0f}", rate, cpu))
    return rate


def _publish_stream(server: Server, scale: Scale) -> _Turn:
    """From the first byte sent to the answer. The bytes are made beforehand."""
    pieces = list(lines_about(scale.lines))
    cpu, began = server.cpu(), time.monotonic()
    publish_lines(server, scale.lines, pieces)
    seconds = time.monotonic() - began
    return scale.lines, scale.lines / seconds, (server.cpu() - cpu) / scale.lines * 1e6


def _publish_singly(server: Server, scale: Scale) -> _Turn:
    """Each connection sends its next when its last is answered."""
    with Client(server) as client:
        client.closed_loop(_CONNECTIONS, scale.warm_up)
        run = client.closed_loop(_CONNECTIONS, scale.turn_seconds)
    return run.published, run.published / run.seconds, run.cpu / run.published * 1e6


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
