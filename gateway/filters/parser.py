"""Filters in: a JSON value, checked for shape and limits, becomes a canonical filter.

Recursion ends at the limit of depth, whatever stands below it.
"""

import math
import sys
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from gateway import jsontext
from gateway.errors import GatewayError, Problem, pointer
from gateway.filters import canonical
from gateway.filters.canonical import COMPARISONS, NOTHING, Filter, any_of, conjunction, negate
from gateway.filters.paths import split_path
from gateway.filters.values import INT_MAX, INT_MIN, Scalar

MAX_DEPTH: Final = 8
MAX_TERMS: Final = 64
MAX_BYTES: Final = 4096  # of compact JSON, however the filter came
# Of a filter's text, whose white space and escapes may take many times the compact form: as much as a client message.
MAX_TEXT_BYTES: Final = 65_536

# Where in a filter something stands: ("all", 1, "gt").
Place: TypeAlias = tuple[str | int, ...]


def parse_filter(value: Any, *, where: str = "") -> Filter:
    """The filter that a JSON value is. `where` is the value's own place, with slashes, for errors.

    Raises GatewayError `bad_filter`, which names the place of the fault: `all/1/gt`.
    """
    at: Place = tuple(where.split("/")) if where else ()
    parsed = _Parser(MAX_DEPTH, MAX_TERMS).parse(value, at, 1)
    if len(jsontext.dumps(value)) > MAX_BYTES:
        raise bad_filter(at, f"a filter has at most {MAX_BYTES} bytes as compact JSON")
    return parsed


def parse_filter_json(text: str | bytes) -> Filter:
    """The filter that a JSON text is. Raises GatewayError `bad_filter`: 400 where it is unreadable."""
    try:
        data = (text if isinstance(text, str) else text.decode()).encode()
    except UnicodeError:
        raise bad_filter((), "the filter is no UTF-8", status=400) from None
    if len(data) > MAX_TEXT_BYTES:
        raise bad_filter((), f"a filter's text has at most {MAX_TEXT_BYTES} bytes")
    return parse_filter(_parse_json(data))


def _parse_json(data: bytes) -> Any:
    try:
        return jsontext.parse(data, what="the filter")
    except GatewayError as error:
        if error.code == "bad_json":
            raise bad_filter((), error.detail, status=error.status) from None
        refusal = bad_filter((), error.detail, status=error.status)
    try:
        return jsontext.parse_leniently(data)  # what cannot be kept is refused with its place
    except ValueError:
        raise refusal from None


def restore_filter(text: bytes) -> Filter:
    """The filter that has these canonical bytes, for what the gateway stored itself: no limits hold.

    Joined filters exceed them, and so may a canonical form, where several attributes became an `all`.
    Raises GatewayError for bytes that are no filter.
    """
    if text == NOTHING.canonical:
        return NOTHING
    return parse_unlimited(jsontext.parse(text, what="the filter"))


def parse_unlimited(value: Any) -> Filter:
    """The filter of a JSON value whose size the gateway has bounded itself. Raises as `parse_filter`."""
    return _Parser(sys.maxsize, sys.maxsize).parse(value, (), 1)


def bad_filter(at: Place, detail: str, *, status: int | None = None) -> GatewayError:
    """The error of a fault at a place in a filter."""
    message = f"{'/'.join(map(str, at))}: {detail}" if at else detail
    return GatewayError("bad_filter", message, errors=[Problem(pointer(*at), detail)], status=status)


