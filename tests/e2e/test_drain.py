"""How a gateway stops: clients are sent away one after another, what was accepted stays, the exit is a success."""

import contextlib
import itertools
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import GatewayProcess
from tests.support.health import eventually, port_of
from tests.support.sockets import (
    Answer,
    Peer,
    PeerClosedError,
    StreamPeer,
    WebSocketPeer,
    ask,
    crowd,
    request,
)

DRAIN = 2  # seconds


@pytest.fixture
def process(tmp_path: Path) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path, drain_seconds=DRAIN, peer_timeout="60s") as process:
        yield process


@pytest.fixture
def port(process: GatewayProcess) -> int:
    return port_of(process)


@pytest.fixture
def draining_port(tmp_path: Path) -> Iterator[int]:
    """The port of a gateway that has just begun to send fifty clients away, and has ten minutes for it."""
    with GatewayProcess(tmp_path, drain_seconds=600) as process:
        port = port_of(process)
        with crowd(lambda: WebSocketPeer(port), 50):
            begin_to_drain(process, port)
            yield port
            process.terminate()
            assert process.wait() == 0


def publish(port: int, number: int) -> Answer:
    event = json.dumps({"type": "order.created", "id": str(number), "subject": "o"}).encode()
    return ask(port, request("POST", "/events", event, content_type="application/json", connection="close"))


def readiness(port: int) -> tuple[int, Any]:
    answer = ask(port, request("GET", "/readyz", connection="close"))
    return answer.status, answer.json()["checks"]["draining"]


def begin_to_drain(process: GatewayProcess, port: int) -> None:
    """Sends the first signal and waits until it shows."""
    assert readiness(port) == (200, {"ok": True, "reason": None})
    process.terminate()
    eventually(lambda: readiness(port)[0] == 503)


def farewell(peer: WebSocketPeer) -> tuple[int, int, float]:
    """What a WebSocket is told at the end: after_ms, the close code, and when."""
    after_ms = peer.expect("reconnect")["after_ms"]
    return after_ms, peer.read_close(), time.monotonic()


def last_blocks(stream: StreamPeer) -> list[dict[str, str]]:
    blocks = []
    with contextlib.suppress(PeerClosedError):
        while True:
            blocks.append(stream.read_block())
    return blocks


def test_readiness_says_that_and_why(draining_port: int) -> None:
    """503 with the reason, while the process still lives and answers."""
    assert readiness(draining_port) == (503, {"ok": False, "reason": "the gateway is about to stop"})
    assert ask(draining_port, request("GET", "/livez", connection="close")).status == 200


def test_websockets_are_told_when_to_come_back_and_closed_with_1012(
    process: GatewayProcess, port: int
) -> None:
    """Each at a time of its own within the window, each with a delay of its own."""
    with crowd(lambda: WebSocketPeer(port), 20) as peers, ThreadPoolExecutor(20) as pool:
        for peer in peers:
            peer.subscribe()
        process.terminate()
        ends = list(pool.map(farewell, peers))
    assert {code for _, code, _ in ends} == {1012}
    assert all(1000 <= after_ms <= 5000 for after_ms, _, _ in ends)
    assert len({after_ms for after_ms, _, _ in ends}) > 10
    moments = sorted(moment for _, _, moment in ends)
    apart = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert sum(gap > DRAIN / 100 for gap in apart) >= 10, apart  # one instant would have none
    assert process.wait() == 0


def test_streams_are_told_when_to_come_back_and_ended(process: GatewayProcess, port: int) -> None:
    """`retry:` and the place, so that an EventSource comes back there; then the end of the body, in order."""
    with StreamPeer(port) as stream:
        start = stream.read_block()["id"]
        process.terminate()
        (last,) = last_blocks(stream)
    assert 1000 <= int(last["retry"]) <= 5000
    assert last["id"] == start
    assert last["event"] == "close"
    assert json.loads(last["data"])["code"] == 1012
    assert process.wait() == 0


