"""The query and the Accept header of `GET /events`."""

from typing import Any

import pytest

from gateway.cursor import Cursors, Place
from gateway.errors import GatewayError
from gateway.filters import parse_filter
from gateway.since import AfterCursor, FromTime
from gateway.transports.events import wants_poll
from gateway.transports.query import Query, parse_events_query
from tests.support.app import Exchange, in_process

CURSORS = Cursors()
AT = AfterCursor("k3x.5", Place("k3x", 5))


def query(text: str, last_event_id: str | None = None) -> Query:
    return parse_events_query(text.encode("latin-1"), last_event_id, CURSORS)


def code_of(text: str, last_event_id: str | None = None) -> str:
    with pytest.raises(GatewayError) as caught:
        query(text, last_event_id)
    return caught.value.code


def test_nothing_asks_for_everything_from_now_on() -> None:
    """The defaults of every option."""
    assert query("") == Query(None, "live", latest=False, leave=False, limit=100, wait=30)


def test_every_option() -> None:
    """Options are no filter terms, nor is the ticket."""
    asked = query("since=k3x.5&deliver=latest&leave=true&limit=7&wait=0&ticket=abc")
    assert asked == Query(None, AT, latest=True, leave=True, limit=7, wait=0)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("type=order.*", {"prefix": {"type": "order."}}),
        ("type=order.*&subject=o-1", {"all": [{"prefix": {"type": "order."}}, {"exact": {"subject": "o-1"}}]}),
        ("data.status=paid&data.status=shipped", {"in": {"data.status": ["paid", "shipped"]}}),
        ("data.n=5", {"in": {"data.n": ["5", 5]}}),
        ("data.b=true", {"in": {"data.b": ["true", True]}}),
        ("subject=", {"exact": {"subject": ""}}),
        ("subject=a%20b%2Bc+d", {"exact": {"subject": "a b+c d"}}),
        ("subject=%C3%A9", {"exact": {"subject": "é"}}),
        ('filter={"exact":{"type":"a"}}', {"exact": {"type": "a"}}),
        (
            'filter={"exact":{"type":"a"}}&subject=b',
            {"all": [{"exact": {"type": "a"}}, {"exact": {"subject": "b"}}]},
        ),
    ],
)  # fmt: skip
def test_filters(text: str, wanted: Any) -> None:
    """Short form, JSON and both, percent-encoded as a form is."""
    assert query(text).filter == parse_filter(wanted)


def test_the_last_event_id_wins() -> None:
    """Header over query, both over `since`; an empty one is none."""
    assert query("since=earliest", "k3x.5").since == AT
    assert query("since=earliest&lastEventId=k3x.5").since == AT
    assert query("lastEventId=k3x.9", "k3x.5").since == AT
    assert query("since=earliest&lastEventId=", "").since == "earliest"
    assert query("since=nonsense", "k3x.5").since == AT


def test_a_last_event_id_that_is_malformed_is_no_error() -> None:
    """In `since` it is one."""
    assert query("", "nonsense").since == AfterCursor(None, None)
    assert query("lastEventId=earliest").since == AfterCursor(None, None)
    assert code_of("since=nonsense") == "bad_since"


def test_a_time_with_an_unescaped_plus_is_understood() -> None:
    """A form makes a space of it, and nobody escapes it."""
    assert query("since=1970-01-01T01:00:00+01:00").since == FromTime(0)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("since=live&since=live", "bad_request"),
        ("deliver=newest", "bad_request"),
        ("deliver=", "bad_request"),
        ("leave=yes", "bad_request"),
        ("limit=0", "bad_request"),
        ("limit=-1", "bad_request"),
        ("limit=", "bad_request"),
        ("limit=1.5", "bad_request"),
        ("limit=%D9%A1", "bad_request"),
        ("wait=soon", "bad_request"),
        ("wait=-1", "bad_request"),
        ("wait=", "bad_request"),
        ("wait=nan", "bad_request"),
        ("wait=inf", "bad_request"),
        ("wait=1e1", "bad_request"),
        ("wait=1.", "bad_request"),
        ("wait=.5", "bad_request"),
        ("wait=1_0", "bad_request"),
        ("wait=%D9%A1", "bad_request"),
        ("subject=%FF", "bad_request"),
        ("&".join("type=a" for _ in range(300)), "bad_request"),
        ("filter={", "bad_filter"),
        ("filter=", "bad_filter"),
        ("Type=a", "bad_filter"),
        ("type=*", "bad_filter"),
        ("data..a=1", "bad_filter"),
        ("nonsense.a=1", "bad_filter"),
    ],
)
def test_what_is_wrong_is_said(text: str, code: str) -> None:
    """Twice the same option, unknown words, numbers that are none, and filters that are none."""
    assert code_of(text) == code


def test_limits_are_cut_to_the_largest() -> None:
    """At most 1,000 entries and 60 seconds."""
    asked = query("limit=99999999999999999999&wait=99999999999999999999")
    assert (asked.limit, asked.wait) == (1000, 60)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0.1", 0.1), ("0", 0), ("59.999", 59.999), ("60.5", 60), ("007.50", 7.5), ("9" * 400 + ".5", 60)],
)
def test_a_wait_may_be_part_of_a_second(text: str, seconds: float) -> None:
    """A number from 0 to 60, in plain decimal digits."""
    assert query(f"wait={text}").wait == seconds


@pytest.mark.parametrize(
    ("accept", "polls"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        ("text/event-stream", False),
        ("text/*", False),
        ("application/json", True),
        ("APPLICATION/JSON", True),
        ("application/json;q=0.5, */*", True),
        ("application/json, text/plain, */*", True),
        ("application/json, text/event-stream", False),
        ("text/event-stream;q=0.1, application/json", False),
        ("application/*", True),
        ("text/html, */*;q=0.8", False),
        ("text/event-stream;q=0, application/json", True),
        ("application/json;q=0, */*", False),
        ("application/json; charset=utf-8", True),
    ],
)
def test_the_accept_header_chooses(accept: str | None, polls: bool) -> None:
    """Long poll is what names JSON and not the stream; everything else that admits it is a stream."""
    assert wants_poll(accept) is polls


async def test_accept_headers_on_several_lines_are_one() -> None:
    """RFC 9110, section 5.3: which of them names JSON is of no account."""
    lines = [(b"accept", b"text/html"), (b"accept", b"application/json")]
    async with in_process() as app:
        for accept in (lines, lines[::-1]):
            exchange = Exchange(app.gateway, "/events", query="since=earliest&wait=0")
            exchange.scope["headers"] += accept
            async with exchange:
                await exchange.done()
            assert (exchange.status, exchange.headers["content-type"]) == (200, "application/json")


@pytest.mark.parametrize(
    "accept", ["text/html", "image/*", "application/xml", "application/json;q=0", "text/event-stream; q=0.0"]
)
def test_what_accepts_neither_is_406(accept: str) -> None:
    """There is nothing else."""
    with pytest.raises(GatewayError) as caught:
        wants_poll(accept)
    assert caught.value.status == 406
