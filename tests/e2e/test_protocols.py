"""The fast path on real sockets: ready-made frames, slow readers, closes, socket options, TLS."""

import http.client
import ipaddress
import json
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.responses import Response
from websockets.sync.client import connect

from gateway.protocols import EXTENSION, HIGH_WATER, UNSENT_BYTES, Timeouts
from gateway.wire import frame as ready_made
from tests.support.health import eventually, eventually_equal
from tests.support.serving import Served, serving_app, serving_gateway
from tests.support.sockets import (
    CLOSE,
    DEADLINE,
    PING,
    PONG,
    TEXT,
    Frame,
    Peer,
    StreamPeer,
    WebSocketPeer,
    ask,
    crowd,
    frame,
    request,
)


class Handed:
    """An application that hands its socket out and notes what it receives."""

    def __init__(self) -> None:
        self.socket: Any = None
        self.accepted = threading.Event()
        self.received: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self.socket = scope["extensions"][EXTENSION]
        self.accepted.set()
        while (message := await receive())["type"] != "websocket.disconnect":
            self.received.append(message["text"])
        self.received.append(message["code"])

    def stall(self, served: Served) -> None:
        """Writes until the socket is paused: the client does not read."""

        def fill() -> None:
            while not self.socket.paused:
                self.socket.write(ready_made(b"x" * 60_000))

        served.call(fill)


def test_ready_made_frames_of_every_length_are_read_by_a_proper_client() -> None:
    """The three encodings of a length, at their borders (RFC 6455, 5.2)."""
    app = Handed()
    texts = [("é" * size)[:size] for size in (0, 1, 60, 125, 126, 127, 65_535, 65_536, 200_000)]
    with (
        serving_app(app) as served,
        connect(f"ws://127.0.0.1:{served.port}/", max_size=None, compression=None) as client,
    ):
        assert app.accepted.wait(DEADLINE)
        for size in (0, 125, 126, 65_535, 65_536):
            served.call(lambda size=size: app.socket.write(ready_made(b"x" * size)))  # type: ignore[misc]
            assert client.recv(DEADLINE) == "x" * size
        served.call(lambda: app.socket.write(b"".join(ready_made(text.encode()) for text in texts)))
        assert [client.recv(DEADLINE) for _ in texts] == texts


def test_pings_are_not_answered_while_the_client_does_not_read() -> None:
    """Their pongs would only fill the buffer; when it reads again, the next ping has its pong."""
    app = Handed()
    with (
        serving_app(app, ws_ping_interval=None) as served,
        WebSocketPeer(served.port, receive_buffer=4096) as peer,
    ):
        assert app.accepted.wait(DEADLINE)
        app.stall(served)
        before = served.call(app.socket.transport.get_write_buffer_size)
        peer.send(frame(PING, b"x" * 125) * 1000 + frame(TEXT, b"end"))
        eventually(lambda: app.received == ["end"])
        assert served.call(app.socket.transport.get_write_buffer_size) == before
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read_until_pong, peer, b"again")
            eventually(lambda: not app.socket.paused)
            peer.send(frame(PING, b"again"))
            assert reading.result(DEADLINE) == [b"again"]


def read_until_pong(peer: WebSocketPeer, last: bytes) -> list[bytes]:
    """The payloads of all pongs up to this one."""
    pongs: list[bytes] = []
    while last not in pongs:
        if (got := peer.read_frame()).opcode == PONG:
            pongs.append(got.payload)
    return pongs


def test_frames_written_between_a_close_and_its_answer_are_whole() -> None:
    """A close of the gateway's, a ping answered and frames in flight: each is whole, the close is the last."""
    app = Handed()
    with serving_app(app) as served, WebSocketPeer(served.port) as peer:
        assert app.accepted.wait(DEADLINE)

        def say_and_close() -> None:
            for number in range(100):
                app.socket.write(ready_made(str(number).encode() * 1000))
            app.socket.close(4008, "enough")
            app.socket.close(1000, "once more")

        peer.send(frame(PING, b"?") * 10)
        served.call(say_and_close)
        frames = []
        while (got := peer.read_frame()).opcode != CLOSE:
            frames.append(got)
        assert got == Frame(CLOSE, (4008).to_bytes(2, "big") + b"enough")
        assert [each.payload for each in frames if each.opcode == TEXT] == [
            str(number).encode() * 1000 for number in range(100)
        ]
        peer.send(frame(CLOSE, (4008).to_bytes(2, "big")))
        assert peer.read_to_end() == b""
        eventually(lambda: app.received == [4008])


