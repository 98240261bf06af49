"""What a trial sees of Redis and the gateways from outside."""

import asyncio
import contextlib
from collections.abc import Callable, Collection
from typing import Final

import httpx
from redis.exceptions import RedisError

from tests.support.clients import LongPollClient, WebSocketClient
from tests.support.faults.judge import Logged
from tests.support.faults.ledger import Sample
from tests.support.faults.publishers import BROKEN, redis_client
from tests.support.faults.subscribers import Place
from tests.support.gateway import GatewayProcess
from tests.support.health import port_of
from tests.support.redis_server import RedisServer
from tests.support.sockets import PeerClosedError, ask, request

_LEASE: Final = "{gateway}:lease:"


async def listening(redis: RedisServer, channels: int, now: Callable[[], float]) -> Sample:
    """Which connections listen to so many channels now: none where Redis does not answer."""
    asked, pid = now(), redis.pid
    client = redis_client(redis.url)
    found: set[str] = set()
    try:
        for each in await client.client_list(_type="pubsub"):
            if int(each["sub"]) + int(each["psub"]) >= channels:
                found.add(f"{pid}:{each['id']}")
    except (RedisError, *BROKEN):
        found.clear()
    finally:
        await client.aclose()
    return Sample(asked, now(), frozenset(found))


async def holders(redis: RedisServer) -> dict[str, str]:
    """Who has which lease now: the node's id by the lease's name."""
    client = redis_client(redis.url)
    try:
        names = sorted([each async for each in client.scan_iter(f"{_LEASE}*")])
        values = [await client.get(each) for each in names]
    finally:
        await client.aclose()
    pairs = zip(names, values, strict=True)
    return {
        name.decode().removeprefix(_LEASE): value.decode().partition(" ")[0]
        for name, value in pairs
        if value is not None
    }


async def are_read(redis: RedisServer, streams: Collection[str]) -> bool:
    """Whether the gateways have acknowledged every entry of the streams."""
    client = redis_client(redis.url)
    try:
        groups = [group for each in streams for group in await client.xinfo_groups(each)]
    finally:
        await client.aclose()
    return len(groups) == len(streams) and all(
        each["pending"] == 0 and each["lag"] in (0, None) for each in groups
    )


async def node_id(node: GatewayProcess) -> str:
    """A gateway's name for itself, which changes when it is started again."""
    async with httpx.AsyncClient(base_url=node.url) as http, WebSocketClient(node.url) as client:
        await anext(client.open())
        rows = (await http.get("/connections", params={"limit": 1000})).json()["connections"]
        return next(str(row["node"]) for row in rows if row["id"] == client.hello["connection"])


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
                    place = Place.of(message.cursor)
                    found.append(Logged(place.epoch, place.offset, message.body))
    return []
