"""What only WebSocket has: its messages and close codes, member by member, on each server path."""

from typing import Any

import pytest

from tests.conformance.conftest import Stand, Start
from tests.support.clients import WebSocketClient, catch_up, take

pytestmark = pytest.mark.parametrize("variant", ["fast", "portable"], indirect=True)


async def talk(stand: Stand, **options: Any) -> WebSocketClient:
    """A connection that has been greeted."""
    client = stand.client("websocket", **options)
    assert isinstance(client, WebSocketClient)
    await client.connect()
    client.hello = await client.receive()
    return client


async def test_the_greeting_names_the_connection_and_the_heartbeat(stand: Stand) -> None:
    """The first message of all; seconds."""
    client = await talk(stand)
    assert client.hello == {"op": "hello", "connection": client.hello["connection"], "heartbeat": 20}
    assert client.hello["connection"]
    assert client.connection.subprotocol == "gateway.v1"


async def test_the_subprotocol_is_optional(stand: Stand) -> None:
    """Who offers none, or another, is answered none and served."""
    for offered in ((), ("mqtt",)):
        client = stand.client("websocket")
        assert isinstance(client, WebSocketClient)
        client.subprotocols = offered
        await client.connect()
        assert client.connection.subprotocol is None
        assert (await client.receive())["op"] == "hello"


async def test_a_subscription_from_its_beginning_to_its_end(stand: Stand) -> None:
    """Every message to the letter: `live` once for each `since` but `live`."""
    await stand.publish(
        {"type": "t", "source": "/s", "id": "1", "subject": "o-1", "data": {"status": "paid"}}
    )
    client = await talk(stand)
    paid = {"exact": {"data.status": "paid"}}
    await client.send(op="subscribe", id="1", filter=paid, since="earliest", deliver="all", leave=True)
    subscribed = await client.receive()
    sub = subscribed["sub"]
    assert subscribed == {"op": "subscribed", "id": "1", "sub": sub, "cursor": stand.cursor(0)}
    event = await client.receive()
    assert list(event) == ["op", "sub", "cursor", "event"]
    assert (event["op"], event["sub"], event["cursor"]) == ("event", sub, stand.cursor(1))
    assert event["event"]["specversion"] == "1.0"
    assert await client.receive() == {"op": "live", "sub": sub, "cursor": stand.cursor(1)}
    await stand.publish({"type": "t", "source": "/s", "id": "2", "subject": "o-1"})
    leave = {"op": "leave", "sub": sub, "cursor": stand.cursor(2), "subject": "o-1"}
    assert await client.receive() == leave
    await client.send(op="unsubscribe", sub=sub)
    assert await client.receive() == {"op": "unsubscribed", "sub": sub}
    await stand.publish({"type": "t", "source": "/s", "id": "3", "data": {"status": "paid"}})
    await client.send(op="ping", id="7")
    assert await client.receive() == {"op": "pong", "id": "7"}


async def test_since_live_has_no_live(stand: Stand) -> None:
    """It never was behind."""
    client = await talk(stand)
    await client.send(op="subscribe", id="1", since="live")
    assert (await client.receive())["op"] == "subscribed"
    await client.send(op="ping")
    assert await client.receive() == {"op": "pong"}


async def test_where_each_since_starts(start: Start) -> None:
    """The place before the first kept event, the snapshot's first place, the asked cursor even before a gap."""
    stand = await start(retention_events=10, tail=3)
    await stand.publish(*({"type": "t", "id": f"e{at}", "subject": f"o-{at}"} for at in range(30)))
    await stand.retained_from(21)
    for since, place in (
        ("earliest", stand.cursor(20)),
        ("snapshot", stand.cursor(0, 30)),
        (stand.cursor(4), stand.cursor(4)),
        (stand.cursor(31), stand.cursor(31)),
        ("1999-01-01T00:00:00Z", stand.cursor(20)),
        (None, stand.cursor(30)),
    ):
        stream = stand.client("websocket").open(since=since)
        assert (await anext(stream)).cursor == place, since


async def test_the_gap_of_a_foreign_cursor(stand: Stand) -> None:
    """`to` is the head, from which it goes on; then it is live."""
    await stand.publish({"type": "t"})
    foreign = stand.node.cursors.encode("other", 7)
    client = await talk(stand)
    await client.send(op="subscribe", id="1", since=foreign)
    sub = (await client.receive())["sub"]
    gap = {"op": "gap", "sub": sub, "from": foreign, "to": stand.cursor(1), "reason": "epoch"}
    assert await client.receive() == gap
    assert await client.receive() == {"op": "live", "sub": sub, "cursor": stand.cursor(1)}


