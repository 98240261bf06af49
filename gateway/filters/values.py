"""The scalars that filters compare: numbers by value, times as instants, and their index keys."""

from datetime import date
from typing import Final, TypeAlias

from gateway.event import is_rfc3339

Scalar: TypeAlias = str | int | float | bool | None
# Seconds since 1970 and the digits of the fraction without trailing zeros: such digits sort by value.
Instant: TypeAlias = tuple[int, str]

INT_MIN: Final = -(1 << 63)
INT_MAX: Final = (1 << 64) - 1
_SHORTEST_TIME: Final = len("1970-01-01T00:00:00Z")
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()


def plain_number(number: float) -> float:
    """The same number as an int where it is a whole one of 64 bits: 1.0 and -0.0 become 1 and 0."""
    if type(number) is float and number.is_integer() and INT_MIN <= number <= INT_MAX:
        return int(number)
    return number


def index_key(value: Scalar) -> str:
    """Text that equal scalars share and others do not: 1 and 1.0 are equal; 1, True and "1" are not."""
    if type(value) is str:
        return "s:" + value  # no other key begins with an s
    if value is None:
        return "null"
    if type(value) is bool:
        return "true" if value else "false"
    return str(plain_number(value))  # type: ignore[arg-type]  # mypy keeps str and bool in the union


def parse_instant(text: str) -> Instant | None:
    """The instant that a full RFC 3339 time with offset names, with all its digits; None for other text.

    Plain arithmetic, since a `datetime` ends at microseconds and overflows where an offset leads out
    of its years. A leap second, :60, is the next minute's :00.
    """
    if len(text) < _SHORTEST_TIME or not is_rfc3339(text):
        return None
    day = date(int(text[:4]), int(text[5:7]), int(text[8:10])).toordinal() - _EPOCH_DAY
    minutes = day * 1440 + int(text[11:13]) * 60 + int(text[14:16])
    if text[-1] in "Zz":
        clock = text[:-1]
    else:
        clock = text[:-6]
        offset = int(text[-5:-3]) * 60 + int(text[-2:])
        minutes += offset if text[-6] == "-" else -offset
    return minutes * 60 + int(clock[17:19]), clock[20:].rstrip("0")
