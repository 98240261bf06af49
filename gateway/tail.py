"""The tail: the newest entries in memory, so that who is only a little behind never asks the store."""

from collections.abc import Sequence

from gateway.log import Entry

MAX_ENTRIES = 8192
MAX_BYTES = 4 << 20  # of JSON


class Tail:
    """A window on the log's end, with dense offsets `after + 1 … last`."""

    def __init__(self, after: int, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self.after = after
        self._entries: list[Entry] = []
        self._skip = 0  # entries at the list's head that are no longer in the window
        self._bytes = 0
        self._max_entries = max_entries
        self._max_bytes = max_bytes

    def extend(self, entries: Sequence[Entry]) -> None:
        """Adds entries that have been told to who is live: few read them again, so their parsed bodies go."""
        for entry in entries:
            entry.forget_body()
        self._entries += entries
        self._bytes += _weight(entries)
        self._trim()

    def _trim(self) -> None:
        kept = self._entries
        skip = max(self._skip, len(kept) - self._max_entries)
        self._bytes -= _weight(kept[self._skip : skip])
        while self._bytes > self._max_bytes:
            self._bytes -= _weight(kept[skip : skip + 1])
            skip += 1
        self.after += skip - self._skip
        self._skip = skip
        if skip > self._max_entries // 2 or skip == len(kept):
            del kept[:skip]
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


def _weight(entries: Sequence[Entry]) -> int:
    return sum([len(entry.json) + len(entry.previous or b"") for entry in entries])
