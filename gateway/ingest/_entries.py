"""Entries of a stream as events, and as dead letters where they are none."""

import base64
from collections.abc import Sequence
from typing import Any, Final

import orjson

from gateway.errors import GatewayError, Problem, located, pointer
from gateway.event import Event, derived_id, make_event, rfc3339
from gateway.ingest.messages import source_of
from gateway.intake import Intake
from gateway.jsontext import parse
from gateway.log import DeadLetter

KIND: Final = "entry"
_EVENT: Final = b"event"
_FIELDS: Final = {b"type": "type", b"subject": "subject", b"data": "data", b"id": "id"}

_LAST_MILLISECOND: Final = 253_402_300_799_999  # of the year 9999

Entry = tuple[str, Sequence[bytes]]  # its id, and its fields and values by turns


class _Filling:
    """What fills the missing attributes of an entry's event: all of it follows from the stream and the id.

    Made for each entry, and most need only some of it, so nothing is worked out before it is asked for.
    """

    __slots__ = ("_id", "_stream")

    def __init__(self, stream: str, id_: str) -> None:
        self._stream = stream
        self._id = id_

    @property
    def source(self) -> str:
        return source_of(self._stream)

    def new_id(self) -> str:
        return _derived_id(self._stream, self._id)

    def new_time(self) -> str:
        return rfc3339(_milliseconds(self._id) / 1000)


def event_of(intake: Intake, stream: str, entry: Entry) -> Event:
    """The event of an entry: the same entry has the same one, whoever reads it and however often.

    Raises GatewayError.
    """
    id_, fields = entry
    return make_event(_value(fields), _Filling(stream, id_), max_bytes=intake.sizes.event_bytes)


def _derived_id(stream: str, id_: str) -> str:
    return derived_id(_milliseconds(id_), f"{stream}\0{id_}".encode())


def _milliseconds(id_: str) -> int:
    """When the entry was added, as its id tells; ids may be chosen by hand, so within what a UUIDv7 can say."""
    return min(int(id_.partition("-")[0]), _LAST_MILLISECOND)


def _value(fields: Sequence[bytes]) -> Any:
    if len(fields) == 2 and fields[0] == _EVENT:
        return parse(fields[1])
    given = dict(zip(fields[::2], fields[1::2], strict=True))
    if len(given) * 2 != len(fields):
        raise _invalid("", "an entry has each field once")
    if _EVENT in given:
        raise _invalid("", "beside the field event there is no other")
    unknown = next((name for name in given if name not in _FIELDS), None)
    if unknown is not None:
        raise _invalid(
            unknown.decode(errors="replace"), "is unknown: an entry has event, or type, subject, data, id"
        )
    return {
        _FIELDS[name]: parse(value) if name == b"data" else _text(name, value)
        for name, value in given.items()
    }


def _text(name: bytes, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _invalid(name.decode(), "is not UTF-8") from None


def _invalid(name: str, detail: str) -> GatewayError:
    problem = Problem(pointer(name) if name else "#", detail)
    return GatewayError("invalid_event", f"{name}: {detail}" if name else detail, errors=[problem])


def letter_of(stream: str, entry: Entry, error: GatewayError, now: float) -> DeadLetter:
    """The dead letter of an entry that is no event: the same one, whoever reads it and however often."""
    id_, fields = entry
    payload = _payload(stream, id_, fields)
    return DeadLetter(_derived_id(stream, id_), f"redis:{stream}", KIND, located(error), now, 1, payload)


def _payload(stream: str, id_: str, fields: Sequence[bytes]) -> bytes:
    """The entry as JSON: its fields as text where all are UTF-8, else in base64."""
    try:
        content: dict[str, Any] = {"fields": [each.decode() for each in fields]}
    except UnicodeDecodeError:
        content = {"fields_base64": [base64.b64encode(each).decode() for each in fields]}
    return orjson.dumps({"stream": stream, "id": id_, **content})


def read_again(intake: Intake, letter: DeadLetter) -> list[Event]:
    """The event of a dead letter. Raises GatewayError where it still is none."""
    content = orjson.loads(letter.payload)
    fields = [each.encode() for each in content.get("fields", ())]
    fields = fields or [base64.b64decode(each) for each in content.get("fields_base64", ())]
    return [event_of(intake, content["stream"], (content["id"], fields))]
