"""Filters against a slow matcher: random filters and events, made so that they meet."""

import json
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import GatewayError
from gateway.filters import (
    Filter,
    all_of,
    any_of,
    index_key,
    keys_at,
    parse_filter,
    parse_filter_json,
    parse_query,
    restore_filter,
)

NAMES = ["a", "b", "0", "1", "*", "00"]
TIMES = [
    "2026-05-01T12:00:00Z",
    "2026-05-01T14:00:00.000+02:00",
    "2026-05-01T12:00:00.12345678Z",
    "2026-05-01T12:00:00.123456789Z",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "2016-12-31T23:59:60Z",
    "2017-01-01T00:00:00Z",
]
NUMBERS = [0, 1, -1, 1.0, -0.0, 1.5, 2, (1 << 53), (1 << 53) + 1, float(1 << 53), 1e20, (1 << 64) - 1]
NO_TIMES = [
    "2026-05-01",
    "2026-05-01T12:00:00",
    "2026-02-30T12:00:00Z",
    "0000-01-01T00:00:00Z",
    "2026-05-01T12:00:61Z",
]
scalars = st.sampled_from(
    [None, True, False, "", "a", "ab", "ba", "1", "true", "null", *NUMBERS, *TIMES, *NO_TIMES]
)
payloads = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=8,
)
attributes = st.fixed_dictionaries(
    {"type": st.sampled_from(["a", "ab", "ba"])},
    optional={"subject": st.sampled_from(["a", "b"]), "id": st.sampled_from(["a", "b"]), "ext": scalars},
)
bodies = st.builds(
    lambda head, data: {**head, **data}, attributes, st.fixed_dictionaries({}, optional={"data": payloads})
)
paths = st.sampled_from(["type", "subject", "id", "ext", "data"]) | st.lists(
    st.sampled_from(NAMES), min_size=1, max_size=3
).map(lambda members: ".".join(["data", *members]))


def terms(operator: str, operands: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(paths, operands, min_size=1, max_size=2).map(lambda of: {operator: of})


leaves = st.one_of(
    terms("exact", scalars),
    terms("in", st.lists(scalars, min_size=1, max_size=3)),
    terms("prefix", st.sampled_from(["a", "b", "1"])),
    terms("suffix", st.sampled_from(["a", "b", "1"])),
    terms("exists", st.booleans()),
    *(terms(operator, st.sampled_from([*NUMBERS, *TIMES])) for operator in ("gt", "gte", "lt", "lte")),
)
filters = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda of: {"all": of}),
        st.lists(inner, min_size=1, max_size=3).map(lambda of: {"any": of}),
        inner.map(lambda of: {"not": of}),
    ),
    max_leaves=6,
).filter(lambda value: depth_of(value) <= 8)


def depth_of(value: dict[str, Any]) -> int:
    [(operator, operand)] = value.items()
    if operator == "not":
        return 1 + depth_of(operand)
    return 1 + max(map(depth_of, operand)) if operator in ("all", "any") else 1


def slow_matches(value: dict[str, Any], body: dict[str, Any]) -> bool:
    """The filter language, read off its description without a thought for speed."""
    [(operator, operand)] = value.items()
    if operator == "not":
        return not slow_matches(operand, body)
    if operator in ("all", "any"):
        return (all if operator == "all" else any)([slow_matches(each, body) for each in operand])
    return all(
        slow_term(operator, list(slow_values(body, path.split("."))), of) for path, of in operand.items()
    )


def slow_values(value: Any, segments: list[str]) -> Iterator[Any]:
    if not segments:
        yield value
        return
    first, *rest = segments
    if isinstance(value, list):
        for index, element in enumerate(value):
            if first in ("*", str(index)):
                yield from slow_values(element, rest)
    elif isinstance(value, dict) and first != "*" and first in value:
        yield from slow_values(value[first], rest)


def slow_term(operator: str, found: list[Any], operand: Any) -> bool:
    if operator == "exists":
        return bool(found) is operand
    return any(slow_holds(operator, value, operand) for value in found)


