"""One client's connection: live, behind and live again, and nothing lost or doubled in between."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.connection import Connection, Subscription
from gateway.errors import GatewayError
from gateway.filters import parse_filter
from gateway.since import Start, parse_since
from gateway.wire import Blocks, Lines, Wire
from tests.support.app import InProcess, in_process
from tests.support.core import Peer, body_of
from tests.support.waiting import until

LINES, BLOCKS = Lines(), Blocks()
PAID = {"exact": {"data.status": "paid"}}


@pytest.fixture
async def app() -> AsyncIterator[InProcess]:
    async with in_process(flush_ms=0) as running:
        yield running


class Client:
    """A connection with its socket, and what it was announced."""

    def __init__(self, app: InProcess, *, room: float = float("inf"), wire: Wire = LINES) -> None:
        self.app = app
        self.peer = Peer(room)
        self.connection = Connection(app.node.streams, self.peer, wire, None)
        self.peer.watch(self.connection)
        self.started: dict[str, str] = {}

    async def subscribe(self, filter_: Any = None, since: str | None = None, **options: bool) -> Subscription:
        channel = self.app.node.hub.open(parse_filter(filter_) if filter_ else None, **options)
        subscription = self.connection.open(channel)

        def announce(start: Start) -> None:
            self.started[channel.sub] = start.cursor

        await self.connection.start(subscription, parse_since(since, self.app.node.cursors), announce)
        return subscription

    def told(self, op: str = "event") -> list[int]:
        """The offsets of these messages, in the order in which they came."""
        return [offset_of(each["cursor"]) for each in self.peer.messages if each["op"] == op]

    async def settled(self) -> None:
        """Reads until every subscription is live and everything has been flushed."""

        def is_settled() -> bool:
            self.peer.read()
            position, hub = self.connection.position, self.app.node.hub.position
            return position == hub and all(each.live for each in self.connection.subscriptions.values())

        await until(is_settled)


def offset_of(cursor: str) -> int:
    return int(cursor.partition(".")[2].partition("-")[0])


async def publish(app: InProcess, count: int, **more: Any) -> None:
    await app.publish(
        *({"type": "order.updated", "subject": f"o-{number}", **more} for number in range(count))
    )


def metric(app: InProcess, line: str) -> float:
    """The value of a series."""
    for each in app.node.metrics.render().decode().splitlines():
        if each.startswith(line + " "):
            return float(each.rpartition(" ")[2])
    return 0.0


async def test_live_from_now_on(app: InProcess) -> None:
    """It is told its place, and then everything after it; no `live`, since it never was behind."""
    await publish(app, 2)
    client = Client(app)
    subscription = await client.subscribe()
    assert subscription.live
    assert client.started == {subscription.channel.sub: f"{app.node.log.epoch}.2"}
    await publish(app, 2)
    await client.settled()
    assert (client.told(), client.told("live")) == ([3, 4], [])


@pytest.mark.parametrize(
    ("since", "first"), [("earliest", 1), ("{epoch}.1", 2), ("{epoch}.3", 4), ("2020-01-01T00:00:00Z", 1)]
)
async def test_from_a_place_and_then_live(app: InProcess, since: str, first: int) -> None:
    """What came after it, then `live` once with the place, then what comes."""
    await publish(app, 3)
    client = Client(app)
    await client.subscribe(since=since.format(epoch=app.node.log.epoch))
    await client.settled()
    await publish(app, 1)
    await client.settled()
    assert (client.told(), client.told("live")) == (list(range(first, 5)), [3])
    ops = [each["op"] for each in client.peer.messages]
    assert ops.index("live") == len(ops) - 2


async def test_a_gap_comes_before_everything(app: InProcess) -> None:
    """A cursor of another log: `gap`, `live`, and on from the head."""
    await publish(app, 3)
    client = Client(app)
    subscription = await client.subscribe(since="other.1")
    await client.settled()
    await publish(app, 1)
    await client.settled()
    gap, live, event = client.peer.messages
    head = f"{app.node.log.epoch}.3"
    assert gap == {
        "op": "gap",
        "sub": subscription.channel.sub,
        "from": "other.1",
        "to": head,
        "reason": "epoch",
    }
    assert live == {"op": "live", "sub": subscription.channel.sub, "cursor": head}
    assert event["op"] == "event"
    assert metric(app, 'gateway_gaps_total{reason="epoch"}') == 1


async def test_a_slow_client_holds_no_queue(app: InProcess) -> None:
    """Once its socket is full nothing more is written; when it reads again, the log tells it the rest."""
    client = Client(app, room=500)
    subscription = await client.subscribe()
    for _ in range(10):
        await publish(app, 100)
    await until(lambda: not subscription.live)
    assert len(client.peer.waiting) < 100_000
    assert len(client.told()) <= 100
    await client.settled()
    assert client.told() == list(range(1, 1001))
    assert len(client.told("live")) >= 1
    assert metric(app, 'gateway_catchups_total{reason="slow",transport="websocket"}') >= 1


async def test_one_slow_client_costs_the_others_nothing(app: InProcess) -> None:
    """They are written to as ever."""
    slow, quick = Client(app, room=400), Client(app)
    for client in (slow, quick):
        await client.subscribe()
    await publish(app, 50)
    await quick.settled()
    await publish(app, 50)
    await quick.settled()
    assert quick.told() == list(range(1, 101))
    assert len(slow.told()) < 100
    await slow.settled()
    assert slow.told() == list(range(1, 101))


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_each_subscription_is_told_everything_once(app: InProcess, seed: int) -> None:
    """Clients that come, read and stall at random, over several filters: from its start to its end each
    subscription's events are those that match, in order, each once."""
    dice = random.Random(seed)
    filters: list[Any] = [None, PAID, {"exact": {"subject": "o-1"}}, {"prefix": {"type": "order."}}]
    clients = [Client(app, room=dice.choice([400, 5000, float("inf")])) for _ in range(5)]
    bodies: list[Any] = []
    for _ in range(60):
        op = dice.randrange(5)
        client = dice.choice(clients)
        if op < 2:
            batch = [
                body_of(subject=f"o-{dice.randrange(4)}", data={"status": dice.choice(["paid", "open"])})
                for _ in range(dice.randrange(1, 30))
            ]
            bodies += batch
            await app.publish(*batch)
        elif op == 2:
            client.peer.read()
        elif op == 3 and len(client.connection.subscriptions) < len(filters):
            open_ = {each.channel.filter for each in client.connection.subscriptions.values()}
            free = [each for each in filters if (parse_filter(each) if each else None) not in open_]
            head = app.node.hub.position
            since = dice.choice([None, "earliest", f"{app.node.log.epoch}.{dice.randrange(head + 1)}"])
            await client.subscribe(dice.choice(free), since)
        else:
            client.connection.beat()
    for client in clients:
        await client.settled()
        for sub, subscription in client.connection.subscriptions.items():
            start = offset_of(client.started[sub])
            told = [
                offset_of(each["cursor"])
                for each in client.peer.messages
                if each["op"] == "event" and each["sub"] == sub
            ]
            matches = subscription.channel.matches
            assert told == [at for at, body in enumerate(bodies, 1) if at > start and matches(body)]


