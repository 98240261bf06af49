"""JSON in: a number arrives as it was sent or is refused, and whatever comes out can be written again."""

from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.errors import GatewayError
from gateway.jsontext import MAX_DEPTH, dumps, parse


def code_of(data: bytes) -> str:
    with pytest.raises(GatewayError) as caught:
        parse(data)
    return caught.value.code


def value_or_error(data: bytes) -> Any:
    try:
        return parse(data)
    except GatewayError as error:
        return error


def number_in(data: bytes) -> Decimal:
    """A number as a reader with unlimited precision takes it."""
    return Decimal(data.decode())


digits = st.text("0123456789", min_size=1, max_size=30)
numbers = st.builds(
    lambda sign, whole, fraction, exponent: sign + (whole.lstrip("0") or "0") + fraction + exponent,
    st.sampled_from(["", "-"]),
    digits,
    st.just("") | digits.map(lambda text: "." + text),
    st.just("")
    | st.builds(
        lambda e, sign, n: f"{e}{sign}{n}",
        st.sampled_from("eE"),
        st.sampled_from(["", "+", "-"]),
        st.integers(0, 400),
    ),
)


@settings(max_examples=1000)
@given(
    numbers,
    st.sampled_from([b"%b", b"[%b]", b'{"a":%b}', b"[0,%b]", b"[0, %b ]", b'{"a":\n\t%b}', b'["x",%b]']),
)
@example("9007199254740993.0", b"%b")
@example("0.30000000000000004", b"%b")
@example("1e23", b"%b")
@example("5e-324", b"%b")
@example("3e-324", b"%b")
@example("100000000000000000000", b"%b")
def test_a_number_arrives_as_it_was_sent_or_is_refused(number: str, around: bytes) -> None:
    """What is written again has the value that was read, wherever the number stands."""
    data = around % number.encode()
    value = value_or_error(data)
    if isinstance(value, GatewayError):
        assert (value.code, value.status) == ("invalid_event", 422)
        return
    while isinstance(value, (list, dict)):
        value = value[-1] if isinstance(value, list) else value["a"]
    assert number_in(dumps(value)) == number_in(number.encode())


@pytest.mark.parametrize(
    "number",
    [
        "0", "-0", "-0.0", "1.10", "1e2", "1E+2", "0.1", "-9223372036854775808", "18446744073709551615",
        "9007199254740993", "1.7976931348623157e308", "5e-324", "0e999999", "123456789012345.0",
    ],
)  # fmt: skip
def test_numbers_that_every_reader_keeps_are_taken(number: str) -> None:
    """64-bit integers, and what a double holds exactly as written."""
    assert number_in(dumps(parse(number.encode()))) == number_in(number.encode())


@pytest.mark.parametrize(
    "number",
    [
        "18446744073709551616", "-9223372036854775809", "9007199254740993.0", "0.12345678901234567890",
        "1e400", "-1e400", "1e-400", "1" * 400, "1e99999999999999999999", "1e-99999999999999999999", "1.0000000000000001",
    ],
)  # fmt: skip
def test_numbers_that_would_change_are_422(number: str) -> None:
    """Too large, too small or too exact: a string can carry them."""
    assert code_of(b'{"type":"a","data":%b}' % number.encode()) == "invalid_event"


@pytest.mark.parametrize(
    "text",
    [
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"[NaN]",
        b'{"a":Infinity}',
        b"nan",
        b"1e",
        b"01",
        b"+1",
        b".5",
        b"1.",
        b"0x1",
    ],
)
def test_what_is_no_json_number_is_400(text: bytes) -> None:
    """NaN, Infinity and numbers of other grammars are no JSON at all."""
    assert code_of(text) == "bad_json"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"{}{}",
        b"'a'",
        b'{"a":1,}',
        b"\xff",
        b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf{}",
        b'"\n"',
    ],
)
def test_what_is_no_json_is_400(text: bytes) -> None:
    """Broken text, broken UTF-8 (an encoded surrogate is that), a byte order mark, bare controls."""
    assert code_of(text) == "bad_json"


