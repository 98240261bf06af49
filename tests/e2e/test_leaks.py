"""Clients that come and go in every way there is: nothing of them is left in the gateway."""

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.node import Node
from tests.support.gateway import GatewayProcess
from tests.support.health import eventually_equal, held, metric, port_of, read_metrics, sockets, unharmed
from tests.support.serving import Served, serving_gateway
from tests.support.sockets import (
    TEXT,
    Answer,
    Peer,
    StreamPeer,
    WebSocketPeer,
    ask,
    crowd,
    frame,
    handshake,
    request,
    text_frame,
)

ROUNDS = 112  # of all kinds: some 2,000 clients
LOG = 3000  # events of a kilobyte, so that a replay takes longer than its client stays


def publish(port: int, count: int, size: int = 1000) -> None:
    event = {"type": "order.updated", "data": {"text": "x" * size}}
    for start in range(0, count, 200):
        batch = [{**event, "subject": str(number)} for number in range(start, min(count, start + 200))]
        body = json.dumps(batch).encode()
        assert ask(port, request("POST", "/events", body, content_type="application/json")).status == 202


# Ways to come and go


def _gone_before_the_head(port: int) -> None:
    Peer(port).close()


def _half_a_head(port: int) -> None:
    with Peer(port) as peer:
        peer.send(b"GET /events HTTP/1.1\r\nhost: loc")


def _reset_in_half_a_head(port: int) -> None:
    peer = Peer(port)
    peer.send(b"GET /events HTTP/1.1\r\nhost: loc")
    peer.reset()


def _reset_in_the_handshake(port: int) -> None:
    peer = Peer(port)
    peer.send(handshake())
    peer.reset()


def _handshake_refused(port: int) -> None:
    ask(port, handshake("/nowhere"))


def _reset_after_the_handshake(port: int) -> None:
    WebSocketPeer(port).reset()


def _closed_in_order(port: int) -> None:
    with WebSocketPeer(port) as peer:
        peer.subscribe()
        assert peer.leave() == 1000


def _gone_without_a_close(port: int) -> None:
    with WebSocketPeer(port) as peer:
        peer.subscribe(filter={"exact": {"subject": "1"}})


def _reset_in_a_flood_of_messages(port: int) -> None:
    peer = WebSocketPeer(port)
    peer.send(text_frame({"op": "ping"}) * 40)
    peer.reset()


def _gone_in_a_message(port: int) -> None:
    with WebSocketPeer(port) as peer:
        peer.send(frame(TEXT, b"{", fin=False) + b"\x80\xfe")


def _websocket_gone_while_catching_up(port: int) -> None:
    peer = WebSocketPeer(port, receive_buffer=4096)
    peer.subscribe(since="earliest")
    peer.reset()


def _stream_gone(port: int) -> None:
    with StreamPeer(port) as stream:
        stream.read_block()


def _stream_gone_before_its_head(port: int) -> None:
    peer = Peer(port)
    peer.send(request("GET", "/events", accept="text/event-stream"))
    peer.reset()


def _stream_gone_while_catching_up(port: int) -> None:
    stream = StreamPeer(port, "/events?since=earliest", receive_buffer=4096)
    stream.read_block()
    stream.reset()


def _stream_with_a_request_behind_it(port: int) -> None:
    with StreamPeer(port) as stream:
        stream.send(request("GET", "/livez"))
        stream.read_block()


def _poll_abandoned(port: int) -> None:
    with Peer(port) as peer:
        peer.send(request("GET", "/events?wait=60", accept="application/json"))


def _gone_in_a_body(port: int) -> None:
    with Peer(port) as peer:
        peer.send(
            request("POST", "/events", content_type="application/x-ndjson", content_length="99") + b'{"type":'
        )


def _gone_before_the_answer(port: int) -> None:
    peer = Peer(port)
    peer.send(request("POST", "/events", b'{"type":"a"}', content_type="application/json"))
    peer.reset()


WAYS: list[Callable[[int], None]] = [
    _gone_before_the_head,
    _half_a_head,
    _reset_in_half_a_head,
    _reset_in_the_handshake,
    _handshake_refused,
    _reset_after_the_handshake,
    _closed_in_order,
    _gone_without_a_close,
    _reset_in_a_flood_of_messages,
    _gone_in_a_message,
    _websocket_gone_while_catching_up,
    _stream_gone,
    _stream_gone_before_its_head,
    _stream_gone_while_catching_up,
    _stream_with_a_request_behind_it,
    _poll_abandoned,
    _gone_in_a_body,
    _gone_before_the_answer,
]


def test_two_thousand_clients_leave_nothing_in_the_process(tmp_path: Path) -> None:
    """Gauges and file descriptors are back where they were, and the log says nothing of it."""
    with GatewayProcess(tmp_path, peer_timeout="4s") as process:
        publish(port_of(process), LOG)
        with unharmed(process, {}) as port:
            for _ in range(ROUNDS):
                for way in WAYS:
                    way(port)


def test_no_task_and_no_connection_is_left_in_the_loop() -> None:
    """Neither of the application nor of the server below it; and no channel that nobody listens to."""
    with serving_gateway(peer_timeout="4s", retention_events=LOG) as (served, node):
        publish(served.port, LOG)
        eventually_equal(lambda: len(served.connections), 0)
        before = inside(served, node)
        for way in WAYS * 20:
            way(served.port)
        eventually_equal(lambda: inside(served, node), before)


