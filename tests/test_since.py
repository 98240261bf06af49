"""Since: from the text of the option to the place where a subscription starts."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cursor import Cursors, Place
from gateway.errors import GatewayError
from gateway.log import Retention
from gateway.log.sqlite import SqliteLog
from gateway.since import (
    AfterCursor,
    FromTime,
    Lost,
    Since,
    Start,
    parse_last_event_id,
    parse_since,
    resolve,
)
from tests.support.core import NOON, Clock, body_of, event_of, memory_log

PLAIN, SEALED = Cursors(), Cursors("a key for the cursors")


def test_words() -> None:
    """Absent is live; the other words are themselves."""
    assert parse_since(None, PLAIN) == "live"
    words = ["live", "earliest", "snapshot"]
    assert [parse_since(word, PLAIN) for word in words] == words


@pytest.mark.parametrize("cursors", [PLAIN, SEALED])
def test_a_cursor_is_its_place(cursors: Cursors) -> None:
    """Sealed or not, within a snapshot or not."""
    for place in (Place("k3x", 0), Place("k3x", 1042), Place("k3x", 3, 99)):
        text = cursors.encode_place(place)
        assert parse_since(text, cursors) == AfterCursor(text, place)


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "LIVE", "k3x", "k3x.01", "2026-05-01", "2026-05-01T12:00:00", "2026-02-30T12:00:00Z",
        "0000-01-01T00:00:00Z", "2026-05-01T24:00:00Z", "2026-05-01T12:00:61Z", "2026-05-01T12:00:00+24:00",
        "2026-05-01T12:00:00+01:60", "2026-05-01T12:00:00.Z", "2026-05-01 12:00:00Z", "\uff12026-05-01T12:00:00Z",
    ],
)  # fmt: skip
def test_what_is_none_of_these_is_bad_since(text: str) -> None:
    """A malformed cursor, word or time is an error of the client's, with the code for it."""
    with pytest.raises(GatewayError) as caught:
        parse_since(text, PLAIN)
    assert (caught.value.code, caught.value.status) == ("bad_since", 400)


def test_a_wrongly_sealed_cursor_is_bad_since() -> None:
    """Forged or plain where cursors are sealed."""
    with pytest.raises(GatewayError, match="seal"):
        parse_since("k3x.1042", SEALED)
    with pytest.raises(GatewayError, match="seal"):
        parse_since("a" * 77, SEALED)


@pytest.mark.parametrize("text", ["", "nonsense", "k3x.01", "live", "2026-05-01T12:00:00Z", "\x00", "a" * 77])
def test_a_last_event_id_that_names_no_place_is_no_error(text: str) -> None:
    """An EventSource would give up for good: it becomes a place of which only a gap can be told."""
    assert parse_last_event_id(text, PLAIN) == AfterCursor(None, None)
    assert parse_last_event_id(text, SEALED) == AfterCursor(None, None)


moments = st.datetimes(
    timezones=st.integers(-23 * 60 - 59, 23 * 60 + 59).map(
        lambda minutes: timezone(timedelta(minutes=minutes))
    )
)


@settings(max_examples=300)
@given(moments)
def test_a_time_is_its_instant_in_microseconds(moment: datetime) -> None:
    """Of any offset and any year, also where UTC would leave the years that a datetime has."""
    text = moment.isoformat()
    if moment.year < 1000:
        text = text.rjust(len("2026-01-01") + len(text.partition("T")[2]) + 1, "0")
    offset = moment.utcoffset()
    assert offset is not None
    local = moment.replace(tzinfo=UTC)
    wanted = (local - datetime(1970, 1, 1, tzinfo=UTC) - offset) // timedelta(microseconds=1)
    assert parse_since(text, PLAIN) == FromTime(wanted)


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("1970-01-01t00:00:00.1z", 100_000),
        ("1970-01-01T00:00:00.0000019Z", 1),  # digits beyond microseconds are cut off, never rounded up
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T01:00:00 01:00", 0),  # a plus sign that a query string turned into a space
        ("1970-01-01T00:00:00-00:00", 0),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000_000),  # a leap second is the next day's first
        ("0001-01-01T00:00:00+23:59", -62_135_683_140_000_000),
        ("9999-12-31T23:59:59.999999-23:59", 253_402_387_139_999_999),
    ],
)
def test_the_extremes_of_rfc_3339(text: str, microseconds: int) -> None:
    """Both ends of the calendar, leap seconds, lower case, many digits."""
    assert parse_since(text, PLAIN) == FromTime(microseconds)


