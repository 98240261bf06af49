"""What the suites of the transports share: a gateway on each server path, its cursors sealed or not."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, Self

import httpx
import pytest
import uvloop

from gateway.node import Node
from gateway.tail import Tail
from tests.support.clients import CLIENTS, Client
from tests.support.gateway import ServerPath, make_settings, running_gateway
from tests.support.tokens import SECRET, admin_token, bearer
from tests.support.waiting import until


def pytest_asyncio_loop_factories() -> dict[str, Any]:
    """The loop that the gateway is served on."""
    return {"uvloop": uvloop.new_event_loop}


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to serve a gateway: the server's path, and the key that seals cursors."""

    path: ServerPath
    cursor_key: str | None = None


VARIANTS: Final = {
    "fast": Variant("fast"),
    "portable": Variant("portable"),
    "sealed": Variant("fast", "the key of these tests"),
}


class Stand:
    """A running gateway, a publisher, and clients that end with the test."""

    url: str
    node: Node
    http: httpx.AsyncClient

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self._stack = AsyncExitStack()

    async def start(self, *, tail: int | None = None, **settings: Any) -> Self:
        """Starts the gateway with these settings on top of the variant's; `tail` entries are kept in memory."""
        chosen = make_settings(**{"cursor_key": self.variant.cursor_key, **settings})
        running = await self._stack.enter_async_context(running_gateway(chosen, self.variant.path))
        self.url, self.node = running.url, running.node
        if tail is not None:
            self.node.hub.tail = Tail(self.node.log.head, max_entries=tail)
        client = httpx.AsyncClient(base_url=self.url, timeout=30, trust_env=False, verify=False)
        self.http = await self._stack.enter_async_context(client)
        return self

    async def stop(self) -> None:
        """Cuts the clients and stops the gateway. Idempotent."""
        await self._stack.aclose()

    def client(self, transport: str, **options: Any) -> Client:
        client = CLIENTS[transport](self.url, **options)
        self._stack.push_async_callback(client.cut)
        return client

    async def publish(self, *events: dict[str, Any], **headers: str) -> dict[str, Any]:
        """Publishes a batch and returns the answer."""
        answer = await self.http.post("/events", json=list(events), headers=headers)
        assert answer.status_code == 202, answer.text
        accepted: dict[str, Any] = answer.json()
        return accepted

    def cursor(self, offset: int, start: int | None = None) -> str:
        return self.node.cursors.encode(self.node.log.epoch, offset, start)

    async def retained_from(self, first: int) -> None:
        """Waits until the log's first event is the one at this offset."""
        await until(lambda: self.node.log.first == first)


Start = Callable[..., Awaitable[Stand]]


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> Variant:
    return VARIANTS[request.param]


@pytest.fixture(params=list(CLIENTS))
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def start(variant: Variant) -> AsyncIterator[Start]:
    """Starts gateways of the variant with settings of the test's own; they end with the test."""
    stands: list[Stand] = []

    async def start_one(**settings: Any) -> Stand:
        stand = Stand(variant)
        stands.append(stand)
        return await stand.start(**settings)

    yield start_one
    for stand in reversed(stands):
        await stand.stop()


@pytest.fixture
async def stand(start: Start) -> Stand:
    """A gateway of the variant with default settings and its log in memory."""
    return await start()


@pytest.fixture
async def guarded(start: Start) -> Stand:
    """A gateway with keys; who publishes through it is an admin."""
    stand = await start(jwt_secret=SECRET)
    stand.http.headers.update(bearer(admin_token()))
    return stand
