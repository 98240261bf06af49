"""The canonical form of a filter, its matcher and its index terms, built together from the inside out.

Each constructor below makes one operator's filter from checked operands. Whatever is put together
from them is canonical by construction: lists are flat, sorted and without doubles.
"""

import operator as compare
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import orjson

from gateway.filters.paths import MISSING, Body, collector, getter, has_wildcard
from gateway.filters.values import Instant, Scalar, index_key, parse_instant, plain_number

Matcher: TypeAlias = Callable[[Body], bool]
# Decides on the value at a path, MISSING included.
Test: TypeAlias = Callable[[Any], bool]
Cover: TypeAlias = frozenset[tuple[str, str]]
Lookup: TypeAlias = tuple[str, frozenset[str]]
Comparison: TypeAlias = Callable[[Any, Any], bool]

COMPARISONS: Final[dict[str, Comparison]] = {
    "gt": compare.gt,
    "gte": compare.ge,
    "lt": compare.lt,
    "lte": compare.le,
}


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter in canonical form; equal filters have equal `canonical` bytes, a JSON text.

    `matches` takes a parsed event and tells whether the filter holds.
    `cover` is a set of (path, index key) of which every event that matches has at least one, the
    most selective such set that could be told; None where there is none.
    """

    canonical: bytes
    matches: Matcher = field(compare=False, repr=False)
    operator: str = field(compare=False, repr=False)
    parts: tuple["Filter", ...] = field(default=(), compare=False, repr=False)
    cover: Cover | None = field(default=None, compare=False, repr=False)
    _lookups: tuple[Lookup, ...] = field(default=(), compare=False, repr=False)

    def to_json(self) -> Any:
        """The canonical form as a JSON value."""
        return orjson.loads(self.canonical)

    def lookups(self) -> list[Lookup]:
        """Paths with index keys: an event that matches has at least one of the keys at each of the paths."""
        return list(self._lookups)


NOTHING: Final = Filter(b'{"any":[]}', lambda _: False, "any", cover=frozenset())


def one_of(path: str, values: Iterable[Scalar]) -> Filter:
    """`exact` and `in`: the value at the path equals one of `values`."""
    texts = {_dumps(_plain(value)): _plain(value) for value in values}
    ordered = [texts[text] for text in sorted(texts)]
    keys = frozenset(map(index_key, ordered))
    operator, operand = ("exact", ordered[0]) if len(ordered) == 1 else ("in", ordered)
    return Filter(
        _dumps({operator: {path: operand}}),
        _term(path, _equality(ordered)),
        operator,
        cover=frozenset((path, key) for key in keys),
        # An index of the log need not hold null.
        _lookups=() if None in ordered else ((path, keys),),
    )


def prefix(path: str, text: str) -> Filter:
    """The value at the path is a string that begins with `text`."""
    return _leaf("prefix", path, text, lambda value: type(value) is str and value.startswith(text))


def suffix(path: str, text: str) -> Filter:
    """The value at the path is a string that ends with `text`."""
    return _leaf("suffix", path, text, lambda value: type(value) is str and value.endswith(text))


def comparison(operator: str, path: str, bound: Scalar) -> Filter:
    """One of COMPARISONS with a number, or with a time as an instant. Raises ValueError for another bound."""
    if type(bound) is int or type(bound) is float:
        return _leaf(operator, path, plain_number(bound), _number_test(COMPARISONS[operator], bound))
    instant = parse_instant(bound) if type(bound) is str else None
    if instant is None:
        raise ValueError("must be a number or a full RFC 3339 time with offset")
    return _leaf(operator, path, bound, _instant_test(COMPARISONS[operator], instant))


def exists(path: str, wanted: bool) -> Filter:
    """Something, null included, stands at the path, or nothing does."""
    present = _term(path, _is_present)
    canonical = _dumps({"exists": {path: wanted}})
    return Filter(canonical, present if wanted else lambda body: not present(body), "exists")


def negate(inner: Filter) -> Filter:
    if inner.operator == "not":
        return inner.parts[0]
    matches = inner.matches
    return Filter(b'{"not":%b}' % inner.canonical, lambda body: not matches(body), "not", (inner,))


def all_of(filters: Sequence[Filter | None]) -> Filter | None:
    """The filter that holds where each of `filters` does. None is everything, going in and coming out."""
    narrowing = [each for each in filters if each is not None]
    return conjunction(narrowing) if narrowing else None


def conjunction(filters: Sequence[Filter]) -> Filter:
    """`all_of` for at least one filter."""
    parts = _flatten("all", filters)
    if len(parts) == 1:
        return parts[0]
    if NOTHING in parts:
        return NOTHING
    return Filter(
        _join("all", parts),
        _every([part.matches for part in parts]),
        "all",
        parts,
        min((part.cover for part in parts if part.cover is not None), key=_cost, default=None),
        tuple(lookup for part in parts for lookup in part.lookups()),
    )


def any_of(filters: Sequence[Filter]) -> Filter:
    """The filter that holds where one of `filters` does; of an empty list, the one that never holds."""
    parts = _flatten("any", filters)
    if not parts:
        return NOTHING
    if len(parts) == 1:
        return parts[0]
    return Filter(
        _join("any", parts),
        _some([part.matches for part in parts]),
        "any",
        parts,
        _union([part.cover for part in parts]),
        _shared_lookups(parts),
    )


def _dumps(value: Any) -> bytes:
    return bytes(memoryview(orjson.dumps(value)))  # orjson 3.13 hands out its whole buffer, 4 KiB at least


def _plain(value: Scalar) -> Scalar:
    return plain_number(value) if type(value) is float else value


def _leaf(operator: str, path: str, operand: str | float | None, test: Test) -> Filter:
    return Filter(_dumps({operator: {path: operand}}), _term(path, test), operator)


def _term(path: str, test: Test) -> Matcher:
    if has_wildcard(path):
        collect = collector(path)
        return lambda body: any(map(test, collect(body)))
    get = getter(path)
    return lambda body: test(get(body))


def _is_present(value: Any) -> bool:
    return value is not MISSING


def _number_test(holds: Comparison, bound: float) -> Test:
    def test(value: Any) -> bool:
        kind = type(value)
        return (kind is int or kind is float) and holds(value, bound)

    return test


def _instant_test(holds: Comparison, bound: Instant) -> Test:
    def test(value: Any) -> bool:
        instant = parse_instant(value) if type(value) is str else None
        return instant is not None and holds(instant, bound)

    return test


def _text_test(text: str) -> Test:
    def test(value: object) -> bool:
        return value == text

    return test


def _equality(values: list[Scalar]) -> Test:
    if len(values) == 1 and type(values[0]) is str:
        return _text_test(values[0])
    strings = frozenset(value for value in values if type(value) is str)
    numbers = frozenset(value for value in values if type(value) is int or type(value) is float)
    singletons = tuple(value for value in values if value is None or type(value) is bool)

    def test(value: Any) -> bool:
        kind = type(value)
        if kind is str:
            return value in strings
        if kind is int or kind is float:  # so that True is not 1
            return value in numbers
        return value in singletons

    return test


def _flatten(operator: str, filters: Iterable[Filter]) -> tuple[Filter, ...]:
    flat: dict[bytes, Filter] = {}
    for each in filters:
        for part in each.parts if each.operator == operator else (each,):
            flat[part.canonical] = part
    return tuple(flat[canonical] for canonical in sorted(flat))


def _join(operator: str, parts: Iterable[Filter]) -> bytes:
    return b'{"%b":[%b]}' % (operator.encode(), b",".join(part.canonical for part in parts))


def _every(matchers: Sequence[Matcher]) -> Matcher:
    if len(matchers) == 2:
        first, second = matchers
        return lambda body: first(body) and second(body)

    def matches(body: Body) -> bool:
        for each in matchers:  # noqa: SIM110  # all() would make a generator for each event
            if not each(body):
                return False
        return True

    return matches


def _some(matchers: Sequence[Matcher]) -> Matcher:
    def matches(body: Body) -> bool:
        for each in matchers:  # noqa: SIM110  # any() would make a generator for each event
            if each(body):
                return True
        return False

    return matches


def _cost(cover: Cover) -> tuple[int, int, int]:
    """The less, the fewer events are likely to have one of the pairs."""
    ranks = [_rank(path) for path, _ in cover]
    return max(ranks), len(ranks), sum(path != "subject" for path, _ in cover)


def _rank(path: str) -> int:
    if path == "subject" or path.startswith("data."):
        return 0
    return 1 if path == "id" else 2


def _union(covers: Iterable[Cover | None]) -> Cover | None:
    pairs: set[tuple[str, str]] = set()
    for cover in covers:
        if cover is None:
            return None
        pairs |= cover
    return frozenset(pairs)


def _shared_lookups(parts: Sequence[Filter]) -> tuple[Lookup, ...]:
    """Where every part is bound on one path, an event that matches has a key of one of them there."""
    bounds = [dict(part.lookups()) for part in parts]
    shared = [path for path in bounds[0] if all(path in bound for bound in bounds)]
    return tuple((path, frozenset[str]().union(*(bound[path] for bound in bounds))) for path in shared)
