"""What only Server-Sent Events have: the blocks line by line, headers, resuming as a browser does."""

import re
from typing import Any

import pytest

from tests.conformance.conftest import Stand, Start
from tests.support.clients import RefusedError, SseClient, catch_up, ids, take

PAID = {"exact": {"data.status": "paid"}}

pytestmark = pytest.mark.parametrize("variant", ["fast", "portable"], indirect=True)


def sse(stand: Stand, **options: Any) -> SseClient:
    client = stand.client("sse", **options)
    assert isinstance(client, SseClient)
    return client


async def test_the_blocks_of_a_stream_to_the_letter(stand: Stand) -> None:
    """The place first, without an event; order events unnamed; what the gateway says named, each with an id."""
    order = {"type": "t", "source": "/s", "subject": "o-1"}
    await stand.publish({**order, "id": "1", "data": {"status": "paid"}}, {**order, "id": "2"})
    stream = sse(stand).open(filter=PAID, leave=True, since=stand.cursor(0))
    await catch_up(stream)
    first, event, leave, live = stream.blocks
    assert re.fullmatch(r"retry: [1-5]\d{3}\n: connected [0-9a-z]+\nid: " + re.escape(stand.cursor(0)), first)
    assert re.fullmatch(rf'id: {stand.cursor(1)}\ndata: {{"specversion":"1.0",.*}}', event)
    assert leave.startswith(f"id: {stand.cursor(2)}\nevent: leave\n")
    assert f'"cursor":"{stand.cursor(2)}","subject":"o-1"' in leave
    assert live.startswith(f"id: {stand.cursor(2)}\nevent: live\ndata: {{")


async def test_the_gap_is_an_event_of_its_own(start: Start) -> None:
    """Its id is where the stream resumes."""
    stand = await start(retention_events=10, tail=3)
    await stand.publish(*({"type": "t"} for _ in range(30)))
    await stand.retained_from(21)
    stream = sse(stand).open(since=stand.cursor(3))
    await take(stream, 1)
    assert stream.blocks[1].startswith(f"id: {stand.cursor(20)}\nevent: gap\n")
    assert f'"from":"{stand.cursor(3)}","to":"{stand.cursor(20)}","reason":"evicted"' in stream.blocks[1]


@pytest.mark.parametrize(
    "accept", [None, "*/*", "text/event-stream", "text/*", "application/json, text/event-stream"]
)
async def test_these_accept_headers_are_a_stream(stand: Stand, accept: str | None) -> None:
    """A stream is the default. Its headers keep caches and proxies out of it."""
    stream = sse(stand, headers={} if accept is None else {"Accept": accept})
    await anext(stream.open())
    headers = stream.answer_headers
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "image/*, text/event-stream;q=0"])
async def test_what_accepts_neither_kind_is_406(stand: Stand, accept: str) -> None:
    """As problem details."""
    answer = await stand.http.get("/events", headers={"Accept": accept})
    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")
    assert answer.headers["content-type"] == "application/problem+json"


async def test_head_answers_the_headers_and_ends(stand: Stand) -> None:
    """The same status and type as GET, no body, and no stream left open."""
    answer = await stand.http.head("/events")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert "content-length" not in answer.headers  # GET has none either (RFC 9110, section 8.6)
    assert not len(stand.node.connections)
    refused = await stand.http.head("/events?since=never")
    assert (refused.status_code, refused.content) == (400, b"")


async def test_last_event_id_wins_over_since(stand: Stand) -> None:
    """As header or in the query: the URL of an EventSource never changes."""
    await stand.publish(*({"type": "t", "id": f"e{at}"} for at in range(6)))
    place = stand.cursor(4)
    for stream in (sse(stand, headers={"Last-Event-ID": place}), sse(stand, query={"lastEventId": place})):
        for since in ("earliest", "never", stand.cursor(1)):
            assert ids(await catch_up(stream.open(since=since))) == ["e4", "e5"]
            stream = sse(stand, headers=stream.headers, query=stream.query)  # noqa: PLW2901 - a new one each time


