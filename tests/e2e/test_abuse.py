"""A gateway under requests and messages that no proper client sends.

Whatever comes: no answer of 500, no traceback in the log, every refusal in the one form of errors, nothing left
of the connection, and the next client is served as if nothing had been.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.gateway import GatewayProcess
from tests.support.health import check_refusal, refused, unharmed
from tests.support.sockets import Answer, Peer, PeerClosedError, StreamPeer, ask, handshake, request
from tests.support.strategies import CALLS, CONTENT_TYPES, CURSORS, HEADER_VALUES, JSON_TEXTS, QUERIES, expand
from tests.support.tokens import SECRET, admin_token, bearer

EVENT = {"type": "order.created", "subject": "o-1", "data": {"orderId": "o-1"}}
RELAXED = settings(suppress_health_check=list(HealthCheck))


LIMITS = {
    "request_timeout": "0.3s",
    "peer_timeout": "4s",
    "message_rate": 1_000_000,
    "max_event_bytes": 65_536,
}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path_factory.mktemp("abuse"), **LIMITS) as process:
        yield process


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One with keys, which reads tokens and seals cursors."""
    options = {**LIMITS, "jwt_secret": SECRET, "cursor_key": "seal"}
    with GatewayProcess(tmp_path_factory.mktemp("guarded"), **options) as process:
        yield process


@pytest.fixture
def port(process: GatewayProcess) -> Iterator[int]:
    with unharmed(process, {}) as port:
        yield port


@pytest.fixture
def guarded_port(guarded: GatewayProcess) -> Iterator[int]:
    with unharmed(guarded, bearer(admin_token())) as port:
        yield port


# Bytes that are no request, or hardly one


def settle(port: int, parts: list[bytes]) -> None:
    """Sends each to a connection of its own, all at once, and checks what is answered before the end."""
    peers = [Peer(port) for _ in parts]
    for peer, part in zip(peers, parts, strict=True):
        try:
            peer.send(part)
        except ConnectionError:  # refused before all was sent
            continue
    for peer in peers:
        try:
            status, headers = peer.read_head()
            if headers.get("content-type", "").startswith("text/event-stream"):
                continue
            if status >= 400:
                body = peer.read_exactly(int(headers["content-length"]))
                check_refusal(Answer(status, headers, body))
        except PeerClosedError as closed:
            if closed.received:
                raise
        finally:
            peer.reset()


