"""What filters mean: each operator, how values and times compare, and where paths lead."""

from typing import Any

import pytest

from gateway.errors import GatewayError
from gateway.filters import parse_filter, parse_query, split_path

ORDER: dict[str, Any] = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "/events",
    "type": "order.updated",
    "subject": "o-1-eu",
    "time": "2026-05-01T12:00:00.000Z",
    "datacontenttype": "application/json",
    "tenant": "acme",
    "data": {
        "orderId": "o-1-eu",
        "status": "paid",
        "total": 120,
        "rate": 1.5,
        "gift": True,
        "note": None,
        "big": 9007199254740993,
        "paidAt": "2026-05-01T14:00:00.1234567+02:00",
        "items": [{"sku": "a", "n": 1}, {"sku": "b", "n": 2}],
        "tags": ["new", "eu"],
        "0": "zero",
        "empty": [],
    },
}


def holds(value: Any, body: dict[str, Any] = ORDER) -> bool:
    return parse_filter(value).matches(body)


def payload_holds(value: Any, data: Any) -> bool:
    return holds(value, {**ORDER, "data": data})


# --- Operators


@pytest.mark.parametrize(
    ("filter_", "matches"),
    [
        ({"exact": {"type": "order.updated"}}, True),
        ({"exact": {"type": "order.created"}}, False),
        ({"exact": {"tenant": "acme"}}, True),
        ({"prefix": {"type": "order."}}, True),
        ({"prefix": {"type": "orders"}}, False),
        ({"suffix": {"subject": "-eu"}}, True),
        ({"suffix": {"subject": "-us"}}, False),
        ({"in": {"data.status": ["paid", "shipped"]}}, True),
        ({"in": {"data.status": ["open", "shipped"]}}, False),
        ({"gt": {"data.total": 100}}, True),
        ({"gt": {"data.total": 120}}, False),
        ({"gte": {"data.total": 120}}, True),
        ({"gte": {"data.total": 120.5}}, False),
        ({"lt": {"data.total": 120.5}}, True),
        ({"lt": {"data.total": 120}}, False),
        ({"lte": {"data.total": 120}}, True),
        ({"lte": {"data.total": 119}}, False),
        ({"exists": {"data.status": True}}, True),
        ({"exists": {"data.coupon": True}}, False),
        ({"exists": {"data.coupon": False}}, True),
        ({"exists": {"data.status": False}}, False),
        ({"all": [{"exact": {"data.status": "paid"}}, {"prefix": {"type": "order."}}]}, True),
        ({"all": [{"exact": {"data.status": "paid"}}, {"prefix": {"type": "x"}}]}, False),
        ({"any": [{"exact": {"data.status": "open"}}, {"prefix": {"type": "order."}}]}, True),
        ({"any": [{"exact": {"data.status": "open"}}, {"prefix": {"type": "x"}}]}, False),
        ({"not": {"exact": {"data.status": "paid"}}}, False),
        ({"not": {"exact": {"data.status": "open"}}}, True),
    ],
)
def test_each_operator_says_what_its_name_says(filter_: Any, matches: bool) -> None:
    """Each operator holds and fails on an order as its name says."""
    assert holds(filter_) is matches


def test_several_attributes_are_all_required() -> None:
    """An operator with several attributes holds only where each of them does."""
    assert holds({"exact": {"type": "order.updated", "data.status": "paid"}})
    assert not holds({"exact": {"type": "order.updated", "data.status": "open"}})
    assert not holds({"exists": {"data.status": True, "data.coupon": True}})


@pytest.mark.parametrize("operator", ["exact", "prefix", "suffix", "in", "gt", "gte", "lt", "lte"])
def test_a_missing_attribute_matches_nothing(operator: str) -> None:
    """Where nothing stands at the path no operator holds, and so `not` around it does."""
    operand: Any = {"in": ["x", None], "gt": 1, "gte": 1, "lt": 1, "lte": 1}.get(operator, "x")
    for path in ("data.coupon", "dataschema", "data.items.9.sku", "data.empty.*"):
        assert not holds({operator: {path: operand}})
        assert holds({"not": {operator: {path: operand}}})


# --- Values


@pytest.mark.parametrize(
    ("named", "value"),
    [
        (1, True),
        (True, 1),
        (1.0, True),
        (0, False),
        ("1", 1),
        (1, "1"),
        (None, "null"),
        (None, 0),
        (None, False),
        (False, None),
        ("true", True),
        ("é", "e\u0301"),
        ("paid", ["paid"]),
        ("paid", {"paid": 1}),
        (9007199254740993, 9007199254740992),
        (9007199254740993, 9007199254740992.0),
        ((1 << 64) - 1, 18446744073709551616.0),
    ],
)
def test_values_of_another_type_or_value_never_match(named: Any, value: Any) -> None:
    """No value equals one of another type, and neither normalisation nor rounding makes two alike."""
    body = {"v": value}
    assert not payload_holds({"exact": {"data.v": named}}, body)
    assert not payload_holds({"in": {"data.v": [named, "other", 77]}}, body)
    assert payload_holds({"exact": {"data.v": named}}, {"v": named})
    assert payload_holds({"in": {"data.v": [named, "other", 77]}}, {"v": named})


