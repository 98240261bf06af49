"""Lanes and their flush: one write of shared bytes per client, joined when flushes follow each other.

A lane is the live clients of one channel on one wire. They are by definition at the same place in the
log, so what leaves is the same bytes for all of them. No task, queue or await per client and event.
"""

import logging
import time
from collections.abc import Callable, Hashable
from typing import Protocol

from gateway.wire import Wire

logger = logging.getLogger(__name__)

Write = Callable[[bytes], None]

# Writes between two turns of the loop: a send costs 6-7 microseconds of kernel, so a slice is some 6 ms,
# after which publishing, pings and probes have their turn.
SLICE = 1000
MAX_HOLD = 0.01  # seconds that a write waits for events that are on their way


class Sink(Hashable, Protocol):
    """A live client's place on a lane."""

    def broken(self, error: Exception) -> None:
        """The write to this client raised; it shall leave."""

    def scattered(self) -> None:
        """The log no longer goes on from this client's place; it shall leave."""


class Lane:
    """The live clients of one channel on one wire, and what they have not been sent yet."""

    __slots__ = (
        "_before",
        "_data",
        "_first",
        "_flusher",
        "_parts",
        "_remaining",
        "_times",
        "last",
        "sinks",
        "wire",
    )

    def __init__(self, wire: Wire, flusher: "Flusher") -> None:
        self.wire = wire
        self.sinks: dict[Sink, Write] = {}
        self.last = 0  # the offset of the newest message that was pushed
        self._flusher = flusher
        self._parts: list[bytes] = []
        self._times: list[int] = []  # when each part's event was accepted, microseconds
        self._first = 0  # the offset of the first part
        # A flush in slices: who has not been written to yet, what, and the place before it.
        self._remaining: dict[Sink, Write] = {}
        self._data = b""
        self._before = 0

    def push(self, offset: int, accepted: int, part: bytes) -> None:
        """Adds a message for all who are live now; it leaves with the next flush."""
        if not self.sinks:
            return
        if not self._parts:
            self._first = offset
            self._flusher.add(self)
        self.last = offset
        self._parts.append(part)
        self._times.append(accepted)

    @property
    def position(self) -> int:
        """The place of a client that joins now: everything up to it has left or concerns nobody here."""
        return self._first - 1 if self._parts else self._flusher.position

    def position_of(self, sink: Sink) -> int:
        """The place of a client of this lane: everything up to it has been written to its socket."""
        return self._before if sink in self._remaining else self.position

    def join(self, sink: Sink, write: Write) -> None:
        """From now on the client gets what comes after `position`."""
        self.sinks[sink] = write

    def leave(self, sink: Sink) -> int:
        """Takes the client off and returns its place."""
        position = self.position_of(sink)
        del self.sinks[sink]
        self._remaining.pop(sink, None)
        if not self._remaining:
            self._data = b""
        if not self.sinks:
            self._parts.clear()
            self._times.clear()
        return position

    def scatter(self) -> None:
        """Has all clients leave, each from its place."""
        for sink in list(self.sinks):
            sink.scattered()

    def flush(self, budget: int) -> int:
        """Writes to at most about `budget` clients; returns to how many. Done when not `unfinished`."""
        if self._remaining:
            return self._write_slice(budget)
        if not self._parts:
            return 0
        data = self._take()
        if len(self.sinks) > budget:
            self._data = data
            self._remaining = dict(self.sinks)
            return self._write_slice(budget)
        for sink, write in self.sinks.copy().items():  # a write may take its client off the lane
            try:
                write(data)
            except Exception as error:  # noqa: BLE001 - one bad peer never stops the others
                sink.broken(error)
        return len(self.sinks) or 1

    def flush_now(self) -> None:
        """Writes everything at once, for a client that wants to join beyond what waits."""
        while self._remaining or self._parts:
            self.flush(SLICE)

    @property
    def unfinished(self) -> bool:
        return bool(self._remaining)

    def _take(self) -> bytes:
        data = self.wire.join(self._parts)
        if data:  # a wire that only wakes its clients delivers nothing itself
            self._flusher.observe(self.wire.transport, self._times, len(self.sinks))
        self._before = self._first - 1
        self._parts = []
        self._times = []
        return data

    def _write_slice(self, budget: int) -> int:
        data, remaining = self._data, self._remaining
        written = 0
        while remaining and written < budget:
            sink, write = remaining.popitem()
            written += 1
            try:
                write(data)
            except Exception as error:  # noqa: BLE001 - one bad peer never stops the others
                sink.broken(error)
        if not remaining:
            self._data = b""
        return written


class Timer(Protocol):
    def cancel(self) -> object: ...


class Schedule(Protocol):
    """The part of an event loop that the flusher needs; `asyncio.AbstractEventLoop` is one."""

    def call_soon(self, callback: Callable[[], object], /) -> Timer: ...

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer: ...


# Called for each joined write: transport, when its events were accepted (microseconds), to how many clients.
Observe = Callable[[str, list[int], int], None]


class Flusher:
    """Decides when lanes write: at once after a pause, else `interval` seconds after the last flush's end.

    `interval` 0 is the end of the loop's turn. `more_coming` tells whether events are on their way into the
    log: those leave in one write with what is there. To hold a write for them costs the first of them no more
    than a write without them would cost the others: the time that the last flush took, `MAX_HOLD` at most.
    `position` is the offset up to which the hub has come.
    """

    def __init__(
        self,
        schedule: Schedule,
        interval: float,
        *,
        observe: Observe = lambda _transport, _times, _clients: None,
        more_coming: Callable[[], bool] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.position = 0
        self.observe = observe
        self._schedule = schedule
        self._interval = interval
        self._more_coming = more_coming
        self._now = now
        self._dirty: list[Lane] = []
        self._turn: list[Lane] = []  # the lanes of the flush that is under way
        self._timer: Timer | None = None
        self._deciding = False
        self._began = 0.0
        self._ended = float("-inf")

    def add(self, lane: Lane) -> None:
        self._dirty.append(lane)

    def kick(self) -> None:
        """Sees to it that what waits leaves in time. Called after each publish."""
        if self._turn or not self._dirty:
            return  # a flush that is under way ends with a kick
        wait = self._ended + self._interval - self._now()
        if self._interval == 0:
            self._timer = self._timer or self._schedule.call_soon(self._due)
        elif wait > 0:
            self._timer = self._timer or self._schedule.call_later(wait, self._due)
        elif self._more_coming is None:
            self._due()
        elif not self._deciding:  # when the requests that have come in this turn have reached the log
            self._deciding = True
            self._schedule.call_soon(self._decide)

    def _decide(self) -> None:
        self._deciding = False
        if self._turn or not self._dirty or self._now() < self._ended + self._interval:
            return  # it has left meanwhile, and the flush's end has seen to what came since
        if self._more_coming is not None and self._more_coming():
            hold = min(max(self._interval, self._ended - self._began), MAX_HOLD)
            self._timer = self._timer or self._schedule.call_later(hold, self._due)
        else:
            self._due()

    def _due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._turn, self._dirty = self._dirty[::-1], []
        self._began = self._now()
        self._run()

    def _run(self) -> None:
        budget = SLICE
        while self._turn:
            lane = self._turn[-1]
            budget -= lane.flush(budget)
            if not lane.unfinished:
                self._turn.pop()
            if budget <= 0 and self._turn:
                self._schedule.call_soon(self._run)
                return
        self._ended = self._now()
        self.kick()
