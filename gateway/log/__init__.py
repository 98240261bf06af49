"""The log: the ordered, durable sequence of accepted events, and what belongs to it atomically.

`Log` is the protocol; `sqlite.py` implements it. Every implementation passes
`tests/conformance/test_log.py`. A log knows nothing of filters or clients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from gateway.event import Event


class Entry:
    """An event in its place in the log. Read-only, but for `sse`, where encodings keep their shared bytes.

    `prev` is the offset of the event before it of the same subject, 0 where there was none.
    `accepted` is when the log took it, in microseconds since 1970, never less than its predecessor's.
    `previous` is the JSON of the event at `prev`, known only where the entry comes straight from an
    append: there it is told even if retention has taken that event from the log since.
    """

    __slots__ = ("_body", "accepted", "cursor", "json", "offset", "prev", "previous", "sse")

    def __init__(  # noqa: PLR0917 -- names cost a third more, and an entry is made for every event
        self,
        offset: int,
        prev: int,
        accepted: int,
        json: bytes,
        body: dict[str, Any] | None = None,
        previous: bytes | None = None,
    ) -> None:
        self.offset = offset
        self.prev = prev
        self.accepted = accepted
        self.json = json
        self.previous = previous
        self._body = body
        self.cursor = ""  # set once by the first encoder
        self.sse: bytes | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The parsed event: parsed when it is first looked at."""
        if self._body is None:
            self._body = orjson.loads(self.json)
        return self._body

    def forget_body(self) -> None:
        """Frees the parsed event, which weighs several times as much as its JSON; it is parsed again if need be."""
        self._body = None

    @property
    def subject(self) -> str | None:
        return self.body.get("subject")

    @property
    def previous_body(self) -> dict[str, Any] | None:
        """`previous`, parsed."""
        return None if self.previous is None else orjson.loads(self.previous)


@dataclass(frozen=True, slots=True)
class Page:
    """Entries with dense offsets, oldest first; `first` and `head` are the log's as of this read.

    `first` is the offset of the first kept event (head + 1 in an empty log), `head` that of the last.
    """

    first: int
    head: int
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Reply:
    """A stored answer to a request. `appended` is set where the answer tells what an append did."""

    status: int
    headers: dict[str, str]
    body: bytes
    appended: "Appended | None" = None


@dataclass(frozen=True, slots=True)
class Remember:
    """An idempotency key to store with its effect: the request's digest and the answer to give again."""

    key: str
    digest: bytes
    reply: Reply


@dataclass(frozen=True, slots=True)
class Remembered:
    digest: bytes
    reply: Reply


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did: new events, duplicates, and the highest offset that any of its events has.

    `offset` counts duplicates' places too; it is the head where nothing was appended at all.
    """

    accepted: int
    duplicates: int
    offset: int


@dataclass(frozen=True, slots=True)
class Revocation:
    """A token id (`jti`) or user (`sub`) whose tokens, issued up to `at` (seconds since 1970), are void."""

    kind: str
    value: str
    at: float


class ConflictError(Exception):
    """The subject's latest order event is not the one that the append expected."""


class KeyTakenError(Exception):
    """The idempotency key was stored meanwhile by another request; nothing was appended."""


class LogUnavailableError(Exception):
    """The log cannot answer now; nothing is known to have been stored. The message says why."""


class LogCorruptError(Exception):
    """The stored log cannot be opened. The message says what and where."""


@dataclass(frozen=True, slots=True)
class Expect:
    """A condition of an append: the subject's latest `order.*` event stands at `offset` (0: there is none)."""

    subject: str
    offset: int


@dataclass(frozen=True, slots=True)
class Retention:
    """What the log keeps: at most `events`, none older than `age` seconds.

    `latest_age` (seconds): how long a subject's latest event stays beyond that. Of dead letters it keeps at
    most `letters`, and `letter_bytes` of payload.
    """

    events: int = 1_000_000
    age: float = 7 * 86400.0
    latest_age: float = 30 * 86400.0
    letters: int = 100_000
    letter_bytes: int = 256 << 20


@dataclass(frozen=True, slots=True)
class Fence:
    """Proof of a lease. What is done with it is refused once the lease is another's."""

    name: str
    token: int


class FencedError(Exception):
    """The lease is another's by now: nothing was stored."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that could not go on: its bytes as they came, and why.

    `id` is the caller's: the same one again replaces the letter. `origin` is `redis:NAME` or `webhook:ID`, `kind`
    tells how the bytes are read again, `time` is when it was first put here (seconds since 1970), `tries` how
    often it was tried.
    """

    id: str
    origin: str
    kind: str
    reason: str
    time: float
    tries: int
    payload: bytes


OnAppend = Callable[[Sequence[Entry]], None]
OnReset = Callable[[], None]

# A lookup among the latest events: a path of GATEWAY_INDEX, or "subject" or "type", and the index
# keys (see `gateway.filters.index_key`) of which the event has at least one at that path.
Lookup = tuple[str, frozenset[str]]


def nothing() -> None:
    """For who has nothing to do on a reset."""


def always() -> bool:
    return True


