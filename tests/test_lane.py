"""Lanes and their flush: when bytes leave, who gets them, and where everybody stands meanwhile."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway import lane as lane_module
from gateway.lane import Flusher, Lane
from gateway.wire import Lines
from tests.support.core import Schedule

INTERVAL = 0.002
WIRE = Lines()


class Client:
    """A live client: what was written to it, and what it does while it is being written to."""

    def __init__(self, lane: Lane, *, fails: bool = False, leaves: bool = False) -> None:
        self.lane = lane
        self.joined = lane.position
        self.left: int | None = None
        self.got: list[int] = []
        self.writes = 0
        self.errors: list[Exception] = []
        self._fails = fails
        self._leaves = leaves
        lane.join(self, self.write)

    def write(self, data: bytes) -> None:
        self.writes += 1
        if self._fails:
            raise OSError("the peer is gone")
        self.got += [int(line) for line in data.split()]
        if self._leaves:
            self.leave()

    def leave(self) -> None:
        if self.left is None:
            self.left = self.lane.leave(self)

    def broken(self, error: Exception) -> None:
        self.errors.append(error)

    def scattered(self) -> None:
        self.leave()


class Node:
    """A flusher with lanes, fed as the hub feeds them."""

    def __init__(self, interval: float = INTERVAL, lanes: int = 1) -> None:
        self.schedule = Schedule()
        self.observed: list[tuple[str, list[int], int]] = []
        self.flusher = Flusher(
            self.schedule, interval, observe=lambda *args: self.observed.append(args), now=self.schedule.time
        )
        self.lanes = [Lane(WIRE, self.flusher) for _ in range(lanes)]
        self.pushed: list[list[int]] = [[] for _ in range(lanes)]

    @property
    def lane(self) -> Lane:
        return self.lanes[0]

    def publish(self, *lanes: int, kick: bool = True) -> None:
        """The next event of the log, which concerns these lanes."""
        offset = self.flusher.position + 1
        for number in lanes:
            self.pushed[number].append(offset)
            self.lanes[number].push(offset, offset * 1000, b"%d\n" % offset)
        self.flusher.position = offset
        if kick:
            self.flusher.kick()

    def check(self, client: Client) -> None:
        """A client has exactly what its lane was given between where it joined and where it stands."""
        until = client.lane.position_of(client) if client.left is None else client.left
        pushed = self.pushed[self.lanes.index(client.lane)]
        assert client.got == [offset for offset in pushed if client.joined < offset <= until]


def test_an_event_after_a_pause_leaves_at_once() -> None:
    """Nobody waits for a timer when the last flush is an interval or longer ago."""
    node = Node()
    client = Client(node.lane)
    node.publish(0)
    assert client.got == [1]
    node.schedule.advance(INTERVAL)
    node.publish(0)
    assert client.got == [1, 2]


def test_events_that_follow_closely_leave_in_one_write() -> None:
    """Within the interval after a flush events wait for its end and are joined."""
    node = Node()
    client = Client(node.lane)
    for _ in range(5):
        node.publish(0)
    assert client.got == [1]
    node.schedule.advance(INTERVAL / 2)
    assert client.got == [1]
    node.schedule.advance(INTERVAL / 2)
    assert client.got == [1, 2, 3, 4, 5]
    assert client.writes == 2


def test_a_wait_counts_from_the_last_flush_of_any_channel() -> None:
    """The interval is the node's, so that many busy channels do not flush one by one."""
    node = Node(lanes=2)
    first, second = Client(node.lanes[0]), Client(node.lanes[1])
    node.publish(0)
    node.publish(1)
    assert (first.got, second.got) == ([1], [])
    node.schedule.advance(INTERVAL)
    assert second.got == [2]


def test_interval_0_flushes_at_the_end_of_the_turn() -> None:
    """With no interval all that is published in a turn leaves in one write after it."""
    node = Node(interval=0)
    client = Client(node.lane)
    node.publish(0)
    node.publish(0)
    assert client.got == []
    node.schedule.turn()
    assert client.got == [1, 2]
    assert client.writes == 1


