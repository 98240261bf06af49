"""Connection: one streaming client, its subscriptions, and the one path by which it catches up.

A subscription is live (on a lane, written to by the flush) or behind (a reader at a cursor, served by the
connection's one catch-up task). A client whose socket is full falls behind; there is no queue.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.cursor import Cursors
from gateway.errors import GatewayError
from gateway.hub import Channel, Hub
from gateway.lane import Lane
from gateway.log import Log, LogUnavailableError
from gateway.metrics import Metrics
from gateway.principal import Principal
from gateway.reader import Batch, Reader, Told
from gateway.since import Since, Start, resolve
from gateway.wire import Wire

logger = logging.getLogger(__name__)

RETRY_STORE = 1.0  # seconds until a read is tried again after the store did not answer


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes: `sent` that the peer has acknowledged (None where nobody counts), `buffered` that wait in this process."""

    sent: int | None
    buffered: int


class Socket(Protocol):
    """The way to one client, below any transport. All calls are from the loop's thread."""

    @property
    def write(self) -> Callable[[bytes], None]:
        """Hands bytes to the client without waiting; they are whole messages of its wire."""

    @property
    def paused(self) -> bool:
        """Whether more is buffered than the high-water mark: write nothing more than you must."""

    @property
    def traffic(self) -> "Traffic":
        """What has gone to the client, as far as that is known."""

    def watch(self, connection: "Connection") -> None:
        """From now on `connection.fall_behind()` is called whenever the socket becomes paused."""

    async def drained(self) -> None:
        """Returns when the socket is not paused, or is gone."""

    def close(self, code: int, reason: str) -> None:
        """Ends the stream in order, if the client takes it within a moment, else by force."""

    def abort(self) -> None:
        """Ends the connection at once; what is buffered is lost."""


class Subscription:
    """One client's place on one channel: on its lane when `reader` is None, else behind."""

    __slots__ = ("channel", "connection", "lane", "reader")

    def __init__(self, connection: "Connection", channel: Channel, lane: Lane) -> None:
        self.connection = connection
        self.channel = channel
        self.lane = lane
        self.reader: Reader | None = None

    @property
    def live(self) -> bool:
        """Whether it is written to by the flush. Neither live nor behind while its place is being found."""
        return self in self.lane.sinks

    def scattered(self) -> None:
        self.connection.follow_from_here(self, "reset")

    @property
    def position(self) -> int:
        """Everything up to here has been told, or does not concern it."""
        return self.reader.offset if self.reader else self.lane.position_of(self)

    def broken(self, error: Exception) -> None:
        """The flush could not write to this client."""
        logger.warning("connection %s: write failed: %r", self.connection.id, error)
        self.connection.socket.abort()


class Streams:
    """What all connections of a node share."""

    def __init__(self, log: Log, hub: Hub, cursors: Cursors, index: frozenset[str], metrics: Metrics) -> None:
        self.log = log
        self.hub = hub
        self.cursors = cursors
        self.index = index
        self.metrics = metrics


