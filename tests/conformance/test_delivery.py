"""The promise: every subscriber gets every event that matches, in log order, once a connection, or a gap.

Random publishers, subscribers that come, go and stop reading, retention that takes the log away behind
them, checked against the log as the publishers saw it. A failure names its seed.
"""

import asyncio
import json
import logging
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conformance.conftest import Stand, Start
from tests.support.clients import Client, Message, catch_up, ids, take
from tests.support.model import Expected, as_pairs, expected, newest, told_pairs
from tests.support.waiting import until

STATUSES = ("new", "paid", "sent")
FILTERS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"exact": {"data.status": "paid"}},
    {"exact": {"subject": "o-3"}},
    {"not": {"exact": {"data.status": "new"}}},
    {"any": [{"in": {"subject": ["o-1", "o-2"]}}, {"exact": {"data.status": "sent"}}]},
    {"prefix": {"subject": "nobody"}},
)


pytestmark = pytest.mark.parametrize("variant", ["fast", "portable"], indirect=True)


def offset_of(cursor: str | None) -> int:
    assert cursor is not None
    return int(cursor.rpartition(".")[2])


@dataclass(slots=True)
class Ledger:
    """The log as its publishers were told it: each event at its offset."""

    stand: Stand
    random: random.Random
    at: dict[int, dict[str, Any]] = field(default_factory=dict)

    async def publish(self, name: str, rounds: int) -> None:
        """One publisher: single events, batches and lines in turn at random, now and then some of them again."""
        sent: list[dict[str, Any]] = []
        for at in range(rounds):
            new = [self._event(f"{name}-{at}-{index}") for index in range(self.random.randint(1, 8))]
            await self._place(new)
            sent += new
            if self.random.random() < 0.3:
                await self._repeat(self.random.choice(sent))

    async def _repeat(self, event: dict[str, Any]) -> None:
        """Publishes an event again: a duplicate as long as the log has it, a new event after that."""
        answer = await self._send([event])
        assert answer["accepted"] + answer["duplicates"] == 1
        place = offset_of(answer["cursor"])
        assert (self.at.get(place) == event) == bool(answer["duplicates"])
        self.at[place] = event

    async def _place(self, new: list[dict[str, Any]]) -> None:
        answer = await self._send(new)
        assert (answer["accepted"], answer["duplicates"]) == (len(new), 0)
        last = offset_of(answer["cursor"])
        self.at.update(zip(range(last - len(new) + 1, last + 1), new, strict=True))

    def _event(self, id_: str) -> dict[str, Any]:
        subject = self.random.choice(("o-1", "o-2", "o-3", "o-4", None))
        named = {} if subject is None else {"subject": subject}
        return {
            "type": "t",
            "source": "/p",
            "id": id_,
            **named,
            "data": {"status": self.random.choice(STATUSES)},
        }

    async def _send(self, events: list[dict[str, Any]]) -> Any:
        if len(events) == 1:
            answer = await self.stand.http.post("/events", json=events[0])
        elif self.random.random() < 0.5:
            answer = await self.stand.http.post("/events", json=events)
        else:
            lines = "\n".join(map(json.dumps, events))
            kind = {"Content-Type": "application/x-ndjson"}
            answer = await self.stand.http.post("/events", content=lines, headers=kind)
        assert answer.status_code == 202, answer.text
        return answer.json()

    @property
    def log(self) -> list[dict[str, Any]]:
        """Dense: every offset was told to exactly one publisher."""
        assert sorted(self.at) == list(range(1, len(self.at) + 1))
        return [self.at[offset] for offset in sorted(self.at)]


