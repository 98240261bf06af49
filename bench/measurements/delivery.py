"""Many subscribers of one stream: CPU per delivery, latency and rate, against the plain way."""

import time
from typing import Final

from bench.client import Client, Run
from bench.connection import TRANSPORTS
from bench.report import Report, Scale, Table, Target, medians
from bench.server import GATEWAY, PLAIN, Program, running

IN_FLIGHT: Final = (1, 2, 16)
_RATE: Final = 50  # events a second, open loop
_SHARES: Final = {1: 1 / 3, 16: 1 / 20}  # of the plain way's CPU per delivery, by events in flight


Figures = tuple[
    float, float, float, float
]  # CPU microseconds per delivery, p50 and p99 in ms, deliveries a second


def measure(scale: Scale) -> Report:
    """Both servers by turns, several times: what else the machine does at the moment strikes both."""
    table = Table(
        f"{scale.subscribers:,} subscribers, events of 230 bytes, medians of {scale.turns} turns",
        ("transport", "server", "load", "CPU µs/delivery", "p50 ms", "p99 ms", "deliveries/s"),
    )
    targets: list[Target] = []
    for transport in TRANSPORTS:
        rounds: dict[Program, list[dict[str, Figures]]] = {PLAIN: [], GATEWAY: []}
        for _ in range(scale.turns):
            for program, done in rounds.items():
                done.append(_measure_server(program, transport, scale))
        found = {
            program: {load: medians([each[load] for each in done]) for load in done[0]}
            for program, done in rounds.items()
        }
        for program, loads in found.items():
            table.rows += [(transport, program.name, load, *row) for load, row in loads.items()]
        targets += [
            Target(
                f"{transport}, {in_flight} in flight: CPU per delivery as a share of the plain way's",
                found[GATEWAY][_in_flight(in_flight)][0] / found[PLAIN][_in_flight(in_flight)][0],
                share,
            )
            for in_flight, share in _SHARES.items()
        ]
    return Report(table, targets)


def _in_flight(events: int) -> str:
    return f"{events} in flight"


def _measure_server(program: Program, transport: str, scale: Scale) -> dict[str, Figures]:
    """The figures by load."""
    found = {}
    with running(program) as server, Client(server) as client:
        client.subscribe([TRANSPORTS[transport](server, None)] * scale.subscribers)
        client.closed_loop(1, scale.warm_up)
        for in_flight in IN_FLIGHT:
            found[_in_flight(in_flight)] = figures(client.closed_loop(in_flight, scale.turn_seconds))
        until = time.monotonic() + scale.turn_seconds
        run = client.open_loop(_RATE, lambda: time.monotonic() < until)
        found[f"{_RATE} events/s"] = figures(run)
    return found


def cost(run: Run) -> float:
    """CPU microseconds of the server per delivery."""
    return run.cpu / run.deliveries * 1e6


def figures(run: Run) -> Figures:
    p50, p99 = run.percentiles(50, 99)
    return cost(run), p50, p99, run.deliveries / run.seconds
