"""The portable socket: the same interface over ASGI's `send`, for servers without the fast path.

One task per client moves a buffer of bounded size; a full buffer is a paused socket.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

from gateway.connection import Connection, Traffic
from gateway.protocols import CLOSE_GRACE, HIGH_WATER, LOW_WATER


class PortableSocket:
    """`connection.Socket` as a buffer; the transport's task takes from it by `chunks`."""

    def __init__(self) -> None:
        self.close_code = 1000
        self.close_reason = ""
        self.aborted = asyncio.Event()
        self._connection: Connection | None = None
        self._buffer: list[bytes] = []
        self._size = 0
        self._ending = False
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()

    @property
    def write(self) -> Callable[[bytes], None]:
        return self._write

    def _write(self, data: bytes) -> None:
        if self._ending:
            return
        self._buffer.append(data)
        self._size += len(data)
        self._filled.set()
        if self._size > HIGH_WATER and self._drained.is_set():
            self._drained.clear()
            if self._connection is not None:
                self._connection.fall_behind()

    @property
    def paused(self) -> bool:
        return not self._drained.is_set()

    @property
    def traffic(self) -> Traffic:
        return Traffic(None, self._size)

    def watch(self, connection: Connection) -> None:
        self._connection = connection

    async def drained(self) -> None:
        await self._drained.wait()

    def close(self, code: int, reason: str) -> None:
        if self._ending:
            return
        self.close_code, self.close_reason = code, reason
        self._ending = True
        self._filled.set()
        self._drained.set()
        asyncio.get_running_loop().call_later(CLOSE_GRACE, self.aborted.set)

    def abort(self) -> None:
        self._ending = True
        self.aborted.set()
        self._filled.set()
        self._drained.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        """What was written, in order, until the socket is closed. Each is taken only when it was sent."""
        while not self.aborted.is_set():
            if not self._buffer:
                if self._ending:
                    return
                self._filled.clear()
                await self._filled.wait()
                continue
            parts, self._buffer = self._buffer, []
            for part in parts:
                yield part
                self._size -= len(part)
                if self._size <= LOW_WATER:
                    self._drained.set()
