"""A gateway with two workers on a Redis log: one port, one log, one answer whoever is asked."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.gateway import GatewayProcess
from tests.support.health import eventually, metric, port_of, read_metrics
from tests.support.redis_server import RedisServer
from tests.support.sockets import Answer, StreamPeer, WebSocketPeer, ask, crowd, request
from tests.support.tokens import EVERYTHING, SECRET, admin_token, make_token

PATIENCE: Final = 60.0
ADMIN: Final = {"Authorization": f"Bearer {admin_token()}"}


@pytest.fixture
def process(tmp_path: Path, redis_server: RedisServer) -> Iterator[GatewayProcess]:
    with GatewayProcess(
        tmp_path,
        "--workers",
        "2",
        store=redis_server.url,
        jwt_secret=SECRET,
        drain_seconds=1,
        max_connections_per_token=40,
    ) as process:
        yield process


def workers(process: GatewayProcess) -> set[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return set(map(int, children.split()))


def call(port: int, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    given = {**ADMIN, **headers}
    data = b"" if body is None else json.dumps(body).encode()
    if data:
        given["Content-Type"] = "application/json"
    return ask(port, request(method, path, data, connection="close", **given))


def connections(port: int) -> list[Any]:
    listed: list[Any] = call(port, "GET", "/connections?limit=1000").json()["connections"]
    return listed


def subscribe(port: int, sub: str) -> WebSocketPeer:
    """A WebSocket that sees everything."""
    token = make_token(sub=sub, subscribe=(EVERYTHING,))
    peer = WebSocketPeer(port, Authorization=f"Bearer {token}")
    peer.subscribe()
    return peer


def gone(pid: int) -> bool:
    """Whether the process has ended; nobody may have asked yet how."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def test_clients_of_both_workers_get_every_event(process: GatewayProcess) -> None:
    """Whichever worker it was published through; both have clients."""
    port = port_of(process)
    assert len(workers(process)) == 2
    with crowd(lambda: subscribe(port, "ann"), 30) as peers:
        assert len({each["node"] for each in connections(port)}) == 2
        for number in range(10):
            assert call(port, "POST", "/events", {"type": "a", "id": str(number)}).status == 202
        for peer in peers:
            assert [peer.expect("event")["event"]["id"] for _ in range(10)] == [str(n) for n in range(10)]


def test_one_page_of_metrics_tells_of_both(process: GatewayProcess) -> None:
    """Connections are summed, the build is one."""
    port = port_of(process)
    with crowd(lambda: subscribe(port, "ann"), 20):
        for _ in range(5):
            text = read_metrics(port, **ADMIN)
            assert metric(text, "gateway_connections") == 20
            assert metric(text, "gateway_build_info") == 1
            assert metric(text, "gateway_store_up") == 1


def test_a_killed_worker_comes_back(process: GatewayProcess) -> None:
    """Its clients are cut and find the port still there; the other's notice nothing."""
    port = port_of(process)
    with crowd(lambda: subscribe(port, "ann"), 10):
        killed = workers(process).pop()
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: len(workers(process) - {killed}) == 2, within=PATIENCE)
        eventually(lambda: "is ready" in process.log, within=PATIENCE)
    assert "died: SIGKILL" in process.log
    for _ in range(20):
        assert call(port, "GET", "/readyz").status == 200
    metric_of = read_metrics(port, **ADMIN)
    assert metric(metric_of, "gateway_build_info") == 1


def test_a_revocation_reaches_both(process: GatewayProcess) -> None:
    """One call ends all streams of a user."""
    port = port_of(process)
    with crowd(lambda: subscribe(port, "ann"), 20) as peers:
        assert len({each["node"] for each in connections(port)}) == 2
        assert call(port, "POST", "/revocations", {"sub": "ann"}).status == 200
        assert {peer.read_close() for peer in peers} == {4001}


def test_a_limit_holds_over_both(process: GatewayProcess) -> None:
    """Forty connections of a user, and not forty on each."""
    port = port_of(process)
    with crowd(lambda: subscribe(port, "ann"), 40):
        assert len({each["node"] for each in connections(port)}) == 2
        for _ in range(6):
            token = make_token(sub="ann", subscribe=(EVERYTHING,))
            with WebSocketPeer(port, Authorization=f"Bearer {token}") as late:
                assert late.read_close() == 4101


def test_a_drain_sends_all_clients_away(process: GatewayProcess) -> None:
    """1012 to each, wherever it is; then the exit is a success and the port is free."""
    port = port_of(process)
    with crowd(lambda: subscribe(port, "ann"), 20) as peers:
        process.terminate()
        assert {peer.read_close() for peer in peers} == {1012}
        assert process.wait() == 0
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_signal_to_every_process_drains(process: GatewayProcess) -> None:
    """As a service manager sends it to supervisor and workers alike: it is one signal, not two."""
    port = port_of(process)
    with crowd(lambda: subscribe(port, "ann"), 20) as peers:
        for pid in (process.pid, *workers(process)):
            os.kill(pid, signal.SIGTERM)
        assert {peer.read_close() for peer in peers} == {1012}
        assert process.wait() == 0


def test_a_killed_supervisor_leaves_nobody(process: GatewayProcess) -> None:
    """Its workers drain and end; their clients are told."""
    port = port_of(process)
    pids = workers(process)
    with crowd(lambda: subscribe(port, "ann"), 10) as peers:
        os.kill(process.pid, signal.SIGKILL)
        assert {peer.read_close() for peer in peers} == {1012}
    eventually(lambda: all(map(gone, pids)), within=PATIENCE)


def test_a_killed_workers_share_is_free_again(process: GatewayProcess) -> None:
    """Within 15 seconds, and a heartbeat."""
    port = port_of(process)
    with crowd(lambda: subscribe(port, "ann"), 40):
        killed = workers(process).pop()
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: gone(killed), within=PATIENCE)  # what it still accepts dies with it
        deadline = time.monotonic() + PATIENCE
        while True:
            token = make_token(sub="ann", subscribe=(EVERYTHING,))
            with StreamPeer(port, headers={"Authorization": f"Bearer {token}"}) as stream:
                if "id" in stream.read_block():
                    break
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_taken_port_is_told_once(tmp_path: Path, redis_server: RedisServer) -> None:
    """Exit 3 with one line; also where another gateway with workers has it."""
    with GatewayProcess(tmp_path, "--workers", "2", store=redis_server.url) as first:
        second = GatewayProcess(tmp_path, "--workers", "2", store=redis_server.url, port=port_of(first))
        with pytest.raises(AssertionError, match="Address already in use"):
            second.start()
        assert second.wait() == 3
        assert second.log.count("could not start") == 1


def test_a_store_that_does_not_answer_is_told_once(tmp_path: Path, redis_server: RedisServer) -> None:
    """Exit 3 with one line, and no worker left."""
    redis_server.kill9()
    process = GatewayProcess(tmp_path, "--workers", "2", store=redis_server.url)
    with pytest.raises(AssertionError, match="could not start"):
        process.start()
    assert process.wait() == 3
    assert process.log.count("could not start") == 1
