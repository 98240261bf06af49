"""The bytes that the load client sends and looks for: events, requests, WebSocket handshakes and frames.

No WebSocket library: the client of a bench must cost less than the server that it measures.
"""

import re
from typing import Final
from urllib.parse import quote

import orjson

EVENT_BYTES: Final = 230

# Each event's data has a token, which stands exactly once in whatever a server makes of the event.
MARK: Final = b"#@"
_DIGITS: Final = 8
TOKEN_BYTES: Final = len(MARK) + _DIGITS
_TOKEN = re.compile(MARK + rb"(\d{%d})" % _DIGITS)

PING_BYTE: Final = 0x89
_JSON_END: Final = 0x7D
_LONGEST_PING: Final = 125  # bytes of payload
_PONG: Final = 0x8A
_TEXT: Final = 0x81
_MASKED: Final = 0x80
_ZERO_MASK: Final = bytes(4)

SUBSCRIBED: Final = b'"op":"subscribed"'
LIVE: Final = b'"op":"live"'
HEAD_END: Final = b"\r\n\r\n"


def event(sequence: int, *, subject: int = 0, customer: int = 0, size: int = EVENT_BYTES) -> bytes:
    """An order event of exactly `size` bytes, compact as the gateway itself writes it."""
    start = (
        b'{"specversion":"1.0","id":"%d","source":"/bench","type":"order.updated",'
        b'"time":"2026-01-01T00:00:00.000Z","datacontenttype":"application/json",'
        b'"subject":"o-%d","data":{"customerId":"c-%d","note":"%b%08d'
    ) % (sequence, subject, customer, MARK, sequence)
    return start + b"x" * (size - len(start) - 3) + b'"}}'


def sequences(chunk: bytes) -> list[int]:
    """The sequence numbers of the events whose tokens stand in `chunk`, in order."""
    return [int(digits) for digits in _TOKEN.findall(chunk)]


def count_events(chunk: bytes) -> int:
    return chunk.count(MARK)


def pongs(chunk: bytes) -> bytes:
    """The answers to the pings in what a WebSocket server sent.

    A ping begins a read or follows the end of a text frame's JSON, in which no such byte can stand.
    """
    answers = b""
    at = chunk.find(PING_BYTE)
    while 0 <= at < len(chunk) - 1:
        length = chunk[at + 1]
        if (at == 0 or chunk[at - 1] == _JSON_END) and length <= _LONGEST_PING:
            payload = chunk[at + 2 : at + 2 + length]  # shorter where the read ends within it
            answers += bytes((_PONG, _MASKED | len(payload))) + _ZERO_MASK + payload
        at = chunk.find(PING_BYTE, at + 1)
    return answers


def post(path: str, port: int, body: bytes, media_type: str = "application/json") -> bytes:
    return post_head(path, port, len(body), media_type) + body


def post_head(path: str, port: int, length: int, media_type: str = "application/json") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: {media_type}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def upgrade(port: int) -> bytes:
    """A WebSocket handshake. The key is any 16 bytes in base64: one server is as good as another here."""
    return (
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()


def subscribe(exact: dict[str, str] | None = None, since: str | None = None) -> bytes:
    """The frame of a `subscribe` message, masked with zeros."""
    message: dict[str, object] = {"op": "subscribe", "id": "1"}
    if exact:
        message["filter"] = {"exact": exact}
    if since:
        message["since"] = since
    payload = orjson.dumps(message)
    # RFC 6455, section 5.2: 126 says that the length follows in 16 bits; nobody forbids it for short ones here.
    head = bytes((_TEXT, _MASKED | 126)) + len(payload).to_bytes(2, "big")
    return head + _ZERO_MASK + payload


def stream_request(port: int, exact: dict[str, str] | None = None) -> bytes:
    """The request of an SSE stream."""
    query = "&".join(f"{name}={quote(value)}" for name, value in (exact or {}).items())
    return (
        f"GET /events?{query} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n\r\n"
    ).encode()


def is_refusal(answer: bytes) -> bool:
    """Whether `answer` is an HTTP response with neither 101 nor 200 for its status."""
    return answer.startswith(b"HTTP/1.1") and len(answer) > 12 and answer[9:12] not in (b"101", b"200")


def response_end(answer: bytes) -> int:
    """Where the HTTP response at the start of `answer` ends, or 0 while it is not there as a whole.

    Knows Content-Length alone: no server of the bench answers a POST in chunks.
    """
    head = answer.find(HEAD_END)
    if head < 0:
        return 0
    length = re.search(rb"\r\ncontent-length: *(\d+)", answer[:head], re.IGNORECASE)
    end = head + len(HEAD_END) + (int(length[1]) if length else 0)
    return end if len(answer) >= end else 0