async def test_the_same_filter_twice_is_refused(app: InProcess) -> None:
    """On one connection; its id is the channel's."""
    client = Client(app)
    subscription = await client.subscribe(PAID)
    channel = app.node.hub.open(parse_filter(PAID))
    with pytest.raises(GatewayError, match=subscription.channel.sub) as caught:
        client.connection.open(channel)
    assert caught.value.code == "already_subscribed"


async def test_unsubscribing_ends_one_subscription(app: InProcess) -> None:
    """Also one that is behind; an unknown one is an error; another of the same filter may follow."""
    await publish(app, 700)
    client = Client(app, room=400)
    behind, live = await client.subscribe(PAID, "earliest"), await client.subscribe()
    for subscription in (behind, live):
        client.connection.unsubscribe(subscription.channel.sub)
    with pytest.raises(GatewayError) as caught:
        client.connection.unsubscribe(live.channel.sub)
    assert caught.value.code == "not_found"
    assert app.node.hub.channels == {}
    await client.subscribe(None, "earliest")
    await client.settled()
    assert client.told() == list(range(1, 701))


@pytest.mark.parametrize("turns", range(4))
async def test_a_connection_that_is_gone_leaves_nothing(app: InProcess, turns: int) -> None:
    """Neither channels nor tasks nor counts, whatever its subscriptions were doing."""
    await publish(app, 700)
    client = Client(app, room=0)
    await client.subscribe(PAID, "snapshot")
    await client.subscribe(None, "earliest")
    await client.subscribe({"exact": {"subject": "o-1"}})
    assert metric(app, 'gateway_subscriptions{transport="websocket"}') == 3
    task = client.connection._task
    assert task is not None
    for _ in range(turns):
        await asyncio.sleep(0)
    client.connection.finished()
    client.connection.finished()
    client.peer.read()
    await until(task.done)
    assert app.node.hub.channels == {}
    assert metric(app, 'gateway_subscriptions{transport="websocket"}') == 0


