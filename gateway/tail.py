"""The tail: the newest entries in memory, so that who is only a little behind never asks the store."""

from collections.abc import Sequence

from gateway.log import Entry

MAX_ENTRIES = 8192
MAX_BYTES = 4 << 20  # of JSON; parsed bodies weigh several times as much


class Tail:
    """A window on the log's end, with dense offsets `after + 1 … last`."""

    def __init__(self, after: int, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self.after = after
        self._entries: list[Entry] = []
        self._skip = 0  # entries at the list's head that are no longer in the window
        self._bytes = 0
        self._max_entries = max_entries
        self._max_bytes = max_bytes

    def append(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._bytes += _weight(entry)
        while len(self._entries) - self._skip > self._max_entries or self._bytes > self._max_bytes:
            self._bytes -= _weight(self._entries[self._skip])
            self._skip += 1
            self.after += 1
        if self._skip > self._max_entries // 2 or self._skip == len(self._entries):
            del self._entries[: self._skip]
            self._skip = 0

    def covers(self, after: int) -> bool:
        """Whether everything after that offset, as far as the window's end, is here."""
        return after >= self.after

    def between(self, after: int, upto: int) -> Sequence[Entry]:
        """The entries with after < offset <= upto. The window must cover `after`."""
        base = self._skip - self.after
        return self._entries[base + after : base + max(after, upto)]

    def get(self, offset: int) -> Entry | None:
        if offset <= self.after:
            return None
        at = self._skip + offset - self.after - 1
        return self._entries[at] if at < len(self._entries) else None


def _weight(entry: Entry) -> int:
    return len(entry.json) + (len(entry.previous) if entry.previous else 0)
