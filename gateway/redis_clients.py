"""RedisClients: the Redis that a URL names, with one client for each kind of use.

redis-py repeats every command up to ten times and gives up reading after five seconds, writes and blocking reads
included, so each kind of use has its own timeouts and its own number of tries. What timed out is never repeated: a
Redis that hangs is given up after one timeout.
"""

from collections.abc import Sequence
from typing import Any, Final

import hiredis
import redis.asyncio as aioredis
from redis import exceptions
from redis.asyncio.client import PubSub
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff

from gateway.redis_errors import CUT, SILENT, explain
from gateway.redis_url import RedisUrl, parse_redis_url

CONNECT_SECONDS: Final = 3.0
COMMAND_SECONDS: Final = 3.0
WRITE_SECONDS: Final = 5.0
BLOCK_MS: Final = 2000  # how long a blocking read waits on the server
BLOCK_SECONDS: Final = 10.0  # how long it may take until it is given up
MIN_VERSION: Final = (7, 0)
_REPETITIONS: Final = 3  # of short commands whose connection was lost
_MAX_CONNECTIONS: Final = 64  # of each client; who needs one more waits
_KEY: Final = "{gateway}:mark"  # all keys of the log, and its channel, have this hash tag

_LOST: Final = (
    exceptions.ConnectionError,
    exceptions.ClusterDownError,
)
UNREACHABLE: Final = (exceptions.RedisError, exceptions.RedisClusterException, OSError, TimeoutError)


class RedisRefusedError(Exception):
    """The Redis cannot be used as it is, and no repetition mends that. The message says why, in one line."""


class _Ours(aioredis.Connection):
    """Mended in some places; the connections of all kinds begin with it."""

    def pack_command(self, *args: Any) -> list[bytes]:
        """By hiredis: redis-py's own way takes a third of an ingest's CPU."""
        name = args[0] if isinstance(args[0], bytes) else args[0].encode()
        return [hiredis.pack_command((*name.split(), *args[1:]))]  # redis-py writes "CLUSTER SLOTS" as one

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        """uvloop says by a RuntimeError that the connection is gone, which redis-py takes for a fault of ours."""
        try:
            await super().send_packed_command(*args, **options)
        except RuntimeError as error:
            raise exceptions.ConnectionError("connection lost") from error

    async def disconnect(self, *args: Any, **options: Any) -> None:
        """Without TLS's goodbye, for which one would wait: a Redis that hangs does not say it."""
        if self._writer is not None:
            self._writer.transport.abort()
        await super().disconnect(*args, **options)

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """A Redis that takes no writes any more is asked for by its name again: there may be another by now."""
        try:
            return await super().read_response(*args, **options)
        except exceptions.ReadOnlyError:
            self.mark_for_reconnect()  # type: ignore[no-untyped-call]  # redis-py's own
            raise


class _TlsConnection(_Ours, aioredis.SSLConnection):
    pass


class _SentinelConnection(_Ours, SentinelManagedConnection):
    pass


class _SentinelTlsConnection(_Ours, SentinelManagedSSLConnection):
    pass


class _SentinelPool(SentinelConnectionPool, aioredis.BlockingConnectionPool):
    """Who needs one connection more than there may be waits here too."""


class _Repetition(Retry):
    """Repeats what failed for want of a connection, where the next try can be better."""

    async def call_with_retry(
        self, do: Any, fail: Any, is_retryable: Any = None, with_failure_count: bool = False
    ) -> Any:
        return await super().call_with_retry(do, fail, is_retryable or _may_be_mended, with_failure_count)


def _may_be_mended(error: Exception) -> bool:
    """Not what redis-py counts among the lost connections too: a wrong password, a hanging Sentinel, …"""
    return not isinstance(
        error,
        (
            exceptions.AuthenticationError,
            exceptions.BusyLoadingError,
            exceptions.MaxConnectionsError,
            MasterNotFoundError,
        ),
    )


