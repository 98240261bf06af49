"""Two of asyncio's primitives without the deques that each of theirs allocates, 760 bytes apiece.

An idle connection waits for months and is woken a few times; ten thousand of them make the difference.
All calls are from the loop's thread.
"""

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Gate:
    """`asyncio.Event`, as far as it is used here. Cancelling a wait loses nothing."""

    __slots__ = ("_open", "_waiters")

    def __init__(self, *, is_open: bool) -> None:
        self._open = is_open
        self._waiters: list[asyncio.Future[None]] | None = None

    def is_set(self) -> bool:
        return self._open

    def set(self) -> None:
        self._open = True
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        self._open = False

    async def wait(self) -> None:
        if self._open:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters = self._waiters or []
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if self._waiters and waiter in self._waiters:
                self._waiters.remove(waiter)


class Mailbox(Generic[T]):
    """`asyncio.Queue` for one reader, unbounded; who fills it limits it. Cancelling a get loses nothing."""

    __slots__ = ("_filled", "_items")

    def __init__(self) -> None:
        self._items: list[T] = []
        self._filled: asyncio.Future[None] | None = None

    def empty(self) -> bool:
        return not self._items

    def put_nowait(self, item: T) -> None:
        self._items.append(item)
        if self._filled is not None and not self._filled.done():
            self._filled.set_result(None)

    async def get(self) -> T:
        while not self._items:
            self._filled = asyncio.get_running_loop().create_future()
            try:
                await self._filled
            finally:
                self._filled = None
        return self._items.pop(0)