def test_what_concerns_nobody_schedules_nothing() -> None:
    """A lane without clients takes nothing, and the loop is left alone."""
    node = Node(interval=0)
    node.publish(0)
    node.publish()
    assert node.schedule.idle
    assert node.lane.position == 2


def test_a_flush_is_observed_once_for_all_its_clients() -> None:
    """One call tells the transport, when each event was accepted and to how many clients it goes."""
    node = Node(interval=0)
    clients = [Client(node.lane) for _ in range(3)]
    node.publish(0)
    node.publish(0)
    node.schedule.turn()
    assert node.observed == [("websocket", [1000, 2000], len(clients))]


def test_a_wire_that_only_wakes_its_clients_delivers_nothing() -> None:
    """A flush without bytes is written, so that they wake, and is not observed: what they then read is."""
    node = Node(interval=0)
    client = Client(node.lane)
    node.lane.push(1, 1000, b"")
    node.flusher.position = 1
    node.flusher.kick()
    node.schedule.turn()
    assert (client.writes, node.observed) == (1, [])


def test_all_clients_get_the_same_bytes_object() -> None:
    """What leaves is made once, however many get it."""
    node = Node()
    got: list[bytes] = []
    for _ in range(3):
        node.lane.join(Client(node.lane), got.append)
    node.publish(0)
    assert len(got) == 3
    assert all(each is got[0] for each in got)


def test_a_large_flush_is_cut_into_slices_with_turns_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """No turn of the loop writes to more than SLICE clients, counted over all lanes, and nobody is forgotten."""
    monkeypatch.setattr(lane_module, "SLICE", 4)
    node = Node(lanes=3)
    clients = [Client(node.lanes[number % 3]) for number in range(15)]
    node.publish(0, 1, 2)
    served = [sum(client.writes for client in clients)]
    while not node.schedule.idle:
        node.schedule.turn()
        served.append(sum(client.writes for client in clients))
    assert all(after - before <= 2 * 4 for before, after in zip([0, *served], served, strict=False))
    assert len(served) > 3
    assert all(client.got == [1] for client in clients)


def test_a_single_lane_never_exceeds_its_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten clients in slices of three are four turns."""
    monkeypatch.setattr(lane_module, "SLICE", 3)
    node = Node()
    clients = [Client(node.lane) for _ in range(10)]
    node.publish(0)
    served = [sum(client.writes for client in clients)]
    while not node.schedule.idle:
        node.schedule.turn()
        served.append(sum(client.writes for client in clients))
    assert served == [3, 6, 9, 10]


def test_order_is_kept_over_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published while a flush is cut leaves after it, for everyone."""
    monkeypatch.setattr(lane_module, "SLICE", 2)
    node = Node()
    clients = [Client(node.lane) for _ in range(5)]
    for _ in range(6):
        node.publish(0)
        node.schedule.turn()
    node.schedule.settle()
    assert all(client.got == [1, 2, 3, 4, 5, 6] for client in clients)


def test_who_joins_during_a_sliced_flush_gets_only_what_comes_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newcomer's place lies behind the bytes that are on their way to the others."""
    monkeypatch.setattr(lane_module, "SLICE", 1)
    node = Node()
    for _ in range(3):
        Client(node.lane)
    node.publish(0)
    assert node.lane.unfinished
    newcomer = Client(node.lane)
    assert newcomer.joined == 1
    node.publish(0)
    node.schedule.settle()
    assert newcomer.got == [2]


def test_who_joins_before_a_flush_gets_what_waits() -> None:
    """A newcomer's place lies before what has not left yet, and so it is told that too."""
    node = Node(interval=0)
    Client(node.lane)
    node.publish(0)
    newcomer = Client(node.lane)
    assert newcomer.joined == 0
    node.schedule.turn()
    assert newcomer.got == [1]


