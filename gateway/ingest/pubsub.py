"""Redis pub/sub: every node hears every message, and one of them, which holds the lease, appends it.

The others keep what they hear until they are told that it is in the log. The next holder appends all that it has
kept: what is in the log already counts as a duplicate there, since a message has the same identity on all nodes.
"""

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway import tasks
from gateway.errors import GatewayError
from gateway.event import Event
from gateway.ingest._kept import Kept, Note
from gateway.ingest._subscriptions import Subscriptions
from gateway.ingest.messages import KIND, Message, events_of, letter_of, read_again
from gateway.intake import Intake
from gateway.log import DeadLetter, Fence, FencedError, Log, LogUnavailableError
from gateway.redis_clients import UNREACHABLE, RedisClients

__all__ = ["KIND", "PubSub", "read_again"]

logger = logging.getLogger(__name__)

MARKS: Final = "{gateway}:mark"  # the channel of the nodes' own messages
_LEASE: Final = "pubsub"
_LEASE_SECONDS: Final = 3.0
_BEAT_SECONDS: Final = 1.0  # between two marks of a node, and two renewals of the lease
_DEAF_SECONDS: Final = 5.0  # without a mark of its own a node's connection is taken for dead
TURN_SECONDS: Final = 0.25  # between two tries to get the lease, however much is heard
_PATIENCE: Final = 4  # tries that a node which has missed something leaves to those that have not
_PAUSES: Final = (0.1, 2.0)  # seconds until Redis or the log is tried again, the first time and at last
_TAKEN: Final = 1000
_TAKEN_BYTES: Final = 2 << 20
_MAX_MILLISECONDS: Final = (1 << 48) - 1


class _DeafError(Exception):
    """The subscription is not what it seems."""


