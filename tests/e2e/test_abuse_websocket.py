"""WebSocket messages and frames that no proper client sends. What holds for requests holds here as well."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import KINDS
from tests.support.gateway import GatewayProcess
from tests.support.health import memory, unharmed
from tests.support.sockets import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    PeerClosedError,
    WebSocketPeer,
    frame,
    text_frame,
)
from tests.support.strategies import JSON_TEXTS, expand

RELAXED = settings(suppress_health_check=list(HealthCheck))
OPS = {"hello", "subscribed", "event", "live", "gap", "leave", "unsubscribed", "auth", "at", "pong", "error"}
MEMORY = 16 << 20  # bytes that one hostile client may cost, noise included
RATE = 1000  # messages a second that this gateway takes of one client


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    limits = {"message_rate": RATE, "peer_timeout": "6s"}
    with GatewayProcess(tmp_path_factory.mktemp("abuse"), **limits) as process:
        yield process


@pytest.fixture
def port(process: GatewayProcess) -> Iterator[int]:
    with unharmed(process, {}) as port:
        yield port


MEMBERS = ["op", "id", "filter", "since", "deliver", "leave", "sub", "token", "x"]
REQUESTS = st.tuples(
    st.sampled_from(["subscribe", "unsubscribe", "auth", "ping", "hello", ""]),
    st.lists(st.tuples(st.sampled_from(MEMBERS), JSON_TEXTS), max_size=4),
).map(
    lambda pair: (
        b'{"op":"%b"%b}' % (pair[0].encode(), b"".join(b',"%b":%b' % (n.encode(), v) for n, v in pair[1]))
    )
)


@settings(RELAXED, max_examples=100)
@given(messages=st.lists(JSON_TEXTS | REQUESTS, min_size=9, max_size=9))
def test_random_messages_are_answered(port: int, messages: list[bytes]) -> None:
    """Each with what it asks for or an error of a known code; nine bad ones leave the connection open."""
    with WebSocketPeer(port) as peer:
        for message in messages:
            peer.send(frame(TEXT, expand(message)))
        peer.say(op="ping", id="the end")
        told, code = read_to(peer, {"op": "pong", "id": "the end"})
    assert {each["op"] for each in told} <= OPS
    assert {each["code"] for each in told if each["op"] == "error"} <= KINDS.keys()
    assert code in (None, 1007, 1009, 4001, 4003)  # no UTF-8, too big, or a token that is none


def read_to(peer: WebSocketPeer, last: dict[str, str]) -> tuple[list[Any], int | None]:
    """The messages up to this one, or up to a close and its code."""
    told: list[Any] = []
    try:
        while last not in told:
            told.append(peer.read_message())
    except PeerClosedError as closed:
        return told, int.from_bytes(closed.received[:2], "big")
    return told, None


@settings(RELAXED, max_examples=20)
@given(parts=st.lists(st.binary(min_size=2, max_size=80), min_size=20, max_size=20))
def test_random_frames_end_in_order_or_wait(port: int, parts: list[bytes]) -> None:
    """Bytes that are no frames end with a close of RFC 6455; a frame that is not complete waits for the rest."""
    peers = [WebSocketPeer(port) for _ in parts]
    for peer, part in zip(peers, parts, strict=True):
        peer.send(part + frame(CLOSE, (1000).to_bytes(2, "big")))
        peer.finish_sending()
    for peer in peers:
        try:
            assert peer.read_close() in (1000, 1002, 1005, 1007, 1009, 4008)
        except PeerClosedError:
            pass
        finally:
            peer.reset()


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (frame(TEXT, b"\xff\xfe"), 1007),
        (frame(TEXT, b"\xed\xa0\x80"), 1007),
        (frame(TEXT, b"\xe2\x82", fin=False) + frame(CONTINUATION, b"\xff"), 1007),
        (frame(TEXT, b"{}", masked=False), 1002),
        (frame(CONTINUATION, b"{}"), 1002),
        (frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(PING, b"x", fin=False), 1002),
        (frame(0x3, b""), 1002),
        (b"\xc1\x80\x00\x00\x00\x00", 1002),
        (frame(CLOSE, b"\x03"), 1002),
        (frame(CLOSE, (999).to_bytes(2, "big")), 1002),
        (frame(CLOSE, (1000).to_bytes(2, "big") + b"\xff"), 1007),
        (b"\x81\xff" + b"\x7f" * 8, 1009),
        (frame(TEXT, b'"' + b"x" * 65536 + b'"'), 1009),
        (frame(TEXT, b" " * 40_000, fin=False) + frame(CONTINUATION, b" " * 40_000), 1009),
        (frame(BINARY, b"{}"), 4008),
        (frame(TEXT, b"?") * 10, 4008),
        (frame(TEXT, b'"\\ud800"') * 10, 4008),
        (frame(TEXT, b"[" * 60_000) * 10, 4008),
    ],
)
def test_a_violation_is_closed_with_its_code(port: int, frames: bytes, code: int) -> None:
    """RFC 6455, 7.4.1, and the gateway's own codes: the client learns what it did."""
    with WebSocketPeer(port) as peer:
        peer.send(frames)
        assert peer.read_close() == code


