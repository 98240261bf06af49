"""Kept: what a node has heard by pub/sub and what of it may not be in the log yet. Plain values, no I/O.

Marks are messages that the nodes publish themselves. All nodes hear the same messages in the same order, so a message
is the n-th after a mark on each of them: that is its identity, by which the log takes it once, whoever appends it.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from gateway.ingest.messages import Message

MAX_MESSAGES: Final = 200_000
MAX_BYTES: Final = 64 << 20
_MAX_MARKS: Final = 20_000  # remembered: those of a few minutes


@dataclass(frozen=True, slots=True)
class Note:
    """What the node that appends tells the others: from mark `start` up to mark `upto` all is in the log."""

    start: str
    upto: str

    @classmethod
    def parse(cls, text: str) -> "Note | None":
        start, _, upto = text.partition(" ")
        return cls(start, upto) if upto else None

    def __str__(self) -> str:
        return f"{self.start} {self.upto}"


class Kept:
    """`listening` is false until the first mark on a connection: what came before it has no identity."""

    def __init__(self, *, max_messages: int = MAX_MESSAGES, max_bytes: int = MAX_BYTES) -> None:
        self.dropped = 0  # messages for which there was no room
        self.holes = 0  # times that something was missed, or had to go: nothing can be told across one
        # Whether all that was published before this node began to listen is in the log: then it is no loss if all
        # other nodes die now.
        self.caught_up = False
        self._messages: deque[tuple[int, Message]] = deque()  # each with the place of its mark
        self._bytes = 0
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._places: OrderedDict[str, int] = (
            OrderedDict()
        )  # of the marks, in the order in which they were heard
        self._token = ""
        self._milliseconds = 0
        self._place = 0
        self._number = 0
        self._led_from = 0
        self._whole_since: int | None = None  # the mark since which nothing was missed
        self._whole_token = ""
        self._trusted = ""  # the start of the notes that this node has compared with its own messages

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def listening(self) -> bool:
        return bool(self._token)

    def mark(self, token: str, milliseconds: int) -> None:
        self._place += 1
        self._token, self._milliseconds, self._number = token, milliseconds, 0
        self._places[token] = self._place
        if len(self._places) > _MAX_MARKS:
            self._places.popitem(last=False)
        if self._whole_since is None:
            self._whole_since, self._whole_token = self._place, token

    def hear(self, channel: bytes, payload: bytes, now: float) -> None:
        if not self._token:
            return
        message = Message(self._token, self._milliseconds, self._number, now, channel, payload)
        self._number += 1
        self._messages.append((self._place, message))
        self._bytes += message.size
        while self._bytes > self._max_bytes or len(self._messages) > self._max_messages:
            self._pop()
            self.dropped += 1
            self.holes += 1
            self._whole_since = None

    def broke(self) -> None:
        """The connection is gone: what is published until the next mark is not heard."""
        self.holes += 1
        self._token = ""
        self._whole_since = None
        self.caught_up = False

    def _pop(self) -> None:
        self._bytes -= self._messages.popleft()[1].size

    # As the node that appends

    def is_whole_since(self, note: Note | None) -> bool:
        """Whether this node has heard everything that the note does not tell of."""
        if self._whole_since is None:
            return False
        return note is None or self._places.get(note.upto, 0) >= self._whole_since

    def lead(self) -> None:
        """This node appends from now on: it is caught up when all that it has heard so far is in the log."""
        self._led_from = self._place

    def first_note(self, note: Note | None) -> Note | None:
        """The note with which to begin to append; None where nothing can be told yet."""
        if self._whole_since is None:
            return None
        if note is not None and self.is_whole_since(note):
            return note
        return Note(self._whole_token, self._whole_token)

    def note(self, first: Note) -> Note:
        """What can be told now, having begun with `first`: everything before the oldest message's mark is stored."""
        upto = self._messages[0][1].token if self._messages else self._token
        return (
            Note(first.start, upto) if self._places.get(upto, 0) > self._places.get(first.upto, 0) else first
        )

    def take(self, count: int, size: int) -> Sequence[Message]:
        """The oldest messages, up to so many and so large; `drop` them when they are stored."""
        taken: list[Message] = []
        for _, message in islice(self._messages, count):
            size -= message.size
            if size < 0 and taken:
                break
            taken.append(message)
        return taken

    def drop(self, messages: Sequence[Message]) -> None:
        """These, which were taken, are in the log."""
        for each in messages:
            if self._messages and self._messages[0][1] is each:  # else it had to make room meanwhile
                self._pop()
        if self.listening and (not self._messages or self._messages[0][0] > self._led_from):
            self.caught_up = True

    # As one of the others

    def untold(self, note: Note) -> Sequence[Message]:
        """What lies before the note's `upto` and may not be among what it tells of: it is to be stored."""
        upto = self._places.get(note.upto)
        if upto is None or note.start == self._trusted:
            return ()
        start = self._places.get(note.start, upto)
        return [message for place, message in self._messages if place < start]

    def settle(self, note: Note) -> None:
        """What is `untold` has been stored: forgets what is in the log now."""
        upto = self._places.get(note.upto)
        if upto is None:
            return
        self._trusted = note.start
        if self._whole_since is not None and upto >= self._whole_since:
            self.caught_up = True
        while self._messages and self._messages[0][0] < upto:
            self._pop()
