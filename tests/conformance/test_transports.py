"""Every option of a subscription, over every transport, on each server path, with cursors plain and sealed.

`deliver` and `leave` are in test_deliver_and_leave.py, and what only one transport has in
test_websocket_messages.py, test_sse_blocks.py and test_longpoll_answers.py.
"""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.cursor import Cursors
from tests.conformance.conftest import Stand, Start
from tests.conformance.orders import PAID, event, events, id_range
from tests.support.clients import CLIENTS, Client, RefusedError, catch_up, ids, take, take_until
from tests.support.model import expected, snapshot, told_pairs
from tests.support.waiting import until

# since


async def test_without_since_a_stream_begins_now(stand: Stand, transport: str) -> None:
    """Nothing from before, everything from then on, in log order, each at a later cursor."""
    before = await stand.publish(*events(3))
    stream = stand.client(transport).open()
    place = await anext(stream)
    assert (place.kind, place.cursor) == ("place", before["cursor"])
    for at in range(3, 9, 2):
        await stand.publish(*events(2, start=at))
    told = await take(stream, 6)
    assert ids(told) == id_range(3, 9)
    assert [each.cursor for each in told] == [stand.cursor(offset) for offset in range(4, 10)]


async def test_since_live_is_no_since(stand: Stand, transport: str) -> None:
    """The word says what leaving the option out says."""
    await stand.publish(*events(3))
    stream = stand.client(transport).open(since="live")
    await anext(stream)
    await stand.publish(*events(1, start=3))
    assert ids(await take(stream, 1)) == ["e3"]


async def test_since_a_cursor_is_everything_after_it_and_then_live(stand: Stand, transport: str) -> None:
    """From each place of the log, the head included: the rest, and what comes later, without a seam."""
    await stand.publish(*events(7))
    for offset in (0, 1, 4, 7):
        stream = stand.client(transport).open(since=stand.cursor(offset))
        assert ids(await catch_up(stream)) == id_range(offset, 7)
        assert stream.cursor == stand.cursor(7)
    await stand.publish(*events(1, start=7))
    assert ids(await take(stream, 1)) == ["e7"]


async def test_earliest_is_the_whole_kept_log(start: Start, transport: str) -> None:
    """It begins with the first kept event, wherever that is, and never with a gap."""
    stand = await start(retention_events=20, tail=5)
    empty = stand.client(transport).open(since="earliest")
    assert await catch_up(empty) == []
    await stand.publish(*events(100))
    await stand.retained_from(81)
    stream = stand.client(transport).open(since="earliest")
    assert told_pairs(await catch_up(stream)) == [("event", each) for each in id_range(80, 100)]


async def test_a_long_log_is_told_page_by_page(start: Start, transport: str) -> None:
    """More than any page, from the store and from memory, with the live events that come meanwhile."""
    stand = await start(tail=100)
    for at in range(0, 3000, 1000):
        await stand.publish(*events(1000, start=at))
    stream = stand.client(transport).open(since="earliest")
    first = await take(stream, 700)
    await stand.publish(*events(500, start=3000))
    assert ids(first + await catch_up(stream)) == id_range(0, 3500)


async def test_snapshot_is_the_latest_event_of_each_subject_that_matches(
    stand: Stand, transport: str
) -> None:
    """In log order, without events that have no subject; what no longer matches is left out; then live."""
    log = [*events(40, 7), event("alone", status="paid"), *events(13, 7, start=40)]
    await stand.publish(*log)
    for wanted in (None, PAID, {"exact": {"subject": "o-3"}}):
        stream = stand.client(transport).open(since="snapshot", filter=wanted)
        assert ids(await catch_up(stream)) == snapshot(log, wanted)
    await stand.publish(event("later", "o-3", status="paid"))
    assert ids(await take(stream, 1)) == ["later"]


async def test_snapshot_has_subjects_that_the_log_no_longer_keeps(start: Start, transport: str) -> None:
    """The latest event of a subject outlives the log's retention, and no gap is made of that."""
    stand = await start(retention_events=10, tail=5)
    log = events(60, 60)
    await stand.publish(*log)
    await stand.retained_from(51)
    stream = stand.client(transport).open(since="snapshot")
    assert told_pairs(await catch_up(stream)) == [("event", each["id"]) for each in log]