class Log(Protocol):
    """The durable log. All methods run on the event loop's thread and never block it.

    Offsets are dense: the first event has 1, no holes. An append is durable when it returns. Cancelling a
    call never undoes a write: an append under way is stored or not as a whole.

    Every method raises LogUnavailableError where the store does not answer.
    """

    @property
    def epoch(self) -> str:
        """`[0-9a-z]{1,16}`: another one whenever a log was created or lost."""

    @property
    def first(self) -> int: ...

    @property
    def head(self) -> int: ...

    @property
    def secret(self) -> bytes:
        """32 random bytes made with the log, the same on all nodes: signs tickets."""

    async def open(
        self,
        on_append: OnAppend,
        on_reset: OnReset = nothing,
        *,
        wants_previous: Callable[[], bool] = always,
    ) -> None:
        """Opens the log; from then on `on_append` gets every new entry, in order, once, on the loop.

        It is called in the same turn in which the appends of those entries return, before them. `on_reset` is
        called instead where entries cannot be told any more: the log was lost and is another one (`epoch` has
        changed), or has dropped entries before this node got them. `on_append` then goes on after `head`.
        Entries have their `previous` at least while `wants_previous` says so. Raises LogCorruptError.
        """

    async def close(self) -> None:
        """Writes what was accepted for writing, then closes."""

    async def check(self) -> str | None:
        """None where the log can store and read now, else the reason in one line."""

    async def append(
        self,
        events: Sequence[Event],
        *,
        expect: Expect | None = None,
        remember: Remember | None = None,
        fence: Fence | None = None,
        on_stored: Callable[[], None] | None = None,
    ) -> Appended:
        """Stores the events in order, as a whole; one that is in the log already counts as a duplicate.

        Returns when `on_append` has been given them too; `on_stored` is called as soon as they are in the log, when
        what has to stand behind them may be appended. Raises FencedError where the lease of `fence` is another's, else KeyTakenError where `remember.key` is
        stored, else ConflictError where `expect` does not hold.
        A remembered reply that has an `appended` gets the result in its place.
        """

    async def read(self, after: int, limit: int) -> Page:
        """Up to `limit` entries from the first kept one after `after`, and fewer where they are large.

        A page tells nothing that `on_append` has not been given before.
        """

    async def catch_up(self, offset: int) -> None:
        """Returns when `on_append` has been given everything up to `offset`, or the log ends before it.

        Another node may have told a client of events that this one has not been given yet.
        """

    async def get(self, offsets: Sequence[int]) -> dict[int, Entry]:
        """The entries at these offsets, as far as they are kept."""

    async def latest(
        self,
        lookup: Lookup | None,
        *,
        after: int,
        upto: int,
        limit: int,
        newest_first: bool = False,
        orders: bool = False,
    ) -> Sequence[Entry]:
        """The latest event of each subject, with after < offset <= upto, in log order or newest first.

        With `orders` the latest `order.*` event of each subject instead, whatever came after it.
        A `lookup` narrows by index and may leave out nothing that fits it; the caller filters.
        """

    async def latest_offsets(self, subjects: Sequence[str]) -> dict[str, int]:
        """The offset of each subject's latest event, where there is one."""

    async def order(self, subject: str) -> Entry | None:
        """The subject's latest `order.*` event."""

    async def offset_at(self, accepted: int) -> int:
        """The offset before the first kept event accepted at or after this time (microseconds)."""

    async def recall(self, key: str) -> Remembered | None:
        """What is stored under an idempotency key younger than 24 h."""

    async def remember(self, remember: Remember) -> None:
        """Stores an answer that had no effect on the log. Raises KeyTakenError."""

    async def use_once(self, token: str, seconds: float) -> bool:
        """True for the first call with this token; it is remembered for `seconds`."""

    async def revoke(self, revocation: Revocation, *, remember: Remember | None = None) -> None:
        """Stores a revocation, durably and for all nodes."""

    async def revocations(self) -> Sequence[Revocation]: ...

    async def lease(self, name: str, seconds: float, note: str = "") -> Fence | None:
        """Takes or renews this node's lease of a task that one node at a time does; None while another holds it.

        It ends by itself after `seconds`. `note` is kept with it for who comes after: see `lease_note`. A log
        that only one node can open grants every lease.
        """

    async def release(self, fence: Fence) -> None:
        """Ends a lease early, so that another node can have it at once. Nothing happens if it is another's."""

    async def lease_note(self, name: str) -> str:
        """The note that was given with the lease last, also after its end; "" where there is none."""

    async def is_leased(self, name: str) -> bool:
        """Whether a node has the lease now; false in a log that only one node can open."""

    async def bury(self, letters: Sequence[DeadLetter], *, fence: Fence | None = None) -> None:
        """Stores dead letters, durably. Raises FencedError.

        Beyond what `Retention` allows the oldest by `time` are dropped, and one line in a while says so.
        """

    async def dead_letters(
        self, origin: str | None = None, *, after: str = "", limit: int = 100
    ) -> Sequence[DeadLetter]:
        """The dead letters (of one origin), by id, from the first one after `after` on.

        Up to `limit`, and fewer where they are large, but never none while there is one.
        """

    async def dead_letter(self, id: str) -> DeadLetter | None:  # noqa: A002 -- what the outside calls it
        ...

    async def unbury(self, ids: Sequence[str]) -> int:
        """Deletes dead letters; returns how many there were."""


@dataclass(slots=True)
class LogStats:
    """What a log tells of its work: the seconds of each commit, and how many events wait to be written now."""

    observe_append: Callable[[float], None] = field(default=lambda _seconds: None)
    waiting: int = 0
