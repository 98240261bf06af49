"""Messages of pub/sub as events."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from gateway.errors import GatewayError
from gateway.event import Event
from gateway.ingest.messages import Message, events_of, letter_of, read_again, source_of
from gateway.intake import Intake, Sizes
from gateway.log import Retention
from gateway.log.sqlite import SqliteLog
from gateway.metrics import Metrics
from tests.support.core import NOON


@pytest.fixture
def intake() -> Intake:
    log = SqliteLog(None, retention=Retention())
    return Intake(log, Metrics(), Sizes(event_bytes=200, batch_events=3))


def message(content: Any, channel: str = "orders.eu", number: int = 0) -> Message:
    payload = content if type(content) is bytes else orjson.dumps(content)
    return Message("mark-1", int(NOON * 1000), number, NOON + 0.25, channel.encode(), payload)


def one(intake: Intake, content: Any, **options: Any) -> Event:
    (event,) = events_of(intake, message(content, **options))
    return event


async def test_an_object_with_a_type_is_an_event(intake: Intake) -> None:
    """What it lacks is filled in: the channel as its source, the time at which it was heard."""
    event = one(intake, {"type": "order.paid", "subject": "o-1", "data": 1})
    assert (event.type, event.subject, event.source) == ("order.paid", "o-1", "/redis/orders.eu")
    assert event.body["time"] == "2026-05-28T20:26:40.250Z"
    own = one(intake, {"type": "a", "id": "x", "source": "/mine"})
    assert (own.id, own.source) == ("x", "/mine")


@pytest.mark.parametrize(
    ("data", "subject"),
    [
        ({"orderId": "o-1", "id": "x"}, "o-1"),
        ({"id": 17}, "17"),
        ({"id": 1.5}, "1.5"),
        ({"orderId": 17, "id": "x"}, "17"),
        ({"orderId": 0, "id": "x"}, "0"),
        ({"orderId": None, "id": "x"}, "x"),
        ({"orderId": "", "id": 17}, "17"),
        ({"orderId": {}, "id": "x"}, "x"),
        ({"orderId": "", "id": ""}, None),
        ({"orderId": ""}, None),
        ({"orderId": True}, None),
        ({}, None),
        (17, None),
        ("text", None),
        (None, None),
    ],
)
async def test_anything_else_is_bare_data(intake: Intake, data: Any, subject: str | None) -> None:
    """Its type is the channel's name, its subject the order's id."""
    event = one(intake, data)
    assert (event.type, event.subject, event.body["data"]) == ("orders.eu", subject, data)


async def test_an_array_is_a_batch(intake: Intake) -> None:
    """All of it or nothing; each event has an id of its own, and none is there for nothing."""
    events = events_of(intake, message([{"type": "a"}, {"type": "b", "id": "x"}, {"type": "c"}]))
    assert [event.type for event in events] == ["a", "b", "c"]
    assert len({event.id for event in events}) == 3
    assert events_of(intake, message([])) == []
    with pytest.raises(GatewayError, match="3 events"):
        events_of(intake, message([{"type": "a"}] * 4))
    with pytest.raises(GatewayError) as caught:
        events_of(intake, message([{"type": "a"}, {"data": 1}]))
    assert caught.value.errors[0].pointer == "#/1/type"


async def test_the_same_message_is_the_same_event_everywhere(intake: Intake) -> None:
    """Heard at another moment by another node it has the same identity; the next one of the same bytes has another."""
    heard = message({"orderId": "o-1"})
    again = replace(heard, heard=NOON + 3)
    assert events_of(intake, heard)[0].id == events_of(intake, again)[0].id
    assert events_of(intake, heard)[0].id != one(intake, {"orderId": "o-1"}, number=1).id
    assert events_of(intake, heard)[0].id[14] == "7"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"\xff",
        b'{"type":1}',
        b'[{"type":"a"},1]',
        b"NaN",
        b'{"type":"a","data":"' + b"x" * 300 + b'"}',
    ],
)
async def test_what_is_no_event_becomes_a_dead_letter(intake: Intake, payload: bytes) -> None:
    """With its bytes and the reason; read again, it says the same."""
    bad = message(payload)
    with pytest.raises(GatewayError) as caught:
        events_of(intake, bad)
    letter = letter_of(bad, caught.value)
    assert (letter.origin, letter.payload, letter.tries) == ("redis:orders.eu", payload, 1)
    assert letter.reason
    with pytest.raises(GatewayError):
        read_again(intake, letter)


@pytest.mark.parametrize(
    ("payload", "place"),
    [
        (b'[{"type":"a"},{"id":"x"}]', "#/1/type"),
        (b'[{"type":"a"},{"type":"a"},5]', "#/2"),
        (b'[{"type":"a","data":1e400}]', "#/0/data"),
        (b'[{"type":"a"},{"type":"a","data":"' + b"x" * 300 + b'"}]', "#/1"),
    ],
)
async def test_the_reason_names_the_element_of_a_batch(intake: Intake, payload: bytes, place: str) -> None:
    """Nobody sees more of the error than that."""
    bad = message(payload)
    with pytest.raises(GatewayError) as caught:
        events_of(intake, bad)
    assert letter_of(bad, caught.value).reason.endswith(f" (at {place})")


async def test_a_letter_that_is_an_event_by_now_is_the_same_event_each_time(intake: Intake) -> None:
    """So that to redrive it twice doubles nothing."""
    letter = letter_of(message({"orderId": "o-1"}), GatewayError("invalid_event", "a schema refused it"))
    first, second = read_again(intake, letter), read_again(intake, letter)
    assert [event.id for event in first] == [event.id for event in second]
    assert (first[0].type, first[0].subject) == ("orders.eu", "o-1")


async def test_a_letter_is_the_same_event_whichever_node_has_put_it_aside(intake: Intake) -> None:
    """Each has heard the message at another moment, and the last one's letter is kept."""
    heard = message({"orderId": "o-1"})
    error = GatewayError("invalid_event", "a schema refused it")
    letters = [letter_of(replace(heard, heard=heard.heard + later), error) for later in (0, 2.5)]
    assert letters[0].id == letters[1].id
    assert len({read_again(intake, each)[0].id for each in letters}) == 1


async def test_the_limit_is_for_what_came(intake: Intake) -> None:
    """The id that the gateway adds does not count."""
    content = {"type": "a", "data": ""}
    room = 200 - len(orjson.dumps(content))
    assert one(intake, {"type": "a", "data": "x" * room})
    with pytest.raises(GatewayError, match="200 bytes"):
        one(intake, {"type": "a", "data": "x" * (room + 50)})


@pytest.mark.parametrize("channel", ["orders", "a b", "ä/%", 'x"<>', "{tag}:y"])
def test_every_channel_is_a_source(channel: str) -> None:
    """Percent-encoded where a URI has no such character."""
    assert source_of(channel).startswith("/redis/")
    assert not set(source_of(channel)) & set(' "<>\\^`{|}')
