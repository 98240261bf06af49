"""How tests wait: for a condition, never for a time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

PATIENCE: Final = 60.0  # seconds


async def until(condition: Callable[[], Any], patience: float = PATIENCE) -> None:
    """Returns when the condition, which may be awaited, holds. Raises TimeoutError."""
    async with asyncio.timeout(patience):
        while True:
            held = condition()
            if await held if isinstance(held, Awaitable) else held:
                return
            await asyncio.sleep(0.005)
