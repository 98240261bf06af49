"""What clients see when the Redis that has the log is lost, or away for a while."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from tests.support.clients import CLIENTS, Client, Message, ids, take, take_until
from tests.support.gateway import Running, make_settings, running_gateway
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisFactory, RedisServer
from tests.support.waiting import PATIENCE, until


class Site:
    """A gateway on a Redis, with a client for what is asked of it, and one stream of each transport."""

    def __init__(self, running: Running, http: httpx.AsyncClient) -> None:
        self.running = running
        self.http = http
        self.streams: list[Client] = []

    async def publish(self, *names: str, **data: Any) -> str:
        """Publishes events of these ids, each of its own subject; the cursor of the last one."""
        batch = [{"type": "order.updated", "id": each, "subject": each, "data": data} for each in names]
        response = await self.http.post("/events", json=batch)
        assert response.status_code == 202, response.text
        cursor: str = response.json()["cursor"]
        return cursor

    async def follow(self, **options: Any) -> list[Client]:
        """A client of each transport that has its place."""
        self.streams = [make(self.running.url).open(**options) for make in CLIENTS.values()]
        for stream in self.streams:
            assert (await anext(stream)).kind == "place"
        return self.streams

    async def ready(self, *, ok: bool) -> str:
        """Waits until it is ready, or is not; the reason."""
        async with asyncio.timeout(PATIENCE):
            while True:
                response = await self.http.get("/readyz")
                check = response.json()["checks"]["store"]
                if (response.status_code == 200) == ok == check["ok"]:
                    return str(check["reason"])
                await asyncio.sleep(0.02)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as entered:
        yield entered


async def open_site(stack: AsyncExitStack, store: str) -> Site:
    running = await stack.enter_async_context(running_gateway(make_settings(store=store)))
    http = await stack.enter_async_context(httpx.AsyncClient(base_url=running.url, timeout=PATIENCE))
    site = Site(running, http)

    async def cut() -> None:
        for each in site.streams:
            await each.cut()

    stack.push_async_callback(cut)
    return site


def flush(server: RedisServer) -> None:
    server.call("FLUSHALL")


def kill(server: RedisServer) -> None:
    server.kill9()
    server.start()


LOSSES: dict[str, Callable[[RedisServer], None]] = {"FLUSHALL": flush, "a restart without persistence": kill}


async def next_content(stream: Client) -> Message:
    (message,) = await take(stream, 1)
    return message


@pytest.mark.parametrize("loss", LOSSES)
async def test_a_lost_log_is_a_gap_for_everybody(
    loss: str, stack: AsyncExitStack, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """On each transport: from the cursor that it had to the new log's head, with reason `epoch`; what is published
    after that comes. A few lines are logged, not a flood."""
    site = await open_site(stack, redis_server.url)
    streams = await site.follow()
    last = await site.publish("a", "b")
    for stream in streams:
        assert ids(await take(stream, 2)) == ["a", "b"]
    caplog.clear()
    LOSSES[loss](redis_server)
    await until(lambda: site.running.node.log.epoch != last.partition(".")[0])
    epoch = site.running.node.log.epoch
    for stream in streams:
        gap = await next_content(stream)
        assert (gap.kind, gap.reason, gap.lost_from, gap.body["to"]) == ("gap", "epoch", last, f"{epoch}.0")
    await site.ready(ok=True)
    assert await site.publish("c") == f"{epoch}.1"
    for stream in streams:
        event = await next_content(stream)
        assert (event.kind, event.body["id"], event.cursor) == ("event", "c", f"{epoch}.1")
    lines = [each for each in caplog.records if each.name.startswith("gateway.log")]
    assert len(lines) <= 5, caplog.text


async def test_a_stream_is_live_again_after_a_lost_log(
    stack: AsyncExitStack, redis_server: RedisServer
) -> None:
    """It says so after the gap, where the transport has a word for it."""
    site = await open_site(stack, redis_server.url)
    streams = await site.follow()
    await site.publish("a")
    for stream in streams:
        await take_until(stream, "a")
    flush(redis_server)
    for stream in streams:
        kinds = [(await anext(stream)).kind]
        while kinds[-1] != "live":
            kinds.append((await anext(stream)).kind)
        assert [each for each in kinds if each != "at"] == ["gap", "live"]


@pytest.mark.parametrize("since", ["earliest", "snapshot"])
@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_who_was_behind_a_lost_log_gets_a_gap_from_its_place(
    transport: str, since: str, stack: AsyncExitStack, redis_server: RedisServer
) -> None:
    """In the middle of a snapshot or of a replay: no event of the old log after the gap, and none of the new one
    before it."""
    site = await open_site(stack, redis_server.url)
    names = [f"e{n}" for n in range(3000)]
    for start in range(0, 3000, 500):
        await site.publish(*names[start : start + 500], text="x" * 3000)
    stream = CLIENTS[transport](site.running.url, receive_buffer=4096).open(since=since)
    site.streams = [stream]
    assert (await anext(stream)).kind == "place"
    told = await take(stream, 10)
    old = site.running.node.log.epoch
    flush(redis_server)
    await until(lambda: site.running.node.log.epoch != old)
    new = site.running.node.log.epoch
    await site.publish("x", "y")
    while told[-1].kind == "event":
        told += await take(stream, 1)
    gap = told.pop()
    assert ids(told) == names[: len(told)]
    assert len(told) < 3000
    assert (gap.kind, gap.reason, gap.lost_from) == ("gap", "epoch", told[-1].cursor)
    cursor = gap.body["to"]
    assert cursor.partition(".")[0] == new
    missing = int(cursor.partition(".")[2])  # what was published before it noticed may be covered by the gap
    await site.publish("z")
    assert ids(await take_until(stream, "z")) == ["x", "y", "z"][missing:]


async def test_while_redis_is_away_nothing_is_pretended_and_nobody_is_cut(
    stack: AsyncExitStack, redis_factory: RedisFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Publishing is 503 with Retry-After, /readyz says why, /livez stays 200; streams stay open and go on where
    they were, without a gap. A new long poll and a new replay are told to come again."""
    server = redis_factory.server(appendonly="yes", appendfsync="always")
    site = await open_site(stack, server.url)
    streams = await site.follow()
    await site.publish("a")
    for stream in streams:
        await take_until(stream, "a")
    caplog.clear()
    server.kill9()
    for _ in range(3):
        response = await site.http.post("/events", json={"type": "order.created", "id": "lost"})
        assert (response.status_code, response.headers["content-type"]) == (503, "application/problem+json")
        assert int(response.headers["retry-after"]) >= 1
        assert "nobody listens there" in response.json()["detail"]
    assert "nobody listens there" in await site.ready(ok=False)
    assert (await site.http.get("/livez")).status_code == 200
    server.start()
    await site.ready(ok=True)
    await site.publish("b")
    for stream in streams:
        assert ids(await take_until(stream, "b")) == ["b"]
    lines = [each for each in caplog.records if each.name.startswith("gateway.log")]
    assert len(lines) <= 4, caplog.text


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_who_is_behind_while_redis_is_away_goes_on_without_loss(
    transport: str, stack: AsyncExitStack, redis_server: RedisServer
) -> None:
    """In the middle of a replay: nothing is left out, nothing doubled, nothing said."""
    async with Proxy(redis_server.port) as proxy:
        site = await open_site(stack, f"redis://127.0.0.1:{proxy.port}")
        names = [f"e{n}" for n in range(4000)]  # far more than a node keeps in memory
        for start in range(0, 4000, 500):
            await site.publish(*names[start : start + 500], text="x" * 3000)
        stream = CLIENTS[transport](site.running.url, receive_buffer=4096).open(since="earliest")
        site.streams = [stream]
        assert (await anext(stream)).kind == "place"
        told = await take(stream, 10)
        proxy.cut()
        reading = asyncio.create_task(take_until(stream, names[-1]))
        await site.ready(ok=False)
        await proxy.heal()
        told += await reading
        assert ids(told) == names
        assert len(told) == len(names)
        await stream.cut()
        site.streams = []
