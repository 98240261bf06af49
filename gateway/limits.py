"""Rate limits: token buckets, a client's own and one for each user."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

_MAX_USERS = 10_000  # buckets kept; the one unused for longest is full again long before it is needed


class Bucket:
    """A token bucket: `rate` a second, and a burst of one second's worth, but at least one."""

    __slots__ = ("_level", "_now", "_rate", "_size", "_then")

    def __init__(self, rate: float, now: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._now = now
        self._size = self._level = max(1.0, rate)
        self._then = now()

    def take(self) -> float:
        """Takes one and returns 0, or returns the seconds until there is one."""
        now = self._now()
        self._level = min(self._size, self._level + (now - self._then) * self._rate)
        self._then = now
        if self._level >= 1.0:
            self._level -= 1.0
            return 0.0
        return (1.0 - self._level) / self._rate


class RateLimit(Protocol):
    """How often each user may do something."""

    async def take(self, user: str) -> float:
        """Takes one of the user's and returns 0, or returns the seconds until there is one."""


class Rates:
    """A bucket for each user, in bounded memory."""

    def __init__(self, rate: float, now: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._now = now
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    async def take(self, user: str) -> float:
        """As `Bucket.take`, of this user's. Does not wait."""
        bucket = self._buckets.get(user)
        if bucket is None:
            bucket = self._buckets[user] = Bucket(self._rate, self._now)
            if len(self._buckets) > _MAX_USERS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(user)
        return bucket.take()