def test_new_streams_are_turned_away_politely(draining_port: int) -> None:
    """SSE with 200, `retry:` and `close`, since any other status would end an EventSource for good."""
    stream = ask(draining_port, request("GET", "/events", accept="text/event-stream"))
    assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert b"retry: " in stream.body
    assert b'event: close\ndata: {"op":"close","code":1012' in stream.body
    with WebSocketPeer(draining_port) as late:
        assert late.expect("error")["code"] == "draining"
        assert 1000 <= late.expect("reconnect")["after_ms"] <= 5000
        assert late.read_close() == 1012


def test_new_long_polls_are_told_when_to_come_back(draining_port: int) -> None:
    """503 with Retry-After."""
    poll = ask(draining_port, request("GET", "/events", accept="application/json"))
    assert (poll.status, poll.json()["code"]) == (503, "draining")
    assert int(poll.headers["retry-after"]) > 0


def test_a_long_poll_that_waits_is_answered(process: GatewayProcess, port: int) -> None:
    """Empty, with its cursor, at once instead of after its time."""
    with Peer(port) as peer, WebSocketPeer(port):
        peer.send(request("GET", "/events?since=earliest&wait=60", accept="application/json"))
        eventually(lambda: b'gateway_connections{transport="longpoll"} 1.0' in metrics(port))
        process.terminate()
        answer = peer.read_answer()
        assert (answer.status, answer.json()["events"]) == (200, [])
    assert process.wait() == 0


def metrics(port: int) -> bytes:
    return ask(port, request("GET", "/metrics", connection="close")).body


def test_what_was_accepted_while_draining_is_in_the_log(process: GatewayProcess, port: int) -> None:
    """A publisher that goes on gets 202 or 503 with Retry-After until the listener is gone, and no 202 was a lie."""
    accepted: set[str] = set()
    with crowd(lambda: WebSocketPeer(port), 10):
        begin_to_drain(process, port)
        for number in range(100_000):
            try:
                answer = publish(port, number)
            except (ConnectionError, PeerClosedError):
                break
            assert answer.status in (202, 503)
            assert answer.status == 202 or "retry-after" in answer.headers
            if answer.status == 202:
                accepted.add(str(number))
    assert process.wait() == 0
    assert accepted
    process.start()
    assert accepted == stored(port)


def stored(port: int) -> set[str]:
    """The ids of all events in the log."""
    with WebSocketPeer(port) as peer:
        peer.subscribe(since="earliest")
        found = set()
        while (message := peer.read_message())["op"] != "live":
            found.add(message["event"]["id"])
        return found


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """However long the window is: the clients just lose their connections, and the exit is in order."""
    with GatewayProcess(tmp_path, drain_seconds=600) as slow:
        port = port_of(slow)
        with WebSocketPeer(port), StreamPeer(port):
            begin_to_drain(slow, port)
            slow.terminate()
            assert slow.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stalled_clients_do_not_hold_up_the_exit(process: GatewayProcess, port: int, number: int) -> None:
    """Ctrl-C and SIGTERM alike: who does not take its farewell is cut off, long before its peer timeout."""
    with (
        crowd(lambda: WebSocketPeer(port, receive_buffer=4096), 3) as stalled,
        StreamPeer(port, receive_buffer=4096),
    ):
        for peer in stalled:
            peer.subscribe()
        fill(port, 300)
        process._process.send_signal(number)
        started = time.monotonic()
        assert process.wait() == 0
        assert time.monotonic() - started < 15


def fill(port: int, count: int) -> None:
    """Publishes so much that who does not read has a full socket."""
    batch = [{"type": "a", "subject": str(number), "data": "x" * 30_000} for number in range(100)]
    for _ in range(count // 100):
        body = json.dumps(batch).encode()
        assert ask(port, request("POST", "/events", body, content_type="application/json")).status == 202


def test_an_idle_gateway_ends_at_once(process: GatewayProcess, port: int) -> None:
    """Nobody is there to be drained, so the window does not count; a kept-alive connection does not hold it."""
    with Peer(port) as peer:
        peer.send(request("GET", "/livez"))
        peer.read_answer()
        process.terminate()
        assert process.wait(5) == 0
        assert "Traceback" not in process.log
