"""RedisClients: the Redis that a URL names, with one client for each kind of use.

redis-py repeats every command up to ten times and gives up reading after five seconds, writes and blocking reads
included, so each kind of use has its own timeouts and its own number of tries.
"""

import ssl
from typing import Any, Final
from urllib.parse import urlsplit

import hiredis
import redis.asyncio as aioredis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff

CONNECT_SECONDS: Final = 3.0
COMMAND_SECONDS: Final = 3.0
WRITE_SECONDS: Final = 5.0
BLOCK_MS: Final = 2000  # how long a blocking read waits on the server
BLOCK_SECONDS: Final = 10.0  # how long it may take until it is given up
MIN_VERSION: Final = (7, 0)


class RedisRefusedError(Exception):
    """The Redis cannot be used as it is, and no repetition mends that. The message says why, in one line."""


class PackingConnection(aioredis.Connection):
    """A connection whose commands are packed by hiredis: redis-py's own way takes a third of an ingest's CPU."""

    def pack_command(self, *args: Any) -> list[bytes]:
        return [hiredis.pack_command(args)]


class RedisClients:
    """Clients of one Redis. `name` is where it is, without user and password, as messages tell it."""

    def __init__(self, url: str) -> None:
        self._url = url
        parts = urlsplit(url)
        self.name = f"Redis at {parts.hostname}:{parts.port or 6379}"
        self.commands: Any = self._client(COMMAND_SECONDS, retries=3)
        self.writes: Any = self._client(WRITE_SECONDS, retries=0)
        self.blocking: Any = self._client(BLOCK_SECONDS, retries=0)

    def _client(self, seconds: float, *, retries: int) -> aioredis.Redis:
        """`retries` repeat what failed for want of a connection; what timed out is never repeated."""
        backoff = ExponentialWithJitterBackoff(cap=0.5, base=0.02) if retries else NoBackoff()
        client: aioredis.Redis = aioredis.Redis.from_url(
            self._url,
            protocol=2,
            connection_class=PackingConnection,
            socket_timeout=seconds,
            socket_connect_timeout=CONNECT_SECONDS,
            retry=Retry(backoff, retries, (ConnectionError, exceptions.ConnectionError)),
            health_check_interval=0,
        )
        return client

    def pubsub(self) -> Any:
        """A subscriber of its own connection, which does not reconnect by itself."""
        return self.blocking.pubsub(ignore_subscribe_messages=False)

    async def check(self) -> None:
        """Whether this Redis can be used. Raises RedisRefusedError, or what the connection raises."""

    async def aclose(self) -> None:
        for client in (self.commands, self.writes, self.blocking):
            await client.aclose()

    def explain(self, error: BaseException) -> str:
        """One line for an exception, without secrets."""
        return f"{self.name}: {' '.join(str(error).split()) or type(error).__name__}"


UNREACHABLE: Final = (exceptions.RedisError, OSError, TimeoutError, ssl.SSLError)
