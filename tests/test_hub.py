"""The hub: channels that are shared, and which message reaches which of them."""

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cursor import Cursors
from gateway.filters import parse_filter
from gateway.hub import Channel, Hub
from gateway.lane import Flusher
from gateway.wire import Blocks, Lines
from tests.support.core import Body, History, Schedule, body_of

LINES = Lines()
PAID = {"exact": {"data.status": "paid"}}


class Node:
    """A hub over a history, flushed by hand."""

    def __init__(self) -> None:
        self.schedule = Schedule()
        self.hub = Hub(Flusher(self.schedule, 0), Cursors())
        self.hub.begin("e", 0)
        self.history = History()

    def open(self, filter_: Any = None, **options: bool) -> Channel:
        return self.hub.open(parse_filter(filter_) if filter_ else None, **options)

    def publish(self, *bodies: Body) -> None:
        self.hub.publish(self.history.extend(bodies))
        self.schedule.settle()


class Client:
    def __init__(self, node: Node, channel: Channel) -> None:
        self.text = b""
        self.lost: int | None = None
        self.lane = node.hub.lane(channel, LINES)
        self.lane.join(self, self.write)

    def write(self, data: bytes) -> None:
        self.text += data

    def broken(self, error: Exception) -> None:
        raise error

    def scattered(self) -> None:
        self.lost = self.lane.leave(self)

    @property
    def told(self) -> list[str]:
        """What came, as `event 1`, `leave 2`."""
        messages = [orjson.loads(line) for line in self.text.splitlines()]
        return [f"{each['op']} {each['cursor'].partition('.')[2]}" for each in messages]


def test_a_log_that_is_another_one_sends_everybody_away() -> None:
    """Who was live leaves at the place up to which it was written to; the hub goes on after the new head."""
    node = Node()
    clients = [Client(node, node.open(PAID)), Client(node, node.open())]
    node.publish(body_of(data={"status": "paid"}), body_of(data={"status": "new"}))
    node.hub.reset("f", 1)
    assert [client.lost for client in clients] == [2, 2]
    assert node.hub.cursor_of(node.hub.position) == "f.1"
    assert node.hub.tail.covers(1)
    assert not node.hub.tail.covers(0)


def test_equal_filters_are_one_channel() -> None:
    """Two clients that ask for the same in other words share a channel and its id."""
    node = Node()
    first = node.open({"all": [PAID, {"prefix": {"type": "order."}}]})
    second = node.open({"all": [{"prefix": {"type": "order."}}, {"not": {"not": PAID}}]})
    assert first is second
    assert list(node.hub.channels) == [first.sub]


def test_options_make_another_channel() -> None:
    """A filter with other options is another subscription; its id says so, the same in every process."""
    node = Node()
    options: list[dict[str, bool]] = [{}, {"latest": True}, {"leave": True}, {"latest": True, "leave": True}]
    ids = [node.open(filter_, **each).sub for filter_ in (None, PAID) for each in options]
    assert len(set(ids)) == len(ids)
    assert ids == [Node().open(filter_, **each).sub for filter_ in (None, PAID) for each in options]


def test_a_channel_lives_as_long_as_somebody_holds_it() -> None:
    """The last one to release it takes it off the hub, and later events pass it by."""
    node = Node()
    channel = node.open(PAID, leave=True)
    assert node.open(PAID, leave=True) is channel
    node.hub.release(channel)
    client = Client(node, channel)
    node.publish(body_of(data={"status": "paid"}))
    node.hub.release(channel)
    assert node.hub.channels == {}
    node.publish(body_of(data={"status": "paid"}), body_of(data={"status": "open"}))
    assert client.told == ["event 1"]


def test_messages_reach_the_channels_that_match() -> None:
    """Each channel gets its own events, in log order, with the cursor of each."""
    node = Node()
    every, paid = Client(node, node.open()), Client(node, node.open(PAID))
    node.publish(body_of(data={"status": "open"}), body_of(data={"status": "paid"}))
    assert every.told == ["event 1", "event 2"]
    assert paid.told == ["event 2"]


def test_each_wire_of_a_channel_has_its_own_encoding() -> None:
    """One channel may have clients on several transports."""
    node = Node()
    channel = node.open()
    line, block = Client(node, channel), Client(node, channel)
    node.hub.lane(channel, LINES).leave(block)
    node.hub.lane(channel, Blocks()).join(block, block.write)
    node.publish(body_of())
    assert line.text.startswith(b'{"op":"event"')
    assert block.text.startswith(b"id: e.1\ndata: {")


def test_the_place_moves_with_events_that_concern_nobody() -> None:
    """The hub's position is the newest offset, whatever matched."""
    node = Node()
    client = Client(node, node.open(PAID))
    node.publish(*[body_of(data={"status": "open"})] * 3)
    assert (node.hub.position, client.told) == (3, [])
    assert node.hub.tail.covers(0)


def test_leave_is_told_where_the_event_before_matched() -> None:
    """Only to channels that asked, only for the first event that does not match, and per subject."""
    node = Node()
    plain, leaving = Client(node, node.open(PAID)), Client(node, node.open(PAID, leave=True))
    node.publish(
        body_of(subject="a", data={"status": "paid"}),
        body_of(subject="b", data={"status": "open"}),
        body_of(subject="a", data={"status": "shipped"}),
        body_of(subject="a", data={"status": "returned"}),
        body_of(subject="a", data={"status": "paid"}),
    )
    assert plain.told == ["event 1", "event 5"]
    assert leaving.told == ["event 1", "leave 3", "event 5"]


statuses = st.sampled_from(["paid", "open"])
bodies = st.builds(
    lambda subject, status: body_of(subject=subject, data={"status": status}),
    st.sampled_from(["a", "b", None]),
    statuses,
)


@settings(max_examples=150)
@given(st.lists(bodies, max_size=12))
def test_live_messages_are_those_of_the_model(bodies: list[Body]) -> None:
    """An event that matches is told; one that does not, after one of its subject that did, is a leave."""
    node = Node()
    client = Client(node, node.open(PAID, leave=True))
    node.publish(*bodies)
    wanted, paid = [], set()
    for offset, body in enumerate(bodies, 1):
        subject = body.get("subject")
        if body["data"]["status"] == "paid":
            wanted.append(f"event {offset}")
            paid.add(subject)
        elif subject is not None and subject in paid:
            wanted.append(f"leave {offset}")
            paid.discard(subject)
    assert client.told == wanted


def test_a_channel_without_clients_takes_no_work() -> None:
    """An event is not encoded for a wire that nobody is live on."""
    node = Node()
    channel = node.open()
    encoded: list[int] = []

    class Counting(Lines):
        def event(self, sub: str, cursor: str, entry: Any) -> bytes:
            encoded.append(entry.offset)
            return super().event(sub, cursor, entry)

    lane = node.hub.lane(channel, wire := Counting())
    node.publish(body_of())
    assert encoded == []
    client = Client(node, channel)
    node.hub.lane(channel, wire).join(client, client.write)
    node.publish(body_of())
    assert encoded == [2]
    assert lane.last == 2
