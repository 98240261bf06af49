"""The reader: from any place in the log to its head, page by page, compared with a model of the whole log."""

import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway import reader as reader_module
from gateway.cursor import Cursors
from gateway.filters import parse_filter
from gateway.hub import Channel, Hub
from gateway.lane import Flusher
from gateway.log import Retention
from gateway.log.sqlite import SqliteLog
from gateway.reader import Batch, Reader
from gateway.since import Lost, Start, parse_since, resolve
from gateway.tail import Tail
from tests.support.core import Body, Schedule, body_of, event_of, memory_log

PAID = {"exact": {"data.status": "paid"}}
INDEX = frozenset({"subject", "type", "data.customerId"})
CURSORS = Cursors()
Message = tuple[int, bool]  # its offset, and whether it is a leave


@dataclass
class Node:
    """A log in memory with a hub that follows it. `bodies` is the whole history, `tail` the entries in memory."""

    log: SqliteLog
    hub: Hub
    tail: int
    bodies: list[Body] = field(default_factory=list)

    async def append(self, *bodies: Body) -> None:
        self.bodies += bodies
        await self.log.append([event_of(body) for body in bodies])

    def channel(self, filter_: Any = PAID, **options: bool) -> Channel:
        return self.hub.open(parse_filter(filter_) if filter_ else None, **options)

    async def start(self, since: str) -> Start:
        return await resolve(parse_since(since, CURSORS), self.log, CURSORS, self.hub.position)

    async def reader(self, channel: Channel, since: str) -> Reader:
        return Reader.begin(self.log, self.hub, channel, await self.start(since), INDEX)

    def at(self, channel: Channel, offset: int) -> Reader:
        """A reader as a slow client has it."""
        return Reader(self.log, self.hub, channel, offset, epoch=self.hub.epoch)

    def messages(self, channel: Channel, after: int = 0) -> list[Message]:
        """What `all` sends after this place, by trying every event of the history."""
        told: list[Message] = []
        before: dict[str, Body] = {}
        for offset, body in enumerate(self.bodies, 1):
            subject = body.get("subject", "")
            if channel.matches(body):
                told.append((offset, False))
            elif channel.leave and subject in before and channel.matches(before[subject]):
                told.append((offset, True))
            if subject:
                before[subject] = body
        return [each for each in told if each[0] > after]

    def conflated(self, channel: Channel, after: int = 0) -> list[Message]:
        """What `latest` sends: of each subject only the newest of these."""
        told = self.messages(channel, after)
        newest = {self.bodies[offset - 1].get("subject"): offset for offset, _ in told}
        subjects = [(each, self.bodies[each[0] - 1].get("subject")) for each in told]
        return [each for each, subject in subjects if subject is None or newest[subject] == each[0]]


@contextlib.asynccontextmanager
async def node_of(*bodies: Body, tail: int = 8192, retention: Retention | None = None) -> AsyncIterator[Node]:
    schedule = Schedule()
    hub = Hub(Flusher(schedule, 0), CURSORS)
    async with memory_log(hub.publish, retention=retention) as log:
        hub.begin(log.epoch, 0)
        hub.tail = Tail(0, max_entries=tail)
        node = Node(log, hub, tail)
        for first in range(0, len(bodies), 100):
            await node.append(*bodies[first : first + 100])
        yield node


async def walk(reader: Reader, upto: int, limit: int = 3) -> tuple[list[Message], list[Lost]]:
    """Everything up to a place."""
    told: list[Message] = []
    gaps: list[Lost] = []
    while reader._lost or reader.snapshot is not None or reader.offset < upto:
        batch = await reader.read(upto, limit)
        told += messages_of(batch)
        gaps += [batch.lost] if batch.lost else []
    assert reader.offset == upto
    return told, gaps


def messages_of(batch: Batch) -> list[Message]:
    return [(each.entry.offset, each.left) for each in batch.told]


def random_bodies(seed: int, count: int, subjects: int = 4) -> list[Body]:
    dice = random.Random(seed)
    names = [*(f"o-{number}" for number in range(subjects)), None]
    return [
        body_of(subject=dice.choice(names), data={"status": dice.choice(["paid", "open"]), "n": number})
        for number in range(count)
    ]


OPTIONS = [{}, {"leave": True}, {"latest": True}, {"latest": True, "leave": True}]