async def start_of(log: SqliteLog, text: str, head: int | None = None, cursors: Cursors = PLAIN) -> Start:
    return await resolve(parse_since(text, cursors), log, cursors, log.head if head is None else head)


async def fill(log: SqliteLog, count: int, clock: Clock | None = None) -> None:
    for number in range(count):
        await log.append([event_of(body_of(subject=f"o-{number}"))])
        if clock:
            clock.now += 10


async def test_a_cursor_of_this_log_starts_at_its_place() -> None:
    """What the client is told as its place is the text that it asked with."""
    async with memory_log() as log:
        await fill(log, 5)
        for offset in range(6):
            cursor = f"{log.epoch}.{offset}"
            assert await start_of(log, cursor) == Start(offset, cursor)
        assert await start_of(log, f"{log.epoch}.2-4") == Start(2, f"{log.epoch}.2-4", snapshot=4)


@pytest.mark.parametrize("place", ["other.2", "{epoch}.6", "{epoch}.2-6", "{epoch}.9223372036854775807"])
async def test_a_cursor_of_no_place_here_is_a_gap_to_the_head(place: str) -> None:
    """Another log, or beyond the head: a gap with reason epoch, from the text that was asked with."""
    async with memory_log() as log:
        await fill(log, 5)
        cursor = place.format(epoch=log.epoch)
        assert await start_of(log, cursor) == Start(5, cursor, lost=Lost(cursor, 5, "epoch"))


async def test_no_place_at_all_is_a_gap_from_null() -> None:
    """A Last-Event-ID that is malformed: `from` is null, and the place told is the head."""
    async with memory_log() as log:
        await fill(log, 5)
        since: Since = parse_last_event_id("nonsense", PLAIN)
        start = await resolve(since, log, PLAIN, log.head)
        assert start == Start(5, f"{log.epoch}.5", lost=Lost(None, 5, "epoch"))


async def test_earliest_starts_before_the_first_kept_event() -> None:
    """Wherever retention has come, and in an empty log at its beginning."""
    async with memory_log(retention=Retention(events=3)) as log:
        assert await start_of(log, "earliest") == Start(0, f"{log.epoch}.0", floating=True)
        await fill(log, 10)
        while log.first < 8:
            await log.use_once("anything", 0)
        assert await start_of(log, "earliest") == Start(7, f"{log.epoch}.7", floating=True)


async def test_a_snapshot_is_fixed_at_the_head() -> None:
    """Its first cursor is `EPOCH.0-START`."""
    async with memory_log() as log:
        await fill(log, 5)
        assert await start_of(log, "snapshot") == Start(0, f"{log.epoch}.0-5", snapshot=5)
        assert await start_of(log, "snapshot", head=3) == Start(0, f"{log.epoch}.0-3", snapshot=3)


async def test_a_time_starts_before_the_first_event_accepted_then() -> None:
    """Everything accepted at that instant or later follows; before all events, or after them, is no gap."""
    clock = Clock(NOON)
    async with memory_log(now=clock) as log:
        await fill(log, 5, clock)

        async def offset_of(seconds: float) -> int:
            moment = datetime.fromtimestamp(NOON + seconds, UTC).isoformat()
            start = await start_of(log, moment)
            assert (start.lost, start.floating) == (None, True)
            return start.offset

        assert [await offset_of(each) for each in (-1e9, 0, 0.000001, 10, 15, 40, 40.5, 1e9)] == [
            0, 0, 1, 1, 2, 4, 5, 5,
        ]  # fmt: skip
        assert (await start_of(log, "0001-01-01T00:00:00+23:59")).offset == 0
        assert (await start_of(log, "9999-12-31T23:59:59-23:59")).offset == 5


async def test_nobody_starts_beyond_what_the_hub_has_told() -> None:
    """A log that is ahead of its hub for a moment does not lead a client past it."""
    async with memory_log() as log:
        await fill(log, 5)
        assert (await start_of(log, "9999-12-31T23:59:59Z", head=3)).offset == 3
        assert (await start_of(log, f"{log.epoch}.5", head=3)).lost == Lost(f"{log.epoch}.5", 3, "epoch")