async def test_equal_filters_have_one_sub_and_are_subscribed_once(stand: Stand) -> None:
    """However they are written; the options are part of it; another connection has the same name for it."""
    client, other = await talk(stand), await talk(stand)
    first = {"all": [{"exact": {"type": "a"}}, {"exact": {"data.n": 1}}]}
    same = {"exact": {"data.n": 1.0, "type": "a"}}
    await client.send(op="subscribe", id="1", filter=first)
    sub = (await client.receive())["sub"]
    await client.send(op="subscribe", id="2", filter=same, since="earliest")
    refused = await client.receive()
    assert (refused["op"], refused["id"], refused["code"]) == ("error", "2", "already_subscribed")
    await client.send(op="subscribe", id="3", filter=same, leave=True)
    assert (await client.receive())["sub"] != sub
    await other.send(op="subscribe", id="1", filter=same)
    assert (await other.receive())["sub"] == sub
    await client.send(op="unsubscribe", sub=sub)
    assert (await client.receive())["op"] == "unsubscribed"
    await client.send(op="subscribe", id="4", filter=first)
    assert (await client.receive())["sub"] == sub


async def test_subscriptions_of_one_connection_are_served_each_for_itself(stand: Stand) -> None:
    """Several that catch up at once, beside one that is live: each in order and once."""
    await stand.publish(*({"type": "t", "id": f"e{at}", "subject": f"o-{at % 3}"} for at in range(900)))
    client = await talk(stand)
    wanted = {str(at): {"exact": {"subject": f"o-{at}"}} for at in range(3)}
    for id_, since in (("0", "live"), ("1", "earliest"), ("2", stand.cursor(450))):
        await client.send(op="subscribe", id=id_, filter=wanted[id_], since=since)
    asked: dict[str, str] = {}
    told: dict[str, list[str]] = {id_: [] for id_ in wanted}
    while len(asked) < 3 or sum(map(len, told.values())) < 100 + 400 + 250:
        message = await client.receive()
        if message["op"] == "subscribed":
            asked[message["sub"]] = message["id"]
            if len(asked) == 3:
                await stand.publish(
                    *({"type": "t", "id": f"e{at}", "subject": f"o-{at % 3}"} for at in range(900, 1200))
                )
        elif message["op"] == "event":
            told[asked[message["sub"]]].append(message["event"]["id"])
    for at, begin in ((0, 900), (1, 0), (2, 450)):
        assert told[str(at)] == [f"e{each}" for each in range(begin, 1200) if each % 3 == at]


async def test_subscribing_and_unsubscribing_in_haste(stand: Stand) -> None:
    """Nothing of a subscription comes after its `unsubscribed`; the next one is told everything from its start."""
    await stand.publish(*({"type": "t", "id": f"e{at}"} for at in range(1000)))
    client = await talk(stand)
    await client.send(op="subscribe", id="0", since="earliest")
    sub = (await client.receive())["sub"]
    for at in range(1, 15):
        await client.send(op="unsubscribe", sub=sub)
        await client.send(
            op="subscribe", id=str(at), since=("earliest", "snapshot", stand.cursor(500))[at % 3]
        )
    is_open, told, last = True, list[str](), "0"
    while not (is_open and told and told[-1] == "e999" and last == "14"):
        message = await client.receive()
        if message["op"] == "subscribed":
            is_open, told, last = True, [], message["id"]
        elif message["op"] == "unsubscribed":
            is_open = False
        else:
            assert is_open, message
            told += [message["event"]["id"]] if message["op"] == "event" else []
    assert told == [f"e{at}" for at in range(500, 1000)]


async def test_so_many_subscriptions_and_no_more(start: Start) -> None:
    """One more is refused, the connection stays, and one that is given up makes room."""
    stand = await start(max_subscriptions=3)
    client = await talk(stand)
    answers = []
    for at in range(4):
        await client.send(op="subscribe", id=str(at), filter={"exact": {"subject": f"o-{at}"}})
        answers.append(await client.receive())
    assert [each["op"] for each in answers] == ["subscribed"] * 3 + ["error"]
    assert answers[3]["code"] == "too_many_subscriptions"
    await client.send(op="unsubscribe", sub=answers[0]["sub"])
    await client.receive()
    await client.send(op="subscribe", id="5", filter={"exact": {"subject": "o-3"}})
    assert (await client.receive())["op"] == "subscribed"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        '"subscribe"',
        "{}",
        '{"op":null}',
        '{"op":"publish"}',
        '{"op":"ping","more":1}',
        '{"op":"ping","id":7}',
        '{"op":"subscribe","sub":"x"}',
        '{"op":"subscribe","id":"1","since":5}',
        '{"op":"subscribe","id":"1","deliver":"some"}',
        '{"op":"subscribe","id":"1","deliver":[]}',
        '{"op":"subscribe","id":"1","leave":"true"}',
        '{"op":"unsubscribe"}',
        '{"op":"auth"}',
        '{"op":"ping","op":{}}',
        '{"op":"subscribe","id":"\\ud800"}',
        '{"op":"subscribe","since":"\\ud800"}',
        '{"op":"subscribe","\\ud800":1}',
        '{"op":"subscribe","filter":{"exact":{"type":"\\ud800"}}',
        '{"op":"ping","id":1e400}',
        '"\\ud800"',
        "[" * 5000,
    ],
)
async def test_what_is_no_valid_request_is_an_error_and_the_connection_stays(stand: Stand, text: str) -> None:
    """Nine of them within a minute; the tenth closes with 4008."""
    client = await talk(stand)
    for _ in range(9):
        await client.connection.send(text)
        error = await client.receive()
        assert (error["op"], error["code"]) == ("error", "bad_message")
        assert error["message"]
    await client.send(op="ping")
    assert (await client.receive())["op"] == "pong"
    await client.connection.send(text)
    assert (await client.receive())["code"] == "bad_message"
    assert await client.closed() == 4008