class PubSub:
    """The subscription of a node to `names`, channels and patterns."""

    name = "pubsub"

    def __init__(
        self,
        clients: RedisClients,
        names: Sequence[str],
        log: Log,
        intake: Intake,
        *,
        kept: Kept | None = None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clients = clients
        self._subscriptions = Subscriptions(names)
        self._log = log
        self._intake = intake
        self._kept = Kept() if kept is None else kept
        self._now = now
        self._monotonic = monotonic
        self._node = secrets.token_hex(8)
        self._marks = 0  # published
        self._heard_own = 0.0  # when a mark of this node was heard, on the monotonic clock
        self._reason: str | None = "it has not subscribed yet"
        self._store_reason: str | None = None
        self._something = asyncio.Event()  # there is something to append
        self._turn = asyncio.Lock()
        self._fence: Fence | None = None
        self._first = Note("", "")  # the note with which this node began to append
        self._holes = 0  # of `_kept` when this node began to append
        self._renewed = 0.0
        self._patience = _PATIENCE
        self._told_dropped = 0
        self._dropping = 0  # messages for which there was no room, in the episode that lasts
        self._stopped = False

    def fault(self) -> str | None:
        """Why nothing comes by pub/sub, in one line."""
        reason = self._reason or self._loss() or self._store_reason
        if reason is None and not self._kept.caught_up:
            return "what was published before this node listened is not in the log yet"
        return reason

    async def run(self) -> None:
        """Listens and appends until it is cancelled."""
        running = [
            asyncio.create_task(self._listen(), name="pub/sub listener"),
            asyncio.create_task(self._append(), name="pub/sub appender"),
        ]
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await tasks.end(*running)
        for each in running:
            if not each.cancelled():
                each.result()  # neither ends by itself but by a fault of ours

    # Listening

    async def _listen(self) -> None:
        pause = _PAUSES[0]
        while True:
            began = self._monotonic()
            try:
                await self._subscribe()
            except UNREACHABLE as error:
                self._deaf(self._clients.explain(error))
            except _DeafError as error:
                self._deaf(str(error))
            pause = _PAUSES[0] if self._monotonic() - began > _DEAF_SECONDS else min(_PAUSES[1], 2 * pause)
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - jitter

    def _deaf(self, reason: str) -> None:
        if self._reason is None:
            logger.warning("pub/sub is not heard: %s", reason)
        self._reason = reason

    async def _subscribe(self) -> None:
        """One connection, as long as it lasts."""
        pubsub = await self._clients.pubsub()
        confirmed = asyncio.Event()
        try:
            await pubsub.subscribe(MARKS, *self._subscriptions.channels)
            if self._subscriptions.patterns:
                await pubsub.psubscribe(*self._subscriptions.patterns)
            reading = asyncio.create_task(self._read(pubsub, confirmed))
            beating = asyncio.create_task(self._beat(confirmed))
            try:
                await asyncio.wait((reading, beating), return_when=asyncio.FIRST_COMPLETED)
            finally:
                await tasks.end(reading, beating)
            for each in (reading, beating):
                if not each.cancelled():
                    each.result()
        finally:
            self._kept.broke()
            self._something.set()  # whoever appends shall give the lease away
            await pubsub.aclose()

    async def _read(self, pubsub: Any, confirmed: asyncio.Event) -> None:
        """Only reads and keeps: Redis cuts off who does not."""
        missing = 1 + len(self._subscriptions.channels) + len(self._subscriptions.patterns)
        while True:
            kind, *rest = await pubsub.parse_response(block=True)
            if kind == b"message":
                self._hear(rest[0], rest[0], rest[1])
            elif kind == b"pmessage":
                self._hear(*rest)
            elif kind in (b"subscribe", b"psubscribe"):
                missing -= 1
                if missing < 0:
                    raise _DeafError("the subscription was made anew")
                if missing == 0:
                    confirmed.set()

    def _hear(self, by: bytes, channel: bytes, payload: bytes) -> None:
        if channel == MARKS.encode():
            if by == channel:
                self._mark(payload)
        elif self._subscriptions.takes(by, channel):
            self._kept.hear(channel, payload, self._now())
            self._something.set()

    def _mark(self, payload: bytes) -> None:
        token, _, milliseconds = payload.decode("ascii", "replace").partition(" ")
        if not milliseconds.isdecimal() or int(milliseconds) > _MAX_MILLISECONDS:
            return  # not a node's
        self._kept.mark(token, int(milliseconds))
        if token.startswith(self._node):
            self._heard_own = self._monotonic()
            if self._reason is not None:
                logger.info("pub/sub is heard")
            self._reason = None

    async def _beat(self, confirmed: asyncio.Event) -> None:
        """Publishes a mark now and then. Raises _DeafError where this node does not hear its own."""
        self._heard_own = self._monotonic()
        async with asyncio.timeout(_DEAF_SECONDS):
            await confirmed.wait()
        while True:
            self._marks += 1
            mark = f"{self._node}-{self._marks} {int(self._now() * 1000)}"
            await self._clients.writes.publish(MARKS, mark)
            await asyncio.sleep(_BEAT_SECONDS)
            if self._monotonic() - self._heard_own > _DEAF_SECONDS:
                raise _DeafError(f"{self._clients.name} does not deliver what is published")

    # Appending

    async def _append(self) -> None:
        pause = _PAUSES[0]
        while True:
            await self._wait_for_turn()
            if await self._try_turn():
                pause = _PAUSES[0]
            else:
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - jitter
                pause = min(_PAUSES[1], 2 * pause)

    async def _try_turn(self) -> bool:
        """Whether the log answered."""
        try:
            async with self._turn:
                await self._take_turn()
        except FencedError:
            self._fence = None  # another node goes on
        except LogUnavailableError as error:
            if self._store_reason is None:
                logger.warning("what pub/sub brings cannot be stored: %s", error)
            self._store_reason = str(error)
            return False
        self._store_reason = None
        return True

    async def _wait_for_turn(self) -> None:
        """Until there is something to append. Who does not append waits by the clock alone: see _PATIENCE."""
        if self._fence is None:
            await asyncio.sleep(TURN_SECONDS)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TURN_SECONDS):
                await self._something.wait()

    async def _take_turn(self) -> None:
        self._tell_dropped()
        if self._stopped:
            self._something.clear()
        elif self._fence is not None and self._kept.holes != self._holes:
            await self._release()
        elif not self._kept.listening:
            self._something.clear()
        elif self._fence is None:
            await self._follow()
        else:
            await self._lead(self._fence)

    def _tell_dropped(self) -> None:
        """One line when messages begin to be dropped, and one with their number when that is over."""
        new = self._kept.dropped - self._told_dropped
        self._told_dropped += new
        if new and not self._dropping:
            logger.warning("pub/sub brings more than can be stored: there is no room for the oldest messages")
        self._dropping += new
        if not new and self._store_reason is None:
            self._end_dropping()

    def _end_dropping(self) -> None:
        loss, self._dropping = self._loss(), 0
        if loss:
            logger.error("%s", loss)

    def _loss(self) -> str | None:
        if not self._dropping:
            return None
        return f"{self._dropping} messages had no room and are lost, unless another node still has them"

    async def _follow(self) -> None:
        """Drops what is in the log, and tries to get the lease."""
        self._something.clear()
        note = Note.parse(await self._log.lease_note(_LEASE))
        if note is not None:
            untold = self._kept.untold(note)
            for start in range(0, len(untold), _TAKEN):
                await self._store(untold[start : start + _TAKEN], None)
            self._kept.settle(note)
        if not self._kept.is_whole_since(note) and not await self._has_waited():
            return
        first, holes = self._kept.first_note(note), self._kept.holes
        if first is None:
            return
        self._fence = await self._log.lease(_LEASE, _LEASE_SECONDS, str(first))
        if self._fence is not None:
            self._first, self._renewed, self._patience = first, self._monotonic(), _PATIENCE
            self._holes = holes
            self._kept.lead()
            self._something.set()

    async def _has_waited(self) -> bool:
        """Whether nobody took the lease for a while, though it is free: then nobody is there who has heard more."""
        if await self._log.is_leased(_LEASE):
            self._patience = _PATIENCE
        else:
            self._patience -= 1
        return self._patience <= 0

    async def _lead(self, fence: Fence) -> int:
        """Appends what is there, and keeps the lease; returns how many messages. Raises FencedError."""
        self._something.clear()
        messages = self._kept.take(_TAKEN, _TAKEN_BYTES)
        if messages:
            await self._store(messages, fence)
        if self._kept.holes == self._holes:
            self._kept.drop(messages)
        if len(self._kept):
            self._something.set()
        if self._monotonic() - self._renewed >= _BEAT_SECONDS:
            await self._renew(fence)
        return len(messages)

    async def _renew(self, fence: Fence) -> None:
        if self._kept.holes != self._holes:  # what comes next is not this node's to tell
            return
        self._renewed = self._monotonic()
        if await self._log.lease(_LEASE, _LEASE_SECONDS, str(self._kept.note(self._first))) != fence:
            raise FencedError(_LEASE)

    async def _release(self) -> None:
        """Leaves the lease to a node that hears everything; the note stays as it is."""
        if self._fence is not None:
            fence, self._fence = self._fence, None
            await self._log.release(fence)

    async def _store(self, messages: Sequence[Message], fence: Fence | None) -> None:
        """Appends the messages' events, in order; those that are none become dead letters."""
        events: list[Event] = []
        letters: dict[str, list[DeadLetter]] = {}
        for message in messages:
            try:
                events += events_of(self._intake, message)
            except GatewayError as error:
                name = self._subscriptions.name_of(message.channel)
                letters.setdefault(name, []).append(letter_of(message, error))
        if events:
            await self._intake.append("pubsub", events, fence=fence)
        for name, buried in letters.items():
            await self._intake.bury("pubsub", f"redis:{name}", buried, fence=fence)

    async def stop(self) -> None:
        """Appends what is there now and leaves the lease to another node, and to that what comes meanwhile."""
        async with self._turn:
            self._stopped = True
            self._end_dropping()
            due = len(self._kept)
            try:
                while self._fence is not None and due > 0 and len(self._kept):
                    due -= await self._lead(self._fence)
                if self._fence is not None and self._kept.listening:
                    await self._renew(self._fence)
                await self._release()
            except (FencedError, LogUnavailableError) as error:
                logger.info("what pub/sub has brought is left to other nodes: %r", error)
