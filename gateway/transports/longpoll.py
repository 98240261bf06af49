"""`GET /events` as long poll: one answer as soon as there is something to tell."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.responses import Response

from gateway.connections import Poll
from gateway.errors import invalid_token
from gateway.http import Call, JsonResponse
from gateway.hub import Channel
from gateway.reader import PAGE, Reader, Told
from gateway.since import Lost, Start, resolve
from gateway.transports.query import Query
from gateway.wire import Wire

_SCAN = 20_000  # entries looked at for one answer without wait


class _Signal(Wire):
    """No bytes at all: the poll is woken and reads the log from its cursor."""

    transport = "longpoll"

    def event(self, *_: object) -> bytes:
        return b""

    def message(self, *_: object) -> bytes:
        return b""

    def at(self, *_: object) -> bytes:
        return b""

    def join(self, *_: object) -> bytes:
        return b""

    def farewell(self, *_: object) -> bytes:
        return b""


_SIGNAL = _Signal()


@dataclass(eq=False, slots=True)
class _Waiter:
    """A poll's place on a lane, woken by the first write."""

    event: asyncio.Event

    def broken(self, error: Exception) -> None:
        raise error  # setting an event cannot fail

    def scattered(self) -> None:
        self.event.set()

    def wake(self, _data: bytes) -> None:
        self.event.set()


async def poll(call: Call, query: Query) -> Response:
    """The handler's part for `Accept: application/json`."""
    node = call.node
    filter_ = call.principal.restrict(query.filter)
    async with node.connections.poll(call.principal) as running:
        channel = node.hub.open(filter_, latest=query.latest, leave=query.leave)
        try:
            answer = await _Poll(call, query, channel, running).answer()
            if running.revoked:
                raise invalid_token("the token was revoked")
            return JsonResponse(answer, headers={"Cache-Control": "no-store"})
        finally:
            node.hub.release(channel)


class _Poll:
    """One call: reads from its cursor on, and waits on the channel's lane where there is nothing."""

    def __init__(self, call: Call, query: Query, channel: Channel, running: Poll) -> None:
        self._request = call.request
        self._running = running
        self._node = call.node
        self._query = query
        self._channel = channel
        self._woken = False  # by a live message

    async def answer(self) -> dict[str, Any]:
        """Comes with the first messages, with a gap, after `wait` seconds, or when the gateway drains."""
        node = self._node
        start = await self._start()
        reader = Reader.begin(node.log, node.hub, self._channel, start, node.streams.index)
        deadline = _now() + min(self._query.wait, self._token_left())
        scanned = 0
        while True:
            batch = await reader.read(node.hub.position)
            if batch.lost is not None:
                return self._gap(batch.lost)
            if batch.told:
                return self._messages(batch.told, reader)
            scanned += PAGE
            if reader.snapshot is None and reader.offset >= node.hub.position:
                if not await self._wait(reader, deadline):
                    return self._body([], reader.place)
            elif _now() >= deadline and scanned > _SCAN:
                return self._body([], reader.place)
            await asyncio.sleep(0)  # pages from memory shall not keep the loop from the others

    def _token_left(self) -> float:
        """Seconds until the token expires: what comes then is not for it any more."""
        expires = self._running.principal.expires
        return float("inf") if expires is None else expires - time.time()

    async def _start(self) -> Start:
        node = self._node
        if self._query.since == "live":
            return Start(node.hub.position, "")
        return await resolve(self._query.since, node.log, node.cursors, node.hub.position)

    def _messages(self, told: Sequence[Told], reader: Reader) -> dict[str, Any]:
        taken = told[: self._query.limit]
        self._count(taken)
        entries = [self._entry(each, reader.epoch) for each in taken]
        whole = len(taken) == len(told)
        return self._body(entries, reader.place if whole else entries[-1]["cursor"])

    def _count(self, taken: Sequence[Told]) -> None:
        metrics = self._node.metrics
        if self._woken:
            metrics.flushed(_SIGNAL.transport, [each.entry.accepted for each in taken], 1)
        else:
            metrics.delivered.labels(_SIGNAL.transport).inc(len(taken))

    def _entry(self, each: Told, epoch: str) -> dict[str, Any]:
        entry = each.entry
        cursor = self._node.cursors.encode(epoch, entry.offset, each.snapshot)
        if each.left:
            return {"cursor": cursor, "leave": entry.subject}
        return {"cursor": cursor, "event": orjson.Fragment(entry.json)}

    def _gap(self, lost: Lost) -> dict[str, Any]:
        self._node.metrics.gaps.labels(lost.reason).inc()
        to = self._node.hub.cursor_of(lost.to)
        return self._body([], to, {"from": lost.lost_from, "to": to, "reason": lost.reason})

    def _body(
        self, entries: list[dict[str, Any]], cursor: str, gap: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return {"events": entries, "cursor": cursor, "gap": gap}

    async def _wait(self, reader: Reader, deadline: float) -> bool:
        """Waits for a message of the channel. False when it is time to answer with none."""
        waiter = _Waiter(asyncio.Event())
        lane = self._node.hub.lane(self._channel, _SIGNAL)
        lane.join(waiter, waiter.wake)
        tasks = [
            asyncio.ensure_future(each)
            for each in (self._gone(), waiter.event.wait(), self._running.over.wait())
        ]
        try:
            await asyncio.wait(tasks, timeout=deadline - _now(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            position = lane.leave(waiter)
            for task in tasks:
                task.cancel()
        self._woken = waiter.event.is_set()
        if self._woken:
            return True
        reader.offset = max(reader.offset, position)  # what came meanwhile concerns this channel not
        return False

    async def _gone(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass


def _now() -> float:
    return asyncio.get_running_loop().time()
