"""Clients for the three ways to read a stream, with one interface, so that a test runs over each of them.

    client = WebSocketClient(url)
    async for message in client.open(filter={"exact": {"subject": "o-1"}}, since="earliest"):
        ...

The first message is the `place` where the stream starts. `client.cursor` is the place that a client would
resume from; `await client.cut()` ends the connection without a word.
"""

from typing import Final

from tests.support.client import DEADLINE, Client, Message, RefusedError
from tests.support.http_clients import LongPollClient, SseClient
from tests.support.websocket_client import WebSocketClient

__all__ = [
    "CLIENTS",
    "DEADLINE",
    "Client",
    "LongPollClient",
    "Message",
    "RefusedError",
    "SseClient",
    "WebSocketClient",
    "catch_up",
    "ids",
    "take",
    "take_until",
]

CLIENTS: Final[dict[str, type[Client]]] = {
    each.transport: each for each in (WebSocketClient, SseClient, LongPollClient)
}


async def catch_up(stream: Client) -> list[Message]:
    """What a stream tells about events until it is live."""
    told: list[Message] = []
    async for message in stream:
        if message.kind == "live":
            return told
        if message.is_content:
            told.append(message)
    raise AssertionError(f"the stream ended after {len(told)} messages, before it was live")


async def take(stream: Client, count: int) -> list[Message]:
    """The next `count` messages about events; whatever else comes is passed over."""
    told: list[Message] = []
    while len(told) < count:
        message = await anext(stream)
        if message.is_content:
            told.append(message)
    return told


async def take_until(stream: Client, event_id: str) -> list[Message]:
    """The messages about events up to and with the event of that id."""
    told: list[Message] = []
    while not told or told[-1].body.get("id") != event_id:
        told += await take(stream, 1)
    return told


def ids(messages: list[Message]) -> list[str]:
    """The ids of the events among them."""
    return [each.body["id"] for each in messages if each.kind == "event"]
