"""Paths: where in an event a filter looks, such as `type` or `data.items.*.sku`, compiled to getters."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias

from gateway.filters.values import index_key

Body: TypeAlias = Mapping[str, Any]
Getter: TypeAlias = Callable[[Body], Any]
Collector: TypeAlias = Callable[[Body], list[Any]]

# Stands for "there is nothing at this path", since null is a value.
MISSING: Final[Any] = object()
ANY_ELEMENT: Final = "*"
_ATTRIBUTE = re.compile(r"[a-z0-9]{1,20}")
# Only the canonical spelling is an index; no array has more elements than ten digits count.
_INDEX = re.compile(r"0|[1-9][0-9]{0,9}")
_SCALARS: Final = frozenset({str, int, float, bool, type(None)})


def split_path(path: str) -> tuple[str, ...]:
    """The segments of a path. Raises ValueError, with the reason, where it is no valid one."""
    root, *members = path.split(".")
    if _ATTRIBUTE.fullmatch(root) is None:
        raise ValueError("is neither an attribute's name (1 to 20 of a-z and 0-9) nor a path into data")
    if members and root != "data":
        raise ValueError("is no path: only data has members")
    if "" in members:
        raise ValueError("has an empty segment")
    return (root, *members)


def has_wildcard(path: str) -> bool:
    """Whether several values may stand at the path."""
    return ANY_ELEMENT in split_path(path)


def getter(path: str) -> Getter:
    """What finds the value at a path without wildcard, or MISSING. Raises ValueError as `split_path`."""
    root, *members = split_path(path)
    if not members:
        return lambda body: body.get(root, MISSING)
    indexes = _indexes(members)

    def get(body: Body) -> Any:
        value = body.get("data")
        for member in members:
            # As in _step, but without a call: this is the hot path.
            if type(value) is dict:
                value = value.get(member, MISSING)
            elif type(value) is list and indexes.get(member, len(value)) < len(value):
                value = value[indexes[member]]
            else:
                return MISSING
        return value

    return get


def collector(path: str) -> Collector:
    """What finds every value at a path with wildcards. Raises ValueError as `split_path`."""
    members = split_path(path)[1:]
    indexes = _indexes(members)

    def collect(body: Body) -> list[Any]:
        values = [body.get("data")]
        for member in members:
            if member == ANY_ELEMENT:
                values = [element for value in values if type(value) is list for element in value]
            else:
                found = [_step(value, member, indexes) for value in values]
                values = [value for value in found if value is not MISSING]
        return values

    return collect


def _indexes(members: Iterable[str]) -> dict[str, int]:
    """The members that name an array's element as well as an object's member."""
    return {member: int(member) for member in members if _INDEX.fullmatch(member)}


def _step(value: Any, member: str, indexes: Mapping[str, int]) -> Any:
    if type(value) is dict:
        return value.get(member, MISSING)
    if type(value) is list and indexes.get(member, len(value)) < len(value):
        return value[indexes[member]]
    return MISSING


def keys_at(body: Body, path: str) -> list[str]:
    """The index keys of the scalars that stand at a path, each once. Raises ValueError as `split_path`."""
    return _compile_keys(path)(body)


@lru_cache(maxsize=256)  # paths come from outside and may be long, so few of them are kept
def _compile_keys(path: str) -> Callable[[Body], list[str]]:
    if has_wildcard(path):
        collect = collector(path)
        return lambda body: list(
            dict.fromkeys(index_key(value) for value in collect(body) if type(value) in _SCALARS)
        )
    get = getter(path)

    def keys(body: Body) -> list[str]:
        value = get(body)
        return [index_key(value)] if type(value) in _SCALARS else []

    return keys