@pytest.mark.parametrize(
    "text",
    [
        rb'"\ud800"',
        rb'"\udc00"',
        rb'"\ud800x"',
        rb'"\ud800\ud800"',
        rb'"\udc00\ud800"',
        rb'{"\udfff":1}',
        rb'["a","\uDBFF"]',
        rb'{"a":{"b":"x\ud83d"}}',
    ],
)
def test_a_lone_surrogate_is_422(text: bytes) -> None:
    """Readable JSON that is no Unicode text: in values and in names."""
    assert code_of(text) == "invalid_event"


def test_a_pair_of_surrogates_is_a_character() -> None:
    """As RFC 8259, section 7 has it."""
    assert parse(rb'"\ud83d\ude00"') == "\N{GRINNING FACE}"


@pytest.mark.parametrize(
    "text",
    [
        b'"1e400"',
        b'"-12345678901234567890123"',
        b'{"a":" 1e400, 1e400"}',
        rb'"\",1e400"',
        rb'["\\",1,"12345678901234567.5"]',
        b'{"1234567890123456789012345":1}',
    ],
)
def test_numbers_within_strings_are_text(text: bytes) -> None:
    """However they are quoted and whatever stands before them."""
    assert dumps(parse(text)) == text


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)


@settings(max_examples=300)
@given(json_values)
def test_parse_undoes_dumps(value: Any) -> None:
    """Every JSON value survives, of every number and every text."""
    assert parse(dumps(value)) == value


@settings(max_examples=500)
@given(
    st.binary(max_size=40)
    | st.text(alphabet='{}[]",:0123456789.eE+-\\ud8ntrfalsxNI ', max_size=40).map(str.encode)
)
def test_any_bytes_are_a_value_or_an_error_of_ours(data: bytes) -> None:
    """Nothing that comes in makes a traceback, and what is taken can be written and read again."""
    value = value_or_error(data)
    if isinstance(value, GatewayError):
        assert value.code in ("bad_json", "invalid_event")
    else:
        assert orjson.loads(dumps(value)) == value


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 600, 1024, 1025, 2000, 30_000])
@pytest.mark.parametrize(("start", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_what_is_nested_too_deeply_to_be_written_is_422(depth: int, start: bytes, end: bytes) -> None:
    """Whether it could be read or not, nobody could be sent it; the error names the limit."""
    with pytest.raises(GatewayError, match=f"nests more than {MAX_DEPTH} deep") as caught:
        dumps(parse(start * depth + b"1" + end * depth))
    assert caught.value.code == "invalid_event"
    assert dumps(parse(start * MAX_DEPTH + b"1" + end * MAX_DEPTH))


@pytest.mark.parametrize(
    "fault", [b"1e400", b"9007199254740993.0", rb'"\ud800"', rb'"x\n\",[\udc00"', rb'{"\ud800":1}']
)
@pytest.mark.parametrize(
    ("around", "place"),
    [
        ("%b", "#"),
        ("[%b]", "#/0"),
        ('[{"a":[1,2]},{"b":{"c":%b}}]', "#/1/b/c"),
        ('[["],[",{}],"[{\\"",[],[1,[%b,2]],3]', "#/3/1/0"),
        ('{"é":"é€😀","\\u00e9/~":{"a":1,"b":[{},%b]}}', "#/é~1~0/b/1"),
        ('{"a":{"b":1},"c":%b}', "#/c"),
    ],
)
def test_a_fault_is_told_with_its_place(fault: bytes, around: str, place: str) -> None:
    """A pointer to the value; of a member's name to its object."""
    with pytest.raises(GatewayError) as caught:
        parse(around.encode() % fault)
    assert [each.pointer for each in caught.value.errors] == [place]


def test_what_is_nested_too_deeply_is_told_by_its_element() -> None:
    """And not by a path of a thousand segments."""
    deep = b"[" * 1100 + b"]" * 1100
    for text, place in ((b'[1,{"a":2},%b]', "#/2"), (b'{"a":%b}', "#"), (b' [{"a":%b}]', "#/0")):
        with pytest.raises(GatewayError) as caught:
            parse(text % deep)
        assert [each.pointer for each in caught.value.errors] == [place]


def test_a_fault_far_into_a_text_has_no_place() -> None:
    """It would take too long to find out; that it is there is told."""
    with pytest.raises(GatewayError) as caught:
        parse(b"[" + b"1," * (1 << 20) + b"1e400]")
    assert (caught.value.code, caught.value.errors[0].pointer) == ("invalid_event", "#")
