"""`POST /events`: one event, a batch, CloudEvents binary mode, or a stream of lines."""

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import orjson
from starlette.responses import Response

from gateway.errors import GatewayError, Problem, pointer
from gateway.event import Event, make_event
from gateway.http import Call, limit_rate
from gateway.idempotency import Perform, Slip, idempotent, respond
from gateway.jsontext import is_suspect, parse
from gateway.log import Appended, LogUnavailableError, Reply

INGEST = "http"
_EVENT_TYPES = ("application/json", "application/cloudevents+json")
_BATCH_TYPE = "application/cloudevents-batch+json"
NDJSON = "application/x-ndjson"
_GROUP, _GROUP_BYTES = 1024, 512 << 10  # lines appended at once; parsed, they weigh up to 20 times as much
_NOTHING = Appended(0, 0, 0)  # the log stores what it did in its place
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')  # RFC 7230, section 3.2.6
_ESCAPED = re.compile(r"\\(.)")
_LISTED_IDS = 1000  # ids told of a stream: its answer is bounded too


async def publish(call: Call) -> Response:
    """The handler of the path."""
    await limit_rate(call)
    if b"idempotency-key" not in call.headers and call.media_type == NDJSON:
        return await _publish_lines(call)
    return await _publish_whole(call)


async def _prepare(call: Call, body: bytes) -> Perform:
    try:
        events = _events(call, body)
    except GatewayError as error:
        if "line" in error.members:  # counted where the line was read
            raise _with_appended(call, error, error.members["line"], _NOTHING) from None
        call.node.intake.count_invalid(INGEST)
        raise
    call.node.intake.authorize(INGEST, events, call.principal)

    async def perform(slip: Slip) -> Reply:
        ids = [event.id for event in events]
        remember = slip.remember(_reply(ids, _NOTHING)) if slip.wanted else None
        return _reply(ids, await call.node.intake.append(INGEST, events, remember=remember))

    return perform


_publish_whole = idempotent(_prepare)


def _reply(ids: list[str], appended: Appended) -> Reply:
    body = orjson.dumps({"ids": ids} if len(ids) <= _LISTED_IDS else {})
    return Reply(202, {"Content-Type": "application/json"}, body, appended)


def _events(call: Call, body: bytes) -> list[Event]:
    intake, media_type = call.node.intake, call.media_type
    headers = call.headers
    if media_type == NDJSON:
        return _parse_lines(call, body)
    if media_type == _BATCH_TYPE:
        return intake.events(_array(parse(body)))
    if media_type == "application/cloudevents+json" or (
        media_type == "application/json" and b"ce-type" not in headers and b"ce-specversion" not in headers
    ):
        if media_type == "application/json" and body.lstrip()[:1] == b"[":
            return intake.events(_array(parse(body)))
        return [intake.event(body)]
    if any(name.startswith(b"ce-") for name in headers):
        return [_binary_event(call, media_type, body)]
    accepted = ", ".join((*_EVENT_TYPES, _BATCH_TYPE, NDJSON))
    raise GatewayError(
        "unsupported_media_type", f"the content type must be one of {accepted}, or ce- headers"
    )


def _array(value: Any) -> list[Any]:
    if type(value) is not list:
        raise GatewayError(
            "invalid_event", "a batch is a JSON array of events", errors=[Problem("#", "not an array")]
        )
    return value


def _binary_event(call: Call, media_type: str, body: bytes) -> Event:
    """CloudEvents HTTP binding 1.0.2, section 3.1: attributes in headers, percent-encoded, data as the body."""
    value: dict[str, Any] = {}
    for name, text in call.request.headers.items():
        if name.startswith("ce-"):
            if name[3:] in value:
                raise _bad_header(name[3:], f"the header {name} was sent twice")
            value[name[3:]] = _decode_header(name, text)
    own = next((name for name in ("data", "data_base64", "datacontenttype") if name in value), None)
    if own is not None:
        raise _bad_header(own, "data and its type are the body and Content-Type, no ce- headers")
    if media_type and media_type != "application/json":
        value["datacontenttype"] = call.request.headers["content-type"]
    if body:
        value.update(_binary_data(media_type, body))
    return make_event(value, call.node.intake.defaults, max_bytes=call.node.intake.sizes.event_bytes)


def _decode_header(name: str, text: str) -> str:
    """Section 3.1.3.2: a quoted value is unescaped first, and then percent-decoded."""
    if _QUOTED.fullmatch(text):
        text = _ESCAPED.sub(r"\1", text[1:-1])
    try:
        return unquote(text.encode("latin-1").decode(), errors="strict")
    except UnicodeDecodeError:
        raise _bad_header(name[3:], f"the header {name} is not percent-encoded UTF-8") from None


def _bad_header(attribute: str, detail: str) -> GatewayError:
    """The fault of a ce- header stands where its attribute stands in the event."""
    return GatewayError("invalid_event", detail, errors=[Problem(pointer(attribute), detail)])


def _binary_data(media_type: str, body: bytes) -> dict[str, Any]:
    if not media_type or media_type == "application/json" or media_type.endswith("+json"):
        return {"data": parse(body, what="the data")}
    if media_type.startswith("text/"):
        try:
            return {"data": body.decode()}
        except UnicodeDecodeError:
            raise GatewayError("invalid_event", "the body is not UTF-8") from None
    return {"data_base64": base64.b64encode(body).decode()}


