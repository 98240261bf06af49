"""Ending background tasks for certain."""

import asyncio
from typing import Any

_AGAIN_SECONDS = 0.1


async def end(*tasks: "asyncio.Task[Any]") -> None:
    """Cancels the tasks and waits for their end; what they raise is theirs.

    They are cancelled again until they end: a library may swallow a cancellation that meets an answer, as
    `asyncio.wait_for` does before Python 3.12.
    """
    running = {each for each in tasks if not each.done()}
    while running:
        for each in running:
            each.cancel()
        _, running = await asyncio.wait(running, timeout=_AGAIN_SECONDS)
    for each in tasks:
        if not each.cancelled():
            each.exception()  # looked at, so that nobody complains of it
