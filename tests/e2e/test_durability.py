"""What was answered 202 survives `kill -9`; what cannot be opened is told in one line with its own exit code."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.support.gateway import GatewayProcess
from tests.support.health import port_of
from tests.support.sockets import Peer, PeerClosedError, StreamPeer, WebSocketPeer, request

GONE = (ConnectionError, PeerClosedError, TimeoutError)


@dataclass(eq=False)
class Publisher:
    """Publishes one request after another until the gateway is gone, and notes what was answered 202."""

    name: str
    content_type: str
    size: int
    accepted: set[str] = field(default_factory=set)
    requests: list[list[str]] = field(default_factory=list)
    answered: Event = field(default_factory=Event)

    def run(self, port: int) -> None:
        try:
            with Peer(port) as peer:
                while True:
                    self._publish(peer)
        except GONE:
            return

    def _publish(self, peer: Peer) -> None:
        ids = [f"{self.name}-{len(self.requests)}-{number}" for number in range(self.size)]
        self.requests.append(ids)
        events = [{"type": "order.updated", "id": each, "subject": self.name} for each in ids]
        peer.send(request("POST", "/events", self._body(events), content_type=self.content_type))
        answer = peer.read_answer()
        assert answer.status == 202, answer
        assert answer.json()["accepted"] == self.size
        self.accepted.update(ids)
        self.answered.set()

    def _body(self, events: list[dict[str, str]]) -> bytes:
        if self.content_type == "application/x-ndjson":
            return "\n".join(map(json.dumps, events)).encode()
        return json.dumps(events if self.size > 1 else events[0]).encode()


@dataclass(eq=False)
class Subscriber:
    """Follows the log, each time from the place where it was cut off."""

    cursor: str | None = None
    got: list[tuple[str, str]] = field(default_factory=list)  # cursor and id, as they came
    live: Event = field(default_factory=Event)

    def take(self, cursor: str, event: dict[str, Any]) -> None:
        self.got.append((cursor, event["id"]))
        self.cursor = cursor

    def websocket(self, port: int, last: Callable[[], bool]) -> None:
        """Until the gateway is gone, or `last` holds at the head."""
        with _until_gone(), WebSocketPeer(port) as peer:
            peer.subscribe(since=self.cursor or "earliest")
            while True:
                message = peer.read_message()
                if message["op"] == "event":
                    self.take(message["cursor"], message["event"])
                elif message["op"] == "live" and last():
                    return

    def sse(self, port: int, last: Callable[[], bool]) -> None:
        place = {"last-event-id": self.cursor} if self.cursor else {}
        with _until_gone(), StreamPeer(port, "/events?since=earliest", place) as stream:
            assert stream.status == 200
            while True:
                block = stream.read_block()
                if block.get("event") == "live" and last():
                    return
                if "data" in block and "event" not in block:
                    self.take(block["id"], json.loads(block["data"]))


@contextmanager
def _until_gone() -> Iterator[None]:
    try:
        yield
    except GONE:
        return


KINDS = [("application/json", 1)] * 3 + [("application/json", 20)] * 3 + [("application/x-ndjson", 60)] * 2


def read_log(port: int) -> list[tuple[str, str]]:
    """Cursor and id of every event in the log."""
    reader = Subscriber()
    reader.websocket(port, lambda: True)
    return reader.got


@pytest.mark.parametrize("rounds", [20, pytest.param(200, marks=pytest.mark.torture)])
@pytest.mark.timeout(900)
def test_what_was_accepted_survives_kill_9(tmp_path: Path, rounds: int) -> None:
    """In the log exactly once, and each subscriber that comes back with its last cursor gets it in order.

    A batch is there as a whole or not at all, whether it was answered or not.
    """
    publishers = [Publisher(f"p{number}", *kind) for number, kind in enumerate(KINDS)]
    websocket, sse = Subscriber(), Subscriber()
    with GatewayProcess(tmp_path) as process, ThreadPoolExecutor(10) as pool:
        for _ in range(rounds):
            port = port_of(process)
            running: list[Future[None]] = [pool.submit(each.run, port) for each in publishers]
            running += [pool.submit(follow, port, lambda: False) for follow in (websocket.websocket, sse.sse)]
            for each in publishers:
                each.answered.clear()
                assert each.answered.wait(30)
            process.kill9()
            for future in running:
                future.result(60)
            process.start()
        port = port_of(process)
        log = read_log(port)
        websocket.websocket(port, lambda: True)
        sse.sse(port, lambda: True)
    check_log(log, publishers)
    assert websocket.got == log
    assert sse.got == log


def check_log(log: list[tuple[str, str]], publishers: list[Publisher]) -> None:
    epochs, offsets = zip(*(cursor.split(".") for cursor, _ in log), strict=True)
    assert len(set(epochs)) == 1
    assert list(map(int, offsets)) == list(range(1, len(log) + 1))
    counts = Counter(id_ for _, id_ in log)
    assert max(counts.values()) == 1
    for publisher in publishers:
        assert publisher.accepted <= counts.keys()
        if publisher.content_type == "application/json":
            assert {len(counts.keys() & set(ids)) for ids in publisher.requests} <= {0, publisher.size}
        of_it = [id_ for _, id_ in log if id_.startswith(f"{publisher.name}-")]
        assert of_it == sorted(of_it, key=lambda id_: list(map(int, id_.split("-")[1:])))


# Starting


def start(folder: Path, *flags: str, **settings: object) -> tuple[int, str]:
    """Runs a gateway that cannot start; its exit code and what it says on stderr."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    given = {f"GATEWAY_{name.upper()}": str(value) for name, value in {"port": 0, **settings}.items()}
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", *flags],
        cwd=folder,
        env={**environment, **given, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def reason(stderr: str) -> str:
    """The line that says why, which is the last and the only one of its kind."""
    *before, last = stderr.splitlines()
    assert all("could not start" not in line for line in before)
    assert last.startswith("the gateway could not start: ")
    return last


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A log with some events, as an earlier gateway left it."""
    with GatewayProcess(tmp_path) as process:
        publisher = Publisher("p", "application/json", 100)
        with Peer(port_of(process)) as peer:
            for _ in range(20):
                publisher._publish(peer)
    return tmp_path / "gateway.db"


def test_a_log_of_an_earlier_start_opens_again(database: Path) -> None:
    """With the same epoch and the same events, also where the last start was cut off by kill -9."""
    with GatewayProcess(database.parent) as process:
        log = read_log(port_of(process))
        assert [int(cursor.split(".")[1]) for cursor, _ in log] == list(range(1, 2001))
        process.terminate()
        assert process.wait() == 0
        process.start()
        assert read_log(port_of(process)) == log


def test_a_damaged_log_is_not_opened(database: Path) -> None:
    """One line names the file and says what to do; the file is left as it was."""
    with closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(database.read_bytes())
    assert len(data) > 100_000
    for page in range(8192, len(data), 8192):
        data[page : page + 4096] = b"\xa5" * 4096
    database.write_bytes(data)
    code, stderr = start(database.parent, store=f"sqlite:{database}")
    assert code == 3
    assert "is damaged" in reason(stderr)
    assert str(database) in stderr
    assert database.read_bytes() == data


def _text(path: Path) -> None:
    path.write_text("dear diary, " * 1000, encoding="utf-8")


def _other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE notes (text)")


def _newer(path: Path) -> None:
    with GatewayProcess(path.parent, store=f"sqlite:{path}"):
        pass
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 999")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_text, "damaged or no database"),
        (_other_database, "another program's database"),
        (_newer, "a newer gateway"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.symlink_to(path.parent / "missing" / "file"), "cannot be opened"),
    ],
)
def test_what_is_no_log_of_this_gateway_is_not_opened(
    tmp_path: Path, make: Callable[[Path], None], why: str
) -> None:
    """Exit code 3, and one line that says what the file is."""
    path = tmp_path / "odd.db"
    make(path)
    code, stderr = start(tmp_path, store=f"sqlite:{path}")
    assert code == 3
    assert why in reason(stderr)


def test_a_log_that_another_gateway_holds_is_not_opened(tmp_path: Path) -> None:
    """The line names the process that holds it."""
    with GatewayProcess(tmp_path) as process:
        code, stderr = start(tmp_path, store=f"sqlite:{tmp_path / 'gateway.db'}")
        assert code == 3
        assert f"is in use by another gateway (process {process.pid})" in reason(stderr)


def test_an_address_that_is_not_here_is_told(tmp_path: Path) -> None:
    """The same for a name that does not resolve and an address of another machine."""
    for host in ("no.such.name.invalid", "192.0.2.1"):
        code, stderr = start(tmp_path, "--insecure-open", host=host, store="memory:")
        assert code == 3
        assert host in reason(stderr)


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    """Exit code 3 and one line with the address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, stderr = start(tmp_path, port=port, store="memory:")
    assert code == 3
    assert "address already in use" in reason(stderr).lower()
    assert f"127.0.0.1, port {port}" in stderr


def test_an_open_gateway_does_not_start_on_a_public_address(tmp_path: Path) -> None:
    """Without keys everyone could do everything: it must be said that this is meant."""
    code, stderr = start(tmp_path, host="0.0.0.0", store="memory:")
    assert code == 3
    assert "--insecure-open" in reason(stderr)
    assert len(stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"port": "x"}, "GATEWAY_PORT: "),
        (
            {"retention_age": "soon"},
            "GATEWAY_RETENTION_AGE: must be a time like 45s, 30m, 12h or 7d, or seconds",
        ),
        ({"store": "postgres:"}, "GATEWAY_STORE: must be sqlite:PATH"),
        ({"tls_cert": "/nowhere.pem"}, "GATEWAY_TLS_CERT: "),
        ({"origins": "*"}, "GATEWAY_ORIGINS: cannot be *"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, settings: dict[str, str], line: str) -> None:
    """Exit code 2 and a line that begins with the setting."""
    code, stderr = start(tmp_path, **settings)
    assert code == 2
    assert any(each.startswith(line) for each in stderr.splitlines()), stderr