def inside(served: Served, node: Node) -> dict[str, int]:
    """What the loop and the parts of the gateway hold."""

    def look() -> dict[str, int]:
        state = served.server.server_state
        return {
            "tasks": len(asyncio.all_tasks()),
            "protocols": len(state.connections),
            "requests": len(state.tasks),
            "connections": len(node.connections),
            "channels": len(node.hub.channels),
        }

    return served.call(look)


# Clients that do not go


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway that gives its clients three seconds."""
    with GatewayProcess(tmp_path, peer_timeout="3s", request_timeout="1s", max_connections=100) as process:
        yield process


def streams(port: int) -> float:
    return metric(read_metrics(port), "gateway_connections")


def test_a_websocket_that_answers_no_ping_is_ended(impatient: GatewayProcess) -> None:
    """Idle and acknowledged by its kernel, but nobody is there."""
    port = port_of(impatient)
    with WebSocketPeer(port) as peer:
        peer.subscribe()
        eventually_equal(lambda: streams(port), 0)


@pytest.mark.parametrize("kind", [WebSocketPeer, StreamPeer])
def test_a_client_that_stops_reading_is_ended(impatient: GatewayProcess, kind: Any) -> None:
    """Its socket is full: by the ping's deadline or by the kernel's, its descriptor is free again."""
    port = port_of(impatient)
    before = held(impatient.pid, port)
    with kind(port, receive_buffer=4096) as peer:
        if isinstance(peer, WebSocketPeer):
            peer.subscribe()
        else:
            peer.read_block()
        publish(port, 500, size=20_000)
        eventually_equal(lambda: held(impatient.pid, port), before)


def test_clients_that_stop_in_the_middle_of_a_replay_are_ended(impatient: GatewayProcess) -> None:
    """Catching up waits for the socket, which waits for the client: the deadline ends both."""
    port = port_of(impatient)
    publish(port, 500, size=20_000)
    before = held(impatient.pid, port)
    with crowd(lambda: WebSocketPeer(port, receive_buffer=4096), 5) as peers:
        for peer in peers:
            peer.subscribe(since="earliest")
        with crowd(lambda: StreamPeer(port, "/events?since=earliest", receive_buffer=4096), 5):
            eventually_equal(lambda: held(impatient.pid, port), before)


def overdue(peer: Peer) -> Answer:
    answer = peer.read_answer()
    assert peer.read_to_end() == b""
    return answer


def test_a_slow_head_is_ended_with_408(impatient: GatewayProcess) -> None:
    """Also when a byte comes now and then; who sends nothing at all gets no answer to nothing."""
    with Peer(port_of(impatient)) as peer, Peer(port_of(impatient)) as silent:
        peer.send(b"GET /livez HTTP/1.1\r\nhost: loc")
        assert overdue(peer).json()["code"] == "request_timeout"
        assert silent.read_to_end() == b""


@pytest.mark.parametrize("content_type", ["application/json", "application/x-ndjson"])
def test_a_slow_body_is_ended_with_408(impatient: GatewayProcess, content_type: str) -> None:
    """Whether it is read whole or line by line."""
    with Peer(port_of(impatient)) as peer:
        peer.send(
            request("POST", "/events", content_type=content_type, content_length="99") + b'{"type":"a"}\n'
        )
        answer = overdue(peer)
        assert (answer.status, answer.json()["code"]) == (408, "request_timeout")


VANISHING_CLIENTS = """
    from tests.support.sockets import StreamPeer, WebSocketPeer

    websocket, stream = WebSocketPeer(8000), StreamPeer(8000)
    websocket.subscribe()
    stream.read_block()
    print("connected", flush=True)
    input()
"""


def test_clients_that_vanish_without_a_word_are_ended(tmp_path: Path) -> None:
    """Their network is gone, no FIN and no RST comes: the sockets are free again after the peer timeout."""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "GATEWAY_STORE": "memory:", "GATEWAY_PEER_TIMEOUT": "3s"}
    serve = f"ip link set lo up && exec {sys.executable} -m gateway serve --port 8000"
    pipes: dict[str, Any] = {"env": environment, "cwd": tmp_path, "stdin": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        ["unshare", "--map-root-user", "--net", "sh", "-c", serve], stderr=subprocess.PIPE, **pipes
    ) as gateway:
        assert gateway.stderr is not None
        while " serves " not in gateway.stderr.readline():
            assert gateway.poll() is None
        enter = ["nsenter", f"--target={gateway.pid}", "--user", "--net", "--preserve-credentials"]
        clients = [*enter, sys.executable, "-c", textwrap.dedent(VANISHING_CLIENTS)]
        with subprocess.Popen(clients, stdout=subprocess.PIPE, **pipes) as child:
            assert child.stdout is not None
            before = sockets(gateway.pid)
            assert child.stdout.readline() == "connected\n"
            assert sockets(gateway.pid) == before + 2
            subprocess.run([*enter, "ip", "link", "set", "lo", "down"], check=True)
            eventually_equal(lambda: sockets(gateway.pid), before)
            child.kill()
        gateway.kill()