@pytest.mark.parametrize("tail", [1, 7, 8192], ids=["from the log", "from both", "from memory"])
@pytest.mark.parametrize("options", OPTIONS, ids=["all", "all leave", "latest", "latest leave"])
async def test_from_every_start_it_tells_what_the_model_tells(tail: int, options: dict[str, bool]) -> None:
    """Whatever the place, the page size and where the entries come from: the same messages, once, in order."""
    async with node_of(*random_bodies(1, 40), tail=tail) as node:
        for filter_ in (PAID, None, {"exact": {"subject": "o-1"}}):
            channel = node.channel(filter_, **options)
            model = node.conflated if channel.latest else node.messages
            for start in range(41):
                for limit in (1, 4, 500):
                    told, gaps = await walk(node.at(channel, start), 40, limit)
                    assert (told, gaps) == (model(channel, start), [])


@pytest.mark.parametrize("seed", range(4))
async def test_latest_is_conflated_over_all_pages(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each subject only the newest message of the whole way, however little the reader may remember."""
    monkeypatch.setattr(reader_module, "MAX_KNOWN", 2)
    async with node_of(*random_bodies(seed, 150, subjects=8), tail=1) as node:
        for options in OPTIONS[2:]:
            channel = node.channel(**options)
            reader = node.at(channel, 0)
            told, _ = await walk(reader, 150, 5)
            assert told == node.conflated(channel)


async def test_conflation_needs_no_memory_of_what_lies_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over any number of subjects a reader remembers a bounded number of them and those of one page."""
    monkeypatch.setattr(reader_module, "MAX_KNOWN", 100)
    bodies = [body_of(subject=f"o-{number % 1000}", data={"status": "paid"}) for number in range(2000)]
    async with node_of(*bodies, tail=1) as node:
        reader = node.at(node.channel(latest=True), 0)
        told, known = 0, 0
        while reader.offset < 2000:
            told += len((await reader.read(2000, 50)).told)
            known = max(known, len(reader._newest))
        assert told == 1000
        assert known <= 150


@pytest.mark.parametrize("options", OPTIONS[2:], ids=["latest", "latest leave"])
@pytest.mark.parametrize("seed", range(4))
async def test_latest_follows_a_head_that_moves(seed: int, options: dict[str, bool]) -> None:
    """A client that stays behind while more comes is never sent a message that was superseded when its page
    was read, and of each subject it is told the newest message in the end."""
    dice = random.Random(seed)
    async with node_of(*random_bodies(seed, 60), tail=5) as node:
        channel = node.channel(**options)
        reader = node.at(channel, 0)
        told: list[Message] = []
        for _ in range(30):
            wanted = node.conflated(channel)
            page = messages_of(await reader.read(node.hub.position, 4))
            assert [each for each in page if each not in wanted] == []
            told += page
            await node.append(*random_bodies(dice.randrange(1000), dice.randrange(6)))
        told += (await walk(reader, node.hub.position, 4))[0]
        assert told == sorted(set(told))
        assert set(node.conflated(channel)) <= set(told)


async def test_the_rest_of_a_short_way_is_told_in_one_turn() -> None:
    """What is in memory and no longer than a page needs no store; the same messages as by pages."""
    async with node_of(*random_bodies(5, 40)) as node:
        for options in OPTIONS:
            channel = node.channel(**options)
            model = node.conflated if channel.latest else node.messages
            for start in range(41):
                reader = node.at(channel, start)
                assert reader.can_finish(40)
                told = [(each.entry.offset, each.left) for each in reader.finish(40)]
                assert told == model(channel, start)
                assert reader.offset == 40
                assert reader.finish(40) == ()


async def test_a_way_that_is_long_or_not_in_memory_is_not_walked_in_one_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is read by pages until it is short."""
    monkeypatch.setattr(reader_module, "PAGE", 10)
    async with node_of(*random_bodies(5, 40), tail=20) as node:
        channel = node.channel()
        answers = [node.at(channel, start).can_finish(40) for start in range(42)]
        assert answers == [start >= 30 for start in range(42)]
        assert not node.at(channel, 15).can_finish(25)  # short, but not in memory


async def test_a_snapshot_and_a_gap_are_never_skipped_by_the_short_way() -> None:
    """Who has still to be told a gap or a snapshot is not live yet, however near its place is."""
    async with node_of(*random_bodies(5, 4)) as node:
        assert not (await node.reader(node.channel(), "other.3")).can_finish(4)
        assert not (await node.reader(node.channel(), "snapshot")).can_finish(4)


# Gaps


def retained(events: int) -> Retention:
    return Retention(events=events)


async def trimmed(node: Node, first: int) -> None:
    """Returns when retention has come so far."""
    while node.log.first < first:
        await node.log.use_once("anything", 0)  # the writer looks at retention after each write


async def test_what_was_evicted_before_it_came_is_a_gap() -> None:
    """It names the place asked for and the one where it goes on, then everything after is told."""
    async with node_of(*random_bodies(1, 30), tail=1, retention=retained(10)) as node:
        await trimmed(node, 21)
        channel = node.channel(None)
        told, gaps = await walk(await node.reader(channel, f"{node.log.epoch}.3"), 30)
        assert gaps == [Lost(f"{node.log.epoch}.3", 20, "evicted")]
        assert told == node.messages(channel, 20)


async def test_what_is_evicted_while_it_is_behind_is_a_gap_of_a_slow_reader() -> None:
    """The reason tells apart what was gone before the client came from what went while it did not read."""
    async with node_of(*random_bodies(1, 10), tail=1, retention=retained(10)) as node:
        reader = await node.reader(node.channel(None), f"{node.log.epoch}.0")
        await reader.read(10, 3)
        await node.append(*random_bodies(2, 20))
        await trimmed(node, 21)
        told, gaps = await walk(reader, 30)
        assert gaps == [Lost(f"{node.log.epoch}.3", 20, "slow")]
        assert told == node.messages(node.channel(None), 20)
        assert (await walk(node.at(node.channel(None), 5), 30))[1] == [
            Lost(f"{node.log.epoch}.5", 20, "slow")
        ]


@pytest.mark.parametrize("since", ["earliest", "2020-01-01T00:00:00Z"])
async def test_the_first_kept_event_is_no_gap_for_who_asked_for_it(since: str) -> None:
    """`earliest`, or a time before the log's, begins at what is there, also when that goes before it is read;
    what is evicted later is a gap like any other."""
    async with node_of(*random_bodies(1, 30), tail=1, retention=retained(10)) as node:
        await trimmed(node, 21)
        channel = node.channel(None)
        reader = await node.reader(channel, since)
        await node.append(*random_bodies(2, 5))
        await trimmed(node, 26)
        assert messages_of(await reader.read(35, 3)) == [(26, False), (27, False), (28, False)]
        await node.append(*random_bodies(3, 5))
        await trimmed(node, 31)
        assert (await reader.read(40, 3)).lost == Lost(f"{node.log.epoch}.28", 30, "slow")


@pytest.mark.parametrize("place", ["other.3", "{epoch}.31", "{epoch}.4-31"])
async def test_a_place_in_no_log_of_ours_is_a_gap_to_the_head(place: str) -> None:
    """Another epoch, or beyond the head: it is said, and then it goes on live."""
    async with node_of(*random_bodies(1, 30)) as node:
        cursor = place.format(epoch=node.log.epoch)
        told, gaps = await walk(await node.reader(node.channel(None), cursor), 30)
        assert (told, gaps) == ([], [Lost(cursor, 30, "epoch")])


async def test_memory_may_know_what_the_log_has_evicted() -> None:
    """Nothing is announced as lost that is still at hand."""
    async with node_of(*random_bodies(1, 30), retention=retained(10)) as node:
        await trimmed(node, 21)
        told, gaps = await walk(node.at(node.channel(None), 5), 30)
        assert (told, gaps) == (node.messages(node.channel(None), 5), [])


async def test_a_leave_needs_the_event_before_it_to_be_kept() -> None:
    """In a replay an event whose predecessor the log has lost is no leave: nobody can know."""
    bodies = [body_of(data={"status": "paid"}), body_of(data={"status": "open"}), *random_bodies(1, 8, 0)]
    async with node_of(*bodies, tail=1, retention=retained(9)) as node:
        await trimmed(node, 2)
        channel = node.channel(leave=True)
        told, _ = await walk(node.at(channel, 1), 10)
        assert (2, True) in node.messages(channel)
        assert (2, True) not in told


# Snapshots


async def test_a_snapshot_is_the_latest_event_of_each_subject() -> None:
    """Where it matches, in log order; events without a subject are in none."""
    async with node_of(*random_bodies(3, 60)) as node:
        for filter_ in (None, PAID, {"exact": {"subject": "o-2"}}):
            channel = node.channel(filter_)
            newest = {body["subject"]: at for at, body in enumerate(node.bodies, 1) if body.get("subject")}
            wanted = [(at, False) for at in sorted(newest.values()) if channel.matches(node.bodies[at - 1])]
            for limit in (1, 2, 500):
                assert (await walk(await node.reader(channel, "snapshot"), 60, limit))[0] == wanted


@pytest.mark.parametrize("seed", range(6))
async def test_nothing_is_lost_or_doubled_between_snapshot_and_log(seed: int) -> None:
    """While orders go on changing: nothing twice, every event after START, and up to it the latest event of
    each subject, unless a later one supersedes it."""
    dice = random.Random(seed)
    async with node_of(*random_bodies(seed, 40, 8), tail=3) as node:
        channel = node.channel(None)
        reader = await node.reader(channel, "snapshot")
        start = reader.snapshot
        assert start == 40
        told: list[int] = []
        while reader.snapshot is not None:
            told += [offset for offset, _ in messages_of(await reader.read(node.hub.position, 2))]
            await node.append(*random_bodies(dice.randrange(1000), dice.randrange(3), 8))
        head = node.hub.position
        told += [offset for offset, _ in (await walk(reader, head))[0]]
        assert told == sorted(set(told))
        assert [offset for offset in told if offset > start] == list(range(start + 1, head + 1))
        newest = {body.get("subject"): at for at, body in enumerate(node.bodies[:start], 1)}
        del newest[None]
        later = {body.get("subject") for body in node.bodies[start:]}
        assert all(at in told for subject, at in newest.items() if subject not in later)
        assert set(told) <= set(newest.values()) | set(range(start + 1, head + 1))


async def test_a_snapshot_that_was_cut_off_resumes() -> None:
    """Its last cursor goes on where it stopped, and then with the log from START on."""
    async with node_of(*random_bodies(3, 60, 8)) as node:
        channel = node.channel(None)
        reader = await node.reader(channel, "snapshot")
        whole = (await walk(await node.reader(channel, "snapshot"), 60))[0]
        batch = await reader.read(60, 3)
        last = batch.told[-1]
        assert last.snapshot == 60
        await node.append(*random_bodies(9, 5))
        cursor = CURSORS.encode(node.log.epoch, last.entry.offset, last.snapshot)
        rest = (await walk(await node.reader(channel, cursor), 65))[0]
        told = messages_of(batch) + [each for each in rest if each[0] <= 60]
        superseded = {body.get("subject") for body in node.bodies[60:]}
        assert told == [
            each
            for each in whole
            if each in messages_of(batch) or node.bodies[each[0] - 1]["subject"] not in superseded
        ]
        assert rest[-5:] == [(offset, False) for offset in range(61, 66)]


async def test_what_followed_a_snapshot_and_was_evicted_is_a_gap() -> None:
    """Where a snapshot ends, the log must go on; what is gone from there is announced."""
    async with node_of(*random_bodies(3, 20), tail=1, retention=retained(10)) as node:
        reader = await node.reader(node.channel(None), "snapshot")
        await node.append(*random_bodies(4, 30))
        await trimmed(node, 41)
        _, gaps = await walk(reader, 50, 100)
        assert gaps == [Lost(f"{node.log.epoch}.20", 40, "slow")]


async def test_a_snapshot_looks_up_what_its_filter_names() -> None:
    """One customer's snapshot among many orders reads that customer's latest events, not everybody's."""
    bodies = [body_of(subject=f"o-{each}", data={"customerId": f"c-{each % 50}"}) for each in range(500)]
    async with node_of(*bodies) as node:
        mine = {"all": [{"prefix": {"type": "order."}}, {"exact": {"data.customerId": "c-7"}}]}
        batch = await (await node.reader(node.channel(mine), "snapshot")).read(500, 11)
        assert messages_of(batch) == [(offset, False) for offset in range(8, 501, 50)]


async def test_a_read_that_is_cancelled_tells_nothing_twice() -> None:
    """The place moves only with what was handed out."""
    async with node_of(*random_bodies(3, 20), tail=1) as node:
        channel = node.channel(None)
        reader = node.at(channel, 0)
        for _ in range(3):
            reading = reader.read(20, 5)
            reading.send(None)  # it waits for the store now
            reading.close()
        assert (await walk(reader, 20))[0] == node.messages(channel)


@pytest.mark.parametrize("since", ["earliest", "snapshot", "live"])
async def test_a_lost_log_is_a_gap_up_to_the_new_head(since: str) -> None:
    """A reader of a log that is another one by now tells so, from its place in the old one, and goes on."""
    async with node_of(*(body_of(subject=f"o-{n}", data={"status": "paid"}) for n in range(5))) as node:
        reader = await node.reader(node.channel(), since)
        await reader.read(5, 2)
        place, old = reader.place, node.log.epoch
        node.hub.reset("other", 3)
        assert not reader.can_finish(3)
        batch = await reader.read(3)
        assert batch.lost == Lost(place, 3, "epoch")
        assert place.startswith(old + ".")
        assert (reader.place, reader.can_finish(3)) == ("other.3", True)
