"""A TCP proxy that breaks a connection the way networks do."""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Final, Literal, Self

HOST: Final = "127.0.0.1"
_CHUNK: Final = 65_536
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time, so that closing sends a RST

State = Literal["forwarding", "cut", "stalled", "deaf"]


class Proxy:
    """Forwards every connection to `port` on this machine. An async context manager.

    `port` after entering is where it listens itself, the same over `cut` and `heal`; `accepted` counts the
    connections that it has taken, in whatever state.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.accepted = 0
        self._target = target
        self._state: State = "forwarding"
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        # Bound and never listening, it keeps the port for this proxy while nobody is to be let in.
        self._reserved = _bound(0)
        self.port = self._reserved.getsockname()[1]
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._state = "cut"
        self._close_listener()
        self._drop_all()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._reserved.close()

    def cut(self) -> None:
        """Drops all connections with a RST, and refuses new ones."""
        self._state = "cut"
        self._close_listener()
        self._drop_all()

    def stall(self) -> None:
        """Connections stay open and new ones are accepted; whatever comes, from either side, vanishes."""
        self._state = "stalled"

    def lose_answers(self) -> None:
        """What clients send arrives; what is answered vanishes."""
        self._state = "deaf"

    def reset(self) -> None:
        """Drops all connections with a RST; new ones are welcome."""
        self._drop_all()

    async def heal(self) -> None:
        """Forwards again. Connections from which something vanished are dropped, for what they carry is torn."""
        if self._state in ("stalled", "deaf"):
            self._drop_all()
        self._state = "forwarding"
        if self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=_bound(self.port))

    def _close_listener(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _drop_all(self) -> None:
        for writer in self._writers:
            _reset(writer)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._state == "cut":  # it was let in before the door was closed
            _reset(writer)
            return
        self._writers.add(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either side ends, or is dropped."""
        try:
            if self._state == "stalled":  # also where there is nothing to connect to
                await _swallow(reader)
            else:
                await self._forward(reader, writer)
        except OSError:  # there is nothing to connect to, or somebody has gone
            _reset(writer)
        finally:
            self._forget(writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, out = await asyncio.open_connection(HOST, self._target)
        self._writers.add(out)
        ways = [
            asyncio.create_task(_pump(reader, out, lambda: self._state in ("forwarding", "deaf"))),
            asyncio.create_task(_pump(there, writer, lambda: self._state == "forwarding")),
        ]
        try:
            ended, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ended:
                way.result()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
            self._forget(out)

    def _forget(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.close()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_open: Callable[[], bool]
) -> None:
    """Until the end of what comes in. Raises OSError when the connection breaks."""
    while data := await reader.read(_CHUNK):
        if is_open():
            writer.write(data)
            await writer.drain()


async def _swallow(reader: asyncio.StreamReader) -> None:
    while await reader.read(_CHUNK):
        pass


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((HOST, port))
    return sock


def _reset(writer: asyncio.StreamWriter) -> None:
    if writer.transport.is_closing():
        return
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
