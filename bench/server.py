"""A server process of the bench: starts it on a free port with a folder of its own, reads its CPU and memory, ends it."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# The server has one core, the client the other; with one core only they share it.
_CORES: Final = sorted(os.sched_getaffinity(0))
SERVER_CORE: Final = _CORES[0]
CLIENT_CORE: Final = _CORES[-1]

_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 5.0
_CPUCLOCK_SCHED: Final = 2
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_MAX_CONNECTIONS: Final = 12_000


class ServerError(Exception):
    """The server did not start, or died."""


@dataclass(frozen=True, slots=True)
class Program:
    """How a server is started, and by which bytes a client sees that its SSE stream has begun."""

    name: str
    arguments: tuple[str, ...]
    stream_begins: bytes


PLAIN: Final = Program(
    "plain",
    (
        *("-m", "uvicorn", "bench.plain:app", "--port", "{port}"),
        *("--loop", "uvloop", "--http", "httptools", "--ws", "websockets-sansio"),
        *("--ws-per-message-deflate", "false", "--no-access-log", "--log-level", "warning"),
    ),
    b"\r\n\r\n",
)
GATEWAY: Final = Program(
    "gateway",
    ("-m", "gateway", "serve", "--port", "{port}", "--store", "sqlite:{folder}/gateway.db"),
    b"\nid: ",
)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server on 127.0.0.1."""

    program: Program
    port: int
    process: subprocess.Popen[bytes]
    output: Path

    def cpu(self) -> float:
        """CPU seconds of all threads so far, user and system, its workers' included. Raises ServerError."""
        return sum(map(cpu_seconds, (self.process.pid, *_children(self.process.pid))))

    def rss(self) -> int:
        """Resident memory in bytes. Raises ServerError."""
        try:
            resident = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        except (OSError, IndexError) as error:
            raise self._died() from error
        return int(resident) * _PAGE_BYTES

    def _died(self) -> ServerError:
        return ServerError(f"the {self.program.name} server has died")

    def last_words(self) -> str:
        return self.output.read_text(errors="replace")[-2000:]


def cpu_seconds(pid: int) -> float:
    """CPU seconds of all threads of a process so far, user and system. Raises ServerError."""
    try:
        # The clock that clock_getcpuclockid(3) names: what /proc/PID/stat says, but not in steps of 10 ms.
        return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
    except OSError as error:
        raise ServerError(f"process {pid} has died") from error


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def on_redis(url: str, *flags: str) -> Program:
    """The gateway with its log in a Redis."""
    arguments = ("-m", "gateway", "serve", "--port", "{port}", "--store", url, *flags)
    return Program("gateway", arguments, GATEWAY.stream_begins)


@contextmanager
def running(program: Program) -> Iterator[Server]:
    """A server that listens, pinned to its core; it is ended whatever happens. Raises ServerError.

    After an error, what the server printed last goes to stderr.
    """
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        server = _start(program, Path(folder))
        try:
            _wait_until_listening(server)
            yield server
        except Exception:
            print(server.last_words(), file=sys.stderr)
            raise
        finally:
            _stop(server.process)


def _start(program: Program, folder: Path) -> Server:
    port = free_port()
    output = folder / "output.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *(each.format(port=port, folder=folder) for each in program.arguments)],
            env={**os.environ, "GATEWAY_MAX_CONNECTIONS": str(_MAX_CONNECTIONS)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    os.sched_setaffinity(process.pid, {SERVER_CORE})
    return Server(program, port, process, output)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_listening(server: Server) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", server.port)).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return
    raise ServerError(f"the {server.program.name} server did not start")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
