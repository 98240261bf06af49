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

from gateway.tasks import end
from tests.support.faults import judge
from tests.support.faults.interests import Interest, markers
from tests.support.faults.judge import Logged
from tests.support.faults.ledger import Ledger, Listeners
from tests.support.faults.load import (
    CHANNELS,
    STREAMS,
    make_http_publishers,
    make_redis_publishers,
    make_subscribers,
)
from tests.support.faults.looks import are_read, listening, read_log, readiness
from tests.support.faults.publishers import HttpPublisher, Publisher
from tests.support.faults.subscribers import Bodies, Subscriber
from tests.support.gateway import GatewayProcess
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisFactory, RedisServer

PATIENCE: Final = 90.0  # seconds that anything may take that must come
SUBSCRIBERS: Final = 50
LATE: Final = 10  # of them, that come after the fault
_POLL_SECONDS: Final = 0.1
_SAMPLE_SECONDS: Final = 0.2
_TAIL: Final = 40  # lines of each log that a failure shows


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
        self._bereft: list[Subscriber] = []  # who is to be told that the log was lost
        self._timeline: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._following: list[asyncio.Task[None]] = []
        self._publishing: list[asyncio.Task[None]] = []
        self._over = False

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
        self.publishers = [
            *make_http_publishers(self.ledger, self._urls),
            *make_redis_publishers(self.ledger, self.redis.url),
        ]
        self._publishing = [asyncio.create_task(each.run(), name=each.name) for each in self.publishers]

    @property
    def _urls(self) -> list[str]:
        return [each.url for each in self.nodes]

    def _subscribe(self, numbers: range) -> None:
        for each in make_subscribers(numbers, self.ledger, self._urls, self.bodies):
            self.subscribers.append(each)
            self._following.append(asyncio.create_task(each.run(), name=each.name))

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

        async def done() -> bool:
            sample = await listening(self.redis, len(CHANNELS), self.ledger.now)
            if len(sample.connections) < len(self.nodes):
                return False
            self.listeners.trust(sample)
            return True

        await self.until(done, lambda: "both gateways listen to Redis's channels")
        self.note("both gateways are ready and listen")

    async def _listen(self) -> None:
        while not self._over:
            self.listeners.add(await listening(self.redis, len(CHANNELS), self.ledger.now))
            await asyncio.sleep(_SAMPLE_SECONDS)

    def lose_log(self) -> None:
        """The log was lost just now: what was published before may be gone, and whoever was there is to be told."""
        self.ledger.lost_before = self.ledger.now()
        self.gaps.add("epoch")
        self._bereft = list(self.subscribers)

    # Judging

    async def judge(self) -> None:
        """Stops the publishers, waits until all is settled, and compares. Raises AssertionError."""
        self._subscribe(range(SUBSCRIBERS - LATE, SUBSCRIBERS))
        await self.progress(2)
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
            return logs[0] == logs[1] and not self._missing(logs[0]) and await are_read(self.redis, STREAMS)

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

    async def _mark(self, log: Sequence[Logged]) -> list[Logged]:
        """Publishes what all interests match, and returns the log when all subscribers have been told of it."""
        marking = HttpPublisher("marker", Ledger(), 0, urls=self._urls)
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
        """Who has not been told its last marker."""
        return [
            each for each in self.subscribers if not each.has_reached(self._last(log, each.interest).place)
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
        logs = {**self._lost_logs(), log[-1].epoch: log}
        found = []
        for each in self.subscribers:
            upto = self._last(log, each.interest).offset
            found += judge.judge_subscriber(each, logs, upto, frozenset(self.gaps))
        for each in self._bereft:
            if [told.reason for told in each.told if told.kind == "gap"] != ["epoch"]:
                found += [f"{each} was not told once that the log was lost", *each.story]
        return found

    def _lost_logs(self) -> dict[str, list[Logged]]:
        """What the subscribers were told of every log, by its epoch."""
        logs: dict[str, list[Logged]] = {}
        for (epoch, offset), body in sorted(self.bodies.items()):
            logs.setdefault(epoch, []).append(Logged(epoch, offset, body))
        return logs

    # Ending

    async def aclose(self) -> None:
        await end(*self._publishing, *self._following)
        # Not cancelled: a client of redis-py whose closing is cancelled at once never closes its connection.
        self._over = True
        await asyncio.gather(*self._tasks, return_exceptions=True)

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
        except Exception as error:
            raise AssertionError(f"{error or repr(error)}\n{trial.report()}") from error
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