@pytest.mark.parametrize(
    ("named", "value"),
    [(1, 1.0), (1.0, 1), (0, -0.0), (1e3, 1000), (1e20, 1e20), (9223372036854775807, 9223372036854775807)],
)
def test_numbers_are_compared_by_value(named: float, value: float) -> None:
    """1 is 1.0, however each of them is written."""
    assert payload_holds({"exact": {"data.v": named}}, {"v": value})
    assert payload_holds({"in": {"data.v": [named, "x"]}}, {"v": value})
    assert payload_holds({"gte": {"data.v": named}}, {"v": value})
    assert not payload_holds({"gt": {"data.v": named}}, {"v": value})


@pytest.mark.parametrize("value", [5, True, None, ["order."], {"order.": 1}])
def test_prefix_and_suffix_are_for_strings(value: Any) -> None:
    """`prefix` and `suffix` match nothing but strings."""
    assert not payload_holds({"prefix": {"data.v": "order."}}, {"v": value})
    assert not payload_holds({"suffix": {"data.v": "order."}}, {"v": value})
    assert not payload_holds({"prefix": {"data.v": "5"}}, {"v": value})


@pytest.mark.parametrize("value", [True, None, "7", "2026-05-01T12:00:00Z", [7], {"7": 7}])
def test_a_number_as_bound_compares_with_numbers_only(value: Any) -> None:
    """No boolean, text or structure is more or less than a number."""
    for operator in ("gt", "gte", "lt", "lte"):
        assert not payload_holds({operator: {"data.v": 1}}, {"v": value})


def test_integers_are_compared_exactly() -> None:
    """64-bit integers that share a double are still told apart."""
    assert holds({"gt": {"data.big": 9007199254740992}})
    assert not holds({"gt": {"data.big": 9007199254740993}})
    assert holds({"gt": {"data.big": 9007199254740992.0}})
    assert payload_holds({"lt": {"data.v": (1 << 64) - 1}}, {"v": (1 << 64) - 2})


def test_null_is_a_value() -> None:
    """A null in the payload exists, and `exact` and `in` may name it."""
    assert holds({"exists": {"data.note": True}})
    assert not holds({"exists": {"data.note": False}})
    assert holds({"exact": {"data.note": None}})
    assert holds({"in": {"data.note": ["x", None]}})
    assert not holds({"exact": {"data.status": None}})
    assert not holds({"exact": {"data.coupon": None}})
    assert payload_holds({"exists": {"data": True}}, None)
    assert payload_holds({"exact": {"data": None}}, None)


# --- Times


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("2026-05-01T12:00:00Z", "2026-05-01T12:00:01Z"),
        ("2026-05-01T14:00:00+02:00", "2026-05-01T12:00:00.000000000001Z"),
        ("2026-05-01T12:00:00.1234567Z", "2026-05-01T12:00:00.1234568Z"),
        ("2026-05-01T12:00:00.09Z", "2026-05-01T12:00:00.1Z"),
        ("0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59"),
        ("2016-12-31T23:59:59.999Z", "2016-12-31T23:59:60Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00.1Z"),
        ("1969-12-31t23:59:59.5z", "1970-01-01T00:00:00Z"),
        ("2024-02-28T23:59:59Z", "2024-02-29T00:00:00Z"),
    ],
)
def test_times_are_compared_as_instants(earlier: str, later: str) -> None:
    """Times compare by the instant that they name, with all their digits, over every year and offset."""
    assert payload_holds({"gt": {"data.v": earlier}}, {"v": later})
    assert payload_holds({"lt": {"data.v": later}}, {"v": earlier})
    assert not payload_holds({"gte": {"data.v": later}}, {"v": earlier})
    assert not payload_holds({"lte": {"data.v": earlier}}, {"v": later})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2026-05-01T12:00:00Z", "2026-05-01T14:00:00.000+02:00"),
        ("2026-05-01T12:00:00.120Z", "2026-05-01T12:00:00.12Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2026-05-01T12:00:00-00:00", "2026-05-01t12:00:00z"),
    ],
)
def test_one_instant_has_many_spellings(one: str, other: str) -> None:
    """Two spellings of one instant are neither before nor after each other; a leap second is the next :00."""
    assert payload_holds({"gte": {"data.v": one}}, {"v": other})
    assert payload_holds({"lte": {"data.v": one}}, {"v": other})
    assert not payload_holds({"gt": {"data.v": one}}, {"v": other})
    assert not payload_holds({"lt": {"data.v": one}}, {"v": other})


NO_TIMES = [
    "",
    "2026-05-01",
    "2026-05-01T12:00:00",
    "2026-05-01 12:00:00Z",
    "2026-02-30T12:00:00Z",
    "0000-01-01T00:00:00Z",
    "2026-05-01T12:00:61Z",
    "2026-05-01T12:00:00.Z",
    "2026-05-01T12:00:00+24:00",
    "\u0662\u0660\u0662\u0666-05-01T12:00:00Z",
    "100",
]


