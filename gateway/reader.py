"""Reader: one channel's messages from a place in the log on, page by page.

Every way of being behind is this one: new subscriptions with `since`, reconnects, snapshots, slow clients,
long polls. A reader holds a cursor and a page at most, never a queue.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from gateway.hub import Channel, Hub
from gateway.log import Entry, Log, Lookup
from gateway.since import Lost, Start

PAGE = 500  # entries read from the log at once
MAX_KNOWN = 100_000  # subjects of which a conflating reader remembers where their newest message lies


@dataclass(frozen=True, slots=True)
class Told:
    """One message: an event, or that its subject has left the filter. `snapshot` as in `Start`."""

    entry: Entry
    left: bool = False
    snapshot: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """What one read found: a gap, or messages in order. Both may be empty: then only the place moved."""

    told: Sequence[Told] = ()
    lost: Lost | None = None


@dataclass(slots=True)
class Reader:
    """A place in the log, and how to go on from it. `epoch`, `offset` and `snapshot` are the place."""

    log: Log
    hub: Hub
    channel: Channel
    offset: int
    snapshot: int | None = None
    epoch: str = field(kw_only=True)
    _lost: Lost | None = None
    _floating: bool = False
    _index: frozenset[str] = frozenset()
    _reason: Literal["evicted", "slow"] = "slow"
    _newest: dict[str, int] = field(default_factory=dict)

    @classmethod
    def begin(cls, log: Log, hub: Hub, channel: Channel, start: Start, index: frozenset[str]) -> "Reader":
        """A reader for a new subscription. `index` are the paths by which latest events are found."""
        place = start.offset if start.snapshot is None else start.snapshot
        reason: Literal["evicted", "slow"] = "slow" if log.first <= place + 1 else "evicted"
        return cls(
            log,
            hub,
            channel,
            start.offset,
            start.snapshot,
            start.lost,
            start.floating,
            index,
            reason,
            epoch=hub.epoch,
        )

    @property
    def place(self) -> str:
        """The place as a cursor."""
        return self.hub.cursors.encode(self.epoch, self.offset, self.snapshot)

    @property
    def untold(self) -> Lost | None:
        """The gap with which it begins, until it was read: the place is beyond it already."""
        return self._lost

    def can_finish(self, upto: int) -> bool:
        """Whether the way to `upto` is short and in memory, so that `finish` may walk it in this turn."""
        if self._lost is not None or self.snapshot is not None or self.epoch != self.hub.epoch:
            return False
        if upto <= self.offset:
            return True
        if not self.hub.tail.covers(self.offset) or upto - self.offset > PAGE:
            return False
        return not self.channel.leave or self._knows_before(self.hub.tail.between(self.offset, upto))

    @staticmethod
    def _knows_before(entries: Sequence[Entry]) -> bool:
        """Whether these have the events before them: a shared log fetches those only while somebody wants them."""
        return all(entry.previous is not None or not entry.prev for entry in entries)

    def finish(self, upto: int) -> Sequence[Told]:
        """The rest up to `upto`, from memory, in this turn. Only where `can_finish` says so."""
        if upto <= self.offset:
            return ()
        entries = self.hub.tail.between(self.offset, upto)
        self.offset = upto
        return self._newest_of(self._messages(entries, {}))

    async def read(self, upto: int, limit: int = PAGE) -> Batch:
        """The next page, no further than `upto` (None of it is told twice, whenever this is cancelled)."""
        if self.epoch != self.hub.epoch:
            self._enter_other_log()
        if self._lost is not None:
            lost, self._lost = self._lost, None
            return Batch(lost=lost)
        if self.snapshot is not None:
            return await self._read_snapshot(self.snapshot, limit)
        return await self._read_log(upto, limit)

    def _enter_other_log(self) -> None:
        """The place is one in a log that is gone: all that lies before the new one's head may be missing."""
        lost_from = self._lost.lost_from if self._lost is not None else self.place
        self._lost = Lost(lost_from, self.hub.position, "epoch")
        self.epoch, self.offset, self.snapshot = self.hub.epoch, self.hub.position, None
        self._floating, self._reason = False, "slow"
        self._newest.clear()

    async def _read_snapshot(self, start: int, limit: int) -> Batch:
        entries = await self.log.latest(self._lookup(), after=self.offset, upto=start, limit=limit)
        if len(entries) < limit:
            self.offset, self.snapshot = start, None
        else:
            self.offset = entries[-1].offset
        return Batch([Told(entry, snapshot=start) for entry in entries if self.channel.matches(entry.body)])

    def _lookup(self) -> Lookup | None:
        """The narrowest of the filter's equality terms that the log has an index for."""
        lookups = self.channel.filter.lookups() if self.channel.filter else ()
        usable = [each for each in lookups if each[0] in self._index]
        return min(usable, key=lambda each: (each[0] == "type", len(each[1])), default=None)

    async def _read_log(self, upto: int, limit: int) -> Batch:
        if self.hub.tail.covers(self.offset):
            entries = self.hub.tail.between(self.offset, min(upto, self.offset + limit))
        else:
            page = await self.log.read(self.offset, limit)
            if page.first > self.offset + 1:
                lost = self._evicted(page.first - 1)
                if lost:
                    return Batch(lost=lost)
            entries = [entry for entry in page.entries if entry.offset <= upto]
        self._floating, self._reason = False, "slow"
        if not entries:
            return Batch()
        told = self._messages(entries, await self._predecessors(entries))
        if self.channel.latest:
            told = await self._conflate(self._newest_of(told), entries[-1].offset)
        self.offset = entries[-1].offset
        return Batch(told)

    def _evicted(self, to: int) -> Lost | None:
        """Moves past what the log no longer has; the gap to announce, unless nothing was promised there."""
        lost_from, self.offset = self.offset, to
        if self._floating:
            self._floating = False
            return None
        return Lost(self._cursor(lost_from), to, self._reason)

    def _cursor(self, offset: int) -> str:
        return self.hub.cursors.encode(self.epoch, offset)

    # Which entries are messages

    def _messages(self, entries: Sequence[Entry], predecessors: dict[int, Entry]) -> list[Told]:
        told = []
        for entry in entries:
            if self.channel.matches(entry.body):
                told.append(Told(entry))
            elif self.channel.leave and self._left(entry, predecessors.get(entry.prev)):
                told.append(Told(entry, left=True))
        return told

    def _left(self, entry: Entry, predecessor: Entry | None) -> bool:
        body = predecessor.body if predecessor else entry.previous_body
        return body is not None and self.channel.matches(body)

    async def _predecessors(self, entries: Sequence[Entry]) -> dict[int, Entry]:
        """The events before these of the same subjects, as far as the log has them and a `leave` needs them."""
        if not self.channel.leave:
            return {}
        here = {entry.offset: entry for entry in entries}
        wanted = {entry.prev for entry in entries if entry.prev and not self.channel.matches(entry.body)}
        found = {offset: here[offset] for offset in wanted if offset in here}
        return found | await self._get(wanted - found.keys())

    async def _get(self, offsets: set[int]) -> dict[int, Entry]:
        cached = {offset: entry for offset in offsets if (entry := self.hub.tail.get(offset))}
        missing = offsets - cached.keys()
        return cached | await self.log.get(sorted(missing)) if missing else cached

    # Conflation: of each subject only the newest message

    @staticmethod
    def _keep_newest(told: Sequence[Told]) -> list[Told]:
        seen: set[str] = set()
        kept = []
        for each in reversed(told):
            subject = each.entry.subject
            if subject is None or subject not in seen:
                kept.append(each)
            if subject is not None:
                seen.add(subject)
        kept.reverse()
        return kept

    def _newest_of(self, told: list[Told]) -> list[Told]:
        return self._keep_newest(told) if self.channel.latest else told

    async def _conflate(self, told: list[Told], end: int) -> list[Told]:
        """Drops what a message after `end` supersedes. Bounded memory: it walks each subject's chain of events
        back from its latest one instead of remembering the subjects of all that lies ahead. A newest message
        that was passed is looked for again: the head moves on while this client is behind."""
        if len(self._newest) > MAX_KNOWN:
            self._newest.clear()
        named = {subject for each in told if (subject := each.entry.subject) is not None}
        await self._find_newest({subject for subject in named if self._newest.get(subject, 0) <= end}, end)
        return [each for each in told if self._newest.get(each.entry.subject or "", 0) <= end]

    async def _find_newest(self, subjects: set[str], end: int) -> None:
        ahead = await self.log.latest_offsets(sorted(subjects)) if subjects else {}
        while ahead := {subject: offset for subject, offset in ahead.items() if offset > end}:
            entries = await self._get(set(ahead.values()))
            told = self._messages(list(entries.values()), await self._predecessors(list(entries.values())))
            messages = {each.entry.offset for each in told}
            step = {}
            for subject, offset in ahead.items():
                if offset in messages:
                    self._newest[subject] = offset
                elif offset in entries:
                    step[subject] = entries[offset].prev
            ahead = step
