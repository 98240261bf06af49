"""Redis to test against: real servers, Sentinels and clusters on free ports, each in a folder of its own.

Everything here blocks, waits for what it started to be ready, and ends only what it started itself.
"""

import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.certificates import Identity

HOST: Final = "127.0.0.1"
START_SECONDS: Final = 60
END_SECONDS: Final = 30
SLOTS: Final = 16384
_BUS: Final = 10_000  # a cluster's nodes talk to each other on their port plus this
_FIRST_PORT: Final = 10_000
_PORTS: Final = 11_000  # and their bus ports: all below those that the system gives to outgoing connections
_POLL_SECONDS: Final = 0.01

Options = dict[str, Any]
Started = TypeVar("Started", "RedisServer", "RedisSentinel", "RedisCluster")


class RedisServer:
    """A `redis-server` of its own. A context manager: leaving it kills.

    `options` are those of redis.conf with underscores: `appendonly="yes"`, `maxmemory="3mb"`,
    `replicaof="127.0.0.1 7000"`; a list gives an option more than once: `user=["ann on >pw ~* +@all"]`.
    `identity` lets it speak TLS alone. Its port stays the same over restarts.
    """

    READY = "Ready to accept connections"
    FLAGS: Sequence[str] = ()

    def __init__(self, folder: Path, *, identity: Identity | None = None, **options: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.identity = identity
        self.port = 0
        self._options: Options = {"save": '""', "repl_diskless_sync_delay": 0, **options}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill9()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def password(self) -> str | None:
        """That of the user `default`."""
        password = self._options.get("requirepass")
        return None if password is None else str(password)

    @property
    def url(self) -> str:
        return self.url_of()

    def url_of(self, user: str = "", password: str | None = None, *, db: int = 0) -> str:
        """The URL for a user, else for the default user with its password."""
        password = self.password if password is None else password
        login = "" if password is None else f"{quote(user, safe='')}:{quote(password, safe='')}@"
        return f"{'rediss' if self.identity else 'redis'}://{login}{HOST}:{self.port}/{db}"

    @property
    def log(self) -> str:
        """All that it has logged since it was first started."""
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> Self:
        """Starts it and waits until it is ready; after that always on the port of the first time."""
        deadline = time.monotonic() + START_SECONDS
        while not self._try_start(self.port or _FIRST_PORT + secrets.randbelow(_PORTS), deadline):
            assert time.monotonic() < deadline, f"redis-server did not start:\n{self.log}"
        return self

    def _try_start(self, port: int, deadline: float) -> bool:
        """Whether it runs on this port. It does not where somebody else is, or where options are wrong."""
        if port != self.port:  # later starts keep what the server has written into it since
            self._configure(port)
        with (self.folder / "log").open("ab") as log:
            said = log.tell()
            self._process = subprocess.Popen(
                ["redis-server", "redis.conf", *self.FLAGS], cwd=self.folder, stdout=log, stderr=log
            )
        while time.monotonic() < deadline and self._process.poll() is None:
            if self.READY in self._log_since(said):
                self.port = port
                return True
            time.sleep(_POLL_SECONDS)
        self.kill9()
        text = self._log_since(said)
        assert "in use" in text, f"redis-server did not start:\n{text}"
        return False

    def _log_since(self, position: int) -> str:
        return (self.folder / "log").read_bytes()[position:].decode(errors="replace")

    def _configure(self, port: int) -> None:
        lines = [f"{name.replace('_', '-')} {value}" for name, value in self._settings(port)]
        (self.folder / "redis.conf").write_text("\n".join(lines) + "\n")

    def _settings(self, port: int) -> list[tuple[str, object]]:
        ports: Options = (
            {"tls_port": port, "port": 0, **_tls(self.identity)} if self.identity else {"port": port}
        )
        options: Options = {"bind": HOST, "dir": self.folder, **ports, **self._options}
        return [(name, each) for name, value in options.items() for each in _values(value)]

    def stop(self) -> None:
        """Asks it to end and waits for that."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(END_SECONDS)

    def kill9(self) -> None:
        """Ends it as a power cut would. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(END_SECONDS)

    def restart(self) -> None:
        """Ends and starts it; only what was persisted is there again."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """It answers nothing, and its connections stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def call(self, *command: str | bytes | float) -> Any:
        """The answer to a command of the default user, raw as the server gives it, text as bytes."""
        with redis.Redis(**self._client_options()) as client:
            client.response_callbacks.clear()
            return client.execute_command(*command)

    def _client_options(self) -> Options:
        options: Options = {"host": HOST, "port": self.port, "password": self.password, "protocol": 2}
        options["retry"] = Retry(NoBackoff(), 0)
        if self.identity:
            identity = self.identity
            options |= {"ssl": True, "ssl_ca_certs": str(identity.ca), "ssl_check_hostname": False}
            options |= {"ssl_certfile": str(identity.cert), "ssl_keyfile": str(identity.key)}
        return options

    def info(self, section: str) -> dict[str, str]:
        """A section of INFO."""
        return _fields(self.call("INFO", section))


class RedisSentinel(RedisServer):
    """A Sentinel that watches one master, which is down after one second and is replaced at once."""

    READY = "+monitor master"
    FLAGS = ("--sentinel",)

    def __init__(self, folder: Path, master: RedisServer, *, service: str = "orders", **options: Any) -> None:
        super().__init__(folder, **options)
        self.service = service
        self._master = master

    def _settings(self, port: int) -> list[tuple[str, object]]:
        name, password = self.service, self._master.password
        watch: list[object] = [
            f"monitor {name} {HOST} {self._master.port} 1",
            f"down-after-milliseconds {name} 1000",
            f"failover-timeout {name} 5000",
        ]
        if password is not None:
            watch.append(f"auth-pass {name} {password}")
        own = [
            each for each in super()._settings(port) if each[0] not in ("save", "repl_diskless_sync_delay")
        ]
        return [*own, *(("sentinel", each) for each in watch)]

    def url_of(self, user: str = "", password: str | None = None, *, db: int = 0) -> str:
        """A URL for the master, as the gateway takes it; user and password are those of the master."""
        master = urlsplit(self._master.url_of(user, password, db=db))
        login, at, _ = master.netloc.rpartition("@")
        return f"{master.scheme}+sentinel://{login}{at}{HOST}:{self.port}/{self.service}{master.path}"

    @property
    def master_port(self) -> int:
        """The port of the server that is the master now, to this Sentinel's knowledge."""
        return int(self.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)[1])

    def wait_for_replicas(self, count: int) -> None:
        """Until it knows so many replicas, by which it can replace the master."""
        command = ("SENTINEL", "REPLICAS", self.service)
        wait_until(lambda: len(self.call(*command)) == count, "the Sentinel knows the replicas")