class Witness:
    """A subscriber that comes and goes, and all that it was told from its first place on."""

    def __init__(self, ledger: Ledger, transport: str) -> None:
        self._ledger = ledger
        self._transport = transport
        pick = ledger.random
        self.filter = pick.choice(FILTERS)
        self.leave = pick.random() < 0.5
        self._since = pick.choice(("earliest", "live"))
        self._began_earliest = False
        self._limit = pick.choice((1, 3, 100))
        self.told: list[Message] = []
        self.floating: set[int] = set()  # those of `told` by which the place of `earliest` became a fixed one

    async def watch(self, publishing: asyncio.Future[Any]) -> None:
        """Reads and is cut at random until nothing more is published; then reads the rest."""
        pick = self._ledger.random
        while not publishing.done():
            stream = self._open()
            reading = asyncio.ensure_future(self._read(stream, pick.randint(0, 60)))
            await asyncio.wait((reading, publishing), return_when=asyncio.FIRST_COMPLETED)
            reading.cancel()
            await asyncio.wait((reading,))
            await stream.cut()
            if not reading.cancelled():
                reading.result()
            await self._pause(publishing)
        stream = self._open()
        async for message in stream:
            self._note(message)
            if message.kind == "live":
                break

    def _open(self) -> Client:
        self._began_earliest = False
        options = {"limit": self._limit} if self._transport == "longpoll" else {}
        client = self._ledger.stand.client(self._transport, **options)
        return client.open(filter=self.filter, leave=self.leave, since=self._since)

    async def _read(self, stream: Client, count: int) -> None:
        for _ in range(count):
            self._note(await anext(stream))

    def _note(self, message: Message) -> None:
        if message.cursor is not None:
            if self._since == "earliest" or (self.told and message.kind != "place" and self._began_earliest):
                self.floating.add(len(self.told))
            self._began_earliest = self._since == "earliest" and message.kind == "place"
            self.told.append(message)
            self._since = message.cursor

    async def _pause(self, publishing: asyncio.Future[Any]) -> None:
        """Stays away for a while, counted in events."""
        back = self._ledger.stand.node.log.head + self._ledger.random.choice((0, 0, 5, 150))
        await until(lambda: publishing.done() or self._ledger.stand.node.log.head >= back)

    def check(self, log: list[dict[str, Any]], first_kept: int) -> None:
        """All that matches was told in order and once, or lies within a gap, and every place told was true."""
        if self.told:
            place = offset_of(self.told[0].cursor)
            if self.told[0].is_content:  # long poll from the earliest event tells no place before it
                place = min(place, first_kept) - 1 if self.told[0].kind != "gap" else 0
        else:
            place = len(log)
        due = expected(log, self.filter, leave=self.leave)
        subjects = [event.get("subject") for event in log]

        def missing(after: int, upto: int) -> list[Expected]:
            """Due in that range. A leave may be left out where the event before it is no longer in the log."""
            return [
                each
                for each in due
                if after < each.offset <= upto
                and not (each.kind == "leave" and _before(subjects, each.offset) < first_kept)
            ]

        for at, message in enumerate(self.told):
            cursor = offset_of(message.cursor)
            upto = cursor - 1 if message.kind in ("event", "leave") else cursor
            if message.kind == "gap":
                upto = offset_of(message.lost_from)
                assert message.reason in ("evicted", "slow")
                assert upto < cursor
            # Where `earliest` begins is known when the first page is read: retention may move it until then.
            since = max(place, first_kept - 1) if at in self.floating else place
            assert missing(since, upto) == [], (message, place)
            if message.kind in ("event", "leave"):
                assert cursor > place, ("told twice or out of order", message, place)
                match = [each for each in due if each.offset == cursor]
                assert told_pairs([message]) == as_pairs(match), (message, match)
            place = max(place, cursor)
        assert missing(place, len(log)) == [], place


def _before(subjects: list[str | None], offset: int) -> int:
    """The offset of the event before this one of the same subject."""
    subject = subjects[offset - 1]
    return max((at for at in range(1, offset) if subjects[at - 1] == subject), default=0)


async def _check_run(start: Start, transport: str, seed: int, *, kept: int, tail: int) -> None:
    print(f"seed {seed}")  # noqa: T201 - shown where the test fails
    stand = await start(retention_events=kept, tail=tail)
    ledger = Ledger(stand, random.Random(seed))
    witnesses = [Witness(ledger, transport) for _ in range(6)]
    publishing = asyncio.gather(*(ledger.publish(f"p{each}", 25) for each in range(4)))
    await asyncio.gather(publishing, *(each.watch(publishing) for each in witnesses))
    for witness in witnesses:
        witness.check(ledger.log, stand.node.log.first)


