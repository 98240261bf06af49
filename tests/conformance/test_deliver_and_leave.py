"""`deliver` and `leave`, over every transport, on each server path, with cursors plain and sealed."""

from typing import Any

import pytest

from tests.conformance.conftest import Stand, Start
from tests.conformance.orders import PAID, event, events, id_range
from tests.support.clients import catch_up, ids, take
from tests.support.model import as_pairs, expected, newest, told_pairs

# deliver


@pytest.mark.parametrize("leave", [False, True], ids=["", "leave"])
@pytest.mark.parametrize("wanted", [None, PAID], ids=["everything", "paid"])
async def test_latest_tells_who_is_behind_the_newest_message_of_each_subject(
    start: Start, transport: str, wanted: Any, *, leave: bool
) -> None:
    """Over however many pages, of those that `all` would have sent; events without a subject all come."""
    stand = await start(tail=300)
    log = [
        each
        for at in range(6)
        for each in (*events(400, 350, start=at * 400), event(f"n{at}", status="paid"))
    ]
    for at in range(0, len(log), 600):
        await stand.publish(*log[at : at + 600])
    for offset in (0, 1000, len(log) - 50):
        stream = stand.client(transport, **_all_at_once(transport)).open(
            filter=wanted, since=stand.cursor(offset), deliver="latest", leave=leave
        )
        model = newest(expected(log, wanted, leave=leave, after=offset))
        assert told_pairs(await catch_up(stream)) == as_pairs(model)


def _all_at_once(transport: str) -> dict[str, Any]:
    return {"limit": 1000} if transport == "longpoll" else {}


async def test_latest_is_all_for_who_is_never_behind(stand: Stand, transport: str) -> None:
    """A live client gets every event of a subject."""
    stream = stand.client(transport).open(deliver="latest")
    await anext(stream)
    told = []
    for at in range(5):
        await stand.publish(event(f"e{at}", "o-1"))
        told += await take(stream, 1)
    assert ids(told) == id_range(0, 5)


# leave


async def test_leave_tells_of_a_subject_that_no_longer_matches(start: Start, transport: str) -> None:
    """Once, by the first event that does not match; live, in replay and after a resume alike."""
    stand = await start(tail=10)
    steps = ["new", "paid", "paid", "sent", "sent", "paid", "sent"]
    log = [event(f"e{at}", "o-1", status=status) for at, status in enumerate(steps)]
    model = expected(log, PAID, leave=True)
    assert [(each.kind, each.offset) for each in model] == [
        ("event", 2),
        ("event", 3),
        ("leave", 4),
        ("event", 6),
        ("leave", 7),
    ]
    live = stand.client(transport).open(filter=PAID, leave=True)
    await anext(live)
    told = []
    for each in log:
        await stand.publish(each)
        told += await take(live, sum(message.id == each["id"] for message in model))
    assert told_pairs(told) == as_pairs(model)
    assert [each.cursor for each in told] == [stand.cursor(each.offset) for each in model]
    await stand.publish(*(event(f"x{at}", "o-2", status="new") for at in range(30)))
    for offset in range(len(log)):
        stream = stand.client(transport).open(filter=PAID, leave=True, since=stand.cursor(offset))
        assert told_pairs(await catch_up(stream)) == as_pairs(expected(log, PAID, leave=True, after=offset))


async def test_without_leave_nothing_is_told_of_it(stand: Stand, transport: str) -> None:
    """The option is off unless it is asked for."""
    await stand.publish(event("e0", "o-1", status="paid"), event("e1", "o-1", status="sent"))
    for leave in (None, False):
        stream = stand.client(transport).open(filter=PAID, leave=leave, since="earliest")
        assert told_pairs(await catch_up(stream)) == [("event", "e0")]


async def test_leave_live_remembers_what_the_log_has_dropped(start: Start, transport: str) -> None:
    """The subject's latest event matched, so its end is told, even if retention has taken that event."""
    stand = await start(retention_events=5, tail=3)
    await stand.publish(event("first", "o-9", status="paid"))
    await stand.publish(*events(40))
    await stand.retained_from(37)
    stream = stand.client(transport).open(filter=PAID, leave=True)
    await anext(stream)
    await stand.publish(event("last", "o-9", status="new"))
    assert told_pairs(await take(stream, 1)) == [("leave", "o-9")]
