"""Filters as they come in: their shape, their limits, their JSON text and their short form in a URL."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import GatewayError, pointer
from gateway.filters import Filter, parse_filter, parse_filter_json, parse_query

ORDERS: dict[str, Any] = {"prefix": {"type": "order."}}


def refuse(read: Callable[[], object]) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        read()
    assert caught.value.code == "bad_filter"
    assert caught.value.errors
    return caught.value


def refused(value: Any) -> str:
    """Where in the filter the fault is."""
    return refuse(lambda: parse_filter(value)).errors[0].pointer


def query(text: str) -> Filter | None:
    return parse_query(
        [(name, value) for name, _, value in (pair.partition("=") for pair in text.split("&"))]
    )


# --- Shape


@pytest.mark.parametrize(
    ("filter_", "place"),
    [
        (None, "#"),
        ("x", "#"),
        ([], "#"),
        ([{"exact": {"type": "a"}}], "#"),
        ({}, "#"),
        ({"exact": {"type": "a"}, "prefix": {"type": "a"}}, "#"),
        ({"equals": {"type": "a"}}, "#"),
        ({"exact": {}}, "#/exact"),
        ({"exact": []}, "#/exact"),
        ({"exact": "type"}, "#/exact"),
        ({"all": []}, "#/all"),
        ({"any": []}, "#/any"),
        ({"any": {"exact": {"type": "a"}}}, "#/any"),
        ({"not": []}, "#/not"),
        ({"not": {}}, "#/not"),
        ({"all": [{"exact": {"type": "a"}}, {"gt": {"data.total": "x"}}]}, "#/all/1/gt/data.total"),
        ({"any": [{"not": {"in": {"type": []}}}]}, "#/any/0/not/in/type"),
        ({"in": {"type": "a"}}, "#/in/type"),
        ({"in": {"type": ["a", ["b"]]}}, "#/in/type/1"),
        ({"exact": {"data.x": [1]}}, "#/exact/data.x"),
        ({"exact": {"data.x": {"y": 1}}}, "#/exact/data.x"),
        ({"exact": {"data.x": float("nan")}}, "#/exact/data.x"),
        ({"exact": {"data.x": float("inf")}}, "#/exact/data.x"),
        ({"exact": {"data.x": 1 << 64}}, "#/exact/data.x"),
        ({"exact": {"data.x": -(1 << 63) - 1}}, "#/exact/data.x"),
        ({"exact": {"data.x": "\ud800"}}, "#/exact/data.x"),
        ({"exact": {"data.\ud800": "x"}}, "#/exact"),
        ({"\ud800": {"type": "x"}}, "#"),
        ({"prefix": {"type": ""}}, "#/prefix/type"),
        ({"suffix": {"type": ""}}, "#/suffix/type"),
        ({"prefix": {"type": 5}}, "#/prefix/type"),
        ({"suffix": {"type": "\udfff"}}, "#/suffix/type"),
        ({"gt": {"data.x": True}}, "#/gt/data.x"),
        ({"gte": {"data.x": None}}, "#/gte/data.x"),
        ({"lt": {"data.x": [1]}}, "#/lt/data.x"),
        ({"lte": {"data.x": float("-inf")}}, "#/lte/data.x"),
        ({"exists": {"data.x": 1}}, "#/exists/data.x"),
        ({"exists": {"data.x": None}}, "#/exists/data.x"),
    ],
)
def test_a_bad_filter_names_the_place(filter_: Any, place: str) -> None:
    """Each fault of shape is told with the place where it stands."""
    assert refused(filter_) == place


def test_the_message_names_the_place_too() -> None:
    """WebSocket clients see only the message, so it has the place as well, in characters that can be sent."""
    bad = {"all": [{"exact": {"type": "a"}}, {"gt": {"data.total": None}}]}
    assert refuse(lambda: parse_filter(bad)).detail.startswith("all/1/gt/data.total: ")
    within = refuse(lambda: parse_filter(bad, where="subscribe/0"))
    assert within.detail.startswith("subscribe/0/all/1/gt/data.total: ")
    assert within.errors[0].pointer == "#/subscribe/0/all/1/gt/data.total"
    assert refuse(lambda: parse_filter({"\ud800" * 99: 1})).detail.encode()
    assert len(refuse(lambda: parse_filter({"x" * 9999: 1})).detail) < 200
    assert within.status == 422


def test_pointers_escape_member_names() -> None:
    """A member's name with a slash or a tilde is one segment of the place."""
    assert refused({"exists": {"data.a/b~c": 1}}) == pointer("exists", "data.a/b~c")


