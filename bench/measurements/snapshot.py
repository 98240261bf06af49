"""Snapshots: one customer's orders among few and among very many, and all orders while events go on."""

import os
import socket
import time
from statistics import median
from typing import Final

from bench import wire
from bench.client import Client, Load
from bench.connection import READ_BYTES, ClientError, connect, exchange, websocket_steps
from bench.measurements.publishing import ORDERS_PER_CUSTOMER, lines_about, publish_lines
from bench.report import Report, Scale, Table, Target
from bench.server import GATEWAY, Server, running

_SLOWDOWN: Final = 5.0
_RATE: Final = 50  # events a second, live, beside the full snapshot
_MIB: Final = 1 << 20
_MEMORY: Final = 64.0  # MiB that a full snapshot may take, however large the log
# With a filter of its own the live client shares nothing with the snapshot.
_LIVE: Final = {"type": "order.updated"}
_SAMPLE_SECONDS: Final = 0.02


def measure(scale: Scale) -> Report:
    table = Table(
        "Snapshots", ("what", "subjects", "median ms", "RSS before MiB", "growth MiB", "live p99 ms")
    )
    with running(GATEWAY) as server:
        few = _one_customer(server, scale, scale.few_subjects, table)
    with running(GATEWAY) as server:
        many = _one_customer(server, scale, scale.many_subjects, table)
        growth = _everything(server, scale, table)
    text = f"Snapshot of ten orders among {scale.many_subjects:,}, as a multiple of that among {scale.few_subjects:,}"
    return Report(
        table,
        [
            Target(text, many / few, _SLOWDOWN),
            Target("MiB that the server grows by during a full snapshot", growth, _MEMORY),
        ],
    )


def _one_customer(server: Server, scale: Scale, subjects: int, table: Table) -> float:
    """Median milliseconds from `subscribe` to `live`, over customers spread evenly."""
    publish_lines(server, subjects, lines_about(subjects))
    customers = subjects // ORDERS_PER_CUSTOMER
    step = max(1, customers // scale.snapshots)
    milliseconds = median(_snapshot(server, customer) for customer in range(0, customers, step)) * 1000
    table.rows.append(("one customer's ten orders", f"{subjects:,}", milliseconds, "", "", ""))
    return milliseconds


def _snapshot(server: Server, customer: int) -> float:
    """Seconds from `subscribe` to `live` on a new connection. Raises ClientError."""
    request = wire.subscribe({"data.customerId": f"c-{customer}"}, since="snapshot")
    with connect(server) as connection:
        exchange(connection, wire.upgrade(server.port), wire.HEAD_END)
        began = time.monotonic()
        answer = exchange(connection, request, wire.LIVE)
        seconds = time.monotonic() - began
    if wire.count_events(answer) != ORDERS_PER_CUSTOMER:
        raise ClientError(f"{wire.count_events(answer)} orders in the snapshot of one customer")
    return seconds


def _everything(server: Server, scale: Scale, table: Table) -> float:
    """MiB by which the server grew while it told every order, with live events to another client meanwhile."""
    with Client(server) as client, connect(server) as connection:
        client.subscribe([websocket_steps(server, _LIVE)])
        client.closed_loop(1, scale.warm_up)
        exchange(connection, wire.upgrade(server.port), wire.HEAD_END)
        told = _Told(server, connection)
        client.watch(connection, told.read)
        connection.sendall(wire.subscribe(since="snapshot"))
        began = time.monotonic()
        run = client.open_loop(_RATE, told.going, Load())
        milliseconds = (time.monotonic() - began) * 1000
    if told.events < scale.many_subjects:
        raise ClientError(f"{told.events:,} events in the full snapshot")
    before, growth = told.before / _MIB, (told.peak - told.before) / _MIB
    p99 = run.percentiles(99)[0]
    table.rows.append(("all orders", f"{scale.many_subjects:,}", milliseconds, before, growth, p99))
    return growth


class _Told:
    """Counts what a snapshot tells until it is live, and watches the server's memory meanwhile."""

    def __init__(self, server: Server, connection: socket.socket) -> None:
        self.events = 0
        self.before = self.peak = server.rss()
        self._server = server
        self._connection = connection
        self._end = b""
        self._live = False
        self._next_sample = 0.0

    def read(self) -> None:
        chunk = os.read(self._connection.fileno(), READ_BYTES)
        if not chunk:
            raise ClientError("the server ended the full snapshot")
        if wire.PING_BYTE in chunk:
            self._connection.sendall(wire.pongs(chunk))
        # What follows a chunk may complete its last bytes to a mark, or to the message `live`.
        self.events += wire.count_events(chunk) + wire.count_events(self._end[-1:] + chunk[:1])
        self._live = self._live or wire.LIVE in self._end + chunk
        self._end = chunk[-len(wire.LIVE) :]

    def going(self) -> bool:
        now = time.monotonic()
        if now >= self._next_sample:
            self._next_sample = now + _SAMPLE_SECONDS
            self.peak = max(self.peak, self._server.rss())
        return not self._live
