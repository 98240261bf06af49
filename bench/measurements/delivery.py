"""Many subscribers of one stream: CPU per delivery, latency and rate, against the plain way."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

from bench.client import Client, Run
from bench.connection import TRANSPORTS
from bench.report import Report, Scale, Table, Target, medians
from bench.server import GATEWAY, PLAIN, Program, running

_IN_FLIGHT: Final = (1, 2, 16)
_RATE: Final = 50  # events a second, open loop
_SHARES: Final = {1: 1 / 3, 16: 1 / 20}  # of the plain way's CPU per delivery, by events in flight
_PROGRAMS: Final = (PLAIN, GATEWAY)


Figures = Sequence[float]  # CPU microseconds per delivery, p50 and p99 in ms, deliveries a second


def measure(scale: Scale) -> Report:
    table = Table(
        f"{scale.subscribers:,} subscribers, events of 230 bytes, medians of {scale.rounds} rounds of each by turns",
        ("transport", "server", "load", "CPU µs/delivery", "p50 ms", "p99 ms", "deliveries/s"),
    )
    targets: list[Target] = []
    for transport in TRANSPORTS:
        found = _measure_both(transport, scale)
        for (program, load), row in found.items():
            table.rows.append((transport, program.name, load, *row))
        targets += [
            Target(
                f"{transport}, {in_flight} in flight: CPU per delivery as a share of the plain way's",
                found[GATEWAY, _in_flight(in_flight)][0] / found[PLAIN, _in_flight(in_flight)][0],
                share,
            )
            for in_flight, share in _SHARES.items()
        ]
    return Report(table, targets)


def _in_flight(events: int) -> str:
    return f"{events} in flight"


def _measure_both(transport: str, scale: Scale) -> dict[tuple[Program, str], Figures]:
    """Each server's figures by load. Short rounds by turns: what else the machine does strikes both alike."""
    with ExitStack() as stack:
        clients = {
            program: stack.enter_context(_subscribed(program, transport, scale)) for program in _PROGRAMS
        }
        rounds: dict[tuple[Program, str], list[Figures]] = {
            (program, load): [] for program in _PROGRAMS for load in _LOADS
        }
        for _ in range(scale.rounds):
            for load, run in _LOADS.items():
                for program, client in clients.items():
                    rounds[program, load].append(figures(run(client, scale.round_seconds)))
    return {key: medians(done) for key, done in rounds.items()}


@contextmanager
def _subscribed(program: Program, transport: str, scale: Scale) -> Iterator[Client]:
    with running(program) as server, Client(server) as client:
        client.subscribe([TRANSPORTS[transport](server, None)] * scale.subscribers)
        client.closed_loop(1, scale.warm_up)
        yield client


def _keep_in_flight(events: int, client: Client, seconds: float) -> Run:
    return client.closed_loop(events, seconds)


def _publish_steadily(client: Client, seconds: float) -> Run:
    until = time.monotonic() + seconds
    return client.open_loop(_RATE, lambda: time.monotonic() < until)


_LOADS: Final[dict[str, Callable[[Client, float], Run]]] = {
    **{_in_flight(events): partial(_keep_in_flight, events) for events in _IN_FLIGHT},
    f"{_RATE} events/s": _publish_steadily,
}


def cost(run: Run) -> float:
    """CPU microseconds of the server per delivery."""
    return run.cpu / run.deliveries * 1e6


def figures(run: Run) -> Figures:
    p50, p99 = run.percentiles(50, 99)
    return cost(run), p50, p99, run.deliveries / run.seconds
