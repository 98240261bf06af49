"""Publishers that go on whatever happens, and enter into the ledger what they did and what they were told."""

import asyncio
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tests.support.faults.interests import data_of, event_of
from tests.support.faults.ledger import Ledger, Publication
from tests.support.sockets import request

ANSWER_SECONDS: Final = 6.0  # until a gateway that does not answer is given up and the other one is tried
HOME_AFTER: Final = 10  # answers from the other gateway, after which the own one is tried again
_PAUSE_SECONDS: Final = 0.05  # until the next attempt after one that failed

BROKEN: Final = (OSError, EOFError, TimeoutError, ValueError)


class Post:
    """One connection to a gateway, made anew after whatever went wrong."""

    def __init__(self, url: str) -> None:
        self.place = urlsplit(url).netloc
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def publish(self, body: bytes, content_type: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of the answer. Raises one of BROKEN, and then it is not known what happened."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._publish(body, content_type)
        except BaseException:
            self.close()
            raise

    async def _publish(self, body: bytes, content_type: str) -> tuple[int, dict[str, Any]]:
        if self._streams is None:
            host, _, port = self.place.rpartition(":")
            self._streams = await asyncio.open_connection(host, int(port))
        reader, writer = self._streams
        writer.write(request("POST", "/events", body, host=self.place, content_type=content_type))
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        answer = json.loads(await reader.readexactly(int(headers["content-length"])))
        if headers.get("connection") == "close":
            self.close()
        return int(status.split(" ")[1]), answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


@dataclass(eq=False)
class Publisher(ABC):
    """Publishes numbers 0, 1, 2, … until it is told to stop, and ends when the last one is settled.

    `interval` is in seconds. `in_order` says whether its numbers must be in the log in order.
    """

    name: str
    ledger: Ledger
    interval: float
    in_order: bool = True
    stopping: bool = False
    complaints: list[str] = field(default_factory=list)  # answers that no fault explains

    async def run(self) -> None:
        try:
            for number in itertools.count():
                if self.stopping:
                    return
                await self.publish(number)
                await asyncio.sleep(self.interval)
        finally:
            await self.aclose()

    @abstractmethod
    async def publish(self, number: int) -> None:
        """Publishes the messages of this number; returns when they are settled."""

    @abstractmethod
    async def aclose(self) -> None: ...


@dataclass(eq=False)
class HttpPublisher(Publisher):
    """One request in flight, repeated with the same ids until it is answered 202, over whichever gateway answers."""

    urls: Sequence[str] = ()  # its own gateway first
    size: int = 1  # events of a request
    lines: bool = False  # NDJSON

    def __post_init__(self) -> None:
        self._posts = [Post(url) for url in self.urls]
        self._at = 0
        self._answers = 0

    async def publish(self, number: int) -> None:
        numbers = range(number * self.size, (number + 1) * self.size)
        await self.settle([self._event(each) for each in numbers])

    def _event(self, number: int) -> dict[str, Any]:
        return event_of(self.name, number, id=f"{self.name}-{number}", source="/faults")

    async def settle(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Until these events are acknowledged."""
        keys = [(each["data"]["publisher"], each["data"]["number"]) for each in events]
        publications = [self.ledger.open(key, "http") for key in keys]
        body, content_type = self._body(events)
        while not await self._attempt(publications, body, content_type):
            self._at, self._answers = 1 - self._at, 0
            await asyncio.sleep(_PAUSE_SECONDS)
        for each in publications:
            self.ledger.acknowledge(each)
        self._answers += 1
        if self._at and self._answers >= HOME_AFTER:
            self._at = 0

    def _body(self, events: Sequence[Mapping[str, Any]]) -> tuple[bytes, str]:
        if self.lines:
            return "\n".join(map(json.dumps, events)).encode(), "application/x-ndjson"
        return json.dumps(events if self.size > 1 else events[0]).encode(), "application/json"

    async def _attempt(self, publications: Sequence[Publication], body: bytes, content_type: str) -> bool:
        """Whether it was acknowledged."""
        post, begun = self._posts[self._at], self.ledger.now()
        try:
            status, answer = await post.publish(body, content_type)
            end = f"{status} {answer.get('cursor') or answer.get('detail')}"
        except BROKEN as error:
            status, answer, end = 0, {}, repr(error)
        for each in publications:
            each.story.append(f"{begun:.3f}-{self.ledger.now():.3f} at {post.place}: {end}")
        if status == 202 and answer["accepted"] + answer["duplicates"] != len(publications):
            self.complaints.append(f"{len(publications)} events were answered {answer}")
        if status not in (0, 202, 503):
            self.complaints.append(f"{self.name} at {post.place}: {status} {answer}")
        return status == 202

    async def aclose(self) -> None:
        for each in self._posts:
            each.close()


def redis_client(url: str, seconds: float = 5.0) -> Any:
    """A client that tries nothing twice."""
    return aioredis.Redis.from_url(url, protocol=2, socket_timeout=seconds, retry=Retry(NoBackoff(), 0))


@dataclass(eq=False)
class RedisPublisher(Publisher):
    """What channel and stream publishers share: a connection to Redis itself, not by way of a proxy."""

    url: str = ""
    to: str = ""  # the channel or the stream

    def __post_init__(self) -> None:
        self._redis = redis_client(self.url)

    async def _send(self, publication: Publication, *command: str) -> Any:
        """The answer; None where there was none."""
        begun = self.ledger.now()
        try:
            answer = await self._redis.execute_command(*command)
            end = f"answered {answer}"
        except (RedisError, *BROKEN) as error:
            answer, end = None, repr(error)
        publication.story.append(f"{begun:.3f}-{self.ledger.now():.3f} to {self.to}: {end}")
        if answer is None:
            await asyncio.sleep(_PAUSE_SECONDS)
        return answer

    async def aclose(self) -> None:
        await self._redis.aclose()


@dataclass(eq=False)
class ChannelPublisher(RedisPublisher):
    """`PUBLISH`, never repeated: what got no answer may be there or not. `messages` makes those of a number, each
    with how many events it holds."""

    messages: Callable[[str, int], Iterator[tuple[str, int]]] = lambda _name, _number: iter(())

    async def publish(self, number: int) -> None:
        for text, events in self.messages(self.name, number):
            first = number * events
            publications = [self.ledger.open((self.name, first + at), "pubsub") for at in range(events)]
            receivers = await self._send(publications[0], "PUBLISH", self.to, text)
            for each in publications:
                each.story = publications[0].story
                if receivers:
                    self.ledger.acknowledge(each)


def bare(name: str, number: int) -> Iterator[tuple[str, int]]:
    """Data that is no event."""
    yield json.dumps(data_of(name, number)), 1


def whole(name: str, number: int) -> Iterator[tuple[str, int]]:
    """An event without an id."""
    yield json.dumps(event_of(name, number)), 1


def batch(name: str, number: int) -> Iterator[tuple[str, int]]:
    """Three events in one message."""
    yield json.dumps([event_of(name, 3 * number + at) for at in range(3)]), 3


def equal(name: str, number: int) -> Iterator[tuple[str, int]]:
    """The same bytes four times, each of which counts."""
    for _ in range(4):
        yield json.dumps(data_of(name, number)), 1


@dataclass(eq=False)
class StreamPublisher(RedisPublisher):
    """`XADD`. With an id of its own an entry is repeated until it is answered; without one it never is."""

    with_id: bool = True

    async def publish(self, number: int) -> None:
        publication = self.ledger.open((self.name, number), "stream")
        command = ("XADD", self.to, "*", *self._fields(number))
        while await self._send(publication, *command) is None:
            if not self.with_id:
                return
        self.ledger.acknowledge(publication)

    def _fields(self, number: int) -> Sequence[str]:
        if self.with_id:
            return "event", json.dumps(event_of(self.name, number, id=f"{self.name}-{number}"))
        event = event_of(self.name, number)
        return "type", event["type"], "subject", event["subject"], "data", json.dumps(event["data"])
