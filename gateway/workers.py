"""Workers: several gateway processes on one port, and the supervisor that holds the port, starts them, restarts
those that die, and sends them away together.

The supervisor serves nothing and never forks by itself: each worker is the command anew, with the same settings in
its environment and a socket to the supervisor. Over it the worker says that it is ready and hears when to stop; its
end is the supervisor's death. Orders go this way and not as signals, since a service manager or a terminal may send
its signal to the workers as well, and two signals mean "now".
"""

import asyncio
import contextlib
import logging
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
from pydantic import SecretStr

from gateway import __version__
from gateway.listeners import hold, url_of
from gateway.logs import redact
from gateway.settings import PREFIX, Settings, env_name

logger = logging.getLogger(__name__)

VARIABLE: Final = "ORDER_GATEWAY_WORKER"  # tells a worker its place; no setting
FAILED: Final = 1
COULD_NOT_START: Final = 3
QUICK_SECONDS: Final = 10.0  # who dies younger than this is restarted later and later
PAUSE_SECONDS: Final = (0.5, 30.0)  # before the second restart in a row, and at most
KILL_SECONDS: Final = 15.0  # until a worker that was told to stop now is killed
_READY, _DRAIN, _NOW = b"r", b"d", b"n"


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker's place: its number from 1, the supervisor's directory (for this machine's workers alone), and the
    descriptor of its socket to the supervisor."""

    number: int
    directory: Path
    channel: int

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Worker | None":
        """This process's place; None where it is no worker."""
        if VARIABLE not in environ:
            return None
        number, directory, channel = orjson.loads(environ[VARIABLE])
        return cls(number, Path(directory), channel)

    @property
    def variable(self) -> str:
        """What `of` reads."""
        return orjson.dumps([self.number, str(self.directory), self.channel]).decode()


class Supervisor:
    """A worker's side of the socket."""

    def __init__(self, worker: Worker) -> None:
        self._directory = worker.directory
        self._channel = socket.socket(fileno=worker.channel)
        self._channel.setblocking(False)

    def ready(self) -> None:
        """The worker serves from now on."""
        with contextlib.suppress(OSError):  # the supervisor is gone, which `obey` sees
            self._channel.send(_READY)

    async def obey(self, drain: Callable[[], None], now: Callable[[], None]) -> None:
        """Calls what the supervisor orders, and `drain` when it is gone, however it went; then returns."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while orders := await loop.sock_recv(self._channel, 16):
                (now if _NOW in orders else drain)()
        logger.warning("the supervisor is gone: this worker stops")
        shutil.rmtree(self._directory, ignore_errors=True)
        drain()

    def close(self) -> None:
        self._channel.close()


class _Slot:
    """One worker's place, and the process that has it now."""

    def __init__(
        self, number: int, directory: Path, command: Sequence[str], environ: Mapping[str, str]
    ) -> None:
        self._number = number
        self._directory = directory
        self._command = command
        self._environ = environ
        self._channel: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self.ready = False

    def __str__(self) -> str:
        return f"worker {self._number} (pid {self._process.pid if self._process else 0})"

    async def start(self) -> int | None:
        """Starts a process and returns None when it is ready, or how it ended, as `ended` tells it."""
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        with theirs:
            place = Worker(self._number, self._directory, theirs.fileno())
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env={**self._environ, VARIABLE: place.variable},
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a terminal's Ctrl-C is for the supervisor alone
            )
        with contextlib.suppress(ConnectionError):
            self.ready = await asyncio.get_running_loop().sock_recv(self._channel, 1) == _READY
        return None if self.ready else await self.ended()

    async def ended(self) -> int:
        """Returns when the process has ended: its exit code, or minus the signal that ended it."""
        assert self._process is not None
        assert self._channel is not None
        code = await self._process.wait()
        self._channel.close()
        self.ready = False
        return code

    def tell(self, order: bytes) -> None:
        """Hands an order to the process; one that is still starting has nothing to drain and is ended."""
        if self._process is None or self._process.returncode is not None:
            return
        if self.ready and self._channel is not None:
            with contextlib.suppress(OSError):  # it has just died
                self._channel.send(order)
        else:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            logger.warning("%s does not stop: killed", self)
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


