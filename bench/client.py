"""The load client: any number of subscribers and a few publishers on one epoll, on a core of its own.

It reads whatever its sockets hold and looks only for the tokens of events in it. What arrives is
the same for all subscribers of a shared stream, so equal chunks are parsed once per turn.
"""

import os
import select
import socket
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from types import TracebackType
from typing import Final, Protocol, Self

from bench import wire
from bench.connection import READ_BYTES, ClientError, Steps, connect, wait_for
from bench.redis_server import Redis, encode
from bench.server import Server

_OPENED_TOGETHER: Final = 50
_MAX_READY: Final = 20_000
_TURN_SECONDS: Final = 0.05
_DRAIN_SECONDS: Final = 60.0
_OPEN_LOOP_PUBLISHERS: Final = 16
# A chunk with such an end has no token cut in two: neither byte stands in one.
_WHOLE_ENDS: Final = frozenset((b"}", b"\n"))

sequence = count(1)  # one for all clients: a log takes an id only once


@dataclass(slots=True)
class Run:
    """What one load did. `receipts`: when an event was published and when some subscribers read it."""

    published: int = 0
    deliveries: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    receipts: list[tuple[float, Sequence[float]]] = field(default_factory=list)

    def percentiles(self, *percents: float) -> list[float]:
        """Percentiles of the latency, over all deliveries, from publish to receipt in milliseconds."""
        latencies = [received - sent for sent, times in self.receipts for received in times]
        latencies.sort()
        return [latencies[int(len(latencies) * percent / 100)] * 1000 for percent in percents]


@dataclass(frozen=True, slots=True)
class Load:
    """What is published: events of `size` bytes about `subjects`, one after the other, for ever.

    `receivers` is how many subscribers get each event; None: all.
    """

    size: int = wire.EVENT_BYTES
    subjects: Sequence[int] = (0,)
    receivers: int | None = None


class Way(Protocol):
    """How an event is published: over which connection, with which bytes, and what answers it."""

    def connect(self) -> socket.socket: ...

    def request(self, event: bytes) -> bytes: ...

    def is_answered(self, answer: bytes) -> bool:
        """Whether the answer is there as a whole. Raises ClientError where it is a refusal."""


@dataclass(frozen=True, slots=True)
class Posts:
    """Each event by a POST of its own."""

    server: Server

    def connect(self) -> socket.socket:
        return connect(self.server)

    def request(self, event: bytes) -> bytes:
        return wire.post("/events", self.server.port, event)

    def is_answered(self, answer: bytes) -> bool:
        end = wire.response_end(answer)
        if end and not answer.startswith(b"HTTP/1.1 202"):
            raise ClientError(f"an event was not accepted: {answer[:500]!r}")
        return bool(end)


@dataclass(frozen=True, slots=True)
class Commands:
    """Each event by a command to Redis, of which it is the last argument."""

    redis: Redis
    command: tuple[str, ...]

    def connect(self) -> socket.socket:
        return self.redis.connect()

    def request(self, event: bytes) -> bytes:
        return encode(*self.command, event)

    def is_answered(self, answer: bytes) -> bool:
        if answer.startswith(b"-"):
            raise ClientError(f"an event was not accepted: {answer[:500]!r}")
        return answer.count(b"\r\n") == (2 if answer.startswith(b"$") else 1)


