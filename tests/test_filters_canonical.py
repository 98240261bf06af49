"""Which filters are one, what joining makes of them, and how the index finds who may match."""

import json
from typing import Any

import pytest

from gateway.errors import GatewayError
from gateway.filters import all_of, any_of, index_key, keys_at, parse_filter, restore_filter

EVENT: dict[str, Any] = {
    "type": "order.updated",
    "subject": "o-1",
    "data": {
        "total": 120.0,
        "note": None,
        "items": [{"sku": "a"}, {"sku": "b"}, {"sku": "a"}],
    },
}

PAID: dict[str, Any] = {"exact": {"data.status": "paid"}}
ORDERS: dict[str, Any] = {"prefix": {"type": "order."}}
MINE: dict[str, Any] = {"exact": {"data.customerId": "c-1"}}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"all": [PAID, {"all": [ORDERS, {"all": [MINE]}]}]}, {"all": [MINE, ORDERS, PAID]}),
        ({"any": [PAID, {"any": [ORDERS, MINE]}]}, {"any": [ORDERS, {"any": [PAID, MINE]}]}),
        ({"all": [PAID]}, PAID),
        ({"any": [PAID]}, PAID),
        ({"any": [{"all": [PAID, PAID]}]}, PAID),
        ({"not": {"not": PAID}}, PAID),
        ({"not": {"not": {"not": PAID}}}, {"not": PAID}),
        ({"all": [{"not": {"not": {"all": [PAID, MINE]}}}, ORDERS]}, {"all": [PAID, MINE, ORDERS]}),
        ({"exact": {"data.status": "paid", "data.customerId": "c-1"}}, {"all": [MINE, PAID]}),
        (
            {"exists": {"type": True, "id": False}},
            {"all": [{"exists": {"id": False}}, {"exists": {"type": True}}]},
        ),
        ({"in": {"data.status": ["paid"]}}, PAID),
        ({"in": {"data.status": ["paid", "paid"]}}, PAID),
        ({"in": {"data.n": [1, 1.0, 2, "2"]}}, {"in": {"data.n": ["2", 2.0, 1]}}),
        ({"in": {"data.n": [1, 1.0]}}, {"exact": {"data.n": 1}}),
        ({"exact": {"data.n": -0.0}}, {"exact": {"data.n": 0}}),
        ({"gt": {"data.n": 100.0}}, {"gt": {"data.n": 1e2}}),
        ({"lte": {"data.n": 5.0}}, {"lte": {"data.n": 5}}),
    ],
)
def test_filters_that_are_one(one: Any, other: Any) -> None:
    """Spellings that the canonical form removes leave one filter, with the same bytes and hash."""
    first, second = parse_filter(one), parse_filter(other)
    assert first.canonical == second.canonical
    assert first == second
    assert hash(first) == hash(second)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"exact": {"data.n": 1}}, {"exact": {"data.n": True}}),
        ({"exact": {"data.n": 1}}, {"exact": {"data.n": "1"}}),
        ({"exact": {"data.n": None}}, {"exact": {"data.n": "null"}}),
        ({"exact": {"data.n": 9007199254740993}}, {"exact": {"data.n": 9007199254740992}}),
        ({"in": {"data.n": [1, True]}}, {"exact": {"data.n": 1}}),
        ({"gt": {"data.n": 1}}, {"gte": {"data.n": 1}}),
        ({"all": [PAID, MINE]}, {"any": [PAID, MINE]}),
        ({"exists": {"data.n": True}}, {"exists": {"data.n": False}}),
        (PAID, {"not": PAID}),
    ],
)
def test_filters_that_are_two(one: Any, other: Any) -> None:
    """Filters that want different events have different canonical forms."""
    assert parse_filter(one) != parse_filter(other)


def test_the_canonical_form_in_letters() -> None:
    """The canonical form is minimal JSON with everything sorted."""
    written = {"all": [{"in": {"data.n": [3.0, "a", 1]}}, {"exact": {"type": "é", "id": "x"}}]}
    text = '{"all":[{"exact":{"id":"x"}},{"exact":{"type":"é"}},{"in":{"data.n":["a",1,3]}}]}'
    assert parse_filter(written).canonical == text.encode()
    assert parse_filter(written).to_json() == json.loads(text)
    assert parse_filter({"exact": {"data.n": 1e20}}).to_json() == {"exact": {"data.n": 1e20}}


# --- Joining


def test_joined_filters_are_one_flat_list() -> None:
    """What a client and its token both want stands once among the conjuncts."""
    client = parse_filter({"exact": {"data.customerId": "c-1", "data.status": "paid"}})
    token = parse_filter({"all": [MINE, ORDERS]})
    joined = all_of([client, None, token])
    assert joined is not None
    assert joined.to_json() == {"all": [MINE, PAID, ORDERS]}
    assert joined == all_of([token, client])
    assert joined.cover == frozenset({("data.customerId", "s:c-1")})


def test_joining_nothing() -> None:
    """No filter is everything, no alternative is nothing."""
    assert all_of([]) is None
    assert all_of([None, None]) is None
    assert all_of([None, parse_filter(PAID)]) == parse_filter(PAID)
    nothing = any_of([])
    assert not nothing.matches(EVENT)
    assert nothing.cover == frozenset()
    assert nothing.lookups() == []
    assert all_of([nothing, parse_filter(PAID)]) == nothing
    assert restore_filter(nothing.canonical) == nothing
    assert any_of([nothing, parse_filter(PAID)]) == parse_filter(PAID)


