"""The short form of a filter in a URL: `?type=order.*&subject=o-1&data.status=paid&data.status=shipped`."""

import re
from collections.abc import Iterable
from typing import Any, Final

from gateway import jsontext
from gateway.errors import GatewayError
from gateway.filters.canonical import Filter
from gateway.filters.parser import (
    MAX_BYTES,
    MAX_TERMS,
    bad_filter,
    check_path,
    is_text,
    parse_unlimited,
)
from gateway.filters.values import Scalar

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORDS: Final[dict[str, bool]] = {"true": True, "false": False}


def parse_query(pairs: Iterable[tuple[str, str]]) -> Filter | None:
    """The filter that a query's pairs are, without its options; None where there are none.

    Raises GatewayError `bad_filter`, which names the parameter.
    """
    values: dict[str, list[str]] = {}
    size = 0
    for terms, (name, value) in enumerate(pairs, 1):
        _check_pair(name, value)
        # Counted as the caller wrote it, a repeated name once: that a value is meant in two ways is no term of his.
        size += len(value.encode()) + (len(name.encode()) if name not in values else 0)
        if terms > MAX_TERMS:
            raise bad_filter((name,), f"a filter has at most {MAX_TERMS} terms")
        if size > MAX_BYTES:
            raise bad_filter((name,), f"a filter has at most {MAX_BYTES} bytes")
        values.setdefault(name, []).append(value)
    if not values:
        return None
    return parse_unlimited({"all": [_one_of(name, wanted) for name, wanted in values.items()]})


def _check_pair(name: str, value: str) -> None:
    check_path(name, ())
    if not is_text(value):
        raise bad_filter((name,), "is no valid text")
    if value == "*":
        raise bad_filter((name,), "a lone * stands for nothing: leave the parameter out for any value")


def _one_of(name: str, wanted: list[str]) -> dict[str, Any]:
    """The JSON of a parameter that may be repeated."""
    terms: list[dict[str, Any]] = [{"prefix": {name: value[:-1]}} for value in wanted if value.endswith("*")]
    exact = [meant for value in wanted if not value.endswith("*") for meant in _meanings(value)]
    if exact:
        terms.append({"in": {name: exact}})
    return {"any": terms}


def _meanings(value: str) -> list[Scalar]:
    """A URL has no types: what reads as a number or a boolean is meant as well as its text."""
    if value in _WORDS:
        return [value, _WORDS[value]]
    if _NUMBER.fullmatch(value) is None:
        return [value]
    try:
        return [value, jsontext.parse(value.encode())]
    except GatewayError:  # a number that no event can have
        return [value]
