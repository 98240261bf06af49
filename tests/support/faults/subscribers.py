"""Subscribers that come back with their last cursor whenever they are cut off, to whichever gateway answers."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

from websockets.exceptions import WebSocketException

from tests.support.clients import CLIENTS, Client, Message, RefusedError
from tests.support.faults.interests import Interest
from tests.support.faults.ledger import Key, Ledger

_PAUSE_SECONDS: Final = 0.1  # until it comes back
_UNAVAILABLE: Final = frozenset(("unavailable", "draining"))  # refusals that a fault explains
_CLOSED: Final = frozenset((None, 1001, 1006, 1012))  # close codes that a fault explains
_LOST: Final = (OSError, EOFError, TimeoutError, WebSocketException)


@dataclass(frozen=True, slots=True)
class Place:
    """A cursor, taken apart: the tests know its form, clients do not."""

    epoch: str
    offset: int
    start: int | None = None

    @classmethod
    def of(cls, cursor: str) -> "Place":
        epoch, _, rest = cursor.partition(".")
        offset, _, start = rest.partition("-")
        return cls(epoch, int(offset), int(start) if start else None)

    def __str__(self) -> str:
        return f"{self.epoch}.{self.offset}" + ("" if self.start is None else f"-{self.start}")


@dataclass(frozen=True, slots=True)
class Told:
    """One message as it was told. `what` is the message's key for an event, the subject for a leave."""

    kind: str
    place: Place
    what: Key | str | None
    connection: int  # counted from 1
    lost_from: Place | None = None
    reason: str | None = None


Bodies = dict[tuple[str, int], dict[str, Any]]  # what stands where, as whoever came first was told


def key_of(body: dict[str, Any]) -> Key:
    return body["data"]["publisher"], body["data"]["number"]


@dataclass(eq=False)
class Subscriber:
    """`since` is where it starts: a word, a time, or None for from now on. `urls` has its own gateway first."""

    name: str
    interest: Interest
    transport: str
    since: str | None
    urls: list[str]
    ledger: Ledger
    bodies: "Bodies"
    start: Place | None = None  # that of its first connection
    told: list[Told] = field(default_factory=list)
    connections: int = 0
    is_live: bool = False
    cursor: str | None = None
    story: list[str] = field(default_factory=list)  # each connection: where, from where on, and its end
    complaints: list[str] = field(default_factory=list)  # what no fault explains

    def __str__(self) -> str:
        return f"{self.name} ({self.transport}, {self.interest.name}, since {self.since})"

    async def run(self) -> None:
        """Until it is cancelled."""
        at = 0
        while True:
            await self._connect(self.urls[at])
            at = 1 - at
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _connect(self, url: str) -> None:
        options: dict[str, Any] = {"wait": 2} if self.transport == "longpoll" else {}
        client = CLIENTS[self.transport](url, **options)
        self.connections += 1
        self.is_live = False
        begun, since = self.ledger.now(), self.cursor or self.since
        end = "ended"
        try:
            await self._follow(client, since)
            if client.code not in _CLOSED:
                self.complaints.append(f"was closed with {client.code}")
        except RefusedError as error:
            end = repr(error)
            if error.status != 503 and error.code not in _UNAVAILABLE:
                self.complaints.append(f"was refused: {error}")
        except _LOST as error:
            end = repr(error)
        finally:
            self.is_live = False
            self.story.append(f"{begun:.3f}-{self.ledger.now():.3f} at {url} since {since}: {end}")
            await client.cut()

    async def _follow(self, client: Client, since: str | None) -> None:
        stream = client.open(
            filter=self.interest.filter, since=since, leave=True if self.interest.leave else None
        )
        self.is_live = since is None
        async for message in stream:
            self._take(message)

    def _take(self, message: Message) -> None:
        if message.kind == "live":
            self.is_live = True
        if message.cursor is None:
            return
        self.cursor = message.cursor
        place = Place.of(message.cursor)
        if self.start is None:
            self.start = self._start(message, place)
        if message.kind == "event":
            self.told.append(Told("event", place, key_of(message.body), self.connections))
            if self.bodies.setdefault((place.epoch, place.offset), message.body) != message.body:
                self.complaints.append(f"others were told another event at {place}: {message.body}")
        elif message.kind == "leave":
            self.told.append(Told("leave", place, message.subject, self.connections))
        elif message.kind == "gap":
            lost_from = Place.of(message.lost_from) if message.lost_from else None
            self.told.append(Told("gap", place, None, self.connections, lost_from, message.reason))

    def _start(self, message: Message, place: Place) -> Place:
        """Where it started. A long poll is not told; this log begins at its beginning."""
        if message.kind == "place":
            return place
        if self.since == "snapshot" and place.start is None:  # all of its snapshot was superseded meanwhile
            return Place(place.epoch, place.offset - (message.kind == "event"))
        return Place(place.epoch, 0, place.start)