async def test_a_cut_snapshot_is_resumed_by_its_cursor(stand: Stand, transport: str) -> None:
    """As of the same START, where it was cut; what was superseded meanwhile comes with its new event."""
    log = [*events(900, 900), *events(300, 900, start=900)]
    await stand.publish(*log[:900])
    await stand.publish(*log[900:])
    first = stand.client(transport).open(since="snapshot")
    told = await take(first, 600)
    assert first.cursor == stand.cursor(900, 1200)
    await first.cut()
    updates = [event("u0", "o-100", status="paid"), event("u1", "o-400", status="new")]
    await stand.publish(*updates)
    second = stand.client(transport).open(since=first.cursor)
    told += await catch_up(second)
    superseded = "e1000"  # o-100's, not told before the cut: its new event is in the log after START
    assert ids(told) == [each for each in snapshot(log) if each != superseded] + ["u0", "u1"]
    assert second.cursor == stand.cursor(1202)


async def test_a_snapshot_may_be_cut_after_each_message(stand: Stand, transport: str) -> None:
    """Its first place and every cursor in it resume it: nothing is lost, nothing comes twice."""
    log = events(12, 4)
    await stand.publish(*log)
    for count in range(5):
        first = stand.client(transport).open(since="snapshot")
        told = await take(first, count)
        resumed = stand.client(transport).open(since=first.cursor or stand.cursor(0, 12))
        assert ids(told + await catch_up(resumed)) == snapshot(log)


async def test_since_a_time_is_everything_accepted_since_then(stand: Stand, transport: str) -> None:
    """With any offset; a time before the first event begins there, one to come begins at the head."""
    await stand.publish(*events(3))
    seen = await stand.node.log.read(0, 10)
    accepted = [
        datetime.fromtimestamp(0, UTC) + timedelta(microseconds=each.accepted) for each in seen.entries
    ]
    await stand.publish(*events(2, start=3))
    later = accepted[-1] + timedelta(microseconds=1)
    zone = later.astimezone(datetime.strptime("+0530", "%z").tzinfo)
    for moment in (later.isoformat(), zone.isoformat(), later.strftime("%Y-%m-%dT%H:%M:%S.%fZ")):
        assert ids(await catch_up(stand.client(transport).open(since=moment))) == id_range(3, 5)
    old = stand.client(transport).open(since="1969-01-01T00:00:00Z")
    assert ids(await catch_up(old)) == id_range(0, 5)
    future = stand.client(transport).open(since="2500-01-01T00:00:00Z")
    assert await catch_up(future) == []
    await stand.publish(*events(1, start=5))
    assert ids(await take(future, 1)) == ["e5"]


async def test_a_time_before_the_first_kept_event_begins_there_without_a_gap(
    start: Start, transport: str
) -> None:
    """Nobody was promised what was gone before."""
    stand = await start(retention_events=10, tail=5)
    await stand.publish(*events(60))
    await stand.retained_from(51)
    stream = stand.client(transport).open(since="2001-01-01T00:00:00Z")
    assert told_pairs(await catch_up(stream)) == [("event", each) for each in id_range(50, 60)]


@pytest.mark.parametrize("since", ["", "yesterday", "0.1-", "nobody.-1", "2026-02-30T00:00:00Z", "a.1\nb"])
async def test_a_malformed_since_is_refused(stand: Stand, transport: str, since: str) -> None:
    """With the code bad_since, which over HTTP is 400."""
    with pytest.raises(RefusedError) as caught:
        await anext(stand.client(transport).open(since=since))
    assert (caught.value.code, caught.value.status) in {("bad_since", 400), ("bad_since", 0)}


# Sealed cursors


