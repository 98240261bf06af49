"""Who appends what is published: many nodes that hear the same, die, are cut off and come back, against one log."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from gateway.event import Event
from gateway.ingest._kept import Kept
from gateway.ingest.messages import Message, events_of
from gateway.ingest.pubsub import PubSub
from gateway.intake import Intake, Sizes
from gateway.log import Appended, DeadLetter, Fence, FencedError, Log, LogUnavailableError
from gateway.metrics import Metrics
from gateway.redis_clients import RedisClients
from tests.support.core import NOON, Clock

ORDER = b'{"orderId":"o-1"}'


@dataclass
class Store:
    """What the nodes share: events in order, each identity once, and one lease."""

    clock: Clock
    events: dict[tuple[str, str], Event] = field(default_factory=dict)
    letters: dict[str, DeadLetter] = field(default_factory=dict)
    holder: str = ""
    token: int = 0
    ends: float = 0.0
    note: str = ""


@dataclass
class View:
    """The part of a log that a node's pub/sub needs; `fails` is when it is away."""

    store: Store
    node: str
    fails: bool = False

    def _check(self, fence: Fence | None) -> None:
        if self.fails:
            raise LogUnavailableError("away")
        store = self.store
        held = store.holder == self.node and store.clock.now < store.ends
        if fence is not None and not (held and fence.token == store.token):
            raise FencedError(fence.name)

    async def append(self, events: Sequence[Event], *, fence: Fence | None = None, **_: Any) -> Appended:
        self._check(fence)
        before = len(self.store.events)
        for each in events:
            self.store.events.setdefault((each.source, each.id), each)
        new = len(self.store.events) - before
        return Appended(new, len(events) - new, 0)

    async def bury(self, letters: Sequence[DeadLetter], *, fence: Fence | None = None) -> None:
        self._check(fence)
        self.store.letters |= {each.id: each for each in letters}

    async def lease(self, name: str, seconds: float, note: str = "") -> Fence | None:
        self._check(None)
        store = self.store
        if store.clock.now < store.ends and store.holder != self.node:
            return None
        if store.clock.now >= store.ends or store.holder != self.node:
            store.token += 1
        store.holder, store.ends, store.note = self.node, store.clock.now + seconds, note
        return Fence(name, store.token)

    async def release(self, fence: Fence) -> None:
        self._check(None)
        if self.store.holder == self.node and self.store.token == fence.token:
            self.store.ends = 0.0

    async def lease_note(self, _name: str) -> str:
        self._check(None)
        return self.store.note

    async def is_leased(self, _name: str) -> bool:
        self._check(None)
        return self.store.clock.now < self.store.ends


class Node:
    """A gateway's pub/sub, without its connection: what it hears is given to it."""

    def __init__(self, name: str, store: Store, kept: Kept) -> None:
        self.name = name
        self.view = View(store, name)
        self.kept = kept
        self.connected = False
        intake = Intake(cast("Log", self.view), Metrics(), Sizes())
        self.pubsub = PubSub(
            RedisClients("redis://127.0.0.1:1"),
            ["*"],
            cast("Log", self.view),
            intake,
            kept=kept,
            now=store.clock,
            monotonic=store.clock,
        )

    async def turn(self) -> None:
        await self.pubsub._try_turn()


