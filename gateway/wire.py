"""Wires: what each message looks like on a transport, as bytes that all its clients share.

A wire turns one message into bytes and joins the bytes of several messages into one write.
It keeps no state and knows no client.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import orjson

from gateway.log import Entry

RESTART = 1012  # the close code of a service that restarts


class Wire(ABC):
    """The encoding of messages for one kind of connection. `sub` is a channel's id, `cursor` its place."""

    transport: ClassVar[str]  # the label of this transport in metrics
    end: ClassVar[bytes] = b""  # what a stream ends with below its messages, before the connection does

    @abstractmethod
    def event(self, sub: str, cursor: str, entry: Entry) -> bytes:
        """One event."""

    @abstractmethod
    def message(self, message: dict[str, Any], cursor: str) -> bytes:
        """What the gateway itself has to say, as the JSON object it is on WebSocket."""

    @abstractmethod
    def at(self, cursor: str) -> bytes:
        """Nothing but a new place: everything up to it has been told."""

    @abstractmethod
    def join(self, parts: list[bytes]) -> bytes:
        """The messages as one write."""

    @abstractmethod
    def farewell(self, code: int, reason: str, after_ms: int, cursor: str) -> bytes:
        """What a client is told before its stream ends with this close code; may be nothing."""

    def leave(self, sub: str, cursor: str, subject: str) -> bytes:
        return self.message({"op": "leave", "sub": sub, "cursor": cursor, "subject": subject}, cursor)

    def live(self, sub: str, cursor: str) -> bytes:
        return self.message({"op": "live", "sub": sub, "cursor": cursor}, cursor)

    def gap(self, sub: str, lost_from: str | None, to: str, reason: str) -> bytes:
        return self.message({"op": "gap", "sub": sub, "from": lost_from, "to": to, "reason": reason}, to)


def frame(payload: bytes) -> bytes:
    """One unmasked, final text frame (RFC 6455, section 5.2), as a server sends it."""
    size = len(payload)
    if size < 126:
        return b"\x81" + size.to_bytes(1, "big") + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


class _Json(Wire):
    """WebSocket messages as JSON text, each ended the way the subclass ends a message."""

    transport = "websocket"

    @abstractmethod
    def _end(self, payload: bytes) -> bytes: ...

    def event(self, sub: str, cursor: str, entry: Entry) -> bytes:
        return self._end(
            b'{"op":"event","sub":"%b","cursor":"%b","event":%b}'
            % (sub.encode(), cursor.encode(), entry.json)
        )

    def message(self, message: dict[str, Any], cursor: str) -> bytes:  # noqa: ARG002 - it stands in the message
        return self._end(orjson.dumps(message))

    def at(self, cursor: str) -> bytes:
        return self._end(b'{"op":"at","cursor":"%b"}' % cursor.encode())

    def join(self, parts: list[bytes]) -> bytes:
        return b"".join(parts) if len(parts) > 1 else parts[0]

    def farewell(self, code: int, reason: str, after_ms: int, cursor: str) -> bytes:  # noqa: ARG002 - in the close
        return self.message({"op": "reconnect", "after_ms": after_ms}, cursor) if code == RESTART else b""


class Frames(_Json):
    """WebSocket frames, ready for the socket."""

    def _end(self, payload: bytes) -> bytes:
        return frame(payload)


class Lines(_Json):
    """WebSocket messages, one a line, for a server that frames them itself. JSON has no bare newline."""

    def _end(self, payload: bytes) -> bytes:
        return payload + b"\n"


class Blocks(Wire):
    """Server-Sent Events (WHATWG HTML, 9.2.5). Values are JSON or cursors, so no field holds a newline."""

    transport = "sse"

    def event(self, sub: str, cursor: str, entry: Entry) -> bytes:  # noqa: ARG002 - one subscription a stream
        if entry.cursor is not cursor:  # within a snapshot the place is another than the entry's own
            return b"id: %b\ndata: %b\n\n" % (cursor.encode(), entry.json)
        if entry.sse is None:
            entry.sse = b"id: %b\ndata: %b\n\n" % (cursor.encode(), entry.json)
        return entry.sse

    def message(self, message: dict[str, Any], cursor: str) -> bytes:
        op = message["op"].encode()
        return b"%bevent: %b\ndata: %b\n\n" % (_id_field(cursor), op, orjson.dumps(message))

    def at(self, cursor: str) -> bytes:
        return self.join([b"id: %b\n\n" % cursor.encode()])

    def join(self, parts: list[bytes]) -> bytes:
        return b"".join(parts)

    def farewell(self, code: int, reason: str, after_ms: int, cursor: str) -> bytes:
        close = {"op": "close", "code": code, "reason": reason}
        block = b"retry: %d\n%bevent: close\ndata: %b\n\n"
        return self.join([block % (after_ms, _id_field(cursor), orjson.dumps(close))])


def _id_field(cursor: str) -> bytes:
    """An empty id would make a client forget the place that it has."""
    return b"id: %b\n" % cursor.encode() if cursor else b""


class Chunks(Blocks):
    """Server-Sent Events in one chunk of HTTP/1.1 a write (RFC 9112, section 7.1), ready for the socket."""

    end = b"0\r\n\r\n"

    def join(self, parts: list[bytes]) -> bytes:
        return chunk(b"".join(parts))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
