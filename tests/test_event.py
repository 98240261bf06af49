"""Events: what is taken, what is filled in, and what is refused with every fault and its place."""

import base64
import re
import uuid
from datetime import datetime
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import GatewayError
from gateway.event import Defaults, Event, is_rfc3339, make_event, rfc3339
from tests.support.core import NOON, Clock

MAX = 65_536


def defaults() -> Defaults:
    return Defaults("/events", Clock(NOON + 0.0625), lambda size: bytes(range(size)))


def event(value: Any, max_bytes: int = MAX) -> Event:
    return make_event(value, defaults(), max_bytes=max_bytes)


def faults(value: Any, at: tuple[str | int, ...] = ()) -> dict[str, str]:
    """The faults of a value, by pointer."""
    with pytest.raises(GatewayError) as caught:
        make_event(value, defaults(), max_bytes=MAX, at=at)
    assert (caught.value.code, caught.value.status) == ("invalid_event", 422)
    return {each.pointer: each.detail for each in caught.value.errors}


def test_a_type_is_enough() -> None:
    """The gateway fills in what is missing: specversion, id, source, time and datacontenttype."""
    made = event({"type": "order.created"})
    assert orjson.loads(made.json) == {
        "specversion": "1.0",
        "id": "019e7044-883e-7001-8203-040506070809",
        "source": "/events",
        "type": "order.created",
        "time": "2026-05-28T20:26:40.062Z",
        "datacontenttype": "application/json",
    }


def test_what_the_producer_gave_is_kept() -> None:
    """Every attribute that came stays as it came, extensions included, and `data` may be any JSON value."""
    given_ = {
        "specversion": "1.0",
        "id": "a-1",
        "source": "https://shop.example/orders?x=1#y",
        "type": "order.created",
        "subject": "o-1",
        "time": "2026-05-01T12:00:00.123456789+02:00",
        "datacontenttype": "application/vnd.shop+json",
        "dataschema": "/schemas/order.created/1",
        "tenant": "north",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "priority": 3,
        "express": True,
    }
    values: list[Any] = [None, 0, "", [], {}, {"a": [1.5, None]}, "text"]
    for data in values:
        made = event({**given_, "data": data})
        assert orjson.loads(made.json) == {**given_, "data": data}
        assert (made.source, made.id, made.type, made.subject) == (
            given_["source"], "a-1", "order.created", "o-1",
        )  # fmt: skip
        assert made.body == orjson.loads(made.json)


def test_ids_are_uuidv7_of_their_moment() -> None:
    """Version and variant as RFC 9562 has them, ordered by time, and never the same twice."""
    clock = Clock(1_700_000_000.5)
    ids = []
    for _ in range(50):
        ids.append(uuid.UUID(Defaults(now=clock).new_id()))
        clock.now += 0.125
    assert all((each.version, each.variant) == (7, uuid.RFC_4122) for each in ids)
    assert [each.int >> 80 for each in ids] == [1_700_000_000_500 + n * 125 for n in range(50)]
    assert len({Defaults(now=clock).new_id() for _ in range(1000)}) == 1000


@settings(max_examples=200)
@given(st.floats(0, 253_402_300_799))
def test_filled_times_are_rfc_3339_in_milliseconds(seconds: float) -> None:
    """UTC, three digits, and a real date."""
    text = rfc3339(seconds)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    assert is_rfc3339(text)


@pytest.mark.parametrize("value", [None, [], "text", 1, True])
def test_an_event_is_an_object(value: Any) -> None:
    """The fault stands where the value stands in the request."""
    assert faults(value) == {"#": "not an object"}
    assert faults(value, at=(7,)) == {"#/7": "not an object"}


def test_the_type_is_required() -> None:
    """It is the one thing that the gateway cannot know."""
    assert faults({}) == {"#/type": "is required"}
    assert faults({"id": "1"}, at=(3,)) == {"#/3/type": "is required"}


def test_every_fault_is_told_at_once() -> None:
    """With its own pointer, names escaped as RFC 6901 has it."""
    found = faults({"type": "", "subject": 5, "a/b~c": 1, "time": "yesterday", "tenant": []})
    assert list(found) == ["#/type", "#/subject", "#/a~1b~0c", "#/time", "#/tenant"]


