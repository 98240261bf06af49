"""WebSockets on which a test says everything itself."""

from typing import Any

from tests.conformance.conftest import Stand
from tests.support.clients import WebSocketClient


async def talk(stand: Stand, *, connect: bool = True, **options: Any) -> WebSocketClient:
    """A WebSocket on which nothing is said yet."""
    client = stand.client("websocket", **options)
    assert isinstance(client, WebSocketClient)
    if connect:
        await client.connect()
    return client


async def is_served(client: WebSocketClient) -> bool:
    """Whether it is greeted and may subscribe."""
    first = await client.receive()
    if first["op"] == "error":
        return False
    await client.send(op="subscribe", id="1")
    answer = await client.receive()
    return bool(answer["op"] == "subscribed")
