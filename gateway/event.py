"""Event: one CloudEvents 1.0 object, parsed, checked, filled in and encoded once.

Nothing here knows where an event came from or where it goes.
"""

import base64
import binascii
import hashlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

from gateway.errors import GatewayError, Problem, pointer
from gateway.jsontext import dumps

SPECVERSION: Final = "1.0"
_DEFAULTED: Final = frozenset({"specversion", "id", "source", "time", "datacontenttype"})
_TEXTS: Final = frozenset({"id", "type", "subject"})  # any text but the empty one
# What the type String of CloudEvents (section 3) disallows: controls, surrogates and noncharacters.
_DISALLOWED = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(plane | 0xFFFE)}{chr(plane | 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
    + "]"
)
_EXTENSION = re.compile(r"[a-z0-9]{1,20}", re.ASCII)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_TIME = re.compile(
    r"[Tt](?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII
)
# RFC 3986's characters, and those beyond ASCII that an IRI has: no spaces, no controls, no quotes, and a percent
# sign only before two hexadecimal digits.
_URI_REFERENCE = re.compile(r"(?:[^\x00-\x20\x7f-\x9f\"<>\\^`{|}%]|%[0-9A-Fa-f]{2})+")
# RFC 2045, section 5.1; a semicolon without a parameter as RFC 9110 has it.
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_TYPE = re.compile(
    rf'{_WORD}/{_WORD}(?:[ \t]*;(?:[ \t]*{_WORD}=(?:{_WORD}|"(?:[^"\\]|\\.)*"))?)*[ \t]*'
)


class Event(NamedTuple):
    """A valid event, ready for the log. `json` is what every subscriber gets, byte for byte.

    A tuple, since a frozen dataclass takes three times as long to make, and one is made for every event.
    """

    source: str
    id: str
    type: str
    subject: str | None
    body: dict[str, Any]
    json: bytes


class Filling(Protocol):
    """What fills an event's missing attributes."""

    @property
    def source(self) -> str: ...

    def new_id(self) -> str: ...

    def new_time(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Defaults:
    """What fills an event's missing attributes. Clock (seconds since 1970) and randomness are injected."""

    source: str = "/events"
    now: Callable[[], float] = time.time
    random: Callable[[int], bytes] = os.urandom

    def new_id(self) -> str:
        """A UUIDv7 (RFC 9562, section 5.7)."""
        return _uuid7(int(self.now() * 1000), self.random(10))

    def new_time(self) -> str:
        return rfc3339(self.now())


def derived_id(milliseconds: int, seed: bytes) -> str:
    """A UUIDv7 of that time (since 1970) whose other bits follow from `seed`: the same again has the same id."""
    return _uuid7(milliseconds, hashlib.blake2b(seed, digest_size=10).digest())


def _uuid7(milliseconds: int, rest: bytes) -> str:
    raw = bytearray(milliseconds.to_bytes(6, "big") + rest)
    raw[6] = 0x70 | raw[6] & 0x0F
    raw[8] = 0x80 | raw[8] & 0x3F
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class DerivedDefaults:
    """What fills the attributes of one event that came from Redis: its id follows from where it came from.

    `now` is when it came, in seconds since 1970; see `derived_id` for the others.
    """

    __slots__ = ("_milliseconds", "_now", "_seed", "source")

    def __init__(self, source: str, *, now: float, milliseconds: int, seed: str) -> None:
        self.source = source
        self._now = now
        self._milliseconds = milliseconds
        self._seed = seed

    def new_id(self) -> str:
        return derived_id(self._milliseconds, self._seed.encode())

    def new_time(self) -> str:
        return rfc3339(self._now)


def rfc3339(seconds: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    return _rfc3339(int(seconds * 1000))


@lru_cache(maxsize=16)  # many events come within a millisecond
def _rfc3339(milliseconds: int) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return f"{whole}.{milliseconds % 1000:03d}Z"


def make_event(value: Any, defaults: Filling, *, max_bytes: int, at: tuple[str | int, ...] = ()) -> Event:
    """The event that a parsed JSON value is, with its missing attributes filled in.

    `max_bytes` bounds the event as compact JSON before the filling; `at` is where the value stands
    in the request, for the JSON pointers of errors. The value becomes the event's: do not change it.

    Raises GatewayError `invalid_event`, with every fault and its place, or `too_large`.
    """
    if type(value) is not dict:
        raise GatewayError(
            "invalid_event", "an event is a JSON object", errors=[Problem(pointer(*at), "not an object")]
        )
    faults = _faults(value)
    if faults and None in value.values():  # looked for here, since each null but that of data is a fault
        value = _without_nulls(value)
        faults = _faults(value)
    if faults:
        raise GatewayError(
            "invalid_event",
            f"{faults[0][0]}: {faults[0][1]}" if faults[0][0] else faults[0][1],
            errors=[Problem(pointer(*at, name), detail) for name, detail in faults],
        )
    filled = value if value.keys() >= _DEFAULTED else _filled(value, defaults)
    json = _encoded(filled, at)
    if len(json) > max_bytes and len(dumps(value)) > max_bytes:
        raise GatewayError(
            "too_large",
            f"an event may have {max_bytes} bytes as compact JSON",
            errors=[Problem(pointer(*at), f"more than {max_bytes} bytes")],
        )
    return Event(filled["source"], filled["id"], filled["type"], filled.get("subject"), filled, json)


def _encoded(value: dict[str, Any], at: tuple[str | int, ...]) -> bytes:
    try:
        return dumps(value)
    except GatewayError as error:
        detail = error.detail.replace("the value", "the event", 1)
        raise GatewayError(error.code, detail, errors=[Problem(pointer(*at), detail)]) from None


def _filled(value: dict[str, Any], defaults: Filling) -> dict[str, Any]:
    return {
        "specversion": SPECVERSION,
        "id": value.get("id") or defaults.new_id(),
        "source": value.get("source") or defaults.source,
        "type": value["type"],
        "time": value.get("time") or defaults.new_time(),
        "datacontenttype": "application/json",
        **value,
    }


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    """The value without attributes that are null: those are absent (CloudEvents JSON format, section 3.1)."""
    return {
        name: attribute
        for name, attribute in value.items()
        if attribute is not None or name == "data" or _is_no_attribute(name)
    }


def _is_no_attribute(name: str) -> bool:
    return name not in _TEXTS and name not in _RULES and _EXTENSION.fullmatch(name) is None


def _faults(value: dict[str, Any]) -> list[tuple[str, str]]:
    faults = []
    if "type" not in value:
        faults.append(("type", "is required"))
    for name, attribute in value.items():
        # Inline: a call for each of an event's attributes would take longer than all else about it. What is
        # printable has no character that is disallowed.
        if name in _TEXTS:
            if type(attribute) is str and attribute and attribute.isprintable():
                continue
            fault = _text_fault(attribute)
        elif name == "data":
            continue
        elif name in _RULES:
            holds, fault = _RULES[name]
            if type(attribute) is str and holds(attribute):
                continue
        else:
            fault = _extension_fault(name, attribute)
        if fault:
            faults.append((name, fault))
    if "data" in value and "data_base64" in value:
        faults.append(("data_base64", "stands beside data: an event has one of them"))
    return faults


def _text_fault(value: Any) -> str | None:
    if type(value) is not str or not value:
        return "must be a non-empty string"
    return _character_fault(value)


def _character_fault(text: str) -> str | None:
    if _DISALLOWED.search(text) is None:
        return None
    return "must have no control characters, surrogates or noncharacters"


def _extension_fault(name: str, value: Any) -> str | None:
    if _EXTENSION.fullmatch(name) is None:
        return "is no CloudEvents attribute: extensions are named by 1 to 20 of a-z and 0-9"
    if value is None or type(value) in (dict, list):
        return "an extension attribute is a string, a number or a boolean"
    if type(value) is str and not value.isprintable():
        return _character_fault(value)
    return None


@lru_cache(maxsize=256)  # producers have few
def _is_media_type(text: str) -> bool:
    return _MEDIA_TYPE.fullmatch(text) is not None and _character_fault(text) is None


@lru_cache(maxsize=1024)  # producers have few sources
def _is_uri_reference(text: str) -> bool:
    return _URI_REFERENCE.fullmatch(text) is not None


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def is_rfc3339(text: str) -> bool:
    """Whether `text` is a full RFC 3339 time with offset and a real date (leap second 60 allowed)."""
    return _TIME.fullmatch(text, 10) is not None and _is_date(text[:10])


@lru_cache(maxsize=64)  # most events are of today
def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return _DATE.fullmatch(text) is not None


# What the text of an attribute must be, and what is said where it is not.
_RULES: Final[dict[str, tuple[Callable[[str], bool], str]]] = {
    "specversion": (SPECVERSION.__eq__, 'must be "1.0"'),
    "source": (_is_uri_reference, "must be a non-empty URI reference"),
    "dataschema": (_is_uri_reference, "must be a non-empty URI reference"),
    "datacontenttype": (_is_media_type, "must be a media type: type/subtype"),
    "time": (is_rfc3339, "must be an RFC 3339 time with an offset"),
    "data_base64": (_is_base64, "must be base64"),
}
