"""The server: uvicorn with our protocols, our own listening sockets, signals, and a drain before shutdown."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Iterator
from types import FrameType

import uvicorn
import uvloop

from gateway import __version__
from gateway.app import Gateway
from gateway.listeners import BACKLOG, listen, url_of
from gateway.logs import redact
from gateway.node import Node
from gateway.protocols import Config, Timeouts
from gateway.settings import Settings
from gateway.workers import Supervisor, Worker

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 8  # for requests that are still running when the drain is over
KEEP_ALIVE_SECONDS = 15
# Events are born by the thousand and die by counting references: with Python's own 700 the collector takes a
# tenth of the time of an ingest and finds nothing.
GC_THRESHOLDS = (50_000, 20, 50)


class Server(uvicorn.Server):
    """uvicorn's server, which drains first: uvicorn itself closes all clients in one instant.

    SIGTERM and SIGINT drain, a second one stops at once; either way the exit is in order.
    """

    def __init__(self, config: Config, node: Node) -> None:
        super().__init__(config)
        self._node = node

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drain = asyncio.ensure_future(self._drain())
        while not drain.done() and not self.force_exit:
            await asyncio.wait((drain,), timeout=0.1)
        drain.cancel()
        await super().shutdown(sockets)

    async def _drain(self) -> None:
        connections = self._node.connections
        seconds = self._node.settings.drain_seconds
        if len(connections):
            logger.info(
                "draining %d streams over %g s; a second signal stops at once", len(connections), seconds
            )
        await connections.drain(seconds)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, without raising the signals again afterwards: a drained exit is a success."""
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {each: signal.signal(each, self.handle_exit) for each in handled}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        if self.should_exit:
            self.stop()
        self.drain()

    def drain(self) -> None:
        """As the first signal. Idempotent."""
        self.should_exit = True

    def stop(self) -> None:
        """As the second signal."""
        self.should_exit = self.force_exit = True


def make_config(gateway: Gateway, settings: Settings) -> Config:
    peer = settings.peer_timeout
    return Config(
        gateway.dispatch,
        interface="asgi3",
        timeouts=Timeouts(head=settings.request_timeout, peer=peer * 2 / 3),
        prefix=settings.root_path,
        loop="uvloop",
        lifespan="off",  # the log is open before the server starts, so that a failure has its own exit code
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the application's own middleware also believes X-Forwarded-Host
        ws_max_size=settings.max_event_bytes,
        ws_ping_interval=peer / 3,
        ws_ping_timeout=peer / 3,
        ws_per_message_deflate=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        backlog=BACKLOG,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )


def run(settings: Settings, worker: Worker | None = None) -> int:
    """Serves until a signal, as one of several processes where `worker` says so; returns the exit code.

    Raises LogCorruptError, LogUnavailableError or OSError where it cannot start.
    """
    gc.freeze()  # the modules: never garbage, so never to be looked at again
    gc.set_threshold(*GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings) if worker is None else _serve_as(worker, settings))


async def _serve(settings: Settings) -> int:
    with contextlib.ExitStack() as stack:
        sockets = _listen(stack, settings, shared=False)
        gateway = Gateway(settings)
        async with gateway.running() as node:
            logger.info(
                "order-gateway %s serves %s from %s; Ctrl-C stops it",
                __version__,
                url_of(sockets[0], settings),
                redact(settings.store),
            )
            await Server(make_config(gateway, settings), node).serve(sockets)
            logger.info("stopped")
    return 0


async def _serve_as(worker: Worker, settings: Settings) -> int:
    """Listens when it can serve and no sooner: the kernel deals connections out to whoever listens."""
    gateway = Gateway(settings, worker)
    with contextlib.closing(Supervisor(worker)) as supervisor:
        async with gateway.running() as node:
            server = Server(make_config(gateway, settings), node)
            with contextlib.ExitStack() as stack:
                sockets = _listen(stack, settings, shared=True)
                obeying = asyncio.create_task(supervisor.obey(server.drain, server.stop))
                supervisor.ready()
                await server.serve(sockets)
                obeying.cancel()
    return 0


def _listen(stack: contextlib.ExitStack, settings: Settings, *, shared: bool) -> list[socket.socket]:
    """The sockets, which `stack` closes: the public one first."""
    ports = [settings.port, *([settings.ops_port] if settings.ops_port else [])]
    return [stack.enter_context(listen(settings.host, port, shared=shared)) for port in ports]