class RedisCluster:
    """A cluster of so many masters with an equal part of the slots each. A context manager."""

    def __init__(self, folder: Path, masters: int = 3, **options: Any) -> None:
        settings: Options = {"cluster_enabled": "yes", "cluster_node_timeout": 5000, **options}
        self.nodes = [RedisServer(folder / str(number), **settings) for number in range(masters)]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill9()

    @property
    def url(self) -> str:
        """A URL with all nodes, as the gateway takes it."""
        scheme, _, rest = self.nodes[0].url.partition("://")
        login, at, _ = rest.rpartition("@")
        return f"{scheme}+cluster://{login}{at}{','.join(f'{HOST}:{node.port}' for node in self.nodes)}"

    def start(self) -> Self:
        """Starts the nodes, joins them, and waits until each knows that the cluster is whole."""
        for node in self.nodes:
            node.start()
        if not self._has_slots(self.nodes[0]):
            self._join()
        wait_until(lambda: all(map(self._is_whole, self.nodes)), "the cluster is whole")
        return self

    def _join(self) -> None:
        for number, node in enumerate(self.nodes):
            first, end = self._share(number)
            node.call("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    node.call("CLUSTER", "MEET", HOST, other.port, other.port + _BUS)

    def kill9(self) -> None:
        for node in self.nodes:
            node.kill9()

    def owner(self, key: str) -> RedisServer:
        """The node that has this key, unless slots have been moved."""
        slot = self.nodes[0].call("CLUSTER", "KEYSLOT", key)
        return next(node for number, node in enumerate(self.nodes) if slot < self._share(number)[1])

    def _share(self, number: int) -> tuple[int, int]:
        """The first slot of a node and the one after its last."""
        return SLOTS * number // len(self.nodes), SLOTS * (number + 1) // len(self.nodes)

    def _has_slots(self, node: RedisServer) -> bool:
        return _fields(node.call("CLUSTER", "INFO"))["cluster_slots_assigned"] != "0"

    def _is_whole(self, node: RedisServer) -> bool:
        state = _fields(node.call("CLUSTER", "INFO"))
        return state["cluster_state"] == "ok" and int(state["cluster_size"]) == len(self.nodes)


class RedisFactory:
    """Starts what a test asks for, in folders of its own, and kills it all at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[RedisServer | RedisCluster] = []

    def server(self, *, identity: Identity | None = None, **options: Any) -> RedisServer:
        return self._start(RedisServer(self._next_folder(), identity=identity, **options))

    def replica(self, master: RedisServer, **options: Any) -> RedisServer:
        """A replica that has all that its master has."""
        login: Options = {} if master.password is None else {"masterauth": master.password}
        replica = self.server(replicaof=f"{HOST} {master.port}", **login, **options)
        wait_until(lambda: replica.info("replication")["master_link_status"] == "up", "the replica follows")
        return replica

    def sentinel(self, master: RedisServer, **options: Any) -> RedisSentinel:
        return self._start(RedisSentinel(self._next_folder(), master, **options))

    def cluster(self, masters: int = 3, **options: Any) -> RedisCluster:
        return self._start(RedisCluster(self._next_folder(), masters, **options))

    def kill9(self) -> None:
        for each in reversed(self._started):
            each.kill9()

    def _next_folder(self) -> Path:
        return self._folder / f"redis-{len(self._started)}"

    def _start(self, what: Started) -> Started:
        self._started.append(what)
        return what.start()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Blocks until the condition holds. Raises AssertionError, which says what never came."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(_POLL_SECONDS)


def _values(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else [value]


def _fields(text: bytes) -> dict[str, str]:
    """`name:value` lines, as INFO and CLUSTER INFO answer."""
    lines = [line.partition(":") for line in text.decode().splitlines() if ":" in line]
    return {name: value for name, _, value in lines}


def _tls(identity: Identity | None) -> Options:
    if identity is None:
        return {}
    return {
        "tls_cert_file": identity.cert,
        "tls_key_file": identity.key,
        "tls_ca_cert_file": identity.ca,
        "tls_auth_clients": "no",
    }