def test_nothing_follows_a_close_while_events_pour_in() -> None:
    """Clients are sent away in the middle of a stream of events: after the close frame comes the end."""
    event = request("POST", "/events", b'{"type":"a"}', content_type="application/json")
    stop = threading.Event()

    def publish(port: int) -> None:
        with Peer(port) as publisher:
            while not stop.is_set():
                publisher.send(event)
                publisher.read_answer()

    def follow(peer: WebSocketPeer) -> int:
        code = peer.read_close()
        peer.send(frame(CLOSE, code.to_bytes(2, "big")))
        assert peer.read_to_end() == b""
        return code

    with (
        serving_gateway() as (served, node),
        ThreadPoolExecutor(21) as pool,
        crowd(lambda: WebSocketPeer(served.port), 20) as peers,
    ):
        for peer in peers:
            peer.subscribe()
        publishing = pool.submit(publish, served.port)
        codes = pool.map(follow, peers)
        served.wait(node.connections.drain(0.2))
        assert set(codes) == {1012}
        stop.set()
        publishing.result(DEADLINE)


@pytest.mark.parametrize("kind", [WebSocketPeer, StreamPeer])
def test_sockets_are_tuned(kind: Any) -> None:
    """The kernel ends a peer that vanishes, and buffers no more than a little beyond its window."""
    with serving_gateway(peer_timeout="30s") as (served, _), kind(served.port):
        (protocol,) = served.connections
        tcp = protocol.transport.get_extra_info("socket")
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT_BYTES
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert served.call(protocol.transport.get_write_buffer_limits)[1] == HIGH_WATER


def test_a_closing_client_that_does_not_read_is_cut_off() -> None:
    """Where closing would wait for a buffer that never drains."""
    app = Handed()
    with (
        serving_app(app, timeouts=Timeouts(head=30, peer=600), ws_ping_interval=None) as served,
        WebSocketPeer(served.port, receive_buffer=4096),
    ):
        assert app.accepted.wait(DEADLINE)
        app.stall(served)
        served.call(lambda: app.socket.close(4100, "too slow"))
        eventually_equal(lambda: served.connections, [])


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of our own making for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


def test_websockets_and_streams_work_over_tls(certificate: tuple[Path, Path]) -> None:
    """wss and https on the same fast path: an event published over TLS reaches both."""
    cert, key = certificate
    context = ssl.create_default_context(cafile=str(cert))
    with serving_gateway(tls_cert=cert, tls_key=key) as (served, _):
        address = ("127.0.0.1", served.port)
        stream, publisher = (http.client.HTTPSConnection(*address, context=context) for _ in range(2))
        with connect(f"wss://127.0.0.1:{served.port}/ws", ssl=context) as client:
            client.send('{"op":"subscribe","id":"1"}')
            assert [json.loads(client.recv(DEADLINE))["op"] for _ in range(2)] == ["hello", "subscribed"]
            stream.request("GET", "/events", headers={"Accept": "text/event-stream"})
            answer = stream.getresponse()
            assert answer.readline().startswith(b"retry: ")
            body = json.dumps({"type": "a", "data": "x" * 60_000})
            publisher.request("POST", "/events", body, {"Content-Type": "application/json"})
            assert publisher.getresponse().status == 202
            assert json.loads(client.recv(DEADLINE))["event"]["data"] == "x" * 60_000
            lines = iter(answer.readline, b"")
            assert next(line for line in lines if line.startswith(b"data: ")).endswith(b"}\n")
        stream.close()
        publisher.close()


def test_a_client_that_stops_reading_over_tls_is_ended(certificate: tuple[Path, Path]) -> None:
    """The layer between has buffers of its own, which must not keep the connection either."""
    cert, key = certificate
    context = ssl.create_default_context(cafile=str(cert))
    batch = json.dumps([{"type": "a", "data": "x" * 30_000}] * 200).encode()
    with serving_gateway(tls_cert=cert, tls_key=key, peer_timeout="3s") as (served, node):
        publisher = http.client.HTTPSConnection("127.0.0.1", served.port, context=context)
        with connect(f"wss://127.0.0.1:{served.port}/ws", ssl=context, max_queue=1) as client:
            client.send('{"op":"subscribe","id":"1"}')
            eventually(lambda: len(node.hub.channels) == 1)
            publisher.request("POST", "/events", batch, {"Content-Type": "application/json"})
            assert publisher.getresponse().status == 202
            publisher.close()
            eventually_equal(lambda: (served.connections, len(node.connections)), ([], 0))
            client.socket.close()


# Answers below the application