class Connection:
    """A WebSocket or an SSE stream. `id` names it to the outside; `told` is the last place told by `at`."""

    __slots__ = (
        "__weakref__",
        "_behind",
        "_task",
        "_told",
        "closed",
        "code",
        "id",
        "opened",
        "principal",
        "shared",
        "socket",
        "subscriptions",
        "wire",
    )

    def __init__(self, shared: Streams, socket: Socket, wire: Wire, principal: Principal | None) -> None:
        """`principal` is None until the client has said who it is; then it has no subscriptions."""
        self.principal = principal
        self.code = 0  # the close code, once one is known
        self.id = secrets.token_hex(16)
        self.opened = 0.0  # when it was admitted, in seconds since 1970
        self.shared = shared
        self.socket = socket
        self.wire = wire
        self.subscriptions: dict[str, Subscription] = {}
        self.closed = False
        self._behind: dict[Subscription, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._told = shared.hub.position

    # Subscriptions

    def open(self, channel: Channel) -> Subscription:
        """Takes the channel (which the caller has opened) as a subscription that is not served yet.

        Raises GatewayError `already_subscribed`.
        """
        if channel.sub in self.subscriptions:
            raise GatewayError("already_subscribed", f"this connection has the subscription {channel.sub}")
        subscription = Subscription(self, channel, self.shared.hub.lane(channel, self.wire))
        self.subscriptions[channel.sub] = subscription
        self.shared.metrics.subscriptions.labels(self.wire.transport).inc()
        return subscription

    async def start(
        self, subscription: Subscription, since: Since, announce: Callable[[Start], None]
    ) -> None:
        """Serves the subscription from `since` on, after `announce` was called with the place."""
        shared = self.shared
        if since == "live":
            position = subscription.lane.position
            announce(Start(position, self._cursor(position)))
            self._go_live(subscription)
            return
        start = await resolve(since, shared.log, shared.cursors, shared.hub.position)
        if self.subscriptions.get(subscription.channel.sub) is not subscription:
            return  # unsubscribed or closed meanwhile
        announce(start)
        reader = Reader.begin(shared.log, shared.hub, subscription.channel, start, shared.index)
        self._follow(subscription, reader, "since")

    def unsubscribe(self, sub: str) -> None:
        """Raises GatewayError `not_found`."""
        subscription = self.subscriptions.get(sub)
        if subscription is None:
            raise GatewayError("not_found", f"this connection has no subscription {sub}")
        self._drop(subscription)

    def _drop(self, subscription: Subscription) -> None:
        del self.subscriptions[subscription.channel.sub]
        self._behind.pop(subscription, None)
        if subscription in subscription.lane.sinks:
            subscription.lane.leave(subscription)
        self.shared.hub.release(subscription.channel)
        self.shared.metrics.subscriptions.labels(self.wire.transport).dec()

    def finished(self) -> None:
        """The connection is gone: releases everything. Idempotent."""
        self.closed = True
        if self._task is not None:
            self._task.cancel()
        for subscription in list(self.subscriptions.values()):
            self._drop(subscription)

    # Live and behind

    def fall_behind(self) -> None:
        """The socket is full."""
        for subscription in self.subscriptions.values():
            if subscription in subscription.lane.sinks:
                self.follow_from_here(subscription, "slow")

    def follow_from_here(self, subscription: Subscription, reason: str) -> None:
        """What was live goes on by reading the log, from the place it has reached."""
        shared = self.shared
        position = subscription.lane.leave(subscription)
        reader = Reader(shared.log, shared.hub, subscription.channel, position, epoch=shared.hub.epoch)
        self._follow(subscription, reader, reason)

    def _go_live(self, subscription: Subscription) -> None:
        subscription.reader = None
        subscription.lane.join(subscription, self.socket.write)
        if self.socket.paused:
            self.fall_behind()

    def _follow(self, subscription: Subscription, reader: Reader, reason: str) -> None:
        subscription.reader = reader
        self._behind[subscription] = None
        self.shared.metrics.catchups.labels(self.wire.transport, reason).inc()
        if self._task is None:
            self._task = asyncio.create_task(self._catch_up())

    async def _catch_up(self) -> None:
        """Serves what is behind, a page at a time and in turn, until all is live."""
        try:
            while self._behind and not self.closed:
                await self.socket.drained()
                if self._behind and not self.closed:
                    await self._serve(next(iter(self._behind)))
        except Exception:
            logger.exception("connection %s: catching up failed", self.id)
            self.end(1011, "internal error", 1000)
        finally:
            self._task = None

    async def _serve(self, subscription: Subscription) -> None:
        del self._behind[subscription]
        if self._join(subscription):
            return
        self._behind[subscription] = None  # to the end of the round
        try:
            batch = await self._read(subscription)
        except LogUnavailableError:
            await asyncio.sleep(RETRY_STORE)
            return
        if subscription in self._behind:  # neither unsubscribed nor closed meanwhile
            self._tell(subscription, batch)

    async def _read(self, subscription: Subscription) -> Batch:
        assert subscription.reader is not None
        await asyncio.sleep(0)  # a page from memory shall not keep the loop from the others
        # Nothing is awaited after it: what has been read is told in the same turn as the place moves.
        return await subscription.reader.read(subscription.lane.position)

    def _join(self, subscription: Subscription) -> bool:
        """Goes live if the rest of the way is short, all in this turn: nothing can come in between."""
        reader, lane = subscription.reader, subscription.lane
        assert reader is not None
        if reader.offset > lane.position:
            lane.flush_now()
        position = lane.position
        if not reader.can_finish(position):
            return False
        live = self.wire.live(subscription.channel.sub, self._cursor(position))
        parts = [*self._encode(subscription, reader.finish(position)), live]
        self.socket.write(self.wire.join(parts))
        self._go_live(subscription)
        return True

    def _tell(self, subscription: Subscription, batch: Batch) -> None:
        parts = self._encode(subscription, batch.told)
        if batch.lost:
            self.shared.metrics.gaps.labels(batch.lost.reason).inc()
            to = self._cursor(batch.lost.to)
            parts.append(self.wire.gap(subscription.channel.sub, batch.lost.lost_from, to, batch.lost.reason))
        if parts:
            self.socket.write(self.wire.join(parts))

    def _encode(self, subscription: Subscription, told: Sequence[Told]) -> list[bytes]:
        wire, sub = self.wire, subscription.channel.sub
        assert subscription.reader is not None
        cursors, epoch = self.shared.cursors, subscription.reader.epoch
        parts = []
        for each in told:
            entry = each.entry
            if each.snapshot is not None:
                cursor = cursors.encode(epoch, entry.offset, each.snapshot)
            else:
                cursor = entry.cursor = entry.cursor or cursors.encode(epoch, entry.offset)
            if each.left:
                parts.append(wire.leave(sub, cursor, entry.subject or ""))
            else:
                parts.append(wire.event(sub, cursor, entry))
        self.shared.metrics.delivered.labels(wire.transport).inc(len(parts))
        return parts

    def _cursor(self, offset: int) -> str:
        return self.shared.hub.cursor_of(offset)

    # What the gateway itself has to say

    @property
    def position(self) -> int:
        """Everything up to here has been told, or concerns none of the subscriptions."""
        positions = (each.position for each in self.subscriptions.values())
        return min(positions, default=self.shared.hub.position)

    @property
    def settled(self) -> bool:
        """Whether the place of each subscription has been found and told."""
        return all(each.live or each.reader is not None for each in self.subscriptions.values())

    @property
    def _place(self) -> str:
        """The cursor from which an SSE client that is cut now resumes; "" where it has been told none yet.

        What the gateway itself has to say on a WebSocket carries no place.
        """
        subscription = next(iter(self.subscriptions.values()), None)
        if subscription is None:
            return ""
        reader = subscription.reader
        if reader is None:
            return self._cursor(self.position) if subscription.live else ""
        if reader.untold is not None:
            return reader.untold.lost_from or ""
        return reader.place

    def say(self, message: dict[str, Any]) -> None:
        self.socket.write(self.wire.join([self.wire.message(message, self._place)]))

    def end(self, code: int, reason: str, after_ms: int) -> None:
        """Says why, then ends the stream; who does not take it is cut off."""
        if self.code:
            return
        self.code = code
        farewell = self.wire.farewell(code, reason, after_ms, self._place)
        if farewell:
            self.socket.write(farewell)
        self.socket.close(code, reason)
        self.finished()

    def beat(self) -> bool:
        """Tells the client's place where it would else grow old. False where there was nothing to tell."""
        if self.socket.paused or not self.subscriptions:
            return False
        if not all(each.live for each in self.subscriptions.values()):
            return False
        position = self.position
        if position == self._told:
            return False
        self._told = position
        if all(each.lane.last >= position for each in self.subscriptions.values()):
            return False  # the newest message of each subscription told it
        self.socket.write(self.wire.at(self._cursor(position)))
        return True
