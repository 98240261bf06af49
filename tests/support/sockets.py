"""Plain blocking sockets: requests byte by byte, WebSocket frames by hand, peers that misbehave.

What no proper client library would send, or would hide. Every wait has a deadline.
"""

import base64
import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 0x1, 0x2, 0x8, 0x9, 0xA, 0x0
DEADLINE: Final = 15.0  # seconds that any single wait for a peer may take
KEY: Final = base64.b64encode(bytes(range(16))).decode()


class PeerClosedError(Exception):
    """The gateway ended the connection; `received` is what came before that."""

    def __init__(self, received: bytes) -> None:
        super().__init__(f"closed after {received[-200:]!r}")
        self.received = received


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP response. Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Frame:
    """One WebSocket frame of the gateway."""

    opcode: int
    payload: bytes
    fin: bool = True

    @property
    def close_code(self) -> int:
        assert self.opcode == CLOSE, self
        return int.from_bytes(self.payload[:2], "big")


class Peer:
    """One TCP connection to a port of this machine, as a client drives it."""

    def __init__(self, port: int, *, receive_buffer: int | None = None, host: str = "127.0.0.1") -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.settimeout(DEADLINE)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.socket.connect((host, port))
        except OSError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> bytes:
        """What has come, at least a byte. Raises PeerClosedError, TimeoutError."""
        if self._rest:
            data, self._rest = self._rest, b""
            return data
        try:
            data = self.socket.recv(262144)
        except ConnectionError:
            data = b""
        if not data:
            raise PeerClosedError(b"")
        return data

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to and with the mark. Raises as `receive`."""
        data = b""
        while mark not in data:
            data += self._more(data)
        found, _, self._rest = data.partition(mark)
        return found + mark

    def read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self._more(data)
        data, self._rest = data[:size], data[size:]
        return data

    def read_to_end(self) -> bytes:
        """Everything until the gateway ends the connection, in order or by a reset."""
        data = b""
        while True:
            try:
                data += self.receive()
            except PeerClosedError:
                return data

    def _more(self, before: bytes) -> bytes:
        try:
            return self.receive()
        except PeerClosedError:
            raise PeerClosedError(before) from None

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next response."""
        lines = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines[1:] if line)
        return int(lines[0].split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}

    def read_answer(self, *, head: bool = False) -> Answer:
        """The next whole response; `head` for one to a HEAD request, which has no body."""
        status, headers = self.read_head()
        if head or status in (204, 304) or status < 200:
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self.read_chunk, b""))
        elif "content-length" in headers:
            body = self.read_exactly(int(headers["content-length"]))
        else:
            body = self.read_to_end()
        return Answer(status, headers, body)

    def read_chunk(self) -> bytes:
        """The next chunk of a chunked body; empty at its end."""
        size = int(self.read_until(b"\r\n"), 16)
        return self.read_exactly(size + 2)[:-2]

    def reset(self) -> None:
        """Ends the connection with RST: what is on its way is lost."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    def finish_sending(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)


def request(method: str, target: str, body: bytes = b"", /, **headers: str) -> bytes:
    """A request of HTTP/1.1; underscores of header names become hyphens."""
    given = {"host": "localhost", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if body and "transfer-encoding" not in given:
        given.setdefault("content-length", str(len(body)))
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


def ask(port: int, data: bytes) -> Answer:
    """The first answer to these bytes on a connection of their own."""
    with Peer(port) as peer:
        peer.send(data)
        return peer.read_answer()


# WebSocket


def handshake(target: str = "/ws", **headers: str) -> bytes:
    """An opening handshake (RFC 6455, 4.1). A header given here replaces the proper one."""
    proper = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec_websocket_version": "13",
        "sec_websocket_key": KEY,
    }
    return request("GET", target, **{**proper, **headers})


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True) -> bytes:
    """One frame as a client sends it (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        length = size.to_bytes(1, "big")
    elif size < 65536:
        length = b"\x7e" + size.to_bytes(2, "big")
    else:
        length = b"\x7f" + size.to_bytes(8, "big")
    first = bytes([opcode | (0x80 if fin else 0)])
    if not masked:
        return first + length + payload
    mask = b"\x1f\x2e\x3d\x4c"
    stretched = mask * (size // 4 + 1)
    scrambled = (int.from_bytes(payload, "big") ^ int.from_bytes(stretched[:size], "big")).to_bytes(
        size, "big"
    )
    return first + bytes([length[0] | 0x80]) + length[1:] + mask + scrambled


def text_frame(message: Any) -> bytes:
    return frame(TEXT, json.dumps(message).encode())


P = TypeVar("P", bound=Peer)


@contextmanager
def crowd(make: Callable[[], P], count: int) -> Iterator[list[P]]:
    """So many peers, which are closed at the end."""
    with ExitStack() as stack:
        peers = [make() for _ in range(count)]
        for peer in peers:
            stack.enter_context(peer)
        yield peers


class WebSocketPeer(Peer):
    """A WebSocket client that frames by hand."""

    def __init__(
        self, port: int, target: str = "/ws", *, receive_buffer: int | None = None, **headers: str
    ) -> None:
        super().__init__(port, receive_buffer=receive_buffer)
        self.send(handshake(target, **headers))
        self.status, self.headers = self.read_head()
        assert self.status == 101, (self.status, self.headers)

    def read_frame(self) -> Frame:
        first, length = self.read_exactly(2)
        assert not first & 0x70, "reserved bits are set"
        assert not length & 0x80, "a server never masks"
        size = length
        if length == 126:
            size = int.from_bytes(self.read_exactly(2), "big")
        elif length == 127:
            size = int.from_bytes(self.read_exactly(8), "big")
        return Frame(first & 0x0F, self.read_exactly(size), bool(first & 0x80))

    def read_message(self) -> Any:
        """The next JSON message; pings and pongs are passed over. Raises PeerClosedError at a close frame."""
        while True:
            got = self.read_frame()
            if got.opcode == CLOSE:
                raise PeerClosedError(got.payload)
            if got.opcode == TEXT:
                return json.loads(got.payload)

    def read_close(self) -> int:
        """The code of the close frame, whatever comes before it."""
        while True:
            got = self.read_frame()
            if got.opcode == CLOSE:
                return got.close_code

    def say(self, **message: Any) -> None:
        self.send(text_frame(message))

    def expect(self, op: str) -> Any:
        """The next message of this kind; others are passed over."""
        while True:
            message = self.read_message()
            if message["op"] == op:
                return message

    def subscribe(self, **options: Any) -> Any:
        """Subscribes and returns the `subscribed` message; fails on an error."""
        self.say(op="subscribe", **options)
        while True:
            message = self.read_message()
            assert message["op"] != "error", message
            if message["op"] == "subscribed":
                return message

    def leave(self) -> int:
        """The closing handshake; returns the code that the gateway answers."""
        self.send(frame(CLOSE, (1000).to_bytes(2, "big")))
        return self.read_close()


class StreamPeer(Peer):
    """A Server-Sent Events client, block by block."""

    def __init__(
        self,
        port: int,
        target: str = "/events",
        headers: dict[str, str] | None = None,
        *,
        receive_buffer: int | None = None,
    ) -> None:
        super().__init__(port, receive_buffer=receive_buffer)
        self.send(request("GET", target, **{"accept": "text/event-stream", **(headers or {})}))
        self.status, self.headers = self.read_head()
        self._text = b""

    def read_block(self) -> dict[str, str]:
        """The fields of the next block; a comment is the field with an empty name. PeerClosedError at the end."""
        while b"\n\n" not in self._text:
            chunk = self.read_chunk()
            if not chunk:
                raise PeerClosedError(self._text)
            self._text += chunk
        block, _, self._text = self._text.partition(b"\n\n")
        fields = (line.partition(":") for line in block.decode().split("\n"))
        return {name: value.removeprefix(" ") for name, _, value in fields}