def test_a_refusal_below_the_application_leads_to_the_docs_behind_the_prefix() -> None:
    """As all others do: a malformed request, a head that is too large, one that does not end."""
    requests = [b"nonsense\r\n\r\n", request("GET", "/livez", x="a" * 100_000), b"GET /livez HTTP/1.1\r\n"]
    with serving_gateway(root_path="/gw", request_timeout="1s") as (served, _):
        answers = [ask(served.port, data) for data in requests]
    told = [(answer.status, answer.json()["type"]) for answer in answers]
    assert told == [
        (400, "/gw/docs#bad_request"),
        (431, "/gw/docs#headers_too_large"),
        (408, "/gw/docs#request_timeout"),
    ]


# A client of HTTP/1.0


def test_a_stream_for_http_1_0_has_no_chunks_and_ends_with_the_connection() -> None:
    """As for nginx, which asks so unless told not to; beside it HTTP/1.1 has the same events in chunks."""
    body = b'{"type":"a","id":"1"}'
    with serving_gateway() as (served, node), Peer(served.port) as old, StreamPeer(served.port) as new:
        old.send(b"GET /events HTTP/1.0\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n")
        status, headers = old.read_head()
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert headers["connection"] == "close"
        assert not headers.keys() & {"transfer-encoding", "content-length"}
        assert old.read_until(b"\n\n").startswith(b"retry: ")
        assert new.read_block()["id"] == f"{node.log.epoch}.0"
        ask(served.port, request("POST", "/events", body, content_type="application/json"))
        assert old.read_until(b"\n\n").startswith(f"id: {node.log.epoch}.1\ndata: {{".encode())
        assert new.read_block()["id"] == f"{node.log.epoch}.1"
        served.stop()
        farewell = old.read_to_end()
    assert farewell.startswith(b"retry: ")
    assert b"event: close" in farewell
    assert farewell.endswith(b"}\n\n")


# Answers in one write


def test_an_answer_is_the_same_whichever_way_it_leaves() -> None:
    """Past uvicorn's messages or through them, as they go where CORS adds to the head: status, headers and body."""
    with serving_gateway() as (served, _), Peer(served.port) as peer:
        answers = []
        for headers in ({}, {"origin": f"http://localhost:{served.port}"}):
            for body in (b'{"type":"a","id":"1"}', b'{"type":"a","id":"1"}', b"{}", b"no JSON"):
                host = f"localhost:{served.port}"
                peer.send(
                    request("POST", "/events", body, content_type="application/json", host=host, **headers)
                )
                answers.append(peer.read_answer())
    direct, through = answers[:4], answers[4:]
    through_plain = [
        {
            name: value
            for name, value in each.headers.items()
            if name != "vary" and "access-control" not in name
        }
        for each in through
    ]
    assert [each.status for each in direct] == [202, 202, 422, 400]
    assert [each.status for each in through] == [202, 202, 422, 400]
    assert all("access-control-allow-origin" in each.headers for each in through)
    assert all("access-control-allow-origin" not in each.headers for each in direct)
    for one, other in zip(direct[1:], through_plain[1:], strict=True):
        assert {**one.headers, "date": ""} == {**other, "date": ""}
    assert [each.body for each in direct[1:]] == [each.body for each in through[1:]]


def test_an_answer_before_the_body_has_come_asks_for_no_more() -> None:
    """Who expects 100 Continue and is refused for the head alone hears the refusal and nothing after it."""
    with serving_gateway() as (served, _), Peer(served.port) as peer:
        peer.send(
            request("POST", "/events", expect="100-continue", content_length="2", content_encoding="gzip")
        )
        assert peer.read_answer().status == 415
        peer.send(b"{}" + request("POST", "/events", b'{"type":"a"}', content_type="application/json"))
        assert peer.read_answer().status == 202


# Bodies


async def tell_body(scope: Any, receive: Any, send: Any) -> None:
    """Answers what `take_body` gives to who looks at the messages, then to the request itself, and what it left."""

    async def looked_at() -> Any:
        return await receive()

    socket = scope["extensions"][EXTENSION]
    told = [socket.take_body(looked_at), socket.take_body(receive)]
    if told[1] is None:
        told.append((await receive())["body"])
    await Response(repr(told))(scope, receive, send)


def test_a_body_is_taken_as_a_whole_or_received() -> None:
    """Each of a pipeline has its own, and one that is still to come is waited for."""
    with serving_app(tell_body) as served, Peer(served.port) as peer:
        peer.send(request("POST", "/", b"one") + request("POST", "/", b"two"))
        assert peer.read_answer().body == b"[None, b'one']"
        assert peer.read_answer().body == b"[None, b'two']"
        peer.send(request("POST", "/", expect="100-continue", content_length="5"))
        assert peer.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.send(b"three")
        assert peer.read_answer().body == b"[None, None, b'three']"