@pytest.mark.parametrize("seed", range(2))
async def test_everyone_gets_all_that_matches_or_a_gap(start: Start, transport: str, seed: int) -> None:
    """Random publishers, filters, disconnects and reconnects, while retention keeps but a hundred events."""
    await _check_run(start, transport, seed, kept=100, tail=40)


async def test_everyone_gets_all_that_matches_where_all_is_kept(start: Start, transport: str) -> None:
    """The same with a log that keeps everything: then there is no gap to hide behind."""
    await _check_run(start, transport, 1000, kept=10**6, tail=50)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(100, 130))
async def test_everyone_gets_all_that_matches_or_a_gap_whatever_the_seed(
    start: Start, transport: str, seed: int
) -> None:
    """Many more seeds, and logs that keep from next to nothing to everything."""
    pick = random.Random(seed)
    await _check_run(start, transport, seed, kept=pick.choice((1, 30, 300)), tail=pick.choice((1, 20, 8192)))


# The seam between replay and live


async def test_the_seam_between_replay_and_live_holds(start: Start, transport: str) -> None:
    """Streams begun at random cursors while four publishers never pause: no event lost, none doubled."""
    stand = await start(tail=100)
    ledger = Ledger(stand, random.Random(7))
    await ledger.publish("before", 30)

    async def follow() -> tuple[int, list[Message]]:
        after = ledger.random.randint(0, stand.node.hub.position)
        stream = stand.client(transport).open(since=stand.cursor(after))
        told = await take(stream, 150)
        await stream.cut()
        return after, told

    async def follow_all() -> list[tuple[int, list[Message]]]:
        told = []
        while stand.node.log.head < 900:
            told += await asyncio.gather(*(follow() for _ in range(6)))
        return told

    publishing = asyncio.gather(*(ledger.publish(f"p{each}", 60) for each in range(4)))
    followed, _ = await asyncio.gather(follow_all(), publishing)
    log = ledger.log
    for after, told in followed:
        assert ids(told) == [each["id"] for each in log[after : after + 150]]


# Slow readers


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_who_reads_slowly_gets_everything_all_the_same(start: Start, transport: str) -> None:
    """Megabytes that did not fit into its socket come in order when it reads again, then it is live again."""
    stand = await start(tail=50)
    slow = stand.client(transport, receive_buffer=4096).open()
    await anext(slow)
    count = await _flood(stand)
    assert await _slow_catchups(stand, transport) >= 1
    assert ids(await take(slow, count)) == [f"e{at}" for at in range(count)]
    assert await read_to(slow, stand.cursor(count), "live") == []
    await stand.publish({"type": "t", "id": "last"})
    assert ids(await take(slow, 1)) == ["last"]


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_who_reads_too_slowly_for_the_log_is_told_of_a_gap(start: Start, transport: str) -> None:
    """What was evicted while it was behind is announced with the reason slow, and it goes on after that."""
    stand = await start(tail=50, retention_events=100)
    slow = stand.client(transport, receive_buffer=4096).open()
    place = await anext(slow)
    count = await _flood(stand)
    await stand.retained_from(count - 99)
    told = await read_to(slow, stand.cursor(count), "live")
    gaps = [each for each in told if each.kind == "gap"]
    assert gaps
    assert {each.reason for each in gaps} == {"slow"}
    at = offset_of(place.cursor)
    for message in told:
        if message.kind == "gap":
            assert offset_of(message.lost_from) == at
        else:
            assert (offset_of(message.cursor), message.body["id"]) == (at + 1, f"e{at}")
        at = offset_of(message.cursor)
    assert at == count


async def read_to(stream: Client, cursor: str, kind: str) -> list[Message]:
    """What is told of events until a message of this kind stands at this cursor."""
    told = []
    async for message in stream:
        if message.is_content:
            told.append(message)
        if (message.kind, message.cursor) == (kind, cursor):
            return told
    raise AssertionError("the stream ended")