# Each character that a String must not have, or the ends of their ranges (CloudEvents, section 3).
DISALLOWED = [
    f"a{each}b" for each in "\x00\t\n\x1f\x7f\x80\x9f\ud800\udfff\ufdd0\ufdef\ufffe\uffff\U0001fffe\U0010ffff"
]
BAD: dict[str, list[Any]] = {
    "specversion": ["0.3", "1.1", 1.0, 1, ""],
    "id": ["", 1, [], {}, True, *DISALLOWED],
    "type": ["", 1, [], {}, *DISALLOWED],
    "source": [
        *("", 1, "a b", "a\nb", "<a>", "a\x00", 'a"b', "a\\b", "{a}", "a|b", "a^b", "a`b"),
        *("/a%zz", "/a%", "/a%4", "%%20", "a\x85b"),
    ],
    "subject": ["", 1, [], *DISALLOWED],
    "time": [
        "",
        1,
        "2026-05-01",
        "2026-05-01T12:00:00",
        "2026-02-30T12:00:00Z",
        "2026-05-01 12:00:00Z",
    ],
    "datacontenttype": [
        *(
            "",
            1,
            "json",
            "text/",
            "/plain",
            "text/plain/x",
            "text plain",
            "text/plain; charset",
            "text/plain;=a",
        ),
        *('text/plain; a="b', "text/plain, text/html", "text/plain\n", 'a/b; c="\x00"', "tëxt/plain"),
    ],
    "dataschema": ["", 1, "a b", "/a%zz"],
    "data_base64": ["!", 1, "YQ", "YQ==\n", "YQ-_"],
    "tenant": [[], {}, ["a"], *DISALLOWED],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD for value in BAD[name]])
def test_ill_typed_attributes_are_errors(name: str, value: Any) -> None:
    """Each attribute has a type, and text has no characters that CloudEvents disallows."""
    assert list(faults({"type": "a", name: value})) == [f"#/{name}"]


@pytest.mark.parametrize("name", ["id", "type", "subject", "tenant"])
@pytest.mark.parametrize("text", [" ", "a b", "~", "\xa0", "é", "\ue000", "\ufdcf", "\ufdf0", "\ufffd", "😀"])
def test_every_other_character_is_taken(name: str, text: str) -> None:
    """Those beside what is disallowed, and those beyond ASCII."""
    assert event({"type": "a", name: text}).body[name] == text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source", "/a%20b%C3%A9"),
        ("source", "urn:é:1"),
        ("dataschema", "https://shop.example/s#%41"),
        ("datacontenttype", "text/plain;charset=utf-8"),
        ("datacontenttype", 'application/vnd.shop.v1+json ; a="b \\" c"; d=e;'),
    ],
)
def test_uris_and_media_types(name: str, value: str) -> None:
    """RFC 3986 with whole percent-escapes, RFC 2045 with parameters."""
    assert event({"type": "a", name: value}).body[name] == value


def test_an_attribute_that_is_null_is_absent() -> None:
    """What has a default gets it, the others stand nowhere (JSON format, section 3.1); `data` may be null."""
    nulls = dict.fromkeys([*BAD, "traceparent", "data"])
    made = event({**nulls, "type": "a"})
    assert made.body == {**event({"type": "a"}).body, "data": None}
    assert orjson.loads(made.json) == made.body
    assert made.subject is None
    assert faults({"type": None}) == {"#/type": "is required"}
    assert list(faults({"type": "a", "orderId": None})) == ["#/orderId"]
    assert "data_base64" not in event({"type": "a", "data": 1, "data_base64": None}).body


def test_a_media_type_is_told_at_once() -> None:
    """However long it is, and wherever it goes wrong."""
    for text in ("a/b" + "; " * 30_000 + "=", "a/b;" + " " * 60_000 + "=", 'a/b;c="' + "\\x" * 30_000):
        assert list(faults({"type": "a", "datacontenttype": text})) == ["#/datacontenttype"]


@pytest.mark.parametrize(
    "name",
    [
        "Data",
        "orderId",
        "order_id",
        "order-id",
        "",
        "a" * 21,
        "é",
        "\uff11",
        "data.status",
        "Type",
        "a b",
        "a\n",
        "data_base65",
    ],
)
def test_unknown_attributes_are_errors(name: str) -> None:
    """What is no CloudEvents attribute and no extension's name is a slip of the producer's."""
    assert list(faults({"type": "a", name: "x"})) == [f"#/{name}"]


@pytest.mark.parametrize("value", ["", "text", 0, -1, 1.5, True, False])
def test_extensions_are_scalars_of_any_kind(value: Any) -> None:
    """Named by 1 to 20 of a-z and 0-9."""
    for name in ("a", "0", "tenant", "a" * 20, "traceparent"):
        assert orjson.loads(event({"type": "a", name: value}).json)[name] == value


