"""Idle connections: memory of each, and the CPU that connecting costs."""

from typing import Final

from bench.client import Client
from bench.connection import TRANSPORTS
from bench.report import Report, Scale, Table, Target
from bench.server import GATEWAY, PLAIN, Program, running

_FILTER: Final = {"subject": "o-1"}
_KIB: Final = 1024
_LIMITS: Final = {"WebSocket": 16.0, "SSE": 12.0}  # KiB of the gateway's memory per idle connection


def measure(scale: Scale) -> Report:
    table = Table(
        f"{scale.idle:,} idle connections",
        ("transport", "server", "filter", "KiB/connection", "CPU µs/connect"),
    )
    targets = []
    for transport, limit in _LIMITS.items():
        _measure_server(PLAIN, transport, scale, table, exact=None)
        for exact in (None, _FILTER):
            memory = _measure_server(GATEWAY, transport, scale, table, exact)
            text = f"{transport}, {_named(exact)} filter: KiB per idle connection"
            targets.append(Target(text, memory, limit))
    return Report(table, targets)


def _measure_server(
    program: Program, transport: str, scale: Scale, table: Table, exact: dict[str, str] | None
) -> float:
    """KiB per connection. One connection comes before, so that nothing is counted that is needed once."""
    with running(program) as server, Client(server) as client:
        steps = TRANSPORTS[transport](server, exact)
        client.subscribe([steps])
        client.idle(scale.settle)
        rss, cpu = server.rss(), server.cpu()
        client.subscribe([steps] * scale.idle)
        cpu = (server.cpu() - cpu) / scale.idle * 1e6
        client.idle(scale.settle)
        memory = (server.rss() - rss) / scale.idle / _KIB
    table.rows.append((transport, program.name, _named(exact), memory, cpu))
    return memory


def _named(exact: dict[str, str] | None) -> str:
    return "one and the same" if exact else "no"