async def test_a_write_that_fails_ends_that_client(app: InProcess, caplog: pytest.LogCaptureFixture) -> None:
    """Its connection is aborted, and the log has one line about it."""
    bad, good = Client(app), Client(app)
    for client in (bad, good):
        await client.subscribe()
    bad.peer.closed = (1000, "")  # a peer that takes nothing more
    await publish(app, 1)
    await good.settled()
    assert bad.peer.aborted
    assert good.told() == [1]
    assert "write failed" in caplog.text


# Heartbeats


async def test_a_place_is_told_where_it_would_grow_old(app: InProcess) -> None:
    """Once per step, when nothing that matched has told it; never while something is behind."""
    client = Client(app)
    await client.subscribe(PAID)
    assert not client.connection.beat()
    await publish(app, 5)
    await client.settled()
    assert [client.connection.beat() for _ in range(2)] == [True, False]
    await app.publish(body_of(data={"status": "paid"}))
    await client.settled()
    assert not client.connection.beat()  # the event itself told it
    await publish(app, 1)
    await client.settled()
    assert client.connection.beat()
    assert client.told("at") == [5, 7]


async def test_a_full_socket_is_told_nothing(app: InProcess) -> None:
    """It has a place, and will be told when it reads."""
    client = Client(app, room=0)
    await client.subscribe(PAID)
    await app.publish(body_of(data={"status": "paid"}))
    await until(lambda: client.peer.paused)
    await publish(app, 1)
    assert not client.connection.beat()


async def test_without_subscriptions_there_is_no_place(app: InProcess) -> None:
    """Nothing to tell."""
    client = Client(app)
    await publish(app, 1)
    assert not client.connection.beat()


# The places that an EventSource keeps


def ids(peer: Peer) -> list[str]:
    text = (peer.got + peer.waiting).decode()
    return [line.removeprefix("id: ") for line in text.splitlines() if line.startswith("id: ")]


async def test_what_the_gateway_says_has_the_place_to_resume_at(app: InProcess) -> None:
    """Live it is the head; within a snapshot it is a place of the snapshot."""
    await publish(app, 800)
    client = Client(app, room=400, wire=BLOCKS)
    await client.subscribe(since="snapshot")
    await until(lambda: client.peer.paused)
    client.connection.say({"op": "expiring", "in": 30})
    first_page = ids(client.peer)[-2]
    assert first_page.endswith("-800")
    assert ids(client.peer)[-1] == first_page
    await client.settled()
    client.connection.say({"op": "expiring", "in": 30})
    assert ids(client.peer)[-1] == f"{app.node.log.epoch}.800"


async def test_a_stream_that_ends_before_its_gap_was_told_does_not_pass_it(app: InProcess) -> None:
    """Cut off in that moment, it resumes where it asked to, and is told the gap then."""
    await publish(app, 3)
    client = Client(app, wire=BLOCKS)
    await client.subscribe(since="other.1")
    client.connection.end(1012, "service restart", 1000)
    assert set(ids(client.peer)) <= {"other.1"}


async def test_an_end_says_why_once(app: InProcess) -> None:
    """`reconnect` for a restart; the first code counts, and everything is released."""
    client = Client(app)
    await client.subscribe()
    client.connection.end(1012, "service restart", 1830)
    client.connection.end(4200, "token expired", 1)
    assert client.peer.messages == [{"op": "reconnect", "after_ms": 1830}]
    assert (client.peer.closed, client.connection.code) == ((1012, "service restart"), 1012)
    assert app.node.hub.channels == {}
