"""Dead letters over HTTP, for admins: to look at, to redrive, to delete. `Intake.bury` puts them aside.

A redriven letter is appended first and deleted then. Where the gateway dies in between it stays, and redriving it
again appends nothing: the same letter gives events of the same ids.
"""

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from starlette.responses import Response

from gateway.errors import GatewayError, located
from gateway.event import Event, rfc3339
from gateway.http import Call, JsonResponse
from gateway.idempotency import Perform, Slip, idempotent, json_reply
from gateway.log import Appended, DeadLetter, Reply
from gateway.node import Node

_DEFAULT_LIMIT, _MAX_LIMIT = 100, 1000
_PAGE: Final = 100  # letters that a redrive reads at once
# Bytes of letters whose events are appended together: parsed, they weigh up to 20 times as much.
_GROUP_BYTES: Final = 512 << 10
# Letters of one redrive: as many as a log keeps, so that it ends even if others come as fast as they go.
_MOST: Final = 100_000
# The way in of a kind of letter, as metrics call it.
_INGESTS: Final = {"message": "pubsub", "entry": "streams"}


# Looking


async def index(call: Call) -> Response:
    """Letters by id, and `next`, after which there are more."""
    call.principal.require_admin()
    query = call.query("origin", "after", "limit")
    origin = query.get("origin") or None
    letters = await call.log.dead_letters(
        origin, after=query.get("after", ""), limit=call.limit(_DEFAULT_LIMIT, _MAX_LIMIT)
    )
    more = letters and await call.log.dead_letters(origin, after=letters[-1].id, limit=1)
    return JsonResponse({"deadLetters": [*map(_shown, letters)], "next": letters[-1].id if more else None})


async def show(call: Call) -> Response:
    call.principal.require_admin()
    return JsonResponse(_shown(await _find(call)))


async def _find(call: Call) -> DeadLetter:
    letter = await call.log.dead_letter(call.param("letter_id"))
    if letter is None:
        raise _unknown(call)
    return letter


def _unknown(call: Call) -> GatewayError:
    return GatewayError("not_found", f"there is no dead letter {call.param('letter_id')[:200]}")


def _shown(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "origin": letter.origin,
        "reason": letter.reason,
        "time": rfc3339(letter.time),
        "tries": letter.tries,
        **_payload(letter.payload),
    }


def _payload(payload: bytes) -> dict[str, str]:
    """As text where it is UTF-8, else as base64."""
    try:
        return {"payload": payload.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(payload).decode()}


# Deleting


async def delete(call: Call) -> Response:
    call.principal.require_admin()
    if not await call.log.unbury([call.param("letter_id")]):
        raise _unknown(call)
    return Response(status_code=204)


# Redriving one


async def _prepare_redrive(call: Call, body: bytes) -> Perform:
    call.principal.require_admin()
    _check_request(call, body)

    async def perform(slip: Slip) -> Reply:
        return await _redrive(call.node, await _find(call), slip)

    return perform


def _check_request(call: Call, body: bytes, *parameters: str) -> None:
    """Refuses what would not be looked at: it may have been meant to narrow what is redriven."""
    if body.strip() not in (b"", b"{}"):
        raise GatewayError("invalid_request", "this call takes no body")
    for name, value in call.request.query_params.multi_items():
        if name not in parameters:
            raise GatewayError("bad_request", f"the parameter {name[:200]} is unknown here")
        if not value or len(call.request.query_params.getlist(name)) > 1:
            raise GatewayError("bad_request", f"{name} is given once and not empty, or not at all")


async def _redrive(node: Node, letter: DeadLetter, slip: Slip) -> Reply:
    if letter.kind not in node.redrives:
        raise GatewayError("conflict", f"no way in of this gateway reads letters of the kind {letter.kind}")
    try:
        events = node.redrives[letter.kind](node.intake, letter)
    except GatewayError as error:
        await node.intake.put_back(_ingest(letter), [_tried(letter, error)])
        raise GatewayError("invalid_event", error.detail, errors=error.errors) from None
    reply = json_reply(200, {"ids": [event.id for event in events]})
    remember = slip.remember(replace(reply, appended=Appended(0, 0, 0)))
    appended = await node.intake.append(_ingest(letter), events, remember=remember)
    await node.log.unbury([letter.id])
    return replace(reply, appended=appended)


def _ingest(letter: DeadLetter) -> str:
    return _INGESTS.get(letter.kind, letter.kind)


def _tried(letter: DeadLetter, error: GatewayError) -> DeadLetter:
    return replace(letter, tries=letter.tries + 1, reason=located(error))


# Redriving many


async def _prepare_redrive_all(call: Call, body: bytes) -> Perform:
    call.principal.require_admin()
    _check_request(call, body, "origin")
    origin = call.request.query_params.get("origin")

    async def perform(_slip: Slip) -> Reply:
        letters = _Redrive(call.node)
        await letters.run(origin)
        return json_reply(200, letters.counts)  # stored after the effect, which is many transactions

    return perform


@dataclass(slots=True)
class _Group:
    """Letters of one way in that were read: those that are events now, and those that still are none."""

    events: list[Event] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    failed: list[DeadLetter] = field(default_factory=list)


class _Redrive:
    """All letters (of an origin) in one pass by id; what they have become is stored in groups of bounded size."""

    def __init__(self, node: Node) -> None:
        self.counts = {"redriven": 0, "failed": 0}
        self._node = node
        self._groups: dict[str, _Group] = {}  # by way in
        self._size = 0  # bytes of the letters in the groups

    async def run(self, origin: str | None) -> None:
        """Raises GatewayError `draining` with the counts so far: what is not done is there for the next call."""
        after, seen = "", 0
        while seen < _MOST and (letters := await self._page(origin, after)):
            after, seen = letters[-1].id, seen + len(letters)
            for letter in letters:
                self._read(letter)
                if self._size >= _GROUP_BYTES:
                    await self._store()
                await asyncio.sleep(0)  # a letter may be a large batch: others have their turn after each
            await self._store()

    async def _page(self, origin: str | None, after: str) -> Sequence[DeadLetter]:
        if self._node.connections.draining:
            raise GatewayError(
                "draining",
                "the gateway is about to restart: call again",
                members=dict(self.counts),
                headers={"Retry-After": "2"},
            )
        return await self._node.log.dead_letters(origin, after=after, limit=_PAGE)

    def _read(self, letter: DeadLetter) -> None:
        read = self._node.redrives.get(letter.kind)
        if read is None:
            self.counts["failed"] += 1
            return
        group = self._groups.setdefault(_ingest(letter), _Group())
        self._size += len(letter.payload)
        try:
            group.events += read(self._node.intake, letter)
            group.done.append(letter.id)
        except GatewayError as error:
            group.failed.append(_tried(letter, error))

    async def _store(self) -> None:
        groups, self._groups, self._size = self._groups, {}, 0
        for ingest, group in groups.items():
            if group.done:
                await self._node.intake.append(ingest, group.events)
                await self._node.log.unbury(group.done)
            if group.failed:
                await self._node.intake.put_back(ingest, group.failed)
            self.counts["redriven"] += len(group.done)
            self.counts["failed"] += len(group.failed)


redrive = idempotent(_prepare_redrive)
redrive_all = idempotent(_prepare_redrive_all)