@pytest.mark.parametrize("last", ["garbage", "a.b", "0.1-", "." * 300, "%00", "9" * 40 + ".1"])
async def test_a_malformed_last_event_id_is_a_gap_and_the_stream_goes_on_live(
    stand: Stand, last: str
) -> None:
    """An error would end an EventSource for good. No place is known, so `from` is null."""
    await stand.publish({"type": "t", "id": "before"})
    stream = sse(stand, headers={"Last-Event-ID": last}).open(since="earliest")
    (gap,) = await catch_up(stream)
    assert (gap.lost_from, gap.cursor, gap.reason) == (None, stand.cursor(1), "epoch")
    await stand.publish({"type": "t", "id": "after"})
    assert ids(await take(stream, 1)) == ["after"]


async def test_a_foreign_last_event_id_is_a_gap_too(stand: Stand) -> None:
    """Of another log, beyond the head, or sealed with another key."""
    await stand.publish({"type": "t"})
    for last in (stand.node.cursors.encode("other", 1), stand.cursor(2), stand.cursor(9, 9)):
        (gap,) = await catch_up(sse(stand, headers={"Last-Event-ID": last}).open())
        assert (gap.lost_from, gap.cursor, gap.reason) == (last, stand.cursor(1), "epoch")


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("since=never", 400, "bad_since"),
        ("since=", 400, "bad_since"),
        ("since=earliest&since=live", 400, "bad_request"),
        ("deliver=some", 400, "bad_request"),
        ("leave=1", 400, "bad_request"),
        ("type=%ff", 400, "bad_request"),
        ("filter=%7B", 400, "bad_filter"),
        ("filter=%7B%22near%22%3A%7B%7D%7D", 422, "bad_filter"),
        ("type=*", 422, "bad_filter"),
        ("=x", 422, "bad_filter"),
        ("Data.x=1", 422, "bad_filter"),
    ],
)
async def test_a_request_that_is_wrong_is_a_problem(stand: Stand, query: str, status: int, code: str) -> None:
    """RFC 9457, whatever kind of answer was asked for."""
    for accept in ("text/event-stream", "application/json"):
        answer = await stand.http.get(f"/events?{query}", headers={"Accept": accept})
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["status"]) == (status, code, status), problem
        assert answer.headers["content-type"] == "application/problem+json"
        assert {"type", "title", "detail"} <= set(problem)


async def test_the_short_form_of_a_filter(stand: Stand) -> None:
    """Repeated is any of, different names are all of, a trailing star is a prefix; `filter` must hold as well."""
    await stand.publish(
        {"type": "order.created", "id": "a", "data": {"status": "paid", "n": 1}},
        {"type": "order.updated", "id": "b", "data": {"status": "sent", "n": "1"}},
        {"type": "order.updated", "id": "c", "data": {"status": "new", "n": 1}},
        {"type": "refund", "id": "d", "data": {"status": "paid", "n": 1}},
    )
    for query, found in (
        ({"type": "order.*"}, ["a", "b", "c"]),
        ({"type": "order.*", "data.status": "paid"}, ["a"]),
        ({"data.n": "1"}, ["a", "b", "c", "d"]),
    ):
        assert ids(await catch_up(sse(stand, query=query).open(since="earliest"))) == found
    both = sse(stand, query={"type": "order.*"}).open(since="earliest", filter=PAID)
    assert ids(await catch_up(both)) == ["a"]
    either = "since=earliest&data.status=paid&data.status=sent"
    answer = await stand.http.get(f"/events?{either}", headers={"Accept": "application/json"})
    assert [each["event"]["id"] for each in answer.json()["events"]] == ["a", "b", "d"]


async def test_a_silent_stream_is_told_where_it_is(start: Start) -> None:
    """A block of only `id`, so that a narrow filter never falls out of the log; a comment when nothing passed."""
    stand = await start(peer_timeout=2)
    stream = sse(stand).open(filter={"exact": {"subject": "o-1"}})
    await anext(stream)
    await stand.publish(*({"type": "t", "subject": "o-2"} for _ in range(20)))
    at = await anext(stream)
    assert (at.kind, at.cursor, stream.blocks[-1]) == ("at", stand.cursor(20), f"id: {stand.cursor(20)}")
    assert (await stream.block()).startswith(":")
    await stand.publish({"type": "t", "id": "mine", "subject": "o-1"})
    assert ids(await take(stream, 1)) == ["mine"]


async def test_refusals_are_told_before_the_stream_begins(stand: Stand) -> None:
    """A filter that is wrong stays wrong: an EventSource shall not come back with it."""
    with pytest.raises(RefusedError) as caught:
        await anext(sse(stand).open(filter={"near": {}}))
    assert caught.value.status == 422
