"""A redis-server of the bench: on a free port with a folder of its own, durable as the README recommends, ended with it."""

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.server import CLIENT_CORE, ServerError, cpu_seconds, free_port

_START_SECONDS: Final = 30.0
_TIMEOUT_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class Redis:
    """A running redis-server on 127.0.0.1."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def cpu(self) -> float:
        """CPU seconds so far. Raises ServerError."""
        return cpu_seconds(self.process.pid)

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=_TIMEOUT_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def call(self, *command: bytes | str | int) -> bytes:
        """The first line of the answer, as it came. Raises ServerError for an error."""
        with self.connect() as connection, connection.makefile("rb") as answers:
            connection.sendall(encode(*command))
            line: bytes = answers.readline()
        if line.startswith(b"-") or not line:
            raise ServerError(f"redis-server answered {line!r}")
        return line


def encode(*command: bytes | str | int) -> bytes:
    """A command as an array of bulk strings (RESP 2)."""
    parts = [each if isinstance(each, bytes) else str(each).encode() for each in command]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(each), each) for each in parts)


@contextmanager
def running_redis() -> Iterator[Redis]:
    """A redis-server that syncs each write, on the client's core; ended whatever happens. Raises ServerError."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        redis = _start(Path(folder))
        try:
            _wait_until_it_answers(redis)
            yield redis
        finally:
            redis.process.kill()
            redis.process.wait()


def _start(folder: Path) -> Redis:
    port = free_port()
    options = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--appendfsync", "always")
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            ["redis-server", "--port", str(port), "--dir", folder, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    os.sched_setaffinity(process.pid, {CLIENT_CORE})
    return Redis(port, process)


def _wait_until_it_answers(redis: Redis) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and redis.process.poll() is None:
        try:
            redis.call("PING")
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise ServerError("redis-server did not start")
