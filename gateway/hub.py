"""The hub: takes events in log order, finds the channels that they concern, and hands them to the lanes.

Synchronous, no I/O and no asyncio: what runs here runs in one turn of the loop.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import orjson

from gateway.cursor import Cursors
from gateway.filters import Filter
from gateway.index import Index
from gateway.lane import Flusher, Lane
from gateway.log import Entry
from gateway.tail import Tail
from gateway.wire import Wire


class Channel:
    """One distinct filter with its options. All clients that share it share the work.

    `sub` is its id, the same for every client; `holders` counts who has it open, live or catching up.
    """

    __slots__ = ("filter", "holders", "lanes", "latest", "leave", "sub")

    def __init__(self, sub: str, filter_: Filter | None, *, latest: bool, leave: bool) -> None:
        self.sub = sub
        self.filter = filter_
        self.latest = latest
        self.leave = leave
        self.holders = 0
        self.lanes: dict[Wire, Lane] = {}

    def matches(self, body: dict[str, Any]) -> bool:
        return self.filter is None or self.filter.matches(body)


def channel_id(filter_: Filter | None, *, latest: bool, leave: bool) -> str:
    """64 bits of the canonical filter's hash and the options, as hex."""
    text = (
        (filter_.canonical if filter_ else b"")
        + (b" latest" if latest else b"")
        + (b" leave" if leave else b"")
    )
    return hashlib.blake2b(text, digest_size=8).hexdigest()


class Hub:
    """Channels by id, the index over their filters, and the newest part of the log."""

    def __init__(self, flusher: Flusher, cursors: Cursors) -> None:
        self.channels: dict[str, Channel] = {}
        self.tail = Tail(0)
        self.epoch = ""
        self.cursors = cursors
        self._flusher = flusher
        self._index: Index[Channel] = Index()
        self._leave_index: Index[Channel] = Index()

    def begin(self, epoch: str, head: int) -> None:
        """The log is open and stands at `head`; called once, before anything else."""
        self.epoch = epoch
        self._flusher.position = head
        self.tail = Tail(head)

    def reset(self, epoch: str, head: int) -> None:
        """The log is another one, or this node has missed entries: it goes on after `head`.

        Who was live falls behind, at its own place in the log as it was, and so is told what it has missed.
        """
        for channel in self.channels.values():
            for lane in channel.lanes.values():
                lane.scatter()
        self.begin(epoch, head)

    def wants_previous(self) -> bool:
        """Whether somebody is told what leaves a filter, for which the event before is needed."""
        return self._leave_index.size > 0

    def cursor_of(self, offset: int) -> str:
        return self.cursors.encode(self.epoch, offset)

    @property
    def position(self) -> int:
        """The offset up to which channels have been served."""
        return self._flusher.position

    def open(self, filter_: Filter | None, *, latest: bool = False, leave: bool = False) -> Channel:
        """The channel of this filter and these options; `release` it when done."""
        sub = channel_id(filter_, latest=latest, leave=leave)
        channel = self.channels.get(sub)
        if channel is None:
            channel = self.channels[sub] = Channel(sub, filter_, latest=latest, leave=leave)
            self._index.add(channel)
            if leave:
                self._leave_index.add(channel)
        channel.holders += 1
        return channel

    def release(self, channel: Channel) -> None:
        channel.holders -= 1
        if channel.holders:
            return
        del self.channels[channel.sub]
        self._index.remove(channel)
        if channel.leave:
            self._leave_index.remove(channel)

    def lane(self, channel: Channel, wire: Wire) -> Lane:
        lane = channel.lanes.get(wire)
        if lane is None:
            lane = channel.lanes[wire] = Lane(wire, self._flusher)
        return lane

    def publish(self, entries: Sequence[Entry]) -> None:
        """Takes the log's next entries. Those that a channel wants leave by the flush that is due."""
        if not entries:
            return
        if self._index.size:
            for entry in entries:
                self._dispatch(entry)
                self._flusher.position = entry.offset
        self._flusher.position = entries[-1].offset
        self.tail.extend(entries)
        self._flusher.kick()

    def _dispatch(self, entry: Entry) -> None:
        entry.cursor = self.cursor_of(entry.offset)
        for channel in self._index.matching(entry.body):
            for wire, lane in channel.lanes.items():
                if lane.sinks:
                    lane.push(entry.offset, entry.accepted, wire.event(channel.sub, entry.cursor, entry))
        if self._leave_index.size and entry.previous is not None:
            self._dispatch_leave(entry, orjson.loads(entry.previous))

    def _dispatch_leave(self, entry: Entry, previous: dict[str, Any]) -> None:
        for channel in self._leave_index.matching(previous):
            if channel.matches(entry.body):
                continue
            for wire, lane in channel.lanes.items():
                if lane.sinks:
                    part = wire.leave(channel.sub, entry.cursor, previous["subject"])
                    lane.push(entry.offset, entry.accepted, part)