class Workers:
    """Runs `count` processes of one command until a signal."""

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        count: int,
        directory: Path,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`environ` is the whole environment of the processes, `jitter` gives numbers from 0 to 1."""
        self._slots = [_Slot(number, directory, command, environ) for number in range(1, count + 1)]
        self._jitter = jitter
        self._stopping = asyncio.Event()

    async def run(self, announce: Callable[[], None]) -> int:
        """Serves until SIGTERM or SIGINT and returns the exit code; 3 where a worker could not start at first.

        Calls `announce` once all are ready. A second signal stops them at once.
        """
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self._stop)
        started = await self._start()
        if started and not self._stopping.is_set():
            announce()
            ends = await asyncio.gather(*map(self._keep, self._slots))
            return FAILED if any(ends) else 0
        code = 0 if self._stopping.is_set() else COULD_NOT_START
        self._tell(_DRAIN)
        await asyncio.gather(*(slot.ended() for slot in self._slots if slot.ready))
        return code

    async def _start(self) -> bool:
        """Whether all are ready. The first one goes ahead: what is wrong with all of them is told once."""
        first, *others = self._slots
        if await first.start() is not None or self._stopping.is_set():
            return False
        return all(code is None for code in await asyncio.gather(*(slot.start() for slot in others)))

    async def _keep(self, slot: _Slot) -> int:
        """Starts a process again whenever the slot's has died; returns how it ended when all shall stop."""
        loop = asyncio.get_running_loop()
        began, quick = loop.time(), 0
        code = await slot.ended()
        while not self._stopping.is_set():
            quick = quick + 1 if loop.time() - began < QUICK_SECONDS else 0
            pause = self._pause(quick)
            logger.warning("%s died: %s; it starts again in %.1f s", slot, _told(code), pause)
            if await self._stopped_within(pause):
                return 0
            began = loop.time()
            code = await self._run(slot)
        return code

    async def _run(self, slot: _Slot) -> int:
        """One process from start to end."""
        code = await slot.start()
        if code is not None:
            return 0 if self._stopping.is_set() else code
        if self._stopping.is_set():
            slot.tell(_DRAIN)
        logger.info("%s is ready", slot)
        return await slot.ended()

    def _pause(self, quick: int) -> float:
        """Seconds until the next start, after so many quick deaths in a row: none after the first one."""
        least, most = PAUSE_SECONDS
        return min(most, least * 2.0 ** (quick - 2)) * (0.5 + self._jitter() / 2) if quick > 1 else 0.0

    async def _stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()

    def _stop(self) -> None:
        """A signal came."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._tell(_DRAIN)
            return
        self._tell(_NOW)
        asyncio.get_running_loop().call_later(KILL_SECONDS, self._kill)

    def _tell(self, order: bytes) -> None:
        for slot in self._slots:
            slot.tell(order)

    def _kill(self) -> None:
        for slot in self._slots:
            slot.kill()


def _told(code: int) -> str:
    """How a process ended, for people."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def supervise(settings: Settings) -> int:
    """Serves with `settings.workers` processes until a signal; returns the exit code.

    Raises OSError where a port cannot be had.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="order-gateway-")))
        held = stack.enter_context(hold(settings.host, settings.port))
        if settings.ops_port:
            stack.enter_context(hold(settings.host, settings.ops_port))
        resolved = settings.model_copy(update={"port": held.getsockname()[1]})
        command = [sys.executable, "-m", "gateway", "serve"]
        workers = Workers(command, _environ(resolved), settings.workers, directory)
        code = asyncio.run(workers.run(lambda: _announce(held, settings)))
    logger.info("stopped")
    return code


def _announce(held: socket.socket, settings: Settings) -> None:
    logger.info(
        "order-gateway %s serves %s from %s with %d workers; Ctrl-C stops it",
        __version__,
        url_of(held, settings),
        redact(settings.store),
        settings.workers,
    )


def _environ(settings: Settings) -> dict[str, str]:
    """This process's environment with the settings in force, wherever they came from."""
    others = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    return {**others, **environment(settings)}


def environment(settings: Settings) -> dict[str, str]:
    """The variables from which another process reads these same settings, secrets included."""
    values = {env_name(name): getattr(settings, name) for name in Settings.model_fields}
    return {name: _exact(value) for name, value in values.items() if value is not None}


def _exact(value: object) -> str:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case tuple():
            return ",".join(value)
        case float():
            return f"{value:.9f}"  # as a time is read: without an exponent
        case _:
            return str(value)
