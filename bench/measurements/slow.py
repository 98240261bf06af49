"""One subscriber that stops reading: what the others notice of it."""

import socket
import time
from statistics import median
from typing import Final

from bench import wire
from bench.client import Client, Load
from bench.connection import connect, exchange, websocket_steps
from bench.report import Report, Scale, Table, Target
from bench.server import GATEWAY, Server, running

_RATE: Final = (
    25  # events a second: where a core is near its limit, p99 varies by more than what is looked for
)
_LOAD: Final = Load(size=2048, subjects=(0,))
_SHARED: Final = {"subject": "o-0"}
# What fills the stalled subscriber's buffers before the measurement; nobody else wants it. The kernel
# alone holds some megabytes on loopback, whatever the receiver's buffer.
_FILLING: Final = Load(size=60_000, subjects=(1,), receivers=0)
_FILLER: Final = {"subject": "o-1"}
_FILLING_IN_FLIGHT: Final = 4
_RECEIVE_BUFFER: Final = 4096  # bytes
_GROWTH: Final = 0.1


def measure(scale: Scale) -> Report:
    others = scale.subscribers - 1
    p99: dict[bool, list[float]] = {False: [], True: []}
    with running(GATEWAY) as server, Client(server) as client:
        client.subscribe([websocket_steps(server, _SHARED)] * others)
        client.closed_loop(1, scale.warm_up, _LOAD)
        for number in range(2 * scale.rounds):
            stalled = bool(number % 2)
            p99[stalled].append(_round(server, client, scale, stalled=stalled))
    without, beside = median(p99[False]), median(p99[True])
    table = Table(
        f"{others:,} subscribers, {_RATE} events/s of {_LOAD.size:,} bytes, {scale.rounds} rounds of each by turns",
        ("beside them", "p99 ms (median)", "p99 ms of each round"),
        [
            ("nobody", without, _listed(p99[False])),
            ("one that does not read", beside, _listed(p99[True])),
        ],
    )
    text = "Growth of the others' p99 beside a subscriber that does not read"
    return Report(table, [Target(text, beside / without - 1, _GROWTH)])


def _round(server: Server, client: Client, scale: Scale, *, stalled: bool) -> float:
    """The p99 in milliseconds. Both kinds of round do the same but for the one connection."""
    silent = _stalled(server) if stalled else None
    client.closed_loop(_FILLING_IN_FLIGHT, scale.warm_up, _FILLING)
    until = time.monotonic() + scale.seconds
    run = client.open_loop(_RATE, lambda: time.monotonic() < until, _LOAD)
    if silent:
        silent.close()
    return run.percentiles(99)[0]


def _stalled(server: Server) -> socket.socket:
    """A subscriber of what the others have, and of the filling, which never reads again."""
    connection = connect(server, receive_buffer=_RECEIVE_BUFFER)
    exchange(connection, wire.upgrade(server.port), wire.HEAD_END)
    for exact in (_SHARED, _FILLER):
        exchange(connection, wire.subscribe(exact), wire.SUBSCRIBED)
    return connection


def _listed(values: list[float]) -> str:
    return ", ".join(f"{each:.3g}" for each in values)
