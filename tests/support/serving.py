"""A server in a thread of its own, on uvloop and a free port: for tests that look inside it.

The tests themselves then use blocking sockets, and reach into the server's loop by `call`.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import uvicorn
import uvloop

from gateway.app import Gateway
from gateway.listeners import listen
from gateway.node import Node
from gateway.protocols import Config, Timeouts
from gateway.server import Server, make_config
from gateway.settings import Settings

T = TypeVar("T")
JOIN_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs. `scheme` is that of its URLs."""

    server: uvicorn.Server
    loop: asyncio.AbstractEventLoop
    port: int

    @property
    def connections(self) -> list[Any]:
        """The protocols of all open connections."""
        return self.call(lambda: list(self.server.server_state.connections))

    def call(self, look: Callable[[], T]) -> T:
        """What `look` returns when it is called in the server's loop."""

        async def run() -> T:
            return look()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(JOIN_SECONDS)

    def wait(self, coroutine: Any) -> Any:
        """What a coroutine returns that runs in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(JOIN_SECONDS)

    def stop(self) -> None:
        """As a first signal does."""
        self.loop.call_soon_threadsafe(self.server.handle_exit, 15, None)


Opened = AbstractAsyncContextManager[tuple[uvicorn.Server, T]]


@contextmanager
def _serving(open_server: Callable[[], Opened[T]]) -> Iterator[tuple[Served, T]]:
    """Runs what is opened until the end of the block, and fails where it fails."""
    ready: Future[tuple[Served, T]] = Future()
    listener = listen("127.0.0.1", 0)

    async def main() -> None:
        async with open_server() as (server, more):
            served = Served(server, asyncio.get_running_loop(), listener.getsockname()[1])
            ready.set_result((served, more))
            await server.serve([listener])

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main())
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
            raise

    thread = threading.Thread(target=run, name="server")
    thread.start()
    try:
        served, more = ready.result(JOIN_SECONDS)
        try:
            yield served, more
        finally:
            if not served.loop.is_closed():
                served.stop()
    finally:
        thread.join(JOIN_SECONDS)
        listener.close()
        assert not thread.is_alive(), "the server does not end"


class _Threaded(Server):
    """Signals belong to the main thread, which runs the tests."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def serving_gateway(**settings: Any) -> Iterator[tuple[Served, Node]]:
    """A whole gateway, with its log in memory and an instant drain unless `settings` say otherwise."""
    chosen = Settings(**{"store": "memory:", "drain_seconds": 0, **settings})
    gateway = Gateway(chosen)

    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[uvicorn.Server, Node]]:
        async with gateway.running() as node:
            yield _Threaded(make_config(gateway, chosen), node), node

    with _serving(opened) as pair:
        yield pair


App = Callable[[Any, Any, Any], Awaitable[None]]


@contextmanager
def serving_app(app: App, *, stock: bool = False, **options: Any) -> Iterator[Served]:
    """An ASGI application on the gateway's protocols, or on stock uvicorn's. `options` are uvicorn's."""
    chosen: dict[str, Any] = {
        "lifespan": "off",
        "log_config": None,
        "ws_per_message_deflate": False,
        "timeout_graceful_shutdown": 1,
        **options,
    }
    timeouts = chosen.pop("timeouts", Timeouts(head=30.0, peer=40.0))
    if stock:
        config = uvicorn.Config(app, **{"http": "httptools", "ws": "websockets-sansio", **chosen})
    else:
        config = Config(app, timeouts=timeouts, **chosen)

    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[uvicorn.Server, None]]:
        yield uvicorn.Server(config), None

    with _serving(opened) as (served, _):
        yield served