def test_data_stands_once() -> None:
    """As JSON or as base64."""
    encoded = base64.b64encode(b"\x00\xff").decode()
    assert event({"type": "a", "data_base64": encoded}).body["data_base64"] == encoded
    assert list(faults({"type": "a", "data": 1, "data_base64": encoded})) == ["#/data_base64"]


def test_the_size_is_that_of_compact_json_before_the_filling() -> None:
    """White space, and what the gateway adds, count nothing; UTF-8 counts in bytes."""
    value = {"type": "a", "data": "é" * 20}
    compact = len(orjson.dumps(value))
    assert compact == len('{"type":"a","data":""}') + 40
    assert len(event(dict(value), compact).json) > compact
    with pytest.raises(GatewayError) as caught:
        event(dict(value), compact - 1)
    assert (caught.value.code, caught.value.status) == ("too_large", 413)
    assert [each.pointer for each in caught.value.errors] == ["#"]


def test_what_cannot_be_written_is_no_event() -> None:
    """Nested so deeply that nobody could be sent it."""
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    assert faults({"type": "a", "data": deep}, (2,)) == {"#/2": "the event nests more than 254 deep"}


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("2026-05-01T12:00:00Z", True),
        ("2026-05-01t12:00:00z", True),
        ("2026-05-01T12:00:00.1234567890123Z", True),
        ("2024-02-29T00:00:00+14:00", True),
        ("2016-12-31T23:59:60Z", True),
        ("0001-01-01T00:00:00-23:59", True),
        ("2023-02-29T00:00:00Z", False),
        ("2026-13-01T00:00:00Z", False),
        ("2026-05-01T24:00:00Z", False),
        ("2026-05-01T12:60:00Z", False),
        ("2026-05-01T12:00:61Z", False),
        ("2026-05-01T12:00:00+24:00", False),
        ("2026-05-01T12:00:00+0200", False),
        ("2026-05-01T12:00Z", False),
        ("0000-01-01T00:00:00Z", False),
        ("2026-05-01T12:00:00Z\n", False),
        ("", False),
    ],
)
def test_rfc_3339(text: str, valid: bool) -> None:
    """Full times with an offset and a real date."""
    assert is_rfc3339(text) is valid


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=4,
)
names = st.sampled_from([*BAD, "data", "ext", "Bad"])


@settings(max_examples=400)
@given(st.dictionaries(names, values))
def test_whatever_is_taken_is_a_cloudevent(value: dict[str, Any]) -> None:
    """Random objects: an event with all required attributes, or an error with a pointer for each fault."""
    try:
        made = event(dict(value))
    except GatewayError as error:
        refused = error
    else:
        body = orjson.loads(made.json)
        assert all(
            type(body[name]) is str and body[name] for name in ("specversion", "id", "source", "type", "time")
        )
        assert {name: body[name] for name in value if value[name] is not None} == {
            name: each for name, each in value.items() if each is not None
        }
        return
    assert refused.code == "invalid_event"
    assert refused.errors


def is_time_by_datetime(text: str) -> bool:
    """The same as `is_rfc3339`, by the standard library instead of by a pattern with the ranges in it."""
    if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", text, re.ASCII) is None:
        return False
    try:
        datetime.fromisoformat(text[:17] + ("59" if text[17:19] == "60" else text[17:19]))
    except ValueError:
        return False
    return text[-1] == "Z" or (text[-5:-3] < "24" and text[-2:] < "60")


def two_digits(most: int) -> st.SearchStrategy[str]:
    return st.integers(0, most).map(lambda number: f"{number:02}")


@settings(max_examples=400)
@given(
    st.sampled_from(["0000", "0001", "1900", "2000", "2023", "2024", "9999"]),
    *(two_digits(most) for most in (13, 32, 25, 61, 61)),
    st.sampled_from(["Z", ".5Z", "+00:00", "-23:59", ".123+24:00", "+05:60"]),
)
def test_a_time_is_valid_where_the_calendar_says_so(
    year: str, month: str, day: str, hour: str, minute: str, second: str, end: str
) -> None:
    """Months of 28 to 31 days, leap years, leap seconds, and all that is just beyond a range."""
    text = f"{year}-{month}-{day}T{hour}:{minute}:{second}{end}"
    assert is_rfc3339(text) is is_time_by_datetime(text)
