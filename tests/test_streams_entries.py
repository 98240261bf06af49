"""What an entry of a stream is as an event, and what is kept of one that is none."""

import base64
import dataclasses
import json

import pytest

from gateway.errors import GatewayError
from gateway.ingest._entries import Entry, event_of, letter_of, read_again
from gateway.intake import Intake, Sizes
from gateway.log import DeadLetter
from gateway.metrics import Metrics
from tests.support.core import NOON

ID = "1780000000000-7"


@pytest.fixture
def intake() -> Intake:
    return Intake(None, Metrics(), Sizes())  # type: ignore[arg-type]  # nothing is stored here


def refusal(intake: Intake, *fields: bytes) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        event_of(intake, "in", (ID, fields))
    return caught.value


def test_what_an_event_lacks_follows_from_the_entry(intake: Intake) -> None:
    """Its id from the stream's name and the entry's id, its time from the latter: the same each time."""
    entry = (ID, [b"event", b'{"type":"t"}'])
    event = event_of(intake, "in", entry)
    assert event == event_of(intake, "in", entry)
    assert event.body["time"] == "2026-05-28T20:26:40.000Z"
    assert event.source == "/redis/in"
    others = [event_of(intake, "out", entry), event_of(intake, "in", ("1780000000000-8", entry[1]))]
    assert len({each.id for each in (event, *others)}) == 3


def test_both_forms_are_the_same_event(intake: Intake) -> None:
    """One field with the event, or fields for four of its attributes, in any order."""
    whole = event_of(intake, "in", (ID, [b"event", b'{"type":"t","subject":"o","data":[1],"id":"x"}']))
    parts = [b"data", b"[1]", b"id", b"x", b"subject", b"o", b"type", b"t"]
    fields = event_of(intake, "in", (ID, parts))
    assert (whole.body, whole.id, whole.subject) == (fields.body, "x", "o")


def test_a_source_is_a_uri_reference_whatever_the_name(intake: Intake) -> None:
    """Characters that may not stand in it are percent-encoded."""
    event = event_of(intake, "new orders/é%", (ID, [b"type", b"t"]))
    assert event.source == "/redis/new%20orders/%C3%A9%25"


@pytest.mark.parametrize("id_", ["0-1", "18446744073709551615-18446744073709551615"])
def test_an_id_may_be_chosen_by_hand(intake: Intake, id_: str) -> None:
    """Also one that tells no time of this world."""
    assert event_of(intake, "in", (id_, [b"type", b"t"])).id


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ((b"event", b"{"), "JSON"),
        ((b"event", b"[]"), "object"),
        ((b"event", b'{"data":1}'), "type"),
        ((b"event", b'{"type":"t"}', b"type", b"t"), "no other"),
        ((b"type", b"t", b"data", b"text"), "JSON"),
        ((b"type", b"t", b"data", b""), "JSON"),
        ((b"type", b"t", b"type", b"u"), "once"),
        ((b"type", b"t", b"colour", b"red"), "colour"),
        ((b"type", b"t", b"\xff", b"red"), "unknown"),
        ((b"type", b"t", b"subject", b"\xff"), "subject"),
        ((b"type", b""), "type"),
        ((b"data", b"1"), "type"),
    ],
)
def test_what_is_no_event_is_refused_with_the_reason(
    intake: Intake, fields: tuple[bytes, ...], words: str
) -> None:
    """The reason names the place."""
    assert words in refusal(intake, *fields).detail


@pytest.mark.parametrize(
    "entry",
    [
        (ID, [b"type", b"t", b"data", '"é"'.encode(), b"colour", b"red"]),
        (ID, [b"type", b"t", b"data", b"\xff\x00\n"]),
        (ID, [b"\xff", b""]),
        (ID, [b"event", b"{", b"event", b"{"]),
    ],
)
def test_a_dead_letter_has_the_entry_as_it_came(intake: Intake, entry: Entry) -> None:
    """Read again it fails again, for the same reason; the letter's id is the same for the same entry."""
    error = refusal(intake, *entry[1])
    letter = letter_of("in", entry, error, NOON)
    assert (letter.origin, letter.reason, letter.time, letter.tries) == ("redis:in", error.detail, NOON, 1)
    with pytest.raises(GatewayError) as again:
        read_again(intake, letter)
    assert again.value.detail == error.detail
    assert kept(letter) == list(entry[1])
    assert letter_of("in", entry, error, NOON + 1).id == letter.id
    assert letter_of("out", entry, error, NOON).id != letter.id


def kept(letter: DeadLetter) -> list[bytes]:
    """The fields and values in a letter, as text or in base64."""
    content = json.loads(letter.payload)
    if "fields" in content:
        return [each.encode() for each in content["fields"]]
    return [base64.b64decode(each) for each in content["fields_base64"]]


def test_a_letter_that_is_an_event_by_now_is_the_event_that_the_entry_would_have_been(
    intake: Intake,
) -> None:
    """As when a schema refused it, which is another one now."""
    entry = (ID, [b"type", b"t", b"data", b"1"])
    letter = letter_of("in", entry, GatewayError("invalid_event", "a schema refused it"), NOON)
    assert read_again(intake, letter) == [event_of(intake, "in", entry)]
    assert read_again(intake, dataclasses.replace(letter, tries=2)) == [event_of(intake, "in", entry)]
