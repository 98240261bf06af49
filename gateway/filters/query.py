"""The short form of a filter in a URL: `?type=order.*&subject=o-1&data.status=paid&data.status=shipped`."""

import re
from collections.abc import Iterable
from typing import Any, Final

from gateway import jsontext
from gateway.errors import GatewayError
from gateway.filters.canonical import Filter
from gateway.filters.parser import bad_filter, check_path, parse_filter
from gateway.filters.values import Scalar

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORDS: Final[dict[str, bool]] = {"true": True, "false": False}


def parse_query(pairs: Iterable[tuple[str, str]]) -> Filter | None:
    """The filter that a query's pairs are, without its options; None where there are none.

    Raises GatewayError `bad_filter`, which names the parameter.
    """
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    if not values:
        return None
    return parse_filter({"all": [_one_of(name, wanted) for name, wanted in values.items()]})


def _one_of(name: str, wanted: list[str]) -> dict[str, Any]:
    """The JSON of a parameter that may be repeated."""
    check_path(name, ())
    if "*" in wanted:
        raise bad_filter((name,), "a lone * stands for nothing: leave the parameter out for any value")
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