# Lines


class _Lines:
    """A stream of lines on its way into the log: parses a group while the one before is being written."""

    def __init__(self, call: Call) -> None:
        self.number = 0  # of the last line read, from 1
        self.ids: list[str] = []
        self._call = call
        self._group: list[Event] = []
        self._size = 0  # bytes of the group
        self._writing: asyncio.Future[Appended] | None = None
        self._done = Appended(0, 0, 0)

    async def take(self, lines: Sequence[bytes]) -> None:
        """Raises GatewayError with the number of the line that is wrong; those before it are taken."""
        suspect = is_suspect(b"\n".join(lines))
        for line in lines:
            self.number += 1
            event = _parse_line(self._call, line, self.number, suspect=suspect)
            if event is None:
                continue
            self._group.append(event)
            self._size += len(event.json)
            if len(self.ids) <= _LISTED_IDS:
                self.ids.append(event.id)
            if len(self._group) >= _GROUP or self._size >= _GROUP_BYTES:
                await self.flush()
        if len(self._group) >= _GROUP // 2:  # worth a commit, and who knows when the next chunk comes
            await self.flush()

    async def flush(self) -> None:
        """Hands the group to the log, after the one before is in it."""
        await self._written()
        if self._group:
            group, self._group, self._size = self._group, [], 0
            self._writing = asyncio.ensure_future(self._call.node.intake.append(INGEST, group))

    async def finish(self) -> Appended:
        """Everything taken is durable. `offset` is the highest place, 0 where nothing came."""
        await self.flush()
        await self._written()
        return self._done

    async def _written(self) -> None:
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        more, done = await writing, self._done
        self._done = Appended(
            done.accepted + more.accepted, done.duplicates + more.duplicates, max(done.offset, more.offset)
        )


async def _publish_lines(call: Call) -> Response:
    lines = _Lines(call)
    try:
        async for each in _split_lines(call):
            await lines.take(each)
    except GatewayError as error:
        raise await _with_progress(call, lines, error) from None
    return respond(call.node, _reply(lines.ids, _placed(call, await lines.finish())))


def _placed(call: Call, appended: Appended) -> Appended:
    """With the head as its place where nothing came."""
    return appended if appended.offset else replace(appended, offset=call.node.hub.position)


async def _with_progress(call: Call, lines: _Lines, error: GatewayError) -> GatewayError:
    """The error with the line it is about and what was accepted before it."""
    try:
        appended = await lines.finish()
    except LogUnavailableError:
        return error
    return _with_appended(call, error, error.members.get("line", lines.number + 1), appended)


def _with_appended(call: Call, error: GatewayError, line: int, appended: Appended) -> GatewayError:
    """The error of a line, with what was accepted before it."""
    appended = _placed(call, appended)
    members = {
        "line": line,
        "accepted": appended.accepted,
        "duplicates": appended.duplicates,
        "cursor": call.node.cursors.encode(call.log.epoch, appended.offset),
    }
    return GatewayError(
        error.code,
        error.detail,
        errors=error.errors,
        members=members,
        headers=error.headers,
        status=error.status,
    )


async def _split_lines(call: Call) -> AsyncIterator[Sequence[bytes]]:
    """The lines as they come, those of a chunk at once. A last one without an end counts; one that is far too
    long ends the reading."""
    limit = call.node.intake.sizes.event_bytes
    rest = b""
    async for chunk in call.chunks():
        *lines, rest = (rest + chunk).split(b"\n")
        yield lines
        if len(rest) > limit + 1:  # a carriage return may follow
            break
    if rest:
        yield [rest]


def _parse_line(call: Call, line: bytes, number: int, *, suspect: bool = True) -> Event | None:
    """The event of a line, None for a blank one; `suspect` as in `parse`. Raises GatewayError with the line's number."""
    intake = call.node.intake
    line = line.removesuffix(b"\r")
    if len(line) > intake.sizes.event_bytes:
        intake.count_invalid(INGEST)
        raise GatewayError(
            "too_large",
            f"line {number}: more than {intake.sizes.event_bytes} bytes",
            members={"line": number},
        )
    if not line.strip(b" \t\r"):
        return None
    try:
        value = parse(line, what="the line", suspect=suspect)
        event = make_event(value, intake.defaults, max_bytes=intake.sizes.event_bytes)
    except GatewayError as error:
        intake.count_invalid(INGEST)
        raise _at_line(error, number) from None
    if not call.principal.open:
        try:
            intake.authorize(INGEST, [event], call.principal)
        except GatewayError as error:
            raise _at_line(error, number) from None
    return event


def _at_line(error: GatewayError, number: int) -> GatewayError:
    code = "invalid_event" if error.code == "bad_json" else error.code
    return GatewayError(code, f"line {number}: {error.detail}", errors=error.errors, members={"line": number})


def _parse_lines(call: Call, body: bytes) -> list[Event]:
    lines = (_parse_line(call, line, number) for number, line in enumerate(body.split(b"\n"), 1))
    return [event for event in lines if event is not None]
