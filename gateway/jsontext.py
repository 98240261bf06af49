"""JSON in: parsed by orjson, with the two promises it does not make by itself.

A number arrives as it was sent or is refused, and a lone surrogate is told apart from
text that is no JSON at all. What comes out of here can always be written again.
"""

import json
import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import orjson

from gateway.errors import GatewayError, Problem, pointer

# Arrays and objects within each other that orjson writes. It reads 1,024, but what cannot be written cannot be sent.
MAX_DEPTH: Final = 254
TOO_DEEP: Final = f"nests more than {MAX_DEPTH} deep"

# A number with 16 or more characters or an exponent may not fit a double; all others do. Such text is looked
# for with the digits mapped to 0 and the rest to blanks, which is ten times as fast as a regular expression.
_CLASSES = bytes(0x30 if each in b"0123456789." else 0x65 if each in b"eE" else 0x20 for each in range(256))
_LONG, _EXPONENT = b"0" * 16, b"0e"
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?', re.DOTALL)
_STRUCTURE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},:]', re.DOTALL)
_MOST_SEARCHED: Final = 512 << 10  # bytes before a fault that are searched for its place, some 0.3 s
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1


def parse(data: bytes, *, what: str = "the body", suspect: bool = True) -> Any:
    """The JSON value of `data`. Not `suspect`: `is_suspect` has cleared a text of which this is a line.

    Raises GatewayError `bad_json` (400) for text that is no JSON, NaN and Infinity included, and
    `invalid_event` (422), with the fault's place, for a lone surrogate, a number that would not arrive as it was
    sent, or more than `MAX_DEPTH` levels where that is found here. Others may still be too many for `dumps`.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _unreadable(data, what, error) from None
    if suspect and is_suspect(data):
        _refuse_inexact(data, what)
    return value


def _unreadable(data: bytes, what: str, error: orjson.JSONDecodeError) -> GatewayError:
    reason = str(error)
    if "UTF-8" not in reason:
        offset = len(data.decode()[: error.pos].encode())  # its own counts characters
        if "surrogate" in reason:
            return _unfit(_place(data, offset), what, f"has a lone surrogate: {reason}")
        if "infinity" in reason:
            return _unfit(_place(data, offset), what, f"has a number that no double holds: {reason}")
        if "depth" in reason:
            # Of a batch the event; nobody wants to be told a path of a thousand segments.
            place = _place(data, offset)[:1] if data.lstrip()[:1] == b"[" else ()
            return _unfit(place, what, TOO_DEEP)
    return GatewayError("bad_json", f"{what} is not JSON: {reason}")


def _unfit(place: tuple[str | int, ...], what: str, fault: str) -> GatewayError:
    return GatewayError("invalid_event", f"{what} {fault}", errors=[Problem(pointer(*place), fault)])


def _place(data: bytes, offset: int) -> tuple[str | int, ...]:
    """Where the value at a byte of a JSON text stands; of a member's name, where its object does.

    Of a text that is sound up to there. No place where that would take too long to find out.
    """
    if offset > _MOST_SEARCHED:
        return ()
    path: list[str | int | None] = []  # from the outside in: an index, a member's name, None before a name
    text = b""
    for match in _STRUCTURE.finditer(data):
        if match.end() > offset:
            break
        token = match.group()
        match token:
            case b"[" | b"{":
                path.append(0 if token == b"[" else None)
            case b"]" | b"}":
                path.pop()
            case b":":
                path[-1] = orjson.loads(text)
            case b",":
                path[-1] = path[-1] + 1 if type(path[-1]) is int else None
            case _:
                text = token
    return tuple(each for each in path if each is not None)


def parse_leniently(data: bytes) -> Any:
    """The JSON value of a text that `parse` refused as `invalid_event`: for who can tell which part is to blame.

    A number that cannot be kept is NaN in it, and its strings may have lone surrogates.
    Raises ValueError for text that is no JSON, or that nests too deeply to be read.
    """
    try:
        return json.loads(
            data.decode(), parse_int=_kept_or_nan, parse_float=_kept_or_nan, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def _kept_or_nan(token: str) -> int | float:
    if not _is_exact(token):
        return math.nan
    number: int | float = orjson.loads(token)
    return number


def _refuse_constant(token: str) -> None:
    raise ValueError(f"{token} is no JSON")


def is_suspect(data: bytes) -> bool:
    """Whether a number may be among those that no double holds. Most often a look at the whole text tells.

    May be asked of many lines at once: up to the first that is no JSON, it clears all or none.
    """
    classes = data.translate(_CLASSES)
    if _LONG not in classes and _EXPONENT not in classes:
        return False
    if b"\\" in data:
        return True
    outside_strings = b" ".join(data.split(b'"')[::2]).translate(_CLASSES)
    return _LONG in outside_strings or _EXPONENT in outside_strings


def _refuse_inexact(data: bytes, what: str) -> None:
    for match in _TOKEN.finditer(data):
        token = match.group()
        if token[0] != 0x22 and not _is_exact(token.decode()):
            fault = f"has the number {token.decode()[:40]}, which cannot be kept exactly: send it as a string"
            raise _unfit(_place(data, match.start()), what, fault)


def _is_exact(token: str) -> bool:
    if token.lstrip("-").isdecimal():
        return len(token) <= 20 and _INT_MIN <= int(token) <= _INT_MAX
    try:
        return Decimal(token) == Decimal(repr(float(token)))
    except InvalidOperation:
        return False


def dumps(value: Any) -> bytes:
    """Compact UTF-8 JSON. Raises GatewayError `invalid_event` for what no JSON reader could take back."""
    try:
        # Copied: orjson hands out its whole buffer, at least 4 KiB, and what is written here is kept for long.
        return bytes(memoryview(orjson.dumps(value)))
    except (TypeError, ValueError) as error:
        if "Recursion" in str(error):
            raise _unfit((), "the value", TOO_DEEP) from None
        raise GatewayError("invalid_event", f"the value cannot be written as JSON: {error}") from None