async def _flood(stand: Stand) -> int:
    """Far more than sockets hold, in events `e0`, `e1`, …; how many."""
    count, padding = 2400, "x" * 8000
    for start in range(0, count, 200):
        batch = [{"type": "t", "id": f"e{at}", "data": padding} for at in range(start, start + 200)]
        await stand.publish(*batch)
    return count


async def _slow_catchups(stand: Stand, transport: str) -> float:
    metrics = (await stand.http.get("/metrics")).text
    prefix = f'gateway_catchups_total{{reason="slow",transport="{transport}"}} '
    return sum(float(line.removeprefix(prefix)) for line in metrics.splitlines() if line.startswith(prefix))


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_one_slow_reader_costs_the_others_nothing(start: Start, transport: str) -> None:
    """Clients of the same channel that do read are live all the time, and get each event once."""
    stand = await start()
    slow = stand.client(transport, receive_buffer=4096).open()
    await anext(slow)
    quick = stand.client(transport).open()
    await anext(quick)
    reading = asyncio.ensure_future(take(quick, 2400))
    count = await _flood(stand)
    assert ids(await reading) == [f"e{at}" for at in range(count)]
    assert ids(await take(slow, count)) == [f"e{at}" for at in range(count)]


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_latest_spares_a_slow_reader_what_is_outdated(start: Start, transport: str) -> None:
    """With `deliver=latest` it reads far fewer events than there were, and of each subject the newest last."""
    stand = await start(tail=50)
    slow = stand.client(transport, receive_buffer=4096).open(deliver="latest")
    await anext(slow)
    padding = "x" * 8000
    log = [{"type": "t", "id": f"e{at}", "subject": f"o-{at % 10}", "data": padding} for at in range(2400)]
    for at in range(0, 2400, 200):
        await stand.publish(*log[at : at + 200])
    told = await read_to(slow, stand.cursor(2400), "live")
    offsets = [offset_of(each.cursor) for each in told]
    assert offsets == sorted(set(offsets))
    assert len(told) < 2000
    assert ids(told)[-10:] == [each.id for each in newest(expected(log))]


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_who_never_reads_again_is_given_up(
    start: Start, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connection and all that it held are gone within the peer timeout, and no error is made of it."""
    stand = await start(peer_timeout=2)
    stalled = stand.client(transport, receive_buffer=4096).open()
    await anext(stalled)
    await _flood(stand)
    await until(lambda: not len(stand.node.connections) and not stand.node.hub.channels)
    errors = [each for each in caplog.records if each.levelno >= logging.ERROR]
    # uvicorn says in a line that such a response was not completed: an application cannot abort one.
    assert [each for each in errors if each.exc_info or each.name.startswith("gateway")] == []


# Streams that the gateway ends


@pytest.mark.parametrize("since", ["earliest", "memory", "snapshot", "evicted", "foreign"])
async def test_a_stream_that_the_gateway_ends_is_resumed_without_loss(start: Start, since: str) -> None:
    """Ended in any turn of the loop, at a restart say, its last id is the place up to which it was told."""
    kept = 10**6 if since in ("earliest", "memory") else 700
    tail = None if since == "memory" else 300
    stand = await start(tail=tail, retention_events=kept)
    log = [{"type": "t", "id": f"e{at}", "subject": f"o-{at % 900}"} for at in range(1500)]
    await stand.publish(*log[:1000])
    await stand.publish(*log[1000:])
    await until(lambda: stand.node.log.first == max(1, 1500 - kept + 1))
    begin = {"evicted": stand.cursor(5), "foreign": "another.3", "memory": stand.cursor(0)}.get(since, since)
    whole = told_pairs(await catch_up(stand.client("sse").open(since=begin)))
    for turns in range(0, 60, 2):
        first = stand.client("sse").open(since=begin)
        place = await anext(first)
        for _ in range(turns):
            await asyncio.sleep(0)
        for connection in list(stand.node.connections._by_id.values()):
            connection.end(1012, "service restart", 1000)
        told = [each async for each in first if each.is_content]
        assert first.code == 1012
        second = stand.client("sse").open(since=first.cursor or place.cursor)
        told += await catch_up(second)
        await second.cut()
        assert told_pairs(told) == whole, turns
