"""A gateway to test against: a real process, or a server in the test's own loop.

In the loop there are two paths: `fast` is the gateway's own server, `portable` stock uvicorn, which
knows nothing of the gateway's sockets.
"""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

import uvicorn

from gateway.app import Gateway
from gateway.listeners import listen
from gateway.node import Node
from gateway.server import Server, make_config
from gateway.settings import PREFIX, Settings

ServerPath = Literal["fast", "portable"]

START_SECONDS: Final = 30
END_SECONDS: Final = 10
_READY: Final = " serves "  # followed by the URL in the line that a started gateway logs


class GatewayProcess:
    """A gateway in a process of its own, with its store in `folder`. A context manager: leaving it kills."""

    def __init__(self, folder: Path, *flags: str, **settings: object) -> None:
        """`settings` are those of the environment, by their lower case names without the prefix."""
        self.folder = folder
        self._flags = flags
        self._settings: dict[str, object] = {
            "host": "127.0.0.1",
            "port": 0,
            "store": f"sqlite:{folder / 'gateway.db'}",
            "log_format": "text",
            **settings,
        }
        self.url = ""
        self._lines: list[str] = []
        self._said_url = threading.Event()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill9()

    def start(self) -> Self:
        """Starts it, again on the port and the store that it had before, and waits until it listens."""
        self._said_url.clear()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", *self._flags],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), name="gateway's log")
        self._reader.start()
        if not self._said_url.wait(START_SECONDS) or not self.url:
            self.kill9()
            raise AssertionError(f"the gateway did not start:\n{self.log}")
        self._settings["port"] = int(self.url.rpartition(":")[2])
        return self

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        given = {PREFIX + name.upper(): str(value) for name, value in self._settings.items()}
        here = str(Path(__file__).parents[2])
        return {**inherited, **given, "PYTHONPATH": here}

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.append(line)
            if _READY in line:
                self.url = line.partition(_READY)[2].split()[0].rstrip("/")
                self._said_url.set()
        self._said_url.set()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """All that it and its predecessors have logged."""
        return "".join(self._lines)

    def kill9(self) -> None:
        """Ends it as a power cut would. Idempotent."""
        self._process.kill()
        self.wait()

    def terminate(self) -> None:
        """Asks it to drain and end; `wait` for it."""
        self._process.terminate()

    def wait(self, seconds: float = START_SECONDS) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
        code = self._process.wait(seconds)
        self._reader.join(seconds)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway in the test's loop: where it is, and what is inside."""

    url: str
    node: Node


def make_settings(**given: Any) -> Settings:
    """Settings for a test: the log in memory, and no time lost with draining."""
    return Settings(**{"store": "memory:", "drain_seconds": 0, **given})


@asynccontextmanager
async def running_gateway(settings: Settings, path: ServerPath = "fast") -> AsyncIterator[Running]:
    """A gateway that serves in the running loop on a free port."""
    gateway = Gateway(settings)
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with gateway.running() as node:
        server = _fast(gateway, settings, node) if path == "fast" else _portable(gateway, settings)
        serving = asyncio.create_task(server.serve([listener]))
        try:
            yield Running(url, node)
        finally:
            serving.cancel()
            await asyncio.wait((serving,))
            await _end(server)
            listener.close()


async def _end(server: uvicorn.Server) -> None:
    """As uvicorn's shutdown, without its pauses: a suite of hundreds of gateways would wait for a minute."""
    for each in server.servers:
        each.close()
    state = server.server_state
    for connection in list(state.connections):
        connection.shutdown()
    if state.tasks:
        _, running = await asyncio.wait(list(state.tasks), timeout=END_SECONDS)
        assert not running, f"requests do not end: {running}"


def _fast(gateway: Gateway, settings: Settings, node: Node) -> uvicorn.Server:
    return Server(make_config(gateway, settings), node)


def _portable(gateway: Gateway, settings: Settings) -> uvicorn.Server:
    config = uvicorn.Config(
        gateway,
        http="httptools",
        ws="websockets-sansio",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        ws_max_size=settings.max_event_bytes,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)
