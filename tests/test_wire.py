"""Wires: each message as a client reads it."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from gateway.log import Entry
from gateway.wire import Blocks, Chunks, Frames, Lines, Wire, chunk, frame
from tests.support.core import History, body_of

SUB, CURSOR = "9f2c", "k3x.1043"


def entry_of(data: Any = None, cursor: str = CURSOR) -> Entry:
    entry = History().add(body_of(data=data))
    entry.cursor = cursor
    return entry


def frames_in(data: bytes) -> list[Any]:
    """The frames in a server's bytes, as a client's library reads them."""
    reader = StreamReader()
    reader.feed_data(data)
    found = []
    while reader.buffer:
        parsing = Frame.parse(reader.read_exact, mask=False, max_size=None)
        with pytest.raises(StopIteration) as done:
            next(parsing)
        found.append(done.value.value)
    return found


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_a_frame_is_one_whole_text_frame(size: int) -> None:
    """Final, unmasked, text, in the shortest form of its length, at all the borders of RFC 6455."""
    [parsed] = frames_in(frame(b"x" * size))
    assert (parsed.opcode, parsed.fin, bytes(parsed.data)) == (Opcode.TEXT, True, b"x" * size)
    assert len(frame(b"x" * size)) - size == (2 if size < 126 else 4 if size < 65536 else 10)


def messages(wire: Wire, data: bytes) -> list[Any]:
    if isinstance(wire, Frames):
        return [orjson.loads(bytes(each.data)) for each in frames_in(data)]
    return [orjson.loads(line) for line in data.splitlines()]


@pytest.mark.parametrize("wire", [Frames(), Lines()])
def test_websocket_messages(wire: Wire) -> None:
    """Each is one JSON object with its op, in order, however many are joined."""
    entry = entry_of({"text": "line\u2028separator\n"})
    parts = [
        wire.event(SUB, CURSOR, entry),
        wire.live(SUB, "k3x.1050"),
        wire.gap(SUB, None, "k3x.900", "epoch"),
        wire.leave(SUB, "k3x.1051", "o-1"),
        wire.at("k3x.2000"),
        wire.farewell(1012, "restart", 1830, CURSOR),
    ]
    assert messages(wire, wire.join(parts)) == [
        {"op": "event", "sub": SUB, "cursor": CURSOR, "event": entry.body},
        {"op": "live", "sub": SUB, "cursor": "k3x.1050"},
        {"op": "gap", "sub": SUB, "from": None, "to": "k3x.900", "reason": "epoch"},
        {"op": "leave", "sub": SUB, "cursor": "k3x.1051", "subject": "o-1"},
        {"op": "at", "cursor": "k3x.2000"},
        {"op": "reconnect", "after_ms": 1830},
    ]
    assert wire.farewell(4200, "token expired", 1830, CURSOR) == b""  # the close frame says it


def blocks_in(data: bytes) -> list[dict[str, str]]:
    """The fields of each block, split as the standard has it and not as Python splits lines."""
    assert data.endswith(b"\n\n")
    return [
        dict(line.split(": ", 1) for line in block.split("\n")) for block in data.decode()[:-2].split("\n\n")
    ]


def unchunked(data: bytes) -> bytes:
    size, _, rest = data.partition(b"\r\n")
    assert len(rest) == int(size, 16) + 2
    assert rest.endswith(b"\r\n")
    return rest[:-2]


@pytest.mark.parametrize("wire", [Blocks(), Chunks()])
def test_server_sent_events(wire: Wire) -> None:
    """Events are unnamed; what the gateway says is named, with the JSON of WebSocket as data; each has an id."""
    entry = entry_of({"text": "line\u2028separator\r\n\n"})
    raw = wire.join(
        [
            wire.event(SUB, CURSOR, entry),
            wire.live(SUB, "k3x.1050"),
            wire.gap(SUB, "k3x.12", "k3x.900", "evicted"),
            wire.leave(SUB, "k3x.1051", "o-1"),
        ]
    )
    event, live, gap, leave = blocks_in(unchunked(raw) if isinstance(wire, Chunks) else raw)
    assert set(event) == {"id", "data"}
    assert (event["id"], orjson.loads(event["data"])) == (CURSOR, entry.body)
    assert (live["id"], live["event"]) == ("k3x.1050", "live")
    assert (gap["id"], gap["event"]) == ("k3x.900", "gap")
    assert orjson.loads(gap["data"]) == {
        "op": "gap", "sub": SUB, "from": "k3x.12", "to": "k3x.900", "reason": "evicted",
    }  # fmt: skip
    assert (leave["id"], orjson.loads(leave["data"])["subject"]) == ("k3x.1051", "o-1")


@pytest.mark.parametrize("wire", [Blocks(), Chunks()])
def test_what_is_written_alone_is_ready_for_the_socket(wire: Wire) -> None:
    """A place, and the farewell with when to come back, the code and the place."""
    at, bye, turned_away = (
        wire.at(CURSOR),
        wire.farewell(4200, "token expired", 1830, CURSOR),
        wire.farewell(1012, "x", 5, ""),
    )
    if isinstance(wire, Chunks):
        at, bye, turned_away = unchunked(at), unchunked(bye), unchunked(turned_away)
    assert blocks_in(at) == [{"id": CURSOR}]
    [close] = blocks_in(bye)
    assert (close["retry"], close["id"], close["event"]) == ("1830", CURSOR, "close")
    assert orjson.loads(close["data"]) == {"op": "close", "code": 4200, "reason": "token expired"}
    assert "id" not in blocks_in(turned_away)[0]


def test_an_event_block_is_made_once() -> None:
    """All subscriptions of all filters share it, but for a snapshot, where the place is another."""
    entry, wire = entry_of(), Blocks()
    assert wire.event("a", entry.cursor, entry) is wire.event("b", entry.cursor, entry)
    assert blocks_in(wire.event("a", "k3x.1-9", entry))[0]["id"] == "k3x.1-9"
    assert blocks_in(wire.event("a", entry.cursor, entry))[0]["id"] == CURSOR


@settings(max_examples=100)
@given(st.binary(min_size=1, max_size=300))
def test_a_chunk_has_its_length_before_it(data: bytes) -> None:
    """As RFC 9112, section 7.1 has it."""
    assert unchunked(chunk(data)) == data


@settings(max_examples=200)
@given(st.text(st.characters(codec="utf-8")))
def test_no_text_of_an_event_breaks_out_of_its_line(text: str) -> None:
    """Whatever an order is called, a block stays a block and a line stays a line."""
    entry = entry_of(text)
    assert len(blocks_in(Blocks().event(SUB, CURSOR, entry))) == 1
    assert set(blocks_in(Blocks().leave(SUB, CURSOR, text))[0]) == {"id", "event", "data"}
    assert Lines().event(SUB, CURSOR, entry).count(b"\n") == 1
    assert not set(b"\r\n") & set(entry.json)
