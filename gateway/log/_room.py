"""Room: bounds what waits to be written, so that a store that is slow or away costs bounded memory."""

import asyncio

MAX_WAITING = 64 << 20  # bytes of JSON that wait to be written; further appends wait for room


class Room:
    """Counts the bytes that wait. Who must wait for room goes in the order in which they came."""

    def __init__(self) -> None:
        self._taken = 0
        self._door = asyncio.Lock()
        self._freed = asyncio.Event()
        self._closed = False

    async def take(self, size: int) -> None:
        """Waits for room, unless nothing else waits. Cancelled, it has taken nothing."""
        async with self._door:
            while self._taken and self._taken + size > MAX_WAITING and not self._closed:
                self._freed.clear()
                await self._freed.wait()
            self._taken += size

    def give(self, size: int) -> None:
        self._taken -= size
        self._freed.set()

    def close(self) -> None:
        """Lets everybody through."""
        self._closed = True
        self._freed.set()