def test_who_leaves_before_its_slice_stands_before_the_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is the one before the bytes that it did not get any more."""
    monkeypatch.setattr(lane_module, "SLICE", 1)
    node = Node()
    clients = [Client(node.lane) for _ in range(3)]
    node.publish()
    node.publish(0)
    for client in clients:
        client.leave()
    assert sorted((client.left, client.got) for client in clients) == [(1, []), (1, []), (2, [2])]
    assert not node.lane.unfinished


def test_who_falls_behind_in_its_own_write_has_what_was_written() -> None:
    """A socket that fills up by a write has taken the write: nothing of it is sent again."""
    node = Node()
    client = Client(node.lane, leaves=True)
    other = Client(node.lane)
    node.publish(0)
    node.schedule.advance(1)
    node.publish(0)
    assert (client.got, client.left) == ([1], 1)
    assert other.got == [1, 2]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_peer_that_raises_never_stops_the_others(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Whatever a write raises is that client's alone, in a whole flush and in slices."""
    monkeypatch.setattr(lane_module, "SLICE", size)
    node = Node()
    clients = [Client(node.lane, fails=number % 2 == 0) for number in range(6)]
    node.publish(0)
    node.schedule.settle()
    for number, client in enumerate(clients):
        assert (len(client.errors), client.got) == ((1, []) if number % 2 == 0 else (0, [1]))


def test_a_lane_that_everybody_left_forgets_what_waited() -> None:
    """Nothing is kept for nobody, and who joins later does not get it."""
    node = Node(interval=0)
    client = Client(node.lane)
    node.publish(0)
    client.leave()
    newcomer = Client(node.lane)
    node.schedule.settle()
    assert (client.left, newcomer.joined, newcomer.got) == (0, 1, [])


def test_flush_now_writes_everything_in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that stands beyond what waits can join after it, however large the flush."""
    monkeypatch.setattr(lane_module, "SLICE", 1)
    node = Node()
    clients = [Client(node.lane) for _ in range(4)]
    node.publish(0)
    node.publish(0)
    node.lane.flush_now()
    assert node.lane.position == 2
    assert all(client.got == [1, 2] for client in clients)
    node.schedule.settle()
    assert all(client.got == [1, 2] for client in clients)


OPS = ["publish", "publish", "quiet", "join", "join", "leave", "turn", "pass", "now", "faller", "bad"]


def _step(node: Node, clients: list[Client], op: str, number: int) -> None:
    lane = node.lanes[number % len(node.lanes)]
    live = [client for client in clients if client.left is None and client.lane is lane]
    if op == "publish":
        node.publish(*[each for each in range(len(node.lanes)) if number >> each & 1])
    elif op == "quiet":
        node.publish(number % len(node.lanes), kick=False)
    elif op == "join":
        clients.append(Client(lane))
    elif op == "faller":
        clients.append(Client(lane, leaves=True))
    elif op == "bad":
        Client(lane, fails=True)
    elif op == "leave" and live:
        live[number % len(live)].leave()
    elif op == "turn":
        node.schedule.turn()
    elif op == "pass":
        node.schedule.advance(INTERVAL)
    elif op == "now":
        lane.flush_now()


@settings(max_examples=400)
@given(
    ops=st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 7)), max_size=60),
    size=st.integers(1, 4),
    interval=st.sampled_from([0, INTERVAL]),
)
@example(
    ops=[("join", 0), ("join", 0), ("publish", 1), ("leave", 0), ("leave", 0), ("join", 0), ("publish", 1)],
    size=1,
    interval=0,
)
def test_each_client_gets_exactly_what_comes_after_its_place(
    ops: list[tuple[str, int]], size: int, interval: float
) -> None:
    """Whoever joins or leaves whenever: the stream is the lane's messages from the place of joining to the
    place that the lane names, each once and in order; and in the end everybody has everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lane_module, "SLICE", size)
        node = Node(interval, lanes=3)
        clients: list[Client] = []
        for op, number in ops:
            _step(node, clients, op, number)
            for client in clients:
                node.check(client)
        node.flusher.kick()
        node.schedule.settle()
        for client in clients:
            node.check(client)
            assert client.left is not None or client.lane.position_of(client) == node.flusher.position