def slow_holds(operator: str, value: Any, operand: Any) -> bool:
    if operator in ("prefix", "suffix"):
        slot = slice(None, len(operand)) if operator == "prefix" else slice(-len(operand), None)
        return isinstance(value, str) and value[slot] == operand
    if operator in ("exact", "in"):
        return slow_key(value) in [slow_key(each) for each in (operand if operator == "in" else [operand])]
    one, other = slow_magnitude(value), slow_magnitude(operand)
    if one is None or other is None or one[0] != other[0]:
        return False
    return {"gt": one > other, "gte": one >= other, "lt": one < other, "lte": one <= other}[operator]


def slow_key(value: Any) -> Any:
    if type(value) in (int, float):
        return ("number", Fraction(value))
    return (type(value).__name__, repr(value) if isinstance(value, list | dict) else value)


def slow_magnitude(value: Any) -> tuple[str, Fraction] | None:
    if type(value) in (int, float):
        return ("number", Fraction(value))
    if not isinstance(value, str) or value in NO_TIMES or not value.startswith(("0", "2", "9")):
        return None
    return ("time", slow_instant(value))


def slow_instant(text: str) -> Fraction:
    """Seconds by the Julian day number of Fliegel and Van Flandern."""
    year, month, day = int(text[:4]), int(text[5:7]), int(text[8:10])
    shift = (14 - month) // 12
    years, months = year + 4800 - shift, month + 12 * shift - 3
    julian = day + (153 * months + 2) // 5 + 365 * years + years // 4 - years // 100 + years // 400
    clock, offset = (text[11:-1], 0) if text.endswith("Z") else (text[11:-6], slow_offset(text[-6:]))
    hours, minutes, seconds = clock.split(":")
    return julian * 86400 + int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds) - offset


def slow_offset(text: str) -> int:
    return int(text[0] + "60") * (int(text[1:3]) * 60 + int(text[4:6]))


def respelt(value: Any, chance: random.Random) -> Any:
    """The same filter in another spelling: shuffled, nested, doubled, with its numbers written otherwise."""
    [(operator, operand)] = value.items()
    if operator in ("all", "any"):
        again = [respelt(each, chance) for each in (*operand, chance.choice(operand))]
        chance.shuffle(again)
        value = {operator: [{operator: again[:1]}, *again[1:]]}
    elif operator == "not":
        value = {"not": respelt(operand, chance)}
    else:
        value = respelt_term(operator, list(operand.items()), chance)
    return chance.choice([value, {"all": [value]}, {"any": [value, value]}, {"not": {"not": value}}])


def respelt_term(operator: str, items: list[tuple[str, Any]], chance: random.Random) -> dict[str, Any]:
    chance.shuffle(items)
    if operator == "exact":
        return {"all": [{"in": {path: [respelt_scalar(of), of]}} for path, of in items]}
    if operator == "in":
        items = [(path, [*reversed(of), *map(respelt_scalar, of)]) for path, of in items]
    if operator in ("gt", "gte", "lt", "lte"):
        items = [(path, respelt_scalar(of)) for path, of in items]
    return {operator: dict(items)}


def respelt_scalar(value: Any) -> Any:
    if type(value) is int and int(float(value)) == value:
        return float(value)
    return int(value) if type(value) is float and value.is_integer() and value < 1e19 else value


@settings(max_examples=400)
@given(filters, bodies)
def test_matching_agrees_with_the_slow_matcher(value: Any, body: dict[str, Any]) -> None:
    """The compiled filter and the description decide alike on every event."""
    assert parse_filter(value).matches(body) is slow_matches(value, body)


@settings(max_examples=150)
@given(filters)
def test_the_canonical_form_is_read_back_as_itself(value: Any) -> None:
    """A canonical form is a filter, canonical already, whether it is read from outside or from the store."""
    made = parse_filter(value)
    assert restore_filter(made.canonical).canonical == made.canonical
    if depth_of(made.to_json()) <= 8:
        assert parse_filter(made.to_json()).canonical == made.canonical


