"""Connections: all streaming clients of this node, from admission to drain.

Limits, heartbeats, token expiry and revocation: what concerns a client whatever its transport.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.connection import Connection
from gateway.errors import GatewayError, invalid_token
from gateway.metrics import Metrics
from gateway.principal import Principal
from gateway.shared_limits import SharedLimits

WARNING_SECONDS = 30  # how long before its token expires a client is told
_SETTLE_SECONDS = 0.01
RETRY_MS = (1000, 5000)  # within this clients shall come back, each at a time of its own
_TICKS = 40  # slots of a heartbeat's round, so that the clients' beats are spread over it
_CODES = frozenset({1000, 1001, 1002, 1005, 1006, 1007, 1009, 1011, 1012, 4001, 4003, 4008, 4100, 4101, 4200})


def retry_ms() -> int:
    """When a client shall come back: jittered, so that many do not come at once."""
    return random.randint(*RETRY_MS)  # noqa: S311 - jitter


@dataclass(frozen=True, slots=True)
class Limits:
    total: int
    per_token: int


@dataclass(eq=False, slots=True)
class Poll:
    """A long poll while it runs. `over` is set when it shall wait no longer: its token is void, or the gateway
    drains."""

    principal: Principal
    over: asyncio.Event
    revoked: bool = False


class Heartbeat:
    """Calls `beat` for each of its connections once an interval (seconds), spread evenly over it."""

    def __init__(self, interval: float, beat: Callable[[Connection], object]) -> None:
        self._interval = interval
        self._beat = beat
        self._slots: list[dict[Connection, None]] = [{} for _ in range(_TICKS)]
        self._slot_of: dict[Connection, int] = {}
        self._at = 0

    def add(self, connection: Connection) -> None:
        slot = self._slot_of[connection] = random.randrange(_TICKS)  # noqa: S311 - spreading
        self._slots[slot][connection] = None

    def remove(self, connection: Connection) -> None:
        slot = self._slot_of.pop(connection, None)
        if slot is not None:
            del self._slots[slot][connection]

    def tick(self) -> None:
        """Serves the next slot."""
        for connection in list(self._slots[self._at]):
            self._beat(connection)
        self._at = (self._at + 1) % _TICKS

    async def run(self) -> None:
        """Turns until it is cancelled."""
        while True:
            await asyncio.sleep(self._interval / _TICKS)
            self.tick()


class Connections:
    """The registry. All calls from the loop's thread."""

    def __init__(
        self,
        limits: Limits,
        metrics: Metrics,
        *,
        shared: SharedLimits | None = None,
        revoked: Callable[[Principal], bool] = lambda _principal: False,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`shared` counts tokens over all nodes, `revoked` tells whether a token has become void by now."""
        self.drain_began = asyncio.Event()
        self._limits = limits
        self._metrics = metrics
        self._revoked = revoked
        self._now = now
        self._by_id: dict[str, Connection] = {}
        self._polls: dict[Poll, None] = {}
        self._asking = 0  # clients that are about to be admitted
        self._per_token: Counter[str] = Counter()
        self._shared = shared
        if shared is not None:
            shared.watch(self._per_token)
        self._expiry: dict[Connection, asyncio.TimerHandle] = {}

    @property
    def draining(self) -> bool:
        return self.drain_began.is_set()

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._by_id.values())

    def get(self, connection_id: str) -> Connection | None:
        return self._by_id.get(connection_id)

    # Admission

    async def admit(self, principal: Principal | None) -> None:
        """Finds a place for a client. Whoever was admitted is to be taken in the same turn, by `add`.

        Raises GatewayError `draining`, `too_many_connections`, or `unauthorized` where the token was revoked since it
        was looked at.
        """
        self._check(principal)
        if len(self._by_id) + len(self._polls) + self._asking >= self._limits.total:
            raise _too_many(f"this node takes {self._limits.total} connections")
        if principal is None or principal.open:
            return
        self._asking += 1
        try:
            await self._admit_token(principal)
        finally:
            self._asking -= 1

    def _check(self, principal: Principal | None) -> None:
        if self.draining:
            raise GatewayError("draining", "the gateway is about to restart", headers={"Retry-After": "2"})
        if principal is not None and self._revoked(principal):
            raise invalid_token("the token was revoked")

    async def _admit_token(self, principal: Principal) -> None:
        token, limit = _token(principal), self._limits.per_token
        if self._per_token[token] >= limit:
            raise _too_many(f"a token may have {limit} connections")
        if self._shared is None:
            return
        self._count(principal, 1)  # so that many at once do not pass one by one
        try:
            has_room = await self._shared.take(token, limit)
            self._check(principal)
        except BaseException:
            self._shared.changed(token)
            raise
        finally:
            self._count(principal, -1)
        if not has_room:
            raise _too_many(f"a token may have {limit} connections")

    def add(self, connection: Connection) -> None:
        """Takes a connection that was admitted."""
        self._by_id[connection.id] = connection
        connection.opened = self._now()
        self._metrics.connections.labels(connection.wire.transport).inc()
        self._metrics.opened.labels(connection.wire.transport).inc()
        if connection.principal is not None:
            self._count(connection.principal, 1)
            self._arm(connection)

    def remove(self, connection: Connection) -> None:
        """The connection is gone; releases all that it held. Idempotent."""
        if self._by_id.pop(connection.id, None) is None:
            return
        self._disarm(connection)
        if connection.principal is not None:
            self._release(connection.principal)
        transport = connection.wire.transport
        code = connection.code if connection.code in _CODES else "other"
        self._metrics.connections.labels(transport).dec()
        self._metrics.closed.labels(transport, str(code)).inc()
        connection.finished()

    @asynccontextmanager
    async def poll(self, principal: Principal) -> AsyncIterator[Poll]:
        """A long poll while it runs. Raises as `admit`."""
        await self.admit(principal)
        poll = Poll(principal, asyncio.Event())
        self._polls[poll] = None
        self._count(principal, 1)
        self._metrics.connections.labels("longpoll").inc()
        self._metrics.opened.labels("longpoll").inc()
        try:
            yield poll
        finally:
            del self._polls[poll]
            self._release(principal)
            self._metrics.connections.labels("longpoll").dec()
            self._metrics.closed.labels("longpoll", "1000").inc()

    def _release(self, principal: Principal) -> None:
        self._count(principal, -1)
        self._changed(principal)

    def _changed(self, principal: Principal) -> None:
        """The other nodes get this one's count anew."""
        if self._shared is not None and not principal.open:
            self._shared.changed(_token(principal))

    def _count(self, principal: Principal, step: int) -> None:
        if principal.open:
            return
        token = _token(principal)
        self._per_token[token] += step
        if not self._per_token[token]:
            del self._per_token[token]

    # Who it is, and how long

    async def identify(self, connection: Connection, principal: Principal) -> None:
        """The client has said who it is, for the first time.

        Raises as `admit`.
        """
        self._check(principal)
        if not principal.open:
            await self._admit_token(principal)
        if connection.id not in self._by_id:  # gone meanwhile
            self._changed(principal)
            return
        self._count(principal, 1)
        connection.principal = principal
        self._arm(connection)

    def renew(self, connection: Connection, principal: Principal) -> None:
        """The client goes on with a newer token.

        Raises GatewayError `forbidden` where it is another user's or has other rights: what the connection has
        subscribed to stands under the old ones.
        """
        known = connection.principal
        assert known is not None
        if (known.sub, known.subscribe, known.open) != (principal.sub, principal.subscribe, principal.open):
            raise GatewayError("forbidden", "the new token has another user or other filters: connect anew")
        if not principal.open and _token(known) != _token(principal):
            self._release(known)
            self._count(principal, 1)
            self._changed(principal)
        connection.principal = principal
        self._arm(connection)

    def _arm(self, connection: Connection) -> None:
        self._disarm(connection)
        principal = connection.principal
        if principal is not None and principal.expires is not None:
            left = principal.expires - self._now()
            self._later(connection, left - WARNING_SECONDS, self._warn)

    def _later(self, connection: Connection, delay: float, call: Callable[[Connection], None]) -> None:
        loop = asyncio.get_running_loop()
        self._expiry[connection] = loop.call_later(max(0.0, delay), call, connection)

    def _disarm(self, connection: Connection) -> None:
        timer = self._expiry.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def _warn(self, connection: Connection) -> None:
        assert connection.principal is not None
        if not connection.settled:  # the first that an SSE stream is told is its place
            self._later(connection, _SETTLE_SECONDS, self._warn)
            return
        left = (connection.principal.expires or 0.0) - self._now()
        connection.say({"op": "expiring", "in": max(0, round(left))})
        self._later(connection, left, self._expire)

    def _expire(self, connection: Connection) -> None:
        connection.end(4200, "token expired", retry_ms())

    def revoke(self, revoked: Callable[[Principal], bool]) -> int:
        """Ends the streams whose token is void now; returns how many."""
        void = [each for each in self._by_id.values() if each.principal and revoked(each.principal)]
        for connection in void:
            connection.end(4001, "token revoked", retry_ms())
        for poll in self._polls:
            if revoked(poll.principal):
                poll.revoked = True
                poll.over.set()
        return len(void)

    # Shutdown

    async def drain(self, seconds: float) -> None:
        """Sends every client away, evenly over `seconds`, so that their return is spread as well."""
        self.drain_began.set()
        for poll in self._polls:
            poll.over.set()
        waiting = list(self._by_id.values())
        random.shuffle(waiting)
        started = time.monotonic()
        total = len(waiting)
        while waiting:
            due = total * (time.monotonic() - started) / seconds if seconds else total
            while waiting and total - len(waiting) < due:
                waiting.pop().end(1012, "service restart", retry_ms())
            await asyncio.sleep(min(0.02, seconds / total))


def _too_many(detail: str) -> GatewayError:
    return GatewayError("too_many_connections", detail, headers={"Retry-After": "5"})


def _token(principal: Principal) -> str:
    return principal.sub or principal.jti or ""