async def test_requests_that_are_refused_do_not_count_as_bad(stand: Stand) -> None:
    """A bad filter, a bad cursor, what is subscribed already, what is not there."""
    client = await talk(stand)
    await client.send(op="subscribe", id="0")
    await client.receive()
    requests: list[tuple[dict[str, Any], str]] = [
        ({"op": "subscribe", "filter": {"near": {}}}, "bad_filter"),
        ({"op": "subscribe", "filter": None}, "bad_filter"),
        ({"op": "subscribe", "filter": {"exact": {"type": "x"}}, "since": "never"}, "bad_since"),
        ({"op": "subscribe"}, "already_subscribed"),
        ({"op": "unsubscribe", "sub": "none"}, "not_found"),
    ]
    for at in range(4):
        for request, code in requests:
            await client.send(id=str(at), **request)
            error = await client.receive()
            assert (error["op"], error["id"], error["code"]) == ("error", str(at), code)


@pytest.mark.parametrize(
    ("filter_", "place"),
    [
        ('{"exact":{"data.n":9007199254740993.0}}', "exact/data.n"),
        ('{"exact":{"data.n":18446744073709551617}}', "exact/data.n"),
        ('{"all":[{"exact":{"type":"t"}},{"gt":{"data.n":0.10000000000000000001}}]}', "all/1/gt/data.n"),
        ('{"in":{"data.n":[1,1e400]}}', "in/data.n/1"),
        ('{"exact":{"type":"\\ud800"}}', "exact/type"),
    ],
)
async def test_a_filter_that_cannot_be_kept_is_a_bad_filter(stand: Stand, filter_: str, place: str) -> None:
    """As over HTTP: nothing is rounded in silence; it names the request and the place, and is no bad message."""
    client = await talk(stand)
    for at in range(11):
        await client.connection.send(f'{{"op":"subscribe","id":"{at}","filter":{filter_}}}')
        error = await client.receive()
        assert (error["op"], error["id"], error["code"]) == ("error", str(at), "bad_filter")
        assert error["message"].startswith(f"{place}: ")
    answer = await stand.http.get("/events", params={"filter": filter_})
    assert (answer.status_code, answer.json()["detail"]) == (422, error["message"])


async def test_a_binary_frame_closes(stand: Stand) -> None:
    """With 4008, at once."""
    client = await talk(stand)
    await client.connection.send(b'{"op":"ping"}')
    assert await client.closed() == 4008


async def test_a_message_that_is_too_big_closes(stand: Stand) -> None:
    """65,536 bytes are taken, one more closes with 1009."""
    client = await talk(stand)
    await client.connection.send('{"op":"ping"}'.ljust(65536))
    assert (await client.receive())["op"] == "pong"
    await client.connection.send('{"op":"ping"}'.ljust(65537))
    assert await client.closed() == 1009


async def test_too_many_messages_close(start: Start) -> None:
    """4101: a limit is reached. Ping frames are no messages."""
    stand = await start(message_rate=5)
    client = await talk(stand)
    for _ in range(50):
        await (await client.connection.ping())
    for _ in range(50):
        await client.connection.send('{"op":"ping"}')
    assert await client.closed() == 4101


async def test_a_close_is_answered(stand: Stand) -> None:
    """With the same code (RFC 6455, 5.5.1)."""
    client = await talk(stand)
    await client.connection.close(1000)
    assert client.connection.close_code == 1000


async def test_a_silent_connection_is_told_where_it_is(start: Start) -> None:
    """`at`, once a heartbeat, when events pass that concern none of its subscriptions; not when none pass."""
    stand = await start(peer_timeout=2)
    client = await talk(stand)
    assert client.hello["heartbeat"] == 1
    narrow = {"exact": {"subject": "o-1"}}
    await client.send(op="subscribe", id="1", filter=narrow, since="earliest")
    await client.expect("live")
    await stand.publish(*({"type": "t", "subject": "o-2"} for _ in range(20)))
    assert await client.receive() == {"op": "at", "cursor": stand.cursor(20)}
    await stand.publish({"type": "t", "id": "mine", "subject": "o-1"})
    assert (await client.receive())["event"]["id"] == "mine"
    await stand.publish({"type": "t", "subject": "o-2"})
    assert await client.receive() == {"op": "at", "cursor": stand.cursor(22)}
    resumed = stand.client("websocket").open(filter=narrow, since=stand.cursor(22))
    assert await catch_up(resumed) == []
    await stand.publish({"type": "t", "id": "next", "subject": "o-1"})
    assert (await take(resumed, 1))[0].body["id"] == "next"
