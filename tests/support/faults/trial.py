"""A trial: one Redis, two gateways, publishers and subscribers, into which a test brings its faults.

async with running_trial(folder, redis_factory) as trial:
    await trial.progress()
    ...  # the fault
    await trial.recovered()
    await trial.progress()
    await trial.judge()
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
from redis.exceptions import RedisError

from gateway.tasks import end
from tests.support.clients import LongPollClient
from tests.support.faults import judge
from tests.support.faults.interests import INTERESTS, Interest, markers
from tests.support.faults.judge import Logged
from tests.support.faults.ledger import Ledger, Listeners, Sample
from tests.support.faults.publishers import (
    BROKEN,
    ChannelPublisher,
    HttpPublisher,
    Publisher,
    StreamPublisher,
    bare,
    batch,
    equal,
    redis_client,
    whole,
)
from tests.support.faults.subscribers import Bodies, Place, Subscriber
from tests.support.gateway import GatewayProcess
from tests.support.health import port_of
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisFactory, RedisServer
from tests.support.sockets import PeerClosedError, ask, request
from tests.support.websocket_client import WebSocketClient

PATIENCE: Final = 90.0  # seconds that anything may take that must come
_POLL_SECONDS: Final = 0.1
_SAMPLE_SECONDS: Final = 0.2
_TAIL: Final = 40  # lines of each log that a failure shows

SUBSCRIBERS: Final = 50
LATE: Final = 10  # of them, that come after the fault
CHANNELS: Final = ("news", "deals.*", "equal")
STREAMS: Final = ("orders", "parcels")
TRANSPORTS: Final = ("websocket", "sse", "longpoll")
STARTS: Final = (None, "earliest", "snapshot", "2020-01-01T00:00:00Z", "earliest")


class Trial:
    """What a test may do to the whole, and what it waits for. Use `running_trial`."""

    def __init__(self, redis: RedisServer, proxies: Sequence[Proxy], nodes: Sequence[GatewayProcess]) -> None:
        self.redis = redis
        self.proxies = proxies
        self.nodes = nodes
        self.ledger = Ledger()
        self.listeners = Listeners()
        self.ledger.is_heard = self.listeners.heard
        self.bodies: Bodies = {}
        self.publishers: list[Publisher] = []
        self.subscribers: list[Subscriber] = []
        self.gaps: set[str] = set()  # reasons for gaps that the faults so far explain
        self._timeline: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._following: list[asyncio.Task[None]] = []
        self._publishing: list[asyncio.Task[None]] = []

    def note(self, what: str) -> None:
        """Something that the report of a failure shall tell, with its time."""
        self._timeline.append(f"{self.ledger.now():8.3f} {what}")

    # Beginning

    async def begin(self) -> None:
        """Everybody but the late subscribers is there when it returns."""
        await self.ready()
        self._tasks.append(asyncio.create_task(self._listen()))
        await self.recovered()
        self._subscribe(range(SUBSCRIBERS - LATE))
        self.publishers = self._make_publishers()
        self._publishing = [asyncio.create_task(each.run(), name=each.name) for each in self.publishers]

    def _urls(self, first: int) -> list[str]:
        return [self.nodes[first % 2].url, self.nodes[1 - first % 2].url]

    def _make_publishers(self) -> list[Publisher]:
        book = self.ledger
        over_http = [HttpPublisher(f"http-{at}", book, 0.08, urls=self._urls(at)) for at in range(4)]
        # Two of the same name are two requests of one publisher in flight: no order is promised to them.
        over_http += [
            HttpPublisher(f"http-free-{at}", book, 0.08, in_order=False, urls=self._urls(at))
            for at in range(2)
        ]
        over_http.append(HttpPublisher("http-batch", book, 0.3, urls=self._urls(0), size=10))
        over_http.append(HttpPublisher("http-lines", book, 0.3, urls=self._urls(1), size=10, lines=True))
        return [*over_http, *self._make_redis_publishers()]

    def _make_redis_publishers(self) -> list[Publisher]:
        book, url = self.ledger, self.redis.url
        return [
            ChannelPublisher("news", book, 0.08, url=url, to="news", messages=bare),
            ChannelPublisher("deals-a", book, 0.08, url=url, to="deals.a", messages=whole),
            ChannelPublisher("deals-b", book, 0.2, url=url, to="deals.b", messages=batch),
            ChannelPublisher("equal", book, 0.2, url=url, to="equal", messages=equal),
            StreamPublisher("orders", book, 0.06, url=url, to="orders", with_id=True),
            StreamPublisher("parcels", book, 0.06, url=url, to="parcels", with_id=False),
        ]

    def _subscribe(self, numbers: range) -> None:
        for at in numbers:
            subscriber = Subscriber(
                f"subscriber {at}",
                INTERESTS[at % len(INTERESTS)],
                TRANSPORTS[at % len(TRANSPORTS)],
                STARTS[at % len(STARTS)],
                self._urls(at // len(INTERESTS)),
                self.ledger,
                self.bodies,
            )
            self.subscribers.append(subscriber)
            self._following.append(asyncio.create_task(subscriber.run(), name=subscriber.name))

    # Waiting

    async def until(
        self, condition: Callable[[], Awaitable[bool]], what: Callable[[], str], seconds: float = PATIENCE
    ) -> None:
        """Returns when the condition holds. Raises AssertionError, with what never came."""
        try:
            async with asyncio.timeout(seconds):
                while not await condition():
                    self._check_tasks()
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise AssertionError(f"in vain: {what()}") from None

    def _check_tasks(self) -> None:
        """Raises what a task of this trial has failed with."""
        for task in (*self._tasks, *self._following, *self._publishing):
            if task.done():
                task.result()

    async def progress(self, answers: int = 8) -> None:
        """Until each publisher has been told so many times more that its messages are accepted."""
        before = self.ledger.acknowledged.copy()

        def lagging() -> list[str]:
            now = self.ledger.acknowledged
            return [each.name for each in self.publishers if now[each.name] < before[each.name] + answers]

        async def done() -> bool:
            return not lagging()

        await self.until(done, lambda: f"these publishers get no answers: {lagging()}")

    async def ready(self) -> None:
        """Until both gateways say so."""

        said: list[str] = []

        async def done() -> bool:
            said[:] = [await readiness(each) for each in self.nodes]
            return not any(said)

        await self.until(done, lambda: f"both gateways are ready: {said}")

    async def recovered(self) -> None:
        """Until both gateways are ready and listen to all channels: from then on, what they hear counts."""
        await self.ready()

        async def listening() -> bool:
            sample = await self._sample()
            if len(sample.connections) < len(self.nodes):
                return False
            self.listeners.trust(sample)
            return True

        await self.until(listening, lambda: "both gateways listen to Redis's channels")
        self.note("both gateways are ready and listen")

    async def _listen(self) -> None:
        while True:
            self.listeners.add(await self._sample())
            await asyncio.sleep(_SAMPLE_SECONDS)

    async def _sample(self) -> Sample:
        """Which connections listen to all channels now: none where Redis does not answer."""
        asked, pid = self.ledger.now(), self.redis.pid
        client = redis_client(self.redis.url)
        found: set[str] = set()
        try:
            for each in await client.client_list(_type="pubsub"):
                if int(each["sub"]) + int(each["psub"]) >= len(CHANNELS):
                    found.add(f"{pid}:{each['id']}")
        except (RedisError, *BROKEN):
            found.clear()
        finally:
            await client.aclose()
        return Sample(asked, self.ledger.now(), frozenset(found))

    # Leases

    async def holders(self) -> dict[str, str]:
        """Who has which lease: the node's id by the lease's name."""
        client = redis_client(self.redis.url)
        try:
            names = sorted([each async for each in client.scan_iter("{gateway}:lease:*")])
            values = [await client.get(each) for each in names]
        finally:
            await client.aclose()
        return {
            name.decode().partition("lease:")[2]: value.decode().partition(" ")[0]
            for name, value in zip(names, values, strict=True)
            if value is not None
        }

    async def node_ids(self) -> list[str]:
        """The gateways' names for themselves."""
        found = []
        for each in self.nodes:
            async with httpx.AsyncClient(base_url=each.url) as http, WebSocketClient(each.url) as client:
                await anext(client.open())
                listed = (await http.get("/connections", params={"limit": 1000})).json()["connections"]
                found += [row["node"] for row in listed if row["id"] == client.hello["connection"]]
        return found

    async def forget_before(self) -> None:
        """What was published until now may be lost with the log: until both nodes are in another one."""
        await self.recovered()
        await asyncio.sleep(0)
        self.ledger.lost_before = self.ledger.now()

    # Judging

    async def judge(self) -> None:
        """Stops the publishers, waits until all is settled, and compares. Raises AssertionError."""
        self._subscribe(range(SUBSCRIBERS - LATE, SUBSCRIBERS))
        self.note("publishers are to stop")
        for each in self.publishers:
            each.stopping = True
        await self._publishers_ended()
        self.note("publishers have stopped")
        await self.recovered()
        await self._heard()
        log = await self._settled()
        self.note(f"all is in the log, whose head is {len(log)}")
        log = await self._mark(log)
        self.note("all subscribers have all")
        found = [each for publisher in self.publishers for each in publisher.complaints]
        ordered = frozenset(each.name for each in self.publishers if each.in_order)
        found += judge.judge_log(log, self.ledger, ordered)
        found += self._judge_subscribers(log)
        assert not found, "\n".join(found)
        assert len(log) > len(self.publishers)

    async def _publishers_ended(self) -> None:
        async def done() -> bool:
            return all(each.done() for each in self._publishing)

        def running() -> list[str]:
            return [each.get_name() for each in self._publishing if not each.done()]

        await self.until(done, lambda: f"these publishers end: {running()}")

    async def _heard(self) -> None:
        """Until it is known of the last messages too who has heard them."""
        stopped = self.ledger.now()

        async def done() -> bool:
            return self.listeners.samples[-1].asked > stopped + 2.5

        await self.until(done, lambda: "looks at who listens")

    async def _settled(self) -> list[Logged]:
        """The log, once both nodes tell the same and everything that must be in it is."""
        logs: list[list[Logged]] = []

        async def done() -> bool:
            logs[:] = [await read_log(each.url) for each in self.nodes]
            return logs[0] == logs[1] and not self._missing(logs[0]) and await self._streams_are_read()

        def what() -> str:
            lengths = [len(each) for each in logs]
            missing = self._missing(logs[0]) if logs else []
            lines = self.ledger.explain(missing[:20])
            return "\n".join(
                [f"the nodes tell {lengths} events, of which {len(missing)} are missing", *lines]
            )

        await self.until(done, what)
        return logs[0]

    def _missing(self, log: Sequence[Logged]) -> list[Any]:
        counts: dict[Any, int] = {}
        for each in log:
            counts[each.key] = counts.get(each.key, 0) + 1
        return self.ledger.missing(counts)

    async def _streams_are_read(self) -> bool:
        """Whether the gateways have acknowledged every entry."""
        client = redis_client(self.redis.url)
        try:
            groups = [group for each in STREAMS for group in await client.xinfo_groups(each)]
        finally:
            await client.aclose()
        return len(groups) == len(STREAMS) and all(
            each["pending"] == 0 and each["lag"] in (0, None) for each in groups
        )

    async def _mark(self, log: Sequence[Logged]) -> list[Logged]:
        """Publishes what all interests match, and returns the log when all subscribers have been told of it."""
        marking = HttpPublisher("marker", Ledger(), 0, urls=self._urls(0))
        try:
            for each in markers():
                await asyncio.wait_for(marking.settle([each]), PATIENCE)
        finally:
            await marking.aclose()
        logs: list[list[Logged]] = []

        async def level() -> bool:
            logs[:] = [await read_log(each.url) for each in self.nodes]
            return logs[0] == logs[1] and len(logs[0]) >= len(log) + len(markers())

        await self.until(level, lambda: "both nodes tell the same")

        async def told() -> bool:
            return not self._behind(logs[0])

        await self.until(told, lambda: self._who_is_behind(logs[0]), PATIENCE)
        return logs[0]

    def _last(self, log: Sequence[Logged], interest: Interest) -> Logged:
        """The last marker that an interest matches."""
        return [each for each in log if each.key[0] in judge.MARKERS and interest.matches(each.body)][-1]

    def _behind(self, log: Sequence[Logged]) -> list[Subscriber]:
        """Who has not been told its last marker, or is not live."""
        return [
            each
            for each in self.subscribers
            if each.cursor is None
            or Place.of(each.cursor).offset < self._last(log, each.interest).offset
            or not (each.is_live or each.transport == "longpoll")
        ]

    def _who_is_behind(self, log: Sequence[Logged]) -> str:
        lines = [f"subscribers reach the log's head {len(log)}:"]
        for each in self._behind(log)[:10]:
            lines += [
                f"{each} is at {each.cursor}, live: {each.is_live}",
                *each.complaints,
                *each.story[-4:],
            ]
        return "\n".join(lines)

    def _judge_subscribers(self, log: Sequence[Logged]) -> list[str]:
        places = [each.cursor for each in self.subscribers if each.cursor]
        epoch = Place.of(places[0]).epoch
        logs = {**self._lost_logs(), epoch: log}
        found = []
        for each in self.subscribers:
            upto = self._last(log, each.interest).offset
            found += judge.judge_subscriber(each, logs, upto, frozenset(self.gaps))
        return found

    def _lost_logs(self) -> dict[str, list[Logged]]:
        """What the subscribers were told of every log, by its epoch."""
        logs: dict[str, list[Logged]] = {}
        for (epoch, offset), body in sorted(self.bodies.items()):
            logs.setdefault(epoch, []).append(Logged(offset, body))
        return logs

    # Ending

    async def aclose(self) -> None:
        await end(*self._publishing, *self._following, *self._tasks)

    def report(self) -> str:
        """What happened when, and the ends of all logs."""
        parts = ["\n-- what happened", *self._timeline]
        for number, node in enumerate(self.nodes):
            parts += [f"-- gateway {number} at {node.url} says at last", *node.log.splitlines()[-_TAIL:]]
        parts += [
            f"-- Redis at {self.redis.port} says at last",
            *self.redis.log.splitlines()[-_TAIL // 4 :],
        ]
        return "\n".join(parts)


async def readiness(node: GatewayProcess) -> str:
    """Why it is not ready; "" where it is."""

    def look() -> str:
        try:
            answer = ask(port_of(node), request("GET", "/readyz", connection="close"))
        except (OSError, PeerClosedError) as error:
            return repr(error)
        return "" if answer.status == 200 else answer.body.decode()

    return await asyncio.to_thread(look)


async def read_log(url: str) -> list[Logged]:
    """The whole log as a gateway tells it now. Empty where it does not answer."""
    found: list[Logged] = []
    async with LongPollClient(url, limit=1000) as client:
        client.open(since="earliest")
        with contextlib.suppress(*BROKEN, StopAsyncIteration):
            async for message in client:
                if message.kind == "live":
                    return found
                if message.kind == "event":
                    assert message.cursor is not None
                    found.append(Logged(Place.of(message.cursor).offset, message.body))
    return []


@asynccontextmanager
async def running_trial(folder: Path, factory: RedisFactory) -> AsyncIterator[Trial]:
    """Two gateways that reach one Redis by way of a proxy each, under load. What fails is told with all logs."""
    redis = factory.server(appendonly="yes", appendfsync="always")
    async with contextlib.AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(redis.port)) for _ in range(2)]
        nodes = [_gateway(folder / f"gateway-{at}", proxy) for at, proxy in enumerate(proxies)]
        for each in nodes:
            each.folder.mkdir()
            stack.callback(each.kill9)
            await asyncio.to_thread(each.start)
        trial = Trial(redis, proxies, nodes)
        try:
            await trial.begin()
            yield trial
        except AssertionError as error:
            raise AssertionError(f"{error}\n{trial.report()}") from error
        finally:
            await trial.aclose()


def _gateway(folder: Path, proxy: Proxy) -> GatewayProcess:
    return GatewayProcess(
        folder,
        store=f"redis://127.0.0.1:{proxy.port}",
        pubsub=",".join(CHANNELS),
        streams=",".join(STREAMS),
        drain_seconds=1,
        max_connections_per_token=1000,
    )