@pytest.mark.parametrize("variant", ["sealed"], indirect=True)
async def test_a_sealed_cursor_tells_nothing_and_cannot_be_forged(stand: Stand, transport: str) -> None:
    """No offset is read from it; a plain one, one of another key and a changed one are malformed."""
    await stand.publish(*events(3))
    place, epoch = stand.cursor(2), stand.node.log.epoch
    assert epoch not in place
    assert len({len(stand.cursor(offset)) for offset in (0, 2, 10**9)}) == 1
    other = Cursors("another key").encode(epoch, 2)
    for forged in (
        f"{epoch}.2",
        other,
        place[:-1] + ("a" if place[-1] != "a" else "b"),
        place.upper(),
        place + "a",
    ):
        with pytest.raises(RefusedError) as caught:
            await anext(stand.client(transport).open(since=forged))
        assert caught.value.code == "bad_since"
        (gap,) = await catch_up(stand.client("sse", headers={"Last-Event-ID": forged}).open())
        assert (gap.reason, gap.lost_from) == ("epoch", None)
    assert ids(await catch_up(stand.client(transport).open(since=place))) == ["e2"]


# Gaps


async def test_what_was_evicted_is_a_gap_before_what_is_left(start: Start, transport: str) -> None:
    """From the asked cursor up to where the log begins now; then everything from there on."""
    stand = await start(retention_events=20, tail=5)
    await stand.publish(*events(100))
    await stand.retained_from(81)
    stream = stand.client(transport).open(since=stand.cursor(7))
    told = await catch_up(stream)
    gap = told[0]
    assert (gap.kind, gap.reason, gap.lost_from, gap.cursor) == (
        "gap",
        "evicted",
        stand.cursor(7),
        stand.cursor(80),
    )
    assert told_pairs(told[1:]) == [("event", each) for each in id_range(80, 100)]


async def test_the_cursor_before_the_first_kept_event_needs_no_gap(start: Start, transport: str) -> None:
    """Everything after it is still there."""
    stand = await start(retention_events=20, tail=5)
    await stand.publish(*events(100))
    await stand.retained_from(81)
    stream = stand.client(transport).open(since=stand.cursor(80))
    assert ids(await catch_up(stream)) == id_range(80, 100)


async def test_a_cursor_of_another_log_is_a_gap_to_the_head(stand: Stand, transport: str) -> None:
    """So is one beyond the head: this log is not the one that it came from. Then live as for any cursor."""
    await stand.publish(*events(5))
    foreign = stand.node.cursors.encode("another1", 3)
    for since in (foreign, stand.cursor(6), stand.cursor(2, 6)):
        stream = stand.client(transport).open(since=since)
        (gap,) = await catch_up(stream)
        assert (gap.reason, gap.lost_from, gap.cursor) == ("epoch", since, stand.cursor(5))
    await stand.publish(*events(1, start=5))
    assert ids(await take(stream, 1)) == ["e5"]


# Filters


@pytest.mark.parametrize(
    "wanted",
    [
        PAID,
        {"not": PAID},
        {"in": {"subject": ["o-1", "o-3"]}},
        {"prefix": {"type": "order."}},
        {"any": [{"gte": {"data.at": 25}}, {"exact": {"subject": "o-2"}}]},
        {"exists": {"data.coupon": True}},
    ],
    ids=lambda wanted: next(iter(wanted)),
)
async def test_a_filter_lets_through_what_matches(stand: Stand, transport: str, wanted: Any) -> None:
    """Replayed and live alike."""
    log = [*events(30), event("last", "o-1", status="paid", at=30, coupon=None)]
    await stand.publish(*log[:15])
    stream = stand.client(transport).open(filter=wanted, since="earliest")
    told = await catch_up(stream)
    for each in log[15:]:
        await stand.publish(each)
    wanted_ids = [each.id for each in expected(log, wanted)]
    told += await take(stream, len(wanted_ids) - len(told))
    assert ids(told) == wanted_ids


async def test_a_bad_filter_is_refused_and_names_the_place(stand: Stand, transport: str) -> None:
    """The same code and place whatever the transport."""
    with pytest.raises(RefusedError) as caught:
        await anext(stand.client(transport).open(filter={"all": [PAID, {"gt": {"data.total": "no time"}}]}))
    assert caught.value.code == "bad_filter"
    assert "all/1/gt" in (caught.value.problem.get("detail") or caught.value.problem["message"])
    assert caught.value.status in {0, 422}