def test_a_message_in_fragments_with_control_frames_between_is_one_message(port: int) -> None:
    """RFC 6455, 5.4: control frames are answered at once, the message when it is complete."""
    with WebSocketPeer(port) as peer:
        peer.expect("hello")
        peer.send(frame(TEXT, b'{"op":"pi', fin=False) + frame(PING, b"1"))
        assert peer.read_frame() == Frame(PONG, b"1")
        peer.send(frame(CONTINUATION, b'ng","id', fin=False) + frame(PONG, b"unasked") + frame(PING, b"2"))
        assert peer.read_frame() == Frame(PONG, b"2")
        peer.send(frame(CONTINUATION, b'":"7"}'))
        assert peer.read_message() == {"op": "pong", "id": "7"}


def test_the_tenth_bad_message_within_a_minute_closes(port: int) -> None:
    """Nine are answered, each with its reason; a refused but well-formed request does not count."""
    with WebSocketPeer(port) as peer:
        for _ in range(12):
            peer.say(op="subscribe", filter={"exact": 1})
            assert peer.expect("error")["code"] == "bad_filter"
        for _ in range(9):
            peer.say(op="nothing")
            assert peer.expect("error")["code"] == "bad_message"
        peer.say(op="nothing")
        assert peer.read_close() == 4008


def test_a_flood_of_messages_is_closed_with_4101(port: int) -> None:
    """More than the rate allows; what is behind the close is discarded."""
    with WebSocketPeer(port) as peer:
        peer.send(text_frame({"op": "ping"}) * (RATE * 5))
        assert peer.read_close() == 4101


def test_ten_thousand_tiny_messages_in_one_segment_are_bounded(port: int) -> None:
    """They are taken one by one, up to the rate, while others are served."""
    flood = frame(TEXT, b"{}") * 10_000
    with WebSocketPeer(port) as peer, WebSocketPeer(port) as other:
        peer.send(flood)
        other.say(op="ping", id="1")
        assert other.expect("pong")["id"] == "1"
        assert peer.read_close() == 4008


def test_pings_of_a_client_that_never_reads_are_not_hoarded(process: GatewayProcess, port: int) -> None:
    """RFC 6455, 5.5.3: not every ping needs its pong. Memory stays, and the client is ended in the end."""
    before = memory(process.pid)
    peer = WebSocketPeer(port, receive_buffer=4096)
    flood = frame(PING, b"x" * 125) * 1000
    with contextlib.suppress(ConnectionError):
        for _ in range(400):  # 52 MB
            peer.send(flood)
            assert memory(process.pid) - before < MEMORY
    peer.reset()


def test_messages_of_a_client_that_never_reads_its_answers_are_not_read(
    process: GatewayProcess, port: int
) -> None:
    """Who does not read is not read: the answers do not pile up, and the client is ended within the deadline."""
    before = memory(process.pid)
    peer = WebSocketPeer(port, receive_buffer=4096)
    messages = text_frame({"op": "ping", "id": "x" * 100}) * 100
    with contextlib.suppress(ConnectionError):
        while True:
            peer.send(messages)
            assert memory(process.pid) - before < MEMORY
    peer.close()