class _Publisher:
    """A keep-alive connection with at most one request under way."""

    __slots__ = ("answer", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.answer = b""


class Client:
    """The subscribers and publishers of one server. Use as a context manager; methods raise ClientError."""

    def __init__(self, server: Server, way: Way | None = None) -> None:
        """Publishes by POST unless another `way` is given."""
        self._server = server
        self._way = way or Posts(server)
        self._epoll = select.epoll()
        self._subscribers: dict[int, socket.socket] = {}
        self._readers: dict[int, Callable[[], None]] = {}
        self._torn: dict[int, bytes] = {}
        self._free: deque[_Publisher] = deque()
        self._sent: dict[int, float] = {}
        self._left: dict[int, int] = {}
        self._run = Run()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for each in self._subscribers.values():
            each.close()
        self._epoll.close()

    def subscribe(self, ways: Sequence[Steps]) -> None:
        """Opens one subscriber for each of `ways`, a few at a time, and returns when all have begun."""
        for start in range(0, len(ways), _OPENED_TOGETHER):
            self._subscribe_together(ways[start : start + _OPENED_TOGETHER])
            self._turn(0)

    def _subscribe_together(self, ways: Sequence[Steps]) -> None:
        opened = [connect(self._server, source=source) for source in range(len(ways))]
        self._subscribers.update((each.fileno(), each) for each in opened)
        for step in range(len(ways[0])):
            for connection, steps in zip(opened, ways, strict=True):
                connection.sendall(steps[step][0])
            for connection, steps in zip(opened, ways, strict=True):
                wait_for(connection, steps[step][1])
        for connection in opened:
            connection.setblocking(False)
            self._epoll.register(connection, select.EPOLLIN)

    def watch(self, connection: socket.socket, reader: Callable[[], None]) -> None:
        """Has `reader` called whenever the connection, which is no subscriber, has something to read."""
        connection.setblocking(False)
        self._readers[connection.fileno()] = reader
        self._epoll.register(connection, select.EPOLLIN)

    def unwatch(self, connection: socket.socket) -> None:
        del self._readers[connection.fileno()]
        self._epoll.unregister(connection)

    def expect(self, numbers: Iterable[int], receivers: int = 1) -> None:
        """These events will be published by somebody else now, and each be received by so many."""
        now = time.monotonic()
        for number in numbers:
            self._left[number] = receivers
            self._sent[number] = now

    def receive(self) -> Run:
        """Reads until all that was expected has come."""
        self._begin(0)
        return self._end([])

    def idle(self, seconds: float) -> None:
        """Answers pings and does nothing else."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._turn(_TURN_SECONDS)

    def closed_loop(self, in_flight: int, seconds: float, load: Load | None = None) -> Run:
        """Keeps `in_flight` events outstanding: each is done when all that should get it have it.

        Every event in flight has a connection of its own, which sends the next when its last is answered.
        """
        load = load or Load()
        with_receivers = bool(self._receivers(load))
        publishers = self._begin(in_flight)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            while self._free and not (with_receivers and len(self._left) >= in_flight):
                self._publish(load)
            self._turn(_TURN_SECONDS)
        return self._end(publishers)

    def open_loop(self, rate: float, going: Callable[[], bool], load: Load | None = None) -> Run:
        """Publishes `rate` events a second while `going()`, whatever the subscribers do.

        Falls behind only where all publishers wait for an answer; the run's `published` tells.
        """
        load = load or Load()
        publishers = self._begin(_OPEN_LOOP_PUBLISHERS)
        start = time.monotonic()
        while going():
            wait = start + self._run.published / rate - time.monotonic()
            if wait <= 0 and self._free:
                self._publish(load)
            else:
                self._turn(min(max(wait, 0.001), _TURN_SECONDS))
        return self._end(publishers)

    def _receivers(self, load: Load) -> int:
        return len(self._subscribers) if load.receivers is None else load.receivers

    def _begin(self, publishers: int) -> list[_Publisher]:
        """New connections for each run: between runs a server may close idle ones."""
        opened = [_Publisher(self._way.connect()) for _ in range(publishers)]
        for each in opened:
            self.watch(each.socket, partial(self._read_answer, each))
        self._free = deque(opened)
        self._run = Run(seconds=time.monotonic(), cpu=self._server.cpu())
        return opened

    def _end(self, publishers: list[_Publisher]) -> Run:
        """Waits for what is under way, then gives the run with its seconds and CPU seconds."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._left or len(self._free) < len(publishers):
            if time.monotonic() > deadline:
                raise ClientError(f"{len(self._left)} events did not reach everybody")
            self._turn(_TURN_SECONDS)
        run = self._run
        run.seconds = time.monotonic() - run.seconds
        run.cpu = self._server.cpu() - run.cpu
        for each in publishers:
            self.unwatch(each.socket)
            each.socket.close()
        return run

    def _publish(self, load: Load) -> None:
        number = next(sequence)
        event = wire.event(number, subject=load.subjects[number % len(load.subjects)], size=load.size)
        receivers = self._receivers(load)
        if receivers:
            self._left[number] = receivers
            self._sent[number] = time.monotonic()
        self._run.published += 1
        self._free.popleft().socket.sendall(self._way.request(event))

    def _read_answer(self, publisher: _Publisher) -> None:
        chunk = publisher.socket.recv(READ_BYTES)
        publisher.answer += chunk
        if not chunk:
            raise ClientError(f"the answer ended with {publisher.answer[:500]!r}")
        if self._way.is_answered(publisher.answer):
            publisher.answer = b""
            self._free.append(publisher)

    def _turn(self, timeout: float) -> None:
        """Reads once from every socket that has something, then counts what came."""
        readers, torn = self._readers, self._torn
        arrivals: defaultdict[bytes, list[tuple[float, int]]] = defaultdict(list)
        for descriptor, _ in self._epoll.poll(timeout, _MAX_READY):
            if descriptor in readers:
                readers[descriptor]()
                continue
            chunk = os.read(descriptor, READ_BYTES)
            if descriptor in torn:
                chunk = torn.pop(descriptor) + chunk
            arrivals[chunk].append((time.monotonic(), descriptor))
        for chunk, received in arrivals.items():
            self._count(chunk, [now for now, _ in received])
            if chunk[-1:] not in _WHOLE_ENDS or wire.PING_BYTE in chunk:
                self._mend(chunk, [descriptor for _, descriptor in received])

    def _mend(self, chunk: bytes, descriptors: Sequence[int]) -> None:
        """Keeps the end of `chunk` where it may be a torn token, and answers pings."""
        if not chunk:
            raise ClientError("the server closed a subscriber's connection")
        pongs = wire.pongs(chunk)
        for descriptor in descriptors:
            if chunk[-1:] not in _WHOLE_ENDS:
                self._torn[descriptor] = chunk[1 - wire.TOKEN_BYTES :]
            if pongs:
                self._subscribers[descriptor].sendall(pongs)

    def _count(self, chunk: bytes, times: Sequence[float]) -> None:
        for number in wire.sequences(chunk):
            sent = self._sent.get(number)
            if sent is None or self._left[number] < len(times):
                raise ClientError(f"event {number} was delivered more than once")
            self._run.receipts.append((sent, times))
            self._run.deliveries += len(times)
            self._left[number] -= len(times)
            if not self._left[number]:
                del self._left[number], self._sent[number]
