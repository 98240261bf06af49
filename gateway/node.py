"""Node: the parts of one running gateway, as its ways in and ways out need them. No behaviour of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from gateway.auth import Authenticator, Revocations
from gateway.connection import Streams
from gateway.connections import Connections, Heartbeat
from gateway.cursor import Cursors
from gateway.event import Event
from gateway.hub import Hub
from gateway.intake import Intake
from gateway.limits import RateLimit
from gateway.log import DeadLetter, Log
from gateway.metrics import Metrics
from gateway.neighbours import Neighbours
from gateway.origins import Origins
from gateway.peers import Peers
from gateway.settings import Settings
from gateway.tickets import Tickets
from gateway.worker_metrics import WorkerMetrics

# Reads a dead letter again: the same letter gives events of the same ids, however often. Raises GatewayError where
# it still is no event.
Redrive: TypeAlias = Callable[[Intake, DeadLetter], list[Event]]


class Ingest(Protocol):
    """A way in that fetches events by itself."""

    @property
    def name(self) -> str: ...

    def fault(self) -> str | None:
        """Why nothing comes by this way, in one line; None where it works, or another node has it."""

    async def run(self) -> None:
        """Fetches until it is cancelled. What goes wrong outside is tried again."""

    async def stop(self) -> None:
        """Stores what was fetched, and leaves the rest to other nodes."""


@dataclass(frozen=True, slots=True)
class Node:
    id: str  # another one for each process
    settings: Settings
    metrics: Metrics
    log: Log
    hub: Hub
    cursors: Cursors
    streams: Streams
    connections: Connections
    websocket_beat: Heartbeat
    sse_beat: Heartbeat
    intake: Intake
    origins: Origins
    revocations: Revocations
    tickets: Tickets
    authenticator: Authenticator
    publish_rates: RateLimit | None
    ingests: Sequence[Ingest]
    peers: Peers
    neighbours: Neighbours | None  # None where the log is this node's alone
    idempotent_keys: set[str]  # of requests that are running now
    redrives: Mapping[str, Redrive]  # by the kind of dead letter
    workers: WorkerMetrics | None  # None where this process is the only one