def test_what_was_stored_is_restored_beyond_the_limits() -> None:
    """A canonical form may be deeper or longer than what was allowed in; the store gives it back."""
    deep: dict[str, Any] = {"exact": {"type": "a", "id": "b"}}
    for operator in ("any", "all", "any", "all", "any", "all", "any"):
        deep = {operator: [deep, PAID]}
    wide = {"exists": {f"data.{'x' * 45}{n}": True for n in range(64)}}
    for value in (deep, wide):
        stored = parse_filter(value)
        with pytest.raises(GatewayError, match="bad_filter"):
            parse_filter(stored.to_json())
        assert restore_filter(stored.canonical) == stored


def test_joined_filters_may_exceed_the_limits() -> None:
    """A token with many filters is joined to a filter of any size."""
    many = any_of([parse_filter({"in": {"data.n": list(range(n, n + 60))}}) for n in range(0, 600, 60)])
    deep = parse_filter(PAID)
    for _ in range(20):
        joined = all_of([any_of([deep, parse_filter(MINE)]), many])
        assert joined is not None
        deep = joined
    assert deep.matches({"data": {"n": 599, "customerId": "c-1"}})
    assert not deep.matches({"data": {"n": 600, "customerId": "c-1"}})


# --- Index terms


@pytest.mark.parametrize(
    ("filter_", "cover"),
    [
        (PAID, {("data.status", "s:paid")}),
        ({"exact": {"data.n": 1.0}}, {("data.n", "1")}),
        ({"exact": {"data.items.*.sku": "a"}}, {("data.items.*.sku", "s:a")}),
        ({"in": {"subject": ["a", "b"]}}, {("subject", "s:a"), ("subject", "s:b")}),
        ({"exact": {"type": "t", "subject": "o-1"}}, {("subject", "s:o-1")}),
        ({"exact": {"type": "t", "id": "1"}}, {("id", "s:1")}),
        ({"exact": {"id": "1", "data.customerId": "c"}}, {("data.customerId", "s:c")}),
        ({"exact": {"datacontenttype": "a", "id": "1"}}, {("id", "s:1")}),
        ({"exact": {"data.a": 1, "subject": "o-1"}}, {("subject", "s:o-1")}),
        ({"all": [{"in": {"subject": ["a", "b"]}}, MINE]}, {("data.customerId", "s:c-1")}),
        ({"all": [ORDERS, {"exact": {"type": "t"}}]}, {("type", "s:t")}),
        ({"all": [{"exact": {"type": "t"}}, {"in": {"data.a": [1, 2]}}]}, {("data.a", "1"), ("data.a", "2")}),
        ({"any": [PAID, MINE]}, {("data.status", "s:paid"), ("data.customerId", "s:c-1")}),
        ({"any": [PAID, ORDERS]}, None),
        (ORDERS, None),
        ({"not": PAID}, None),
        ({"gt": {"data.n": 1}}, None),
        ({"exists": {"data.n": False}}, None),
    ],
)
def test_the_cover_names_values_that_a_match_must_have(filter_: Any, cover: set[Any] | None) -> None:
    """The cover is the most selective set of values that can be told; other filters have none."""
    assert parse_filter(filter_).cover == cover


@pytest.mark.parametrize(
    ("filter_", "lookups"),
    [
        (PAID, {"data.status": {"s:paid"}}),
        ({"all": [PAID, MINE, ORDERS]}, {"data.status": {"s:paid"}, "data.customerId": {"s:c-1"}}),
        ({"any": [PAID, {"in": {"data.status": ["open"]}}]}, {"data.status": {"s:paid", "s:open"}}),
        ({"any": [PAID, MINE]}, {}),
        ({"any": [{"all": [PAID, MINE]}, PAID, MINE]}, {}),
        ({"any": [{"all": [PAID, MINE]}, {"all": [ORDERS, PAID]}]}, {"data.status": {"s:paid"}}),
        ({"exact": {"data.n": None}}, {}),
        ({"in": {"data.n": [None, 1]}}, {}),
        ({"not": PAID}, {}),
        (ORDERS, {}),
    ],
)
def test_lookups_name_every_constraint(filter_: Any, lookups: dict[str, set[str]]) -> None:
    """Every path on which a match must have one of some scalars is told, but for null."""
    assert dict(parse_filter(filter_).lookups()) == lookups


def test_index_keys_are_equal_where_values_are() -> None:
    """Keys follow equality: numbers by value, and no two types share one."""
    alike = [(1, 1.0), (0, -0.0), (1e3, 1000), (1 << 53, float(1 << 53))]
    assert all(index_key(one) == index_key(other) for one, other in alike)
    different: list[Any] = [
        1,
        True,
        "1",
        "true",
        None,
        "null",
        False,
        0,
        "",
        "s:1",
        (1 << 53) + 1,
        1 << 53,
        1e20,
        "1e+20",
        1.5,
    ]
    assert len({index_key(value) for value in different}) == len(different)


def test_keys_at_a_path() -> None:
    """The keys of the scalars at a path, each once; structures have none."""
    assert keys_at(EVENT, "subject") == ["s:o-1"]
    assert keys_at(EVENT, "data.total") == ["120"]
    assert keys_at(EVENT, "data.note") == ["null"]
    assert keys_at(EVENT, "data.items.*.sku") == ["s:a", "s:b"]
    assert keys_at({"data": [1, 1.0, [2], {}, "1"]}, "data.*") == ["1", "s:1"]
    assert keys_at(EVENT, "data.items") == []
    assert keys_at(EVENT, "data.coupon") == []
    assert keys_at(EVENT, "dataschema") == []
