"""A write waits for events that are on their way into the log, and never for long."""

from gateway.lane import MAX_HOLD, Flusher, Lane
from gateway.wire import Blocks
from tests.support.core import Schedule

INTERVAL = 0.002  # seconds


class Client:
    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def broken(self, error: Exception) -> None:
        raise error

    def scattered(self) -> None:
        raise AssertionError("no log is lost here")


class Desk:
    """A lane with one client; `coming` is what the log says of events on their way."""

    def __init__(self) -> None:
        self.coming = False
        self.schedule = Schedule()
        self.flusher = Flusher(
            self.schedule, INTERVAL, more_coming=lambda: self.coming, now=self.schedule.time
        )
        self.lane = Lane(Blocks(), self.flusher)
        self.client = Client()
        self.lane.join(self.client, self.client.writes.append)

    def publish(self, *, coming: bool) -> None:
        self.coming = coming
        offset = self.flusher.position + 1
        self.lane.push(offset, 0, b"%d;" % offset)
        self.flusher.position = offset
        self.flusher.kick()


def test_a_lone_event_leaves_at_the_end_of_the_turn() -> None:
    """With nothing on its way it waits for no timer."""
    desk = Desk()
    desk.publish(coming=False)
    desk.schedule.turn()
    assert desk.client.writes == [b"1;"]


def test_events_on_their_way_leave_in_one_write() -> None:
    """What is there is held for them, and leaves as soon as nothing more is coming."""
    desk = Desk()
    desk.publish(coming=True)
    desk.schedule.turn()
    assert desk.client.writes == []
    desk.publish(coming=False)
    desk.schedule.turn()
    assert desk.client.writes == [b"1;2;"]


def test_what_never_comes_holds_nothing_up() -> None:
    """After the hold it leaves all the same: the interval here, as no flush has taken longer."""
    desk = Desk()
    desk.publish(coming=True)
    desk.schedule.turn()
    desk.schedule.advance(INTERVAL)
    assert desk.client.writes == [b"1;"]


def test_a_steady_stream_is_not_held_from_anew() -> None:
    """Each event that comes during a hold leaves by its end, however many follow."""
    desk = Desk()
    for _ in range(4):
        desk.publish(coming=True)
        desk.schedule.advance(INTERVAL / 4)
    desk.schedule.advance(INTERVAL / 4)
    assert b"".join(desk.client.writes).startswith(b"1;2;3;")


def test_a_slow_flush_does_not_stretch_the_hold_without_end() -> None:
    """A flush that took a second holds the next write for MAX_HOLD at most."""
    desk = Desk()

    def slow(_data: bytes) -> None:
        desk.schedule.now += 1.0

    stalled = Client()
    desk.lane.join(stalled, slow)
    desk.publish(coming=False)
    desk.schedule.turn()
    desk.lane.leave(stalled)
    desk.schedule.advance(1.0)
    desk.publish(coming=True)
    desk.schedule.turn()
    desk.schedule.advance(MAX_HOLD / 2)
    assert desk.client.writes == [b"1;"]
    desk.schedule.advance(MAX_HOLD / 2)
    assert desk.client.writes == [b"1;", b"2;"]


def test_an_event_in_the_same_turn_joins() -> None:
    """The decision is made once a turn, for all that the turn has brought."""
    desk = Desk()
    desk.publish(coming=True)
    desk.publish(coming=False)
    desk.schedule.turn()
    assert desk.client.writes == [b"1;2;"]