class _Cluster(aioredis.RedisCluster):
    """Repeats as the others do: redis-py's own repetitions, of pipelines too, are of timeouts as well."""

    def __init__(self, *, retry: Retry, connection_class: type[aioredis.Connection], **options: Any) -> None:
        super().__init__(retry=Retry(NoBackoff(), 0), **options)
        self._repetition = retry
        self.connection_kwargs["connection_class"] = connection_class  # of nodes that are found
        for node in self.startup_nodes:
            node.connection_class = connection_class

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        command = super().execute_command
        return await self._repetition.call_with_retry(lambda: command(*args, **options), _do_nothing)


async def _do_nothing(_error: Exception) -> None:
    """Between two tries the cluster's client looks for the slots again by itself."""


class _Subscriber(PubSub):
    """Ends with its connection: redis-py's own would connect and subscribe again, and what was published meanwhile
    would be missing without a word."""

    async def _execute(self, conn: Any, command: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002 - redis-py's names
        return await command(*args, **kwargs)

    async def on_connect(self, connection: Any) -> None:
        """Called when the connection has been made again, and never the first time."""
        await connection.disconnect(nowait=True)
        raise exceptions.ConnectionError("Connection lost")


class RedisClients:
    """Clients of one Redis. `name` is where it is, without user and password, as messages tell it.

    `commands` repeats what failed for want of a connection and is for what may be done twice; `writes` never
    repeats; `blocking` waits longer than a command blocks. All raise what redis-py raises: see UNREACHABLE.
    """

    def __init__(self, url: str) -> None:
        """Raises ValueError for a URL that names no Redis."""
        self._url = parse_redis_url(url)
        self.name = f"Redis at {self._url}"
        self._sentinels: list[Any] = []
        self.commands: Any = self._client(COMMAND_SECONDS, retries=_REPETITIONS)
        self.writes: Any = self._client(WRITE_SECONDS, retries=0)
        self.blocking: Any = self._client(BLOCK_SECONDS, retries=0)

    def _client(self, seconds: float, *, retries: int) -> Any:
        options = _options(self._url, seconds, retries)
        if self._url.kind == "single":
            return _plain(self._url, self._url.hosts[0], options)
        if self._url.kind == "sentinel":
            return self._master(options)
        nodes = [ClusterNode(host, port) for host, port in self._url.hosts]
        return _Cluster(
            startup_nodes=nodes,
            connection_class=_TlsConnection if self._url.tls else _Ours,
            max_connections=_MAX_CONNECTIONS,
            **options,
            **_tls(self._url),
        )

    def _master(self, options: dict[str, Any]) -> Any:
        tls = self._url.tls
        make: Any = Sentinel  # which has no types
        sentinel = make(
            list(self._url.hosts),
            sentinel_kwargs={
                "socket_timeout": CONNECT_SECONDS,
                "socket_connect_timeout": CONNECT_SECONDS,
                "retry": Retry(NoBackoff(), 0),
                **_tls(self._url),
            },
            connection_class=_SentinelTlsConnection if tls else _SentinelConnection,
            db=self._url.db,
            max_connections=_MAX_CONNECTIONS,
            timeout=options["socket_timeout"],
            **options,
            **{name: value for name, value in _tls(self._url).items() if name != "ssl"},
        )
        self._sentinels.append(sentinel)
        return sentinel.master_for(self._url.service, connection_pool_class=_SentinelPool)

    async def pubsub(self) -> Any:
        """A subscriber on a connection of its own, which never reconnects: after an error, close it and take another.

        In a cluster it is with the node of the log's own channel, on every gateway alike, so that all hear the same
        messages in the same order.
        """
        cluster = self._url.kind == "cluster"
        client = await self._node_client(BLOCK_SECONDS) if cluster else self.blocking
        return _Subscriber(client.connection_pool, ignore_subscribe_messages=False)

    async def _node_client(self, seconds: float) -> Any:
        """A client of the cluster's node that has the log."""
        # A command for the key, so that the node is the one that has it now, after a failover or a move too.
        await self.commands.execute_command("EXISTS", _KEY)
        node = self.commands.get_node_from_key(_KEY)
        return _plain(self._url, (node.host, node.port), _options(self._url, seconds, 0))

    async def check(self) -> Sequence[str]:
        """Whether this Redis can be used; returns what speaks against it, a line each.

        Raises RedisRefusedError where it cannot be used, and what the connection raises.
        """
        cluster = self._url.kind == "cluster"
        client = await self._node_client(COMMAND_SECONDS) if cluster else self.commands
        try:
            facts = {
                name: await client.info(name)
                for name in ("server", "replication", "cluster", "memory", "persistence")
            }
        finally:
            if cluster:
                await client.aclose()
        self._check_facts({key: value for each in facts.values() for key, value in each.items()})
        return self._warnings(facts["memory"], facts["persistence"])

    def _check_facts(self, facts: dict[str, Any]) -> None:
        version = str(facts.get("redis_version", "0"))
        if tuple(int(each) for each in version.split(".")[:2] if each.isdecimal()) < MIN_VERSION:
            raise RedisRefusedError(f"{self.name} has version {version}: 7.0 or later is needed")
        if facts.get("role") != "master":
            raise RedisRefusedError(
                f"{self.name} is a replica, which takes no writes: name its master, or its Sentinels"
            )
        is_cluster = bool(facts.get("cluster_enabled"))
        if is_cluster != (self._url.kind == "cluster"):
            raise RedisRefusedError(
                f"{self.name} is a node of a cluster: write redis+cluster://"
                if is_cluster
                else f"{self.name} is no cluster: write redis://"
            )

    def _warnings(self, memory: dict[str, Any], persistence: dict[str, Any]) -> list[str]:
        warnings = []
        policy = str(memory.get("maxmemory_policy", "noeviction"))
        if policy != "noeviction":
            warnings.append(
                f"{self.name} may drop parts of the log: maxmemory-policy is {policy}, not noeviction"
            )
        if not persistence.get("aof_enabled"):
            warnings.append(
                f"{self.name} loses what it was told last when it dies: set appendonly yes and appendfsync always"
            )
        return warnings

    async def aclose(self) -> None:
        sentinels = [each for sentinel in self._sentinels for each in sentinel.sentinels]
        for client in (self.commands, self.writes, self.blocking, *sentinels):
            await client.aclose()

    def explain(self, error: BaseException, *, first: bool = False) -> str:
        """One line for an exception, without secrets. `first`: the Redis has never answered yet."""
        reason = explain(error)
        if first and reason == CUT and not self._url.tls:
            reason += ": if it speaks TLS, write rediss:// in place of redis://"
        if first and reason == SILENT and self._url.tls:
            reason += ": if it does not speak TLS, write redis:// in place of rediss://"
        return f"{self.name}: {reason}"


def _options(url: RedisUrl, seconds: float, retries: int) -> dict[str, Any]:
    """What all connections have in common. `retries` repeat what failed for want of a connection, and that alone."""
    backoff = ExponentialWithJitterBackoff(cap=0.5, base=0.02) if retries else NoBackoff()
    return {
        "username": url.username,
        "password": url.password,
        "protocol": 2,
        "socket_timeout": seconds,
        "socket_connect_timeout": CONNECT_SECONDS,
        "retry": _Repetition(backoff, retries, _LOST),
        "health_check_interval": 0,
    }


def _tls(url: RedisUrl) -> dict[str, Any]:
    return {"ssl": True, **_verified(url)} if url.tls else {}


def _verified(url: RedisUrl) -> dict[str, Any]:
    """The certificate is always looked at, and the name in it."""
    return {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **dict(url.tls_files)}


def _plain(url: RedisUrl, host: tuple[str, int], options: dict[str, Any]) -> Any:
    pool: Any = aioredis.BlockingConnectionPool(
        host=host[0],
        port=host[1],
        db=url.db,
        connection_class=_TlsConnection if url.tls else _Ours,
        max_connections=_MAX_CONNECTIONS,
        timeout=options["socket_timeout"],
        **options,
        **(_verified(url) if url.tls else {}),
    )
    return aioredis.Redis.from_pool(pool)