VALID = [
    request("POST", "/events", json.dumps(EVENT).encode(), content_type="application/json"),
    request(
        "POST",
        "/events",
        b'5\r\n{"typ\r\n0\r\n\r\n',
        content_type="application/json",
        transfer_encoding="chunked",
    ),
    request("GET", "/events?since=earliest&type=order.*", accept="text/event-stream"),
    request("GET", "/orders?limit=2", origin="http://localhost", cookie="gateway_token=x"),
    request("OPTIONS", "/events", origin="http://localhost", access_control_request_method="POST"),
    handshake("/ws", sec_websocket_protocol="gateway.v1, bearer.x"),
    request("GET", "/orders/o-1", if_match="*"),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid request with a few bytes changed, taken out, doubled or put in."""
    data = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        data = data[:start] + draw(st.binary(max_size=6)) + data[end - draw(st.integers(0, end - start)) :]
    return data


@settings(RELAXED, max_examples=15)
@given(parts=st.lists(st.binary(max_size=200).map(lambda data: data + b"\r\n\r\n"), min_size=40, max_size=40))
def test_random_bytes_are_refused(port: int, parts: list[bytes]) -> None:
    """What is no HTTP gets an answer in the one form of errors, or the end of the connection."""
    settle(port, parts)


@settings(RELAXED, max_examples=30)
@given(parts=st.lists(mutated(), min_size=40, max_size=40))
def test_mutated_requests_never_make_the_gateway_fail(port: int, parts: list[bytes]) -> None:
    """Half a head, a second head in a body, a length that is none: refused, overdue or answered."""
    settle(port, parts)


# Bodies


class Line:
    """A connection that asks one thing after another, and anew where the gateway ended it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._peer: Peer | None = None

    def ask(self, data: bytes) -> Answer:
        if self._peer is None:
            self._peer = Peer(self._port)
        self._peer.send(data)
        answer = self._peer.read_answer()
        if answer.headers.get("connection") == "close":
            self.close()
        return answer

    def close(self) -> None:
        if self._peer is not None:
            self._peer.close()
            self._peer = None


@settings(RELAXED, max_examples=60)
@given(calls=st.lists(st.tuples(CALLS, CONTENT_TYPES, JSON_TEXTS), min_size=25, max_size=25))
def test_random_json_is_answered_by_every_endpoint(port: int, calls: list[Any]) -> None:
    """Each body is taken or refused with a code; the connection goes on."""
    line = Line(port)
    for (method, path), content_type, body in calls:
        check_refusal(line.ask(request(method, path, expand(body), content_type=content_type)))
    line.close()


@settings(RELAXED, max_examples=40)
@given(queries=st.lists(QUERIES, min_size=25, max_size=25))
def test_random_queries_are_answered(port: int, queries: list[str]) -> None:
    """Of the stream, the long poll and the list of orders alike."""
    line = Line(port)
    for query in queries:
        check_refusal(line.ask(request("GET", f"/events?wait=0&{query}", accept="application/json")))
        check_refusal(line.ask(request("GET", f"/orders?{query}")))
        with StreamPeer(port, f"/events?{query}") as stream:
            assert stream.status in (200, 400, 422)
    line.close()


NAMES_OF_HEADERS = [
    "accept", "authorization", "ce-id", "ce-source", "ce-specversion", "ce-time", "ce-type", "ce-x", "content-encoding",
    "content-type", "cookie", "forwarded", "host", "idempotency-key", "if-match", "if-none-match", "last-event-id",
    "origin", "range", "sec-websocket-protocol", "te", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto",
]  # fmt: skip
TARGETS = [
    ("GET", "/events?wait=0"), ("GET", "/orders"), ("GET", "/orders/o-1"), ("GET", "/"), ("GET", "/static/board.js"),
    ("GET", "/metrics"), ("GET", "/readyz"), ("POST", "/events"), ("POST", "/orders"), ("PATCH", "/orders/o-1/status"),
    ("OPTIONS", "/events"), ("DELETE", "/connections/x"), ("GET", "/ws"),
]  # fmt: skip


@st.composite
def requests_with_odd_headers(draw: st.DrawFn) -> bytes:
    method, target = draw(st.sampled_from(TARGETS))
    names = draw(st.lists(st.sampled_from(NAMES_OF_HEADERS), max_size=5))
    lines = [b"host: localhost", b"accept: application/json"] if draw(st.booleans()) else []
    lines += [name.encode() + b": " + draw(HEADER_VALUES) for name in names]
    body = json.dumps(EVENT).encode() if method in ("POST", "PATCH") else b""
    lines += [b"content-length: %d" % len(body), b"connection: close"]
    return b"\r\n".join([f"{method} {target} HTTP/1.1".encode(), *lines, b"", body])


@settings(RELAXED, max_examples=30)
@given(parts=st.lists(requests_with_odd_headers(), min_size=40, max_size=40))
def test_random_headers_are_answered(port: int, parts: list[bytes]) -> None:
    """Keys, cursors, conditions, types, CloudEvents attributes: whatever they hold."""
    settle(port, parts)


@settings(RELAXED, max_examples=15)
@given(parts=st.lists(requests_with_odd_headers(), min_size=40, max_size=40))
def test_random_credentials_are_refused(guarded_port: int, parts: list[bytes]) -> None:
    """The same where tokens are read and cursors are sealed."""
    settle(guarded_port, parts)


@settings(RELAXED, max_examples=10)
@given(cursors=st.lists(CURSORS, min_size=20, max_size=20))
def test_random_cursors_are_refused_or_become_a_gap(guarded_port: int, cursors: list[str]) -> None:
    """In `since` a forged one is 400; as Last-Event-ID it must not end an EventSource for good."""
    authorization = bearer(admin_token())
    for cursor in cursors:
        answer = ask(
            guarded_port,
            request("GET", f"/events?wait=0&since={cursor}", accept="application/json", **authorization),
        )
        assert (answer.status, answer.json()["code"]) == (400, "bad_since")
        with StreamPeer(guarded_port, headers={"last-event-id": cursor, **authorization}) as stream:
            assert stream.status == 200


# Single cases


def test_a_head_of_100_kb_is_refused(port: int) -> None:
    """A handshake too: it must not simply end without an answer."""
    refused(port, request("GET", "/livez", x="a" * 100_000), 431, "headers_too_large")
    refused(port, handshake(x="a" * 100_000), 431, "headers_too_large")
    refused(port, request("GET", "/" + "a" * 100_000), 431, "headers_too_large")


def test_200_headers_are_refused(port: int) -> None:
    """As many as the smallest limit of what is underneath."""
    many = {f"x{number}": "a" for number in range(200)}
    refused(port, request("GET", "/livez", **many), 431, "headers_too_large")
    refused(port, handshake(**many), 431, "headers_too_large")


def test_an_endless_head_behind_a_stream_ends_the_connection(port: int) -> None:
    """While a stream runs, the next request's head is bounded as well, and its refusal is not mixed in."""
    with StreamPeer(port) as stream:
        stream.read_block()
        pour(stream, b"GET / HTTP/1.1\r\nx: ", b"a" * 65536)
        assert b"HTTP/1.1" not in stream.read_to_end()


def test_endless_trailers_end_the_connection(port: int) -> None:
    """What comes after a chunked body is bounded like a head."""
    with Peer(port) as peer:
        chunked = request(
            "POST",
            "/events",
            b"1\r\n{\r\n0\r\n",
            transfer_encoding="chunked",
            content_type="application/json",
        )
        pour(peer, chunked + b"x: ", b"a" * 65536)
        assert peer.read_to_end()[:12] in (b"HTTP/1.1 431", b"")


def pour(peer: Peer, first: bytes, more: bytes) -> None:
    """Sends without end, until the gateway ends the connection."""
    with contextlib.suppress(ConnectionError):
        peer.send(first)
        while True:
            peer.send(more)


def test_trailers_are_no_headers(guarded_port: int) -> None:
    """RFC 9110, 6.5.1: a credential in a trailer is none."""
    token = bearer(admin_token())["Authorization"]
    with Peer(guarded_port) as peer:
        peer.send(
            b"POST /events HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n"
            b'content-type: application/json\r\n\r\n5\r\n{"a":\r\n0\r\nauthorization: '
            + token.encode()
            + b"\r\n\r\n"
        )
        assert peer.read_answer().status == 401


def test_an_upgrade_that_is_not_offered_is_ignored(port: int) -> None:
    """RFC 9110, 7.8: the request counts with its body, and the connection goes on."""
    offer = {
        "upgrade": "h2c",
        "connection": "Upgrade, HTTP2-Settings",
        "http2_settings": "AAMAAABkAARAAAAAAAIAAAAA",
    }
    post = request("POST", "/events", json.dumps(EVENT).encode(), content_type="application/json", **offer)
    with Peer(port) as peer:
        peer.send(post + request("GET", "/livez", **offer) + request("GET", "/livez"))
        assert [peer.read_answer().status for _ in range(3)] == [202, 200, 200]


def test_many_upgrades_in_one_segment_are_answered_one_by_one(port: int) -> None:
    """However many are pipelined: no recursion, and each has its answer."""
    one = request("GET", "/livez", upgrade="h2c", connection="Upgrade")
    with Peer(port) as peer:
        peer.send(one * 1000)
        assert {peer.read_answer().status for _ in range(1000)} == {200}


def test_a_handshake_behind_a_running_request_is_not_taken(port: int) -> None:
    """Two protocols on one connection would mix, and the first would never learn that its client has gone."""
    with StreamPeer(port) as stream:
        stream.send(handshake())
        stream.read_block()


def test_post_to_the_websocket_path_with_an_upgrade_and_a_body_is_refused(port: int) -> None:
    """A handshake is a GET without a body; what is none gets an answer all the same."""
    refused(port, handshake().replace(b"GET", b"POST", 1), 405, "method_not_allowed")
    refused(port, handshake(content_length="2") + b"{}", 426, "bad_request")
    refused(port, handshake(sec_websocket_version="12"), 426, "bad_request")
    refused(port, handshake(sec_websocket_key="short"), 426, "bad_request")


def test_odd_but_valid_requests_are_answered(port: int) -> None:
    """Absolute form, `OPTIONS *`, HTTP/1.0, leading empty lines, many requests in one segment."""
    assert ask(port, request("GET", "http://localhost/livez")).status == 200
    assert ask(port, b"\r\n\r\n" + request("GET", "/livez")).status == 200
    check_refusal(ask(port, request("OPTIONS", "*")))
    with Peer(port) as peer:
        peer.send(b"GET /livez HTTP/1.0\r\nhost: localhost\r\n\r\n")
        assert peer.read_answer().status == 200
        assert peer.read_to_end() == b""
    with Peer(port) as peer:
        peer.send(request("GET", "/livez") * 100)
        assert {peer.read_answer().status for _ in range(100)} == {200}


@pytest.mark.parametrize(
    "data",
    [
        request("CONNECT", "localhost:80"),
        request("CONNECT", "/livez"),
        request("POST", "/events", b"zz\r\nhello\r\n", transfer_encoding="chunked"),
        request("POST", "/events", b"-1\r\n", transfer_encoding="chunked"),
        request("POST", "/events", b"ffffffffffffffffff\r\n", transfer_encoding="chunked"),
        request("POST", "/events", b"0\r\n\r\n", transfer_encoding="chunked", content_length="3"),
        request("POST", "/events", content_length="-1"),
        request("POST", "/events", content_length="1, 1"),
        b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: a\x00b\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
    ids=lambda data: str(data[:24]),
)
def test_what_is_no_http_is_refused(port: int, data: bytes) -> None:
    """In the one form of errors, from below the application."""
    refused(port, data, 400, "bad_request")


def test_odd_ranges_and_names_of_files_are_answered(port: int) -> None:
    """The pages' files take no ranges, and a name too long for the file system is one that is not there."""
    assert ask(port, request("GET", "/static/board.js", range="bytes=5-1")).status == 200
    assert ask(port, request("GET", "/", range="bytes=99999999-")).status == 200
    refused(port, request("GET", "/static/" + "a" * 300), 404, "not_found")
    refused(port, request("GET", "/static/..%2fpyproject.toml"), 404, "not_found")
    refused(port, request("GET", "/static/%00"), 404, "not_found")
