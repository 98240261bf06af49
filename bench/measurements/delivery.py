"""Many subscribers of one stream: CPU per delivery, latency and rate, against the plain way."""

import time
from typing import Final

from bench.client import Client, Run
from bench.connection import TRANSPORTS
from bench.report import Report, Scale, Table, Target
from bench.server import GATEWAY, PLAIN, Program, running

IN_FLIGHT: Final = (1, 2, 16)
_RATE: Final = 50  # events a second, open loop
_SHARES: Final = {1: 1 / 3, 16: 1 / 20}  # of the plain way's CPU per delivery, by events in flight


def measure(scale: Scale) -> Report:
    table = Table(
        f"{scale.subscribers:,} subscribers, events of 230 bytes",
        ("transport", "server", "load", "CPU µs/delivery", "p50 ms", "p99 ms", "deliveries/s"),
    )
    targets: list[Target] = []
    for transport in TRANSPORTS:
        plain = _measure_server(PLAIN, transport, scale, table)
        gateway = _measure_server(GATEWAY, transport, scale, table)
        targets += [
            Target(
                f"{transport}, {in_flight} in flight: CPU per delivery as a share of the plain way's",
                gateway[in_flight] / plain[in_flight],
                share,
            )
            for in_flight, share in _SHARES.items()
        ]
    return Report(table, targets)


def _measure_server(program: Program, transport: str, scale: Scale, table: Table) -> dict[int, float]:
    """CPU microseconds per delivery by events in flight; the table gets a row for each load."""
    costs = {}
    with running(program) as server, Client(server) as client:
        client.subscribe([TRANSPORTS[transport](server, None)] * scale.subscribers)
        client.closed_loop(1, scale.warm_up)
        for in_flight in IN_FLIGHT:
            run = client.closed_loop(in_flight, scale.seconds)
            costs[in_flight] = cost(run)
            table.rows.append((transport, program.name, f"{in_flight} in flight", *figures(run)))
        until = time.monotonic() + scale.seconds
        run = client.open_loop(_RATE, lambda: time.monotonic() < until)
        table.rows.append((transport, program.name, f"{_RATE} events/s", *figures(run)))
    return costs


def cost(run: Run) -> float:
    """CPU microseconds of the server per delivery."""
    return run.cpu / run.deliveries * 1e6


def figures(run: Run) -> tuple[float, float, float, float]:
    p50, p99 = run.percentiles(50, 99)
    return cost(run), p50, p99, run.deliveries / run.seconds