class World:
    """A Redis that delivers in one order, and the nodes that listen to it."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.clock = Clock()
        self.store = Store(self.clock)
        self.nodes: list[Node] = []
        self.published = 0
        self.identities: dict[str, int] = {}  # of a message: which one it is
        self.born = 0
        self.marks = 0
        self.marks_at: dict[str, int] = {}

    def start(self) -> Node:
        self.born += 1
        node = Node(f"n{self.born}", self.store, Kept())
        self.nodes.append(node)
        self.connect(node)
        return node

    def connect(self, node: Node) -> None:
        node.connected = True
        if self.dice.random() < 0.3:
            self.publish()
        self.mark(node)

    def mark(self, node: Node) -> None:
        self.marks += 1
        token, milliseconds = f"{node.name}-{self.marks}", int(self.clock.now * 1000)
        self.marks_at[token] = milliseconds
        for each in self.nodes:
            if each.connected:
                each.kept.mark(token, milliseconds)

    def cut(self, node: Node) -> None:
        node.connected = False
        node.kept.broke()

    def publish(self) -> None:
        """One more of the same bytes."""
        self.published += 1
        for each in self.nodes:
            if each.connected:
                heard = len(each.kept)
                each.kept.hear(b"orders", ORDER, self.clock.now)
                if len(each.kept) > heard:
                    identity = each.kept._messages[-1][1].identity
                    assert self.identities.setdefault(identity, self.published) == self.published

    def kept_by_somebody(self) -> set[str]:
        """The identities of what the living nodes still keep."""
        return {message.identity for node in self.nodes for _, message in node.kept._messages}

    async def settle(self) -> None:
        for _ in range(400):
            self.clock.now += 0.25
            for node in self.nodes:
                if not node.connected:
                    self.connect(node)
                self.mark(node)
                await node.turn()
            if all(len(node.kept) == 0 for node in self.nodes):
                return
        raise AssertionError(f"it does not settle: {[len(node.kept) for node in self.nodes]}")

    def stored(self) -> list[int]:
        """Which messages are in the log, in its order."""
        intake = self.nodes[0].pubsub._intake
        numbers = {}
        for identity, number in self.identities.items():
            token, _, count = identity.rpartition(":")
            message = Message(token, self.marks_at[token], int(count), NOON, b"orders", ORDER)
            (event,) = events_of(intake, message)
            numbers[event.source, event.id] = number
        return [numbers[key] for key in self.store.events]

    async def step(self) -> None:
        """Something happens."""
        what = self.dice.random()
        node = self.dice.choice(self.nodes)
        if what < 0.4:
            self.publish()
        elif what < 0.6:
            await node.turn()
        elif what < 0.75:
            self.clock.now += self.dice.choice([0.1, 0.5, 1.0])
        elif what < 0.85:
            self.mark(node)
        else:
            self.break_something(node, self.dice.random())

    def break_something(self, node: Node, what: float) -> None:
        if what < 0.2 and len(self.nodes) < 4:
            self.start()
        elif what < 0.4:
            self.cut(node)
        elif what < 0.75 and not node.connected:
            self.connect(node)
        elif what < 0.9:
            node.view.fails = not node.view.fails
        elif len(self.nodes) > 1:
            self.nodes.remove(node)


@pytest.mark.parametrize("seed", range(60))
async def test_nothing_that_a_living_node_has_heard_is_lost_or_doubled(seed: int) -> None:
    """Whatever dies, is cut off, comes back or cannot store for a while."""
    world = World(seed)
    world.start()
    for _ in range(400):
        await world.step()
    for node in world.nodes:
        node.view.fails = False
    due = world.kept_by_somebody()
    await world.settle()
    stored = world.stored()
    assert len(stored) == len(set(stored))
    assert {world.identities[each] for each in due} <= set(stored)


@pytest.mark.parametrize("seed", range(30))
async def test_of_two_nodes_one_may_always_die(seed: int) -> None:
    """If a node only dies while another is caught up, all that was published is in the log, once and in order."""
    world = World(seed)
    dice = world.dice
    first = world.start()
    for _ in range(20):
        await first.turn()
    assert first.pubsub._kept.caught_up
    start = world.published
    for _ in range(8):
        other = world.start()
        while not other.kept.caught_up:
            world.publish()
            world.clock.now += 0.25
            for node in dice.sample(world.nodes, len(world.nodes)):
                await node.turn()
            world.mark(dice.choice(world.nodes))
        for _ in range(dice.randrange(12)):
            world.publish()
            if dice.random() < 0.3:
                await dice.choice(world.nodes).turn()
            if dice.random() < 0.2:
                world.mark(dice.choice(world.nodes))
        world.nodes.remove(dice.choice(world.nodes))  # kill -9
    await world.settle()
    assert [each for each in world.stored() if each > start] == list(range(start + 1, world.published + 1))


async def test_what_cannot_be_kept_is_told() -> None:
    """The oldest messages go where there is no room, and their number is known."""
    kept = Kept(max_messages=3)
    kept.hear(b"c", b"before any mark", NOON)
    kept.mark("m-1", 0)
    for n in range(5):
        kept.hear(b"c", b"%d" % n, NOON)
    assert [message.payload for message in kept.take(10, 1 << 20)] == [b"2", b"3", b"4"]
    assert kept.dropped == 2
    assert not kept.is_whole_since(None)
    kept.mark("m-2", 0)
    assert kept.is_whole_since(None)


async def test_a_node_ends_though_more_and_more_comes() -> None:
    """It stores what it had when it was asked to end, tells the others how far that was, and leaves the rest to them."""
    world = World(0)
    node, other = world.start(), world.start()
    for _ in range(20):
        await node.turn()
    assert node.pubsub._fence is not None
    for _ in range(3):
        world.publish()
    world.mark(node)
    append = node.view.append

    async def append_while_more_comes(*given: Any, **options: Any) -> Appended:
        assert world.published < 1000, "it does not end"
        world.publish()
        return await append(*given, **options)

    node.view.append = append_while_more_comes  # type: ignore[method-assign]  # the moment at which something is published
    started = world.published
    await node.pubsub.stop()
    assert not await other.view.is_leased("pubsub")
    assert len(world.store.events) >= started
    world.nodes.remove(node)
    await world.settle()
    assert world.stored() == list(range(world.published - len(world.store.events) + 1, world.published + 1))


async def test_a_loss_is_told_once_with_its_number(caplog: pytest.LogCaptureFixture) -> None:
    """Readiness tells it as long as it lasts; the log has a line when it begins and one, with the number, at its end."""
    store = Store(Clock())
    node = Node("n1", store, Kept(max_messages=3))
    node.pubsub._mark(f"{node.pubsub._node}-1 0".encode())  # of its own: it hears
    node.view.fails = True
    for number in range(5):
        node.kept.hear(b"c", b"%d" % number, NOON)
        await node.turn()
    fault = node.pubsub.fault()
    assert fault is not None
    assert "2 messages" in fault
    assert len(lines_of_loss(caplog)) == 1
    node.view.fails = False
    for number in range(8):
        node.kept.mark(f"m-{number + 2}", 0)
        await node.turn()
    assert "2 messages" not in (node.pubsub.fault() or "")
    assert len(store.events) == 3
    assert [each.startswith("2 messages") for each in lines_of_loss(caplog)] == [False, True]


def lines_of_loss(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "no room" in each.getMessage()]
