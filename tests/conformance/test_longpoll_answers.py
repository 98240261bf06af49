"""What only long poll has: the answer to the letter, `limit` and `wait`, and what wakes it."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from tests.conformance.conftest import Stand, Start
from tests.support.waiting import until

JSON = {"Accept": "application/json"}

pytestmark = pytest.mark.parametrize("variant", ["fast", "portable"], indirect=True)


async def poll(
    stand: Stand,
    query: Mapping[str, Any] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    answer = await stand.http.get(
        "/events", params={"wait": 0, **(query or {}), **more}, headers={**JSON, **(headers or {})}
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    told: dict[str, Any] = answer.json()
    assert list(told) == ["events", "cursor", "gap"]
    return told


async def test_an_answer_to_the_letter(stand: Stand) -> None:
    """Entries with their cursors, the cursor to go on from, and no gap."""
    order = {"type": "t", "source": "/s", "subject": "o-1"}
    await stand.publish({**order, "id": "1", "data": {"status": "paid"}}, {**order, "id": "2"})
    told = await poll(stand, {"since": "earliest", "data.status": "paid", "leave": "true"})
    entry, leave = told["events"]
    assert list(entry) == ["cursor", "event"]
    assert (entry["cursor"], entry["event"]["id"]) == (stand.cursor(1), "1")
    assert leave == {"cursor": stand.cursor(2), "leave": "o-1"}
    assert (told["cursor"], told["gap"]) == (stand.cursor(2), None)


@pytest.mark.parametrize("accept", ["application/json", "application/json, */*;q=0.1", "application/*"])
async def test_these_accept_headers_are_a_poll(stand: Stand, accept: str) -> None:
    """`application/json`, also beside `*/*`, where `text/event-stream` is not named."""
    await poll(stand, headers={"Accept": accept})


async def test_a_poll_goes_on_where_the_last_one_ended(stand: Stand) -> None:
    """`limit` counts what is answered; the cursor is that of the last entry, also within a snapshot."""
    await stand.publish(*({"type": "t", "id": f"e{at}", "subject": f"o-{at}"} for at in range(10)))
    for since in ("earliest", "snapshot"):
        seen: list[str] = []
        sizes = []
        cursor = since
        while len(seen) < 10:
            told = await poll(stand, since=cursor, limit=4)
            seen += [each["event"]["id"] for each in told["events"]]
            sizes.append(len(told["events"]))
            cursor = told["cursor"]
        assert (seen, sizes) == ([f"e{at}" for at in range(10)], [4, 4, 2])
        assert await poll(stand, since=cursor) == {"events": [], "cursor": stand.cursor(10), "gap": None}


async def test_at_most_a_thousand_are_answered(stand: Stand) -> None:
    """A larger limit means a thousand; one that is no number from 1 on is refused."""
    for start in (0, 1000):
        await stand.publish(*({"type": "t", "id": f"e{at}"} for at in range(start, start + 1000)))
    assert 0 < len((await poll(stand, since="earliest", limit=5000))["events"]) <= 1000
    for limit in ("0", "-1", "ten", "1.5", "", "٣"):
        answer = await stand.http.get("/events", params={"limit": limit}, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), limit


async def test_wait_is_bounded(stand: Stand) -> None:
    """What is no number of seconds is refused."""
    for wait in ("-1", "soon", "1e3", ""):
        answer = await stand.http.get("/events", params={"wait": wait}, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), wait


async def test_a_poll_waits_until_there_is_something(stand: Stand) -> None:
    """What does not match does not wake it, and its cursor is beyond that all the same."""
    waiting = asyncio.ensure_future(poll(stand, wait=20, subject="o-1"))
    await until(lambda: bool(stand.node.hub.channels))
    await stand.publish({"type": "t", "subject": "o-2"})
    await stand.publish({"type": "t", "id": "mine", "subject": "o-1"})
    told = await waiting
    assert [each["event"]["id"] for each in told["events"]] == ["mine"]
    assert told["cursor"] == stand.cursor(2)


async def test_a_poll_that_waited_in_vain_has_a_later_cursor(stand: Stand) -> None:
    """So that a narrow filter does not fall out of the log."""
    waiting = asyncio.ensure_future(poll(stand, wait=1, subject="o-1", since=stand.cursor(0)))
    await until(lambda: bool(stand.node.hub.channels))
    await stand.publish({"type": "t", "subject": "o-2"})
    assert await waiting == {"events": [], "cursor": stand.cursor(1), "gap": None}


async def test_a_leave_wakes_a_poll(stand: Stand) -> None:
    """It is a message as any other."""
    await stand.publish({"type": "t", "subject": "o-1", "data": {"status": "paid"}})
    query = {"data.status": "paid", "leave": "true"}
    waiting = asyncio.ensure_future(poll(stand, query, wait=20))
    await until(lambda: bool(stand.node.hub.channels))
    await stand.publish({"type": "t", "subject": "o-1"})
    assert (await waiting)["events"] == [{"cursor": stand.cursor(2), "leave": "o-1"}]


async def test_many_polls_wait_and_are_answered_at_once(stand: Stand) -> None:
    """Of one filter and of different ones."""
    waiting = [
        asyncio.ensure_future(poll(stand, {"subject": f"o-{at % 2}"} if at % 3 else {}, wait=20))
        for at in range(12)
    ]
    await until(lambda: sum(each.holders for each in stand.node.hub.channels.values()) == 12)
    await stand.publish(
        {"type": "t", "id": "a", "subject": "o-0"}, {"type": "t", "id": "b", "subject": "o-1"}
    )
    for at, answer in enumerate(await asyncio.gather(*waiting)):
        expected = [("a", "b")[at % 2]] if at % 3 else ["a", "b"]
        assert [each["event"]["id"] for each in answer["events"]] == expected
    assert not stand.node.hub.channels


async def test_an_answer_ends_before_a_gap_which_opens_the_next(start: Start) -> None:
    """The gap lies before the entries of its answer; its end is the cursor to go on from."""
    stand = await start(retention_events=10, tail=3)
    await stand.publish(*({"type": "t", "id": f"e{at}"} for at in range(30)))
    await stand.retained_from(21)
    told = await poll(stand, since=stand.cursor(3))
    assert told["gap"] == {"from": stand.cursor(3), "to": stand.cursor(20), "reason": "evicted"}
    seen = [each["event"]["id"] for each in told["events"]]
    while len(seen) < 10:
        told = await poll(stand, since=told["cursor"])
        assert told["gap"] is None
        seen += [each["event"]["id"] for each in told["events"]]
    assert seen == [f"e{at}" for at in range(20, 30)]


async def test_head_of_a_poll_has_no_body(stand: Stand) -> None:
    """And the length that the answer would have."""
    answer = await stand.http.head("/events", params={"wait": 0}, headers=JSON)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "application/json"


async def test_each_message_is_counted_once(stand: Stand) -> None:
    """In the metric of deliveries, whether it was there or was waited for."""
    await stand.publish({"type": "t"})
    await poll(stand, since="earliest")
    waiting = asyncio.ensure_future(poll(stand, wait=20))
    await until(lambda: bool(stand.node.hub.channels))
    await stand.publish({"type": "t"}, {"type": "t"})
    count = 1 + len((await waiting)["events"])
    metrics = (await stand.http.get("/metrics")).text
    assert f'gateway_events_delivered_total{{transport="longpoll"}} {count}.0\n' in metrics
