"""The plain way of doing it, which the gateway is measured against: a queue and a task per client.

Starlette on stock uvicorn; `send_text` per client for WebSocket, sse-starlette's
`EventSourceResponse` per client for Server-Sent Events. No log, no filters, no resume.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

sockets: set[asyncio.Queue[str]] = set()
streams: set[asyncio.Queue[tuple[str, str]]] = set()


async def publish(request: Request) -> Response:
    """Takes one event and answers 202 when it is in every client's queue."""
    body = await request.body()
    event = orjson.loads(body)
    text = body.decode()
    if sockets:
        message = f'{{"op":"event","sub":"1","event":{text}}}'
        for queue in sockets:
            queue.put_nowait(message)
    for stream in streams:
        stream.put_nowait((event["id"], text))
    return Response(status_code=202)


async def websocket(socket: WebSocket) -> None:
    """After the client's `subscribe`, sends it every event until it goes."""
    await socket.accept()
    request: dict[str, Any] = await socket.receive_json()
    queue: asyncio.Queue[str] = asyncio.Queue()
    sockets.add(queue)
    await socket.send_json({"op": "subscribed", "id": request["id"], "sub": "1"})
    sender = asyncio.create_task(_send_events(socket, queue))
    try:
        while True:
            await socket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        sockets.discard(queue)
        sender.cancel()


async def _send_events(socket: WebSocket, queue: asyncio.Queue[str]) -> None:
    while True:
        await socket.send_text(await queue.get())


async def stream(_request: Request) -> Response:
    """A stream of every event from now on."""
    queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    streams.add(queue)
    return EventSourceResponse(_event_blocks(queue))


async def _event_blocks(queue: asyncio.Queue[tuple[str, str]]) -> AsyncIterator[ServerSentEvent]:
    try:
        while True:
            event_id, text = await queue.get()
            yield ServerSentEvent(text, id=event_id)
    finally:
        streams.discard(queue)


app = Starlette(
    routes=[
        Route("/events", publish, methods=["POST"]),
        Route("/events", stream, methods=["GET"]),
        WebSocketRoute("/ws", websocket),
    ]
)
