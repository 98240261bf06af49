"""A gateway under requests and messages that no proper client sends.

Whatever comes: no answer of 500, no traceback in the log, every refusal in the one form of errors, nothing left
of the connection, and the next client is served as if nothing had been.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import KINDS
from gateway.protocols import HIGH_WATER
from tests.support.gateway import GatewayProcess
from tests.support.health import eventually, held, memory
from tests.support.sockets import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Answer,
    Peer,
    PeerClosedError,
    StreamPeer,
    WebSocketPeer,
    ask,
    frame,
    handshake,
    request,
    text_frame,
)
from tests.support.tokens import SECRET, bearer, admin_token

EVENT = {"type": "order.created", "subject": "o-1", "data": {"orderId": "o-1"}}
POLL = request("GET", "/events?wait=0", accept="application/json")
RELAXED = settings(deadline=None, suppress_health_check=list(HealthCheck))


class Target:
    """A gateway that is abused, and what it held before."""

    def __init__(self, process: GatewayProcess, headers: dict[str, str]) -> None:
        self.process = process
        self.port = int(process.url.rpartition(":")[2])
        self._headers = headers
        self._before = held(process.pid, self.port, **headers)
        self._logged = len(process.log)

    def check(self) -> None:
        """It lives, it is silent, and nothing is left of any client."""
        assert ask(self.port, request("GET", "/livez", connection="close")).status == 200
        eventually(lambda: held(self.process.pid, self.port, **self._headers) == self._before)
        assert "Traceback" not in self.process.log[self._logged :]
        assert "ERROR" not in self.process.log[self._logged :]


LIMITS = {"request_timeout": "0.3s", "message_rate": 1_000_000, "max_event_bytes": 65_536}


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
def target(process: GatewayProcess) -> Iterator[Target]:
    target = Target(process, {})
    yield target
    target.check()


@pytest.fixture
def closed_target(guarded: GatewayProcess) -> Iterator[Target]:
    target = Target(guarded, bearer(admin_token()))
    yield target
    target.check()


def check_refusal(answer: Answer) -> None:
    """RFC 9457 with a known code, and never a fault of the gateway."""
    if answer.status < 400:
        return
    assert answer.headers.get("content-type") == "application/problem+json", answer
    problem = answer.json()
    assert problem["code"] in KINDS, answer
    assert problem["status"] == answer.status, answer
    assert answer.status != 500, answer


def refused(port: int, data: bytes, status: int, code: str) -> Answer:
    """The answer to these bytes, which is this refusal."""
    answer = ask(port, data)
    check_refusal(answer)
    assert (answer.status, answer.json()["code"]) == (status, code)
    return answer


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
            assert closed.received == b"", closed
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
    POLL,
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
def test_random_bytes_are_refused(target: Target, parts: list[bytes]) -> None:
    """What is no HTTP gets an answer in the one form of errors, or the end of the connection."""
    settle(target.port, parts)


@settings(RELAXED, max_examples=30)
@given(parts=st.lists(mutated(), min_size=40, max_size=40))
def test_mutated_requests_never_make_the_gateway_fail(target: Target, parts: list[bytes]) -> None:
    """Half a head, a second head in a body, a length that is none: refused, overdue or answered."""
    settle(target.port, parts)


# Bodies

JSON_LEAVES = st.sampled_from(
    [
        "null", "true", "false", "0", "-0", "1.0", "1e400", "-1e400", "1e-400", "NaN", "Infinity", "-Infinity",
        "123456789012345678901234567890", "-9223372036854775809", "18446744073709551616", "0.1000000000000000055",
        "٣", "1٣", "\\u0000", '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\u2028"', '"٣"', '"²"', '""', "[]", "{}",
        '"0001-01-01T00:00:00+14:00"', '"9999-12-31T23:59:60-23:59"', '"2026-02-30T00:00:00Z"', '"order.created"',
        '"*"', '"1.0"', '"live"', '"earliest"', '"snapshot"', '"latest"', '"aaaa.99999999999999999999"', '"a.1-2"',
        '"data.items.*.sku"', '"data..a"', '"http://[::1"', '"a b"', "[" * 200 + "]" * 200, "[" * 100_00,
        '{"not":' * 200 + "null" + "}" * 200, '{"a":' * 20_000, '"' + "x" * 70_000 + '"',
    ]
)  # fmt: skip
NAMES = st.sampled_from(
    [
        "type", "subject", "id", "source", "specversion", "time", "datacontenttype", "dataschema", "data",
        "data_base64", "tenant", "Tenant", "items", "status", "orderId", "createdAt", "for", "token", "jti", "sub",
        "op", "since", "filter", "deliver", "leave", "exact", "prefix", "in", "gt", "exists", "all", "any", "not",
        "data.a", "data.items.*.sku", "", "\\ud800", "url", "callbackUrl", "events", "secret", "compatibility",
    ]
)  # fmt: skip
JSON_TEXTS = st.recursive(
    JSON_LEAVES | st.integers().map(str) | st.text(max_size=8).map(json.dumps),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda each: f"[{','.join(each)}]")
        | st.lists(st.tuples(NAMES, inner), max_size=6).map(
            lambda pairs: "{" + ",".join(f'"{name}":{value}' for name, value in pairs) + "}"
        )
    ),
    max_leaves=12,
).map(lambda text: text.encode("utf-8", "surrogatepass"))
CALLS = st.sampled_from(
    [
        ("POST", "/events"), ("POST", "/orders"), ("PATCH", "/orders/o-1/status"), ("PATCH", "/orders/%00%ff/status"),
        ("POST", "/tickets"), ("POST", "/revocations"), ("POST", "/connections/x/token"), ("POST", "/subscribe"),
        ("POST", "/webhooks"), ("PATCH", "/webhooks/x"), ("POST", "/webhooks/x/replay"), ("POST", "/schemas/a.b"),
        ("PUT", "/schemas/a.b"), ("POST", "/dead-letters/x/redrive"),
    ]
)  # fmt: skip
CONTENT_TYPES = st.sampled_from(
    [
        "application/json", "application/json; charset=utf-8", "application/json;charset=\"UTF-8\"",
        "application/json; charset=latin-1", "application/json; charset", "application/cloudevents+json",
        "application/cloudevents-batch+json", "application/x-ndjson", "text/plain", ";", "", "a/b; =; ;;",
    ]
)  # fmt: skip


class Line:
    """A connection that asks one thing after another, and anew where the gateway ended it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._peer: Peer | None = None

    def ask(self, data: bytes, *, head: bool = False) -> Answer:
        if self._peer is None:
            self._peer = Peer(self._port)
        self._peer.send(data)
        answer = self._peer.read_answer(head=head)
        if answer.headers.get("connection") == "close":
            self.close()
        return answer

    def close(self) -> None:
        if self._peer is not None:
            self._peer.close()
            self._peer = None


@settings(RELAXED, max_examples=60)
@given(calls=st.lists(st.tuples(CALLS, CONTENT_TYPES, JSON_TEXTS), min_size=25, max_size=25))
def test_random_json_is_answered_by_every_endpoint(target: Target, calls: list[Any]) -> None:
    """Each body is taken or refused with a code; the connection goes on."""
    line = Line(target.port)
    for (method, path), content_type, body in calls:
        check_refusal(line.ask(request(method, path, body, content_type=content_type)))
    line.close()
