"""The books of what was published: every message with who published it, when and where, and what was answered."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Key = tuple[
    str, int
]  # publisher and number: what a message says of itself, so that the log can be held against it
Way = Literal["http", "stream", "pubsub"]

MARGIN: Final = 2.0  # seconds within which a message that a connection was sent may be lost with it


@dataclass(eq=False, slots=True)
class Publication:
    """A message that may be in the log once. Times are seconds of the ledger's clock; `answered` None: never.

    A repetition under the same id is the same publication, another message of the same bytes is another one.
    """

    key: Key
    way: Way
    started: float
    answered: float | None = None
    story: list[str] = field(default_factory=list)  # each attempt: when, where, and its end

    def __str__(self) -> str:
        end = "never" if self.answered is None else f"{self.answered:.3f}"
        return f"{self.key[0]} {self.key[1]}: published {self.started:.3f}, acknowledged {end}; {'; '.join(self.story)}"


class Ledger:
    """All publications, and by which of them the log can be held to account."""

    def __init__(self) -> None:
        self.of_key: dict[Key, list[Publication]] = defaultdict(list)
        self.acknowledged: Counter[str] = Counter()  # by publisher
        self.lost_before = 0.0  # what was begun before this moment may be lost with the log
        self.is_heard: Callable[[Publication], bool] = lambda _publication: False  # see `Listeners.heard`
        self._begun = time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self._begun

    def open(self, key: Key, way: Way) -> Publication:
        publication = Publication(key, way, self.now())
        self.of_key[key].append(publication)
        return publication

    def acknowledge(self, publication: Publication) -> None:
        publication.answered = self.now()
        self.acknowledged[publication.key[0]] += 1

    def is_sure(self, publication: Publication) -> bool:
        """Whether it must be in the log: it was acknowledged, and pub/sub's reached a gateway that stayed."""
        if publication.answered is None or publication.started < self.lost_before:
            return False
        return publication.way != "pubsub" or self.is_heard(publication)

    def has_order(self, key: Key) -> bool:
        """Whether a message must stand behind those published before it: one of pub/sub that only some gateways
        heard, while others had lost Redis, is stored when they find out, rather than lost."""
        return all(each.way != "pubsub" or self.is_sure(each) for each in self.of_key.get(key, ()))

    def sure(self, key: Key) -> int:
        """How often a message must be in the log at least."""
        return sum(map(self.is_sure, self.of_key[key]))

    def missing(self, counts: Mapping[Key, int]) -> list[Key]:
        """What must be there and is not, by how often each message is in the log."""
        return [key for key in self.of_key if counts.get(key, 0) < self.sure(key)]

    def surplus(self, counts: Mapping[Key, int]) -> list[Key]:
        """What is there more often than it was published, or was never published at all."""
        return [key for key, count in counts.items() if count > len(self.of_key.get(key, ()))]

    def explain(self, keys: Iterable[Key]) -> list[str]:
        """Each publication of these messages in one line."""
        return [str(each) for key in keys for each in self.of_key.get(key, ())]


@dataclass(frozen=True, slots=True)
class Sample:
    """Who listened to Redis at a moment between `asked` and `told`."""

    asked: float
    told: float
    connections: frozenset[str]


class Listeners:
    """Which connections of gateways listened to pub/sub when. A connection that has gone never comes back.

    Pub/sub is at most once: a message is sure only where one and the same connection, of a gateway that was
    ready before, listened from `MARGIN` before it was published to `MARGIN` after it was answered.
    """

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._ready: dict[str, float] = {}

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)

    def trust(self, sample: Sample) -> None:
        """All gateways were ready before this sample: who listens here is theirs."""
        self.add(sample)
        for each in sample.connections:
            self._ready.setdefault(each, sample.told)

    def heard(self, publication: Publication) -> bool:
        if publication.answered is None:
            return False
        # A connection that is trusted only after the message, or gone soon after it, says nothing.
        until = publication.answered + MARGIN
        after = next((each for each in self.samples if each.asked >= until), None)
        staying = after.connections if after else frozenset()
        return any(self._ready.get(each, until) <= publication.started for each in staying)
