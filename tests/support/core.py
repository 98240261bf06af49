"""What the tests of the core are made of: a clock and a loop turned by hand, events, entries and a log in memory."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import orjson

from gateway.connection import Connection, Traffic
from gateway.event import Defaults, Event, make_event
from gateway.log import Entry, OnAppend, Retention
from gateway.log.sqlite import SqliteLog

NOON = 1_780_000_000.0  # seconds since 1970
Body = dict[str, Any]


class Clock:
    """Seconds, moved by hand."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Call:
    """A call that a `Schedule` holds, until it is made or cancelled."""

    def __init__(self, moment: float, callback: Callable[[], object]) -> None:
        self.moment = moment
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Schedule:
    """The part of an event loop that the flusher needs, turned by hand. `now` is its clock in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self._soon: list[Call] = []
        self._later: list[Call] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], object], /) -> Call:
        self._soon.append(Call(self.now, callback))
        return self._soon[-1]

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Call:
        self._later.append(Call(self.now + delay, callback))
        return self._later[-1]

    def turn(self) -> None:
        """One turn: what was to be called soon or is due, and nothing that these ask for."""
        due = [call for call in self._later if call.moment <= self.now]
        self._later = [call for call in self._later if call.moment > self.now]
        soon, self._soon = self._soon, []
        for call in soon + due:
            if not call.cancelled:
                call.callback()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.turn()

    @property
    def idle(self) -> bool:
        return not self._soon and not self._later

    def settle(self) -> None:
        """Turns, and lets time pass, until nothing is left to call."""
        while not self.idle:
            self.advance(1.0 if not self._soon else 0.0)


def body_of(type_: str = "order.updated", subject: str | None = "o-1", data: Any = None, **more: Any) -> Body:
    """An event as its producer sends it."""
    return {"type": type_, **({"subject": subject} if subject else {}), "data": data, **more}


def event_of(body: Body, defaults: Defaults | None = None) -> Event:
    return make_event(dict(body), defaults or Defaults(), max_bytes=1 << 20)


class History:
    """Entries as a log would make them of bodies, with their places and predecessors."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._latest: dict[str, Entry] = {}
        self._ids = itertools.count(1)

    def add(self, body: Body) -> Entry:
        filled = {"id": str(next(self._ids)), "source": "/s", "specversion": "1.0", **body}
        before = self._latest.get(filled.get("subject", ""))
        entry = Entry(
            len(self.entries) + 1,
            before.offset if before else 0,
            int(NOON * 1e6) + len(self.entries),
            orjson.dumps(filled),
            previous=before.json if before else None,
        )
        self.entries.append(entry)
        if "subject" in filled:
            self._latest[filled["subject"]] = entry
        return entry

    def extend(self, bodies: Sequence[Body]) -> list[Entry]:
        return [self.add(body) for body in bodies]


@contextlib.asynccontextmanager
async def memory_log(
    on_append: OnAppend = lambda _entries: None,
    *,
    retention: Retention | None = None,
    now: Callable[[], float] | None = None,
) -> AsyncIterator[SqliteLog]:
    """An open log in memory."""
    log = SqliteLog(None, retention=retention or Retention(), now=now or Clock())
    await log.open(on_append)
    try:
        yield log
    finally:
        await log.close()


class Peer:
    """A client's socket. It takes `room` bytes, then it is full until the client reads."""

    def __init__(self, room: float = float("inf")) -> None:
        self.room = room
        self.got = b""  # what the client has read
        self.waiting = b""  # what it has not
        self.closed: tuple[int, str] | None = None
        self.aborted = False
        self._connection: Connection | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()

    @property
    def write(self) -> Callable[[bytes], None]:
        return self._write

    def _write(self, data: bytes) -> None:
        assert self.closed is None, "nothing is written to a closed socket"
        self.waiting += data
        if len(self.waiting) > self.room and self._flowing.is_set():
            self._flowing.clear()
            if self._connection is not None:
                self._connection.fall_behind()

    def read(self) -> None:
        """The client takes all that waits."""
        self.got, self.waiting = self.got + self.waiting, b""
        self._flowing.set()

    @property
    def messages(self) -> list[Any]:
        """What came over a wire of lines, read or not."""
        return [orjson.loads(line) for line in (self.got + self.waiting).splitlines()]

    @property
    def paused(self) -> bool:
        return not self._flowing.is_set()

    @property
    def traffic(self) -> Traffic:
        return Traffic(len(self.got), len(self.waiting))

    def watch(self, connection: Connection) -> None:
        self._connection = connection

    async def drained(self) -> None:
        await self._flowing.wait()

    def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)
        self._flowing.set()

    def abort(self) -> None:
        self.aborted = True
        self._flowing.set()