@settings(max_examples=150)
@given(filters, bodies, st.randoms(use_true_random=False))
def test_spelling_makes_no_other_filter(value: Any, body: dict[str, Any], chance: random.Random) -> None:
    """Order, nesting, doubles and the writing of numbers change neither the bytes nor what matches."""
    made = parse_filter(value)
    # Without the limits, which the other spelling may exceed.
    assert restore_filter(json.dumps(respelt(value, chance)).encode()).canonical == made.canonical
    assert slow_matches(made.to_json(), body) is slow_matches(value, body)


@settings(max_examples=400)
@given(filters, bodies)
def test_an_event_that_matches_has_what_the_index_looks_for(value: Any, body: dict[str, Any]) -> None:
    """No event that matches is missed by a look-up of the cover or of any of the lookups."""
    made = parse_filter(value)
    if not made.matches(body):
        return
    if made.cover is not None:
        assert any(key in keys_at(body, path) for path, key in made.cover)
    for path, keys in made.lookups():
        assert keys & set(keys_at(body, path))


@settings(max_examples=150)
@given(st.lists(st.none() | filters.map(parse_filter), max_size=4), bodies)
def test_joining_is_all_and_any(given_filters: list[Filter | None], body: dict[str, Any]) -> None:
    """The joined filters hold where all or any of their parts do, and their index terms hold likewise."""
    alone = [each for each in given_filters if each is not None]
    both, either = all_of(given_filters), any_of(alone)
    assert (both is None or both.matches(body)) is all(each.matches(body) for each in alone)
    assert either.matches(body) is any(each.matches(body) for each in alone)
    for joined in (both, either):
        assert joined is None or restore_filter(joined.canonical) == joined
        if joined is not None and joined.cover is not None and joined.matches(body):
            assert any(key in keys_at(body, path) for path, key in joined.cover)


@settings(max_examples=150)
@given(scalars, scalars)
def test_keys_are_equal_exactly_where_values_are(one: Any, other: Any) -> None:
    """Index keys and `exact` agree on what is equal."""
    equal = parse_filter({"exact": {"data": one}}).matches({"data": other})
    assert (index_key(one) == index_key(other)) is equal


OPERATORS = ["exact", "prefix", "suffix", "in", "gt", "gte", "lt", "lte", "exists", "all", "any", "not"]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*OPERATORS, "type", "data.a"]) | st.text(max_size=5), inner, max_size=2
        )
    ),
    max_leaves=10,
)


def outcome(read: Callable[[], Filter | None]) -> Filter | None:
    """The filter, or None where it was refused as it has to be: with a place, in text that can be sent."""
    try:
        return read()
    except GatewayError as error:
        problem = error.problem()
    assert problem["code"] == "bad_filter"
    assert problem["errors"]
    assert json.dumps(problem, ensure_ascii=False).encode()
    return None


@settings(max_examples=400)
@given(anything)
def test_any_json_is_a_filter_or_a_bad_filter(value: Any) -> None:
    """Nothing but `bad_filter` ever comes of a wrong value."""
    made = outcome(lambda: parse_filter(value))
    assert made is None or restore_filter(made.canonical) == made


@settings(max_examples=150)
@given(st.binary(max_size=50) | st.text(max_size=50) | anything.map(json.dumps))
def test_any_text_is_a_filter_or_a_bad_filter(text: str | bytes) -> None:
    """Nothing but `bad_filter` ever comes of a wrong text."""
    made = outcome(lambda: parse_filter_json(text))
    assert made is None or restore_filter(made.canonical) == made


@settings(max_examples=150)
@given(st.lists(st.tuples(paths | st.text(max_size=5), st.text(max_size=5)), max_size=4))
def test_any_query_is_a_filter_or_a_bad_filter(pairs: list[tuple[str, str]]) -> None:
    """Nothing but `bad_filter` ever comes of a wrong query."""
    made = outcome(lambda: parse_query(pairs))
    assert made is None or restore_filter(made.canonical) == made
