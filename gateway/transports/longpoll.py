"""`GET /events` as long poll: one answer as soon as there is something to tell."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

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

    def wake(self, _data: bytes) -> None:
        self.event.set()


async def poll(call: Call, query: Query) -> Response:
    """The handler's part for `Accept: application/json`."""
    node = call.node
    filter_ = call.principal.restrict(query.filter)
    with node.connections.poll(call.principal):
        channel = node.hub.open(filter_, latest=query.latest, leave=query.leave)
        try:
            return JsonResponse(
                await _Poll(call, query, channel).answer(), headers={"Cache-Control": "no-store"}
            )
        finally:
            node.hub.release(channel)


class _Poll:
    """One call: reads from its cursor on, and waits on the channel's lane where there is nothing."""

    def __init__(self, call: Call, query: Query, channel: Channel) -> None:
        self._request = call.request
        self._node = call.node
        self._query = query
        self._channel = channel

    async def answer(self) -> dict[str, Any]:
        """Comes with the first messages, with a gap, after `wait` seconds, or when the gateway drains."""
        node = self._node
        start = await self._start()
        reader = Reader.begin(node.log, node.hub, self._channel, start, node.streams.index)
        deadline = asyncio.get_running_loop().time() + self._query.wait
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
                    return self._body([], self._place(reader))
            elif _now() >= deadline and scanned > _SCAN:
                return self._body([], self._place(reader))
            await asyncio.sleep(0)  # pages from memory shall not keep the loop from the others

    async def _start(self) -> Start:
        node = self._node
        if self._query.since == "live":
            return Start(node.hub.position, "")
        return await resolve(self._query.since, node.log, node.cursors, node.hub.position)

    def _messages(self, told: Sequence[Told], reader: Reader) -> dict[str, Any]:
        entries = [self._entry(each) for each in told[: self._query.limit]]
        whole = len(told) <= self._query.limit
        return self._body(entries, self._place(reader) if whole else entries[-1]["cursor"])

    def _entry(self, each: Told) -> dict[str, Any]:
        entry = each.entry
        cursor = self._node.cursors.encode(self._node.log.epoch, entry.offset, each.snapshot)
        if each.left:
            return {"cursor": cursor, "leave": entry.subject}
        return {"cursor": cursor, "event": entry.body}

    def _gap(self, lost: Lost) -> dict[str, Any]:
        self._node.metrics.gaps.labels(lost.reason).inc()
        to = self._node.hub.cursor_of(lost.to)
        return self._body([], to, {"from": lost.lost_from, "to": to, "reason": lost.reason})

    def _place(self, reader: Reader) -> str:
        return self._node.cursors.encode(self._node.log.epoch, reader.offset, reader.snapshot)

    def _body(
        self, entries: list[dict[str, Any]], cursor: str, gap: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        self._node.metrics.delivered.labels("longpoll").inc(len(entries))
        return {"events": entries, "cursor": cursor, "gap": gap}

    async def _wait(self, reader: Reader, deadline: float) -> bool:
        """Waits for a message of the channel. False when it is time to answer with none."""
        waiter = _Waiter(asyncio.Event())
        lane = self._node.hub.lane(self._channel, _SIGNAL)
        lane.join(waiter, waiter.wake)
        drain = self._node.connections.drain_began
        tasks = [asyncio.ensure_future(each) for each in (self._gone(), waiter.event.wait(), drain.wait())]
        try:
            await asyncio.wait(tasks, timeout=deadline - _now(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            position = lane.leave(waiter)
            for task in tasks:
                task.cancel()
        if waiter.event.is_set():
            return True
        reader.offset = max(reader.offset, position)  # what came meanwhile concerns this channel not
        return False

    async def _gone(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass


def _now() -> float:
    return asyncio.get_running_loop().time()