# --- Limits


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"exact": {"type": "a"}}
    for level in range(levels - 1):
        value = {"not": value} if level % 2 else {"all": [value]}
    return value


def test_filters_nest_eight_deep() -> None:
    """Eight nested filters, the innermost included, are the limit, and a thousand do no harm."""
    assert parse_filter(nested(8))
    assert refused(nested(9)).count("/") > 8
    assert refused(nested(900))
    assert refuse(lambda: parse_filter_json('{"not":' * 500 + "1" + "}" * 500)).status in (400, 422)
    assert refuse(lambda: parse_filter_json("[" * 4000)).status == 422


def test_a_filter_has_64_terms() -> None:
    """Each attribute under an operator is a term, and each value of an `in`, however they are spread."""
    assert parse_filter({"in": {"data.n": list(range(64))}})
    assert refused({"in": {"data.n": list(range(65))}}) == "#/in"
    assert refused({"in": {"data.n": [1] * 65}}) == "#/in"
    assert parse_filter({"exists": {f"data.n{n}": True for n in range(64)}})
    assert refused({"exists": {f"data.n{n}": True for n in range(65)}}) == "#/exists"
    one = {"exact": {"type": "a"}}
    assert parse_filter({"any": [one, {"in": {"data.n": list(range(62))}}, one]})
    assert refused({"any": [one, {"in": {"data.n": list(range(63))}}, one]}) == "#/any/2/exact"