async def test_an_event_arrives_as_it_was_sent(stand: Stand, transport: str) -> None:
    """Line breaks of all kinds, the whole of Unicode and numbers of all sizes, live and replayed."""
    text = "a\nb\r\nc\rd\u2028e\u2029f\x85g\x00\U0001f600 data: id: event:"
    sent = event(
        "odd",
        "o\u2028\U0001f600",
        text=text,
        big=2**63,
        small=-(2**63),
        exact=0.1,
        none=None,
        deep=[[{"": ""}]],
    )
    stream = stand.client(transport).open()
    await anext(stream)
    await stand.publish(sent)
    replayed = stand.client(transport).open(since=stand.cursor(0))
    for told in (*await take(stream, 1), *await catch_up(replayed)):
        assert {name: told.body[name] for name in sent} == sent


# One log, one cursor


async def test_a_cursor_of_one_transport_resumes_on_every_other(stand: Stand, transport: str) -> None:
    """Of an event, of a leave and of the place where a stream began."""
    log = [
        event("e0", "o-1", status="paid"),
        event("e1", "o-1", status="sent"),
        event("e2", "o-2", status="paid"),
    ]
    await stand.publish(*log)
    stream = stand.client(transport).open(filter=PAID, leave=True, since=stand.cursor(0))
    told = await catch_up(stream)
    assert told_pairs(told) == [("event", "e0"), ("leave", "o-1"), ("event", "e2")]
    for at, message in enumerate(told):
        for other in CLIENTS:
            resumed = stand.client(other).open(filter=PAID, leave=True, since=message.cursor)
            assert told_pairs(await catch_up(resumed)) == told_pairs(told[at + 1 :])


async def test_many_streams_of_one_filter_and_of_different_ones_get_their_own(
    stand: Stand, transport: str
) -> None:
    """Clients that share a filter share their bytes; nobody gets another's."""
    filters = [None, PAID, {"exact": {"subject": "o-2"}}, PAID, {"exact": {"data.at": 4}}]
    streams = [stand.client(transport).open(filter=wanted) for wanted in filters]
    for stream in streams:
        await anext(stream)
    log = events(30)
    for at in range(0, 30, 6):
        await stand.publish(*log[at : at + 6])
    for stream, wanted in zip(streams, filters, strict=True):
        wanted_ids = [each.id for each in expected(log, wanted)]
        assert ids(await take(stream, len(wanted_ids))) == wanted_ids


async def test_a_stream_that_is_cut_leaves_nothing_behind(stand: Stand, transport: str) -> None:
    """Its connection, its channel and its place in the metrics are gone, whether it was live or behind."""
    await stand.publish(*events(10))
    live = stand.client(transport).open(filter=PAID)
    await anext(live)
    behind = stand.client(transport).open(since="earliest")
    await take_until(behind, "e9")
    for stream in (live, behind):
        await stream.cut()
    await until(lambda: not len(stand.node.connections) and not stand.node.hub.channels)
    metrics = (await stand.http.get("/metrics")).text
    name = f'{{transport="{transport}"}}'
    assert f"gateway_connections{name} 0.0" in metrics
    assert f"gateway_subscriptions{name} 0.0" in metrics or transport == "longpoll"


async def test_a_client_may_be_gone_at_any_moment(
    stand: Stand, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While it connects, before it is answered, in the middle of a page: nothing of it is left, nothing is logged."""
    await stand.publish(*events(1000))
    for turns in range(0, 90, 3):
        stream = stand.client(transport).open(filter=PAID, since=("earliest", "snapshot", None)[turns % 3])
        starting = asyncio.ensure_future(_read_on(stream))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait((starting,))
        await stream.cut()
    await until(lambda: not len(stand.node.connections) and not stand.node.hub.channels)
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


async def _read_on(stream: Client) -> None:
    async for _ in stream:
        pass
