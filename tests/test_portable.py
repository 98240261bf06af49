"""The portable path: a buffer of bounded size between the flush and ASGI's `send`, and streams over it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from gateway.connection import Connection
from gateway.protocols import HIGH_WATER, LOW_WATER
from gateway.transports.portable import PortableSocket
from gateway.wire import Lines
from tests.support.app import Exchange, InProcess, in_process
from tests.support.waiting import until


@pytest.fixture
async def app() -> AsyncIterator[InProcess]:
    async with in_process(flush_ms=0) as running:
        yield running


async def take(socket: PortableSocket, chunks: AsyncIterator[bytes], count: int) -> list[bytes]:
    return [await anext(chunks) for _ in range(count)]


async def test_what_is_written_comes_out_in_order() -> None:
    """Each write as it was."""
    socket = PortableSocket()
    chunks = socket.chunks()
    for part in (b"a", b"b", b"c"):
        socket.write(part)
    assert await take(socket, chunks, 3) == [b"a", b"b", b"c"]
    waiting = asyncio.ensure_future(anext(chunks))
    await asyncio.sleep(0)
    socket.write(b"d")
    assert await waiting == b"d"


async def test_a_full_buffer_is_a_paused_socket(app: InProcess) -> None:
    """Above the high mark its connection falls behind; it flows again when little is left."""
    socket = PortableSocket()
    connection = Connection(app.node.streams, socket, Lines(), None)
    socket.watch(connection)
    channel = app.node.hub.open(None)
    subscription = connection.open(channel)
    await connection.start(subscription, "live", lambda _start: None)
    chunks = socket.chunks()
    piece = b"x" * LOW_WATER
    for _ in range(HIGH_WATER // LOW_WATER):
        socket.write(piece)
    assert (socket.paused, subscription.live) == (False, True)
    socket.write(b"x")
    assert (socket.paused, subscription.live) == (True, False)
    flowing = asyncio.ensure_future(socket.drained())
    await take(socket, chunks, 3)
    await asyncio.sleep(0)
    assert not flowing.done()
    await take(socket, chunks, 2)
    await flowing
    assert not socket.paused
    await until(lambda: subscription.live)
    connection.finished()


async def test_a_close_lets_out_what_was_written_before() -> None:
    """And takes nothing after; who waits for room is let go; the first close counts."""
    socket = PortableSocket()
    socket.write(b"x" * (HIGH_WATER + 1))
    socket.close(1012, "service restart")
    socket.close(4200, "late")
    socket.write(b"y")
    await socket.drained()
    assert [each async for each in socket.chunks()] == [b"x" * (HIGH_WATER + 1)]
    assert (socket.close_code, socket.close_reason) == (1012, "service restart")


async def test_an_abort_ends_it_at_once() -> None:
    """What waits is lost."""
    socket = PortableSocket()
    socket.write(b"x")
    socket.abort()
    assert [each async for each in socket.chunks()] == []
    assert socket.aborted.is_set()


# Server-Sent Events through ASGI alone


def blocks(text: str) -> list[dict[str, str]]:
    return [
        dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        for block in text.split("\n\n")
        if block
    ]


async def test_a_stream_of_events(app: InProcess) -> None:
    """The first block carries the place; then events, unnamed, with their ids."""
    async with Exchange(app.gateway, "/events", query="type=a") as stream:
        await stream.until("\n\n")
        await app.publish({"type": "a", "id": "1"}, {"type": "b"}, {"type": "a", "id": "2"})
        text = await stream.until('"id":"2"')
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert (stream.headers["cache-control"], stream.headers["x-accel-buffering"]) == ("no-store", "no")
    first, *events = blocks(text)
    epoch = app.node.log.epoch
    assert (first["id"], "data" in first) == (f"{epoch}.0", False)
    assert 1000 <= int(first["retry"]) <= 5000
    assert [each["id"] for each in events] == [f"{epoch}.1", f"{epoch}.3"]
    assert all("event" not in each for each in events)
    assert [orjson.loads(each["data"])["id"] for each in events] == ["1", "2"]


async def test_a_stream_goes_on_where_it_was_cut(app: InProcess) -> None:
    """By its last id: what came after it, then `live`."""
    await app.publish(*({"type": "a"} for _ in range(5)))
    place = f"{app.node.log.epoch}.3"
    async with Exchange(app.gateway, "/events", headers={"last-event-id": place}) as stream:
        text = await stream.until("event: live")
    assert [each["id"].partition(".")[2] for each in blocks(text)] == ["3", "4", "5", "5"]


async def test_a_malformed_last_id_is_a_gap_and_no_error(app: InProcess) -> None:
    """An EventSource would else never come back."""
    await app.publish({"type": "a"})
    async with Exchange(app.gateway, "/events", headers={"last-event-id": "nonsense"}) as stream:
        text = await stream.until("event: live")
    gap = next(each for each in blocks(text) if each.get("event") == "gap")
    told: Any = orjson.loads(gap["data"])
    assert (told["from"], told["to"], told["reason"]) == (None, f"{app.node.log.epoch}.1", "epoch")


async def test_a_client_that_is_gone_leaves_nothing(app: InProcess) -> None:
    """Neither its channel nor its place among the connections."""
    async with Exchange(app.gateway, "/events") as stream:
        await stream.until("\n\n")
        assert len(app.node.connections) == 1
    assert len(app.node.connections) == 0
    assert app.node.hub.channels == {}


async def test_at_the_limit_a_stream_is_told_to_come_back() -> None:
    """200 with `retry` and `close`, since any other status would be for good."""
    async with in_process(max_connections=1) as app, Exchange(app.gateway, "/events") as first:
        await first.until("\n\n")
        async with Exchange(app.gateway, "/events") as second:
            await second.done()
        assert second.status == 200
        [close] = blocks(second.text)
        assert (close["event"], orjson.loads(close["data"])["code"]) == ("close", 4101)
        assert int(close["retry"]) >= 1000


async def test_a_drain_ends_a_stream_in_order(app: InProcess) -> None:
    """`retry`, `close` with 1012 and the place, and the end."""
    async with Exchange(app.gateway, "/events") as stream:
        await stream.until("\n\n")
        await app.publish({"type": "a"})
        await stream.until("data: ")
        await app.node.connections.drain(0)
        await stream.done()
    close = blocks(stream.text)[-1]
    assert (close["event"], close["id"]) == ("close", f"{app.node.log.epoch}.1")
    assert orjson.loads(close["data"])["code"] == 1012
    assert stream.sent[-1].get("more_body", False) is False


async def test_a_head_of_a_stream_has_no_end_to_wait_for(app: InProcess) -> None:
    """Its headers, and no connection."""
    async with Exchange(app.gateway, "/events", method="HEAD") as stream:
        await stream.done()
    assert (stream.status, stream.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    assert app.node.connections.draining is False
    assert app.node.hub.channels == {}


# A WebSocket through ASGI alone


class Talk(Exchange):
    """A WebSocket driven by hand."""

    def say(self, message: Any) -> None:
        self.give({"type": "websocket.receive", "text": orjson.dumps(message).decode()})

    @property
    def told(self) -> list[Any]:
        return [orjson.loads(each["text"]) for each in self.sent if each["type"] == "websocket.send"]

    async def hears(self, op: str) -> Any:
        await until(lambda: any(each["op"] == op for each in self.told))
        return next(each for each in self.told if each["op"] == op)


async def test_a_websocket(app: InProcess) -> None:
    """Hello, subscribe, events, each a text message; and nothing is left of it."""
    async with Talk(app.gateway, "/ws", kind="websocket", subprotocols=["gateway.v1"]) as talk:
        talk.give({"type": "websocket.connect"})
        hello = await talk.hears("hello")
        assert talk.sent[0]["subprotocol"] == "gateway.v1"
        assert hello["connection"]
        talk.say({"op": "subscribe", "id": "1", "filter": {"exact": {"type": "a"}}})
        subscribed = await talk.hears("subscribed")
        assert (subscribed["id"], subscribed["cursor"]) == ("1", f"{app.node.log.epoch}.0")
        await app.publish({"type": "b"}, {"type": "a", "id": "1"})
        event = await talk.hears("event")
        assert (event["sub"], event["cursor"], event["event"]["id"]) == (
            subscribed["sub"], f"{app.node.log.epoch}.2", "1",
        )  # fmt: skip
    assert len(app.node.connections) == 0
    assert app.node.hub.channels == {}


async def test_a_websocket_is_closed_with_its_code(app: InProcess) -> None:
    """What was said before comes first."""
    async with Talk(app.gateway, "/ws", kind="websocket") as talk:
        talk.give({"type": "websocket.connect"})
        await talk.hears("hello")
        await app.node.connections.drain(0)
        await until(lambda: talk.sent[-1]["type"] == "websocket.close")
    assert talk.told[-1]["op"] == "reconnect"
    assert (talk.sent[-1]["code"], talk.sent[-1]["reason"]) == (1012, "service restart")
