"""Clients that each watch one order: what an event for one of them costs, with many of them and with one."""

import resource
from typing import Final

from bench.client import Client, Load, Run
from bench.connection import websocket_steps
from bench.report import Report, Scale, Table, Target
from bench.server import GATEWAY, running

_SPARE_DESCRIPTORS: Final = 500
_RATIO: Final = 1.5


def measure(scale: Scale) -> Report:
    clients, notes = _possible(scale.filters)
    table = Table("A filter per client", ("clients", "CPU µs/event", "p50 ms", "p99 ms", "events/s"))
    with running(GATEWAY) as server, Client(server) as client:
        ways = [websocket_steps(server, {"subject": f"o-{order}"}) for order in range(clients)]
        client.subscribe(ways[:1])
        one = _publish(client, scale, table, 1)
        client.subscribe(ways[1:])
        many = _publish(client, scale, table, clients)
    text = f"CPU per event that matches one of {clients:,} clients, as a multiple of that with 1"
    return Report(table, [Target(text, many / one, _RATIO)], notes)


def _possible(wanted: int) -> tuple[int, list[str]]:
    """How many clients the limit of descriptors allows; it holds for the server as for the client."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    clients = min(wanted, limit - _SPARE_DESCRIPTORS)
    notes = (
        [f"Only {clients:,} clients: a process may have {limit:,} descriptors."] if clients < wanted else []
    )
    return clients, notes


def _publish(client: Client, scale: Scale, table: Table, clients: int) -> float:
    """CPU microseconds per event, each of which one client gets."""
    load = Load(subjects=range(clients), receivers=1)
    client.closed_loop(1, scale.warm_up, load)
    run = client.closed_loop(1, scale.seconds, load)
    cpu = _cpu_per_event(run)
    table.rows.append((f"{clients:,}", cpu, *run.percentiles(50, 99), run.published / run.seconds))
    return cpu


def _cpu_per_event(run: Run) -> float:
    return run.cpu / run.published * 1e6