def test_a_filter_has_four_kibibytes() -> None:
    """The limit counts bytes of UTF-8 of compact JSON, so it is the same however the filter came."""
    overhead = len('{"exact":{"type":""}}')
    fits, exceeds = "é" * ((4096 - overhead) // 2), "é" * ((4096 - overhead) // 2 + 1)
    assert parse_filter({"exact": {"type": fits}})
    assert refused({"exact": {"type": exceeds}}) == "#"
    escaped = json.dumps({"exact": {"type": fits}}, indent=9)
    assert parse_filter_json(escaped) == parse_filter({"exact": {"type": fits}})
    refused_text = json.dumps({"exact": {"type": exceeds}}, ensure_ascii=False)
    assert "4096 bytes" in refuse(lambda: parse_filter_json(refused_text)).detail
    text = '{"exact":{"type":"a"}}'
    assert parse_filter_json(text.ljust(65_536))
    assert "65536 bytes" in refuse(lambda: parse_filter_json(text.ljust(65_537))).detail


def test_the_limits_hold_for_the_short_form() -> None:
    """A query is bounded like the filter that it stands for."""
    assert query("&".join(f"data.n=v{n}" for n in range(64)))
    refuse(lambda: query("&".join(f"data.n=v{n}" for n in range(65))))
    assert query("type=" + "x" * 4092)
    assert refuse(lambda: query("type=" + "x" * 4093)).errors[0].pointer == "#/type"
    assert refuse(lambda: query("subject=é&type=" + "é" * 2042)).errors[0].pointer == "#/type"


def test_the_terms_of_the_short_form_are_those_that_were_written() -> None:
    """A number is meant as its text too, which counts nothing; one too many is told by its parameter."""
    numbers = "&".join(f"data.n={n}" for n in range(64))
    assert query(numbers) is not None
    assert refuse(lambda: query(f"{numbers}&data.m=1")).errors[0].pointer == "#/data.m"
    stars = "&".join(f"data.n{n}=a*" for n in range(32))
    assert query(f"{stars}&" + "&".join(f"data.n{n}={n}" for n in range(32)))
    name = "data." + "n" * 100
    assert query("&".join(f"{name}={10**18 + n}" for n in range(64)))


# --- JSON text


@pytest.mark.parametrize("text", ["", "{", "nan", '{"exact":{"type":NaN}}', b"\xff", "\ud800", '{"a":1}x'])
def test_unreadable_text_is_a_bad_filter_with_status_400(text: str | bytes) -> None:
    """What is no JSON is unreadable: 400."""
    assert refuse(lambda: parse_filter_json(text)).status == 400


@pytest.mark.parametrize(
    "operand",
    ["18446744073709551616", "1e400", "0.1000000000000000055511151231257827", r'"\ud800"'],
)
def test_values_that_cannot_be_kept_are_refused(operand: str) -> None:
    """A number that would not be compared as it was written, or half a character, is readable but wrong."""
    error = refuse(lambda: parse_filter_json(f'{{"exact":{{"data.x":{operand}}}}}'))
    assert (error.status, error.errors[0].pointer) == (422, "#/exact/data.x")


def test_filters_are_read_from_text_and_bytes() -> None:
    """A text and its UTF-8 are the same filter."""
    text = '{"exact": {"data.name": "é"}}'
    assert parse_filter_json(text) == parse_filter_json(text.encode()) == parse_filter(json.loads(text))


# --- Short form


@pytest.mark.parametrize(
    ("text", "filter_"),
    [
        ("type=order.created", {"exact": {"type": "order.created"}}),
        ("type=order.*", ORDERS),
        ("data.status=paid&data.status=shipped", {"in": {"data.status": ["paid", "shipped"]}}),
        ("type=order.*&subject=o-1", {"all": [ORDERS, {"exact": {"subject": "o-1"}}]}),
        (
            "type=a&type=order.*&type=x*",
            {"any": [{"exact": {"type": "a"}}, ORDERS, {"prefix": {"type": "x"}}]},
        ),
        ("type=**", {"prefix": {"type": "*"}}),
        ("type=*x", {"exact": {"type": "*x"}}),
        ("subject=", {"exact": {"subject": ""}}),
        ("data.n=5", {"in": {"data.n": [5, "5"]}}),
        ("data.n=-0.5e1", {"in": {"data.n": [-5, "-0.5e1"]}}),
        ("data.n=5&data.n=6", {"in": {"data.n": [5, "5", 6, "6"]}}),
        ("data.gift=true", {"in": {"data.gift": [True, "true"]}}),
        ("data.gift=false", {"in": {"data.gift": [False, "false"]}}),
        ("data.gift=null", {"exact": {"data.gift": "null"}}),
        ("data.n=5*", {"prefix": {"data.n": "5"}}),
        ("data.items.*.sku=a", {"exact": {"data.items.*.sku": "a"}}),
    ],
)
def test_the_short_form(text: str, filter_: Any) -> None:
    """Repeated is any of, different names are all of, a trailing * is a prefix."""
    assert query(text) == parse_filter(filter_)


@pytest.mark.parametrize(
    "value",
    [
        "+5",
        "05",
        "1_0",
        " 5",
        "5 ",
        "\u0665",
        "0x1",
        "1.",
        ".5",
        "1e",
        "Infinity",
        "NaN",
        "TRUE",
        "5\n",
        "18446744073709551616",
        "1e400",
        "0.1000000000000000055511151231257827",
    ],
)
def test_text_that_is_no_json_number_is_only_text(value: str) -> None:
    """Only what reads as a JSON number, and can be one in an event, means a number too."""
    assert parse_query([("data.n", value)]) == parse_filter({"exact": {"data.n": value}})


def test_a_number_of_thousands_of_digits_is_text() -> None:
    """No digits, however many, are more than text that is too long."""
    digits = "1" * 4000
    assert parse_query([("data.n", digits)]) == parse_filter({"exact": {"data.n": digits}})
    refuse(lambda: parse_query([("data.n", digits * 20)]))


def test_a_lone_star_is_no_filter() -> None:
    """A * alone is refused by the name of its parameter, even beside other values."""
    assert refuse(lambda: query("type=*")).errors[0].pointer == "#/type"
    assert refuse(lambda: query("type=a&type=*&data.x=1")).errors[0].pointer == "#/type"


def test_an_empty_query_is_no_filter() -> None:
    """No pairs, no filter."""
    assert parse_query([]) is None


def test_an_unknown_parameter_is_refused_by_its_name() -> None:
    """A parameter that is no attribute is an error that names it, not a surprise."""
    assert refuse(lambda: query("Type=a")).detail.startswith("'Type' is neither")
    assert refuse(lambda: query("type=a&data..x=b")).detail == "'data..x' has an empty segment"


@pytest.mark.parametrize("pair", [("data.\ud800", "a"), ("type", "\ud800"), ("type", "\ud800*")])
def test_half_characters_in_a_query_are_refused(pair: tuple[str, str]) -> None:
    """A lone surrogate is refused in words that can be sent."""
    assert refuse(lambda: parse_query([pair])).detail.encode()