@pytest.mark.parametrize("text", NO_TIMES)
def test_text_that_is_no_time_is_no_bound_and_never_matches(text: str) -> None:
    """A bound is a full RFC 3339 time with offset and a real date; an event's other text never matches."""
    for operator in ("gt", "gte", "lt", "lte"):
        with pytest.raises(GatewayError, match=f"bad_filter: {operator}/data.v: must be a number or"):
            parse_filter({operator: {"data.v": text}})
        assert not payload_holds({operator: {"data.v": "2026-05-01T12:00:00Z"}}, {"v": text})


def test_the_time_of_an_event_can_be_asked_for() -> None:
    """Attributes hold times as well as the payload does."""
    assert holds({"gte": {"time": "2026-05-01T14:00:00+02:00"}})
    assert not holds({"gt": {"time": "2026-05-01T14:00:00+02:00"}})
    assert holds({"gt": {"data.paidAt": "2026-05-01T12:00:00.1234566Z"}})


# --- Paths


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.items.0.sku", "a"),
        ("data.items.1.sku", "b"),
        ("data.tags.1", "eu"),
        ("data.items.*.sku", "b"),
        ("data.tags.*", "new"),
        ("data.0", "zero"),
    ],
)
def test_paths_lead_through_objects_and_arrays(path: str, value: str) -> None:
    """A number indexes an array and names an object's member, and * is any element."""
    assert holds({"exact": {path: value}})
    assert not holds({"exact": {path: "other"}})


@pytest.mark.parametrize(
    "path",
    [
        "data.tags.2",
        "data.tags.01",
        "data.tags.-1",
        "data.tags.²",
        "data.tags.\u0660",
        "data.tags.+1",
        "data.tags.1_",
        "data.tags.9999999999999999999999",
        "data.tags.length",
        "data.status.0",
        "data.status.*",
        "type2",
    ],
)
def test_paths_that_lead_nowhere(path: str) -> None:
    """Only a canonical ASCII decimal within its bounds is an index, and a scalar has no members."""
    assert holds({"exists": {path: False}})
    assert not holds({"exists": {path: True}})


def test_a_star_means_nothing_on_an_object() -> None:
    """Neither its members nor one that is named * are found by a * on an object."""
    assert payload_holds({"exists": {"data.*": False}}, {"*": 1, "a": 2})
    assert payload_holds({"exact": {"data.*.*": 1}}, [{"*": 1}, [1]])
    assert not payload_holds({"exact": {"data.*.*": 1}}, [{"*": 1}, [2]])


def test_exists_with_a_star() -> None:
    """`exists: true` wants one element that has it, `exists: false` that none does."""
    assert payload_holds({"exists": {"data.items.*.x": True}}, {"items": [{}, {"x": None}]})
    assert not payload_holds({"exists": {"data.items.*.x": False}}, {"items": [{}, {"x": None}]})
    assert payload_holds({"exists": {"data.items.*.x": False}}, {"items": [{}, 1, []]})
    assert payload_holds({"exists": {"data.items.*": False}}, {"items": []})
    assert payload_holds({"exists": {"data.items.*": False}}, {})


def test_two_stars_need_not_mean_the_same_element() -> None:
    """Each attribute is looked at on its own."""
    assert holds({"exact": {"data.items.*.sku": "a", "data.items.*.n": 2}})


def test_not_around_a_star_wants_no_element() -> None:
    """`not` turns any element into no element."""
    assert not holds({"not": {"exact": {"data.items.*.sku": "a"}}})
    assert holds({"not": {"exact": {"data.items.*.sku": "c"}}})


def test_data_alone_is_the_whole_payload() -> None:
    """A scalar payload is compared; of another one only the existence can be asked."""
    assert payload_holds({"exact": {"data": 5}}, 5.0)
    assert payload_holds({"prefix": {"data": "pa"}}, "paid")
    assert payload_holds({"exists": {"data": True}}, {})
    assert not payload_holds({"in": {"data": [5, "x"]}}, [5])
    assert payload_holds({"exact": {"data.*": 5}}, [4, 5])
    assert payload_holds({"exact": {"data.1": 5}}, [4, 5])
    without = {name: value for name, value in ORDER.items() if name != "data"}
    assert holds({"exists": {"data": False, "data.x": False, "data.*": False}}, without)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "Type",
        "my_attribute",
        "data_base64",
        "type.x",
        "subject.*",
        ".data",
        "data.",
        "data..x",
        "data.x.",
        "*",
        "a" * 21,
        "é",
        "time ",
        "Data.x",
        "items.0",
    ],
)
def test_paths_that_are_none(path: str) -> None:
    """A path is an attribute's name, or data with members; no segment is empty."""
    with pytest.raises(GatewayError, match="bad_filter: exact: "):
        parse_filter({"exact": {path: "x"}})
    with pytest.raises(GatewayError, match="bad_filter: "):
        parse_query([(path, "x")])
    with pytest.raises(ValueError, match=r"is |has "):
        split_path(path)