class _Parser:
    """Parses one filter within limits of depth and terms."""

    def __init__(self, max_depth: int, max_terms: int) -> None:
        self._max_depth = max_depth
        self._terms_left = max_terms

    def parse(self, value: Any, at: Place, depth: int) -> Filter:
        if depth > self._max_depth:
            raise bad_filter(at, f"filters nest at most {self._max_depth} deep")
        if type(value) is not dict or len(value) != 1:
            raise bad_filter(at, "a filter is an object with one operator")
        [(operator, operand)] = value.items()
        inside = (*at, operator)
        if operator == "not":
            return negate(self.parse(operand, inside, depth + 1))
        if operator == "any":
            return any_of(self._parse_list(operand, inside, depth))
        if operator == "all":
            return conjunction(self._parse_list(operand, inside, depth))
        if operator in _TERMS:
            return self._parse_terms(operator, operand, inside)
        raise bad_filter(at, f"{_shown(operator)} is no operator: {', '.join(_OPERATORS)}")

    def _parse_list(self, operand: Any, at: Place, depth: int) -> list[Filter]:
        if type(operand) is not list or not operand:
            raise bad_filter(at, "must be a list of at least one filter")
        return [self.parse(each, (*at, index), depth + 1) for index, each in enumerate(operand)]

    def _parse_terms(self, operator: str, operand: Any, at: Place) -> Filter:
        if type(operand) is not dict or not operand:
            raise bad_filter(at, "must be an object with at least one attribute")
        return conjunction([self._parse_term(operator, path, of, at) for path, of in operand.items()])

    def _parse_term(self, operator: str, path: Any, operand: Any, at: Place) -> Filter:
        self._terms_left -= len(operand) if operator == "in" and type(operand) is list else 1
        if self._terms_left < 0:
            raise bad_filter(at, f"a filter has at most {MAX_TERMS} terms")
        check_path(path, at)
        return _TERMS[operator](path, operand, (*at, path))


def check_path(path: str, at: Place) -> None:
    """Raises GatewayError `bad_filter` where `path` is no attribute and no path into the payload."""
    if not is_text(path):
        raise bad_filter(at, f"{_shown(path)} is no valid text")
    try:
        split_path(path)
    except ValueError as error:
        raise bad_filter(at, f"{_shown(path)} {error}") from None


def _shown(name: Any) -> str:
    """Foreign text in a message: short, and without characters that could not be written."""
    return ascii(name)[:60]


def is_text(value: str) -> bool:
    """False for a lone surrogate, which no JSON that is sent can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _scalar(value: Any, at: Place) -> Scalar:
    if type(value) is str:
        fits = is_text(value)
    elif type(value) is int:
        fits = INT_MIN <= value <= INT_MAX
    elif type(value) is float:
        fits = math.isfinite(value)
    else:
        fits = value is None or type(value) is bool
    if not fits:
        raise bad_filter(at, "must be a string, a number that JSON keeps exactly, a boolean or null")
    return value  # type: ignore[no-any-return]  # just checked


def _text(value: Any, at: Place) -> str:
    if type(value) is not str or not value or not is_text(value):
        raise bad_filter(at, "must be a non-empty string")
    return value


def _exact(path: str, operand: Any, at: Place) -> Filter:
    return canonical.one_of(path, [_scalar(operand, at)])


def _in(path: str, operand: Any, at: Place) -> Filter:
    if type(operand) is not list or not operand:
        raise bad_filter(at, "must be a list of at least one value")
    return canonical.one_of(path, [_scalar(each, (*at, index)) for index, each in enumerate(operand)])


def _prefix(path: str, operand: Any, at: Place) -> Filter:
    return canonical.prefix(path, _text(operand, at))


def _suffix(path: str, operand: Any, at: Place) -> Filter:
    return canonical.suffix(path, _text(operand, at))


def _exists(path: str, operand: Any, at: Place) -> Filter:
    if type(operand) is not bool:
        raise bad_filter(at, "must be true or false")
    return canonical.exists(path, operand)


def _comparison(operator: str) -> Callable[[str, Any, Place], Filter]:
    def parse(path: str, operand: Any, at: Place) -> Filter:
        bound = _scalar(operand, at)
        try:
            return canonical.comparison(operator, path, bound)
        except ValueError as error:
            raise bad_filter(at, str(error)) from None

    return parse


_TERMS: Final[dict[str, Callable[[str, Any, Place], Filter]]] = {
    "exact": _exact,
    "prefix": _prefix,
    "suffix": _suffix,
    "in": _in,
    **{operator: _comparison(operator) for operator in COMPARISONS},
    "exists": _exists,
}
_OPERATORS: Final = (*_TERMS, "all", "any", "not")
