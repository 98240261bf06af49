"""Which of a node's subscriptions takes a message: Redis delivers it once for each that matches its channel."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

_SPECIAL: Final = re.compile(rb"[*?\[\]\\]")


def is_pattern(name: str) -> bool:
    return _SPECIAL.search(name.encode()) is not None


def glob(pattern: bytes) -> re.Pattern[bytes]:
    """A pattern of Redis (`stringmatchlen`): `*`, `?`, `[abc]`, `[^a]`, `[a-z]`, and `\\` before what stands for itself."""
    out, at = b"", 0
    while at < len(pattern):
        each = pattern[at : at + 1]
        at += 1
        if each == b"*":
            out += b".*"
        elif each == b"?":
            out += b"."
        elif each == b"[":
            part, at = _class(pattern, at)
            out += part
        else:
            if each == b"\\" and at < len(pattern):
                each, at = pattern[at : at + 1], at + 1
            out += re.escape(each)
    return re.compile(out, re.DOTALL)


def _class(pattern: bytes, at: int) -> tuple[bytes, int]:
    """What follows a bracket, up to the closing one or the end, and where it ends."""
    negated = pattern[at : at + 1] == b"^"
    at += negated
    ranges: list[tuple[int, int]] = []
    while at < len(pattern) and pattern[at : at + 1] != b"]":
        if pattern[at : at + 1] == b"\\" and at + 1 < len(pattern):
            at += 1
            ranges.append((pattern[at], pattern[at]))
        elif pattern[at + 1 : at + 2] == b"-" and at + 2 < len(pattern):
            low, high = sorted((pattern[at], pattern[at + 2]))
            ranges.append((low, high))
            at += 2
        else:
            ranges.append((pattern[at], pattern[at]))
        at += 1
    if not ranges:
        return (b"." if negated else rb"(?!)"), at + 1
    body = b"".join(b"\\x%02x-\\x%02x" % each for each in ranges)
    return b"[" + (b"^" if negated else b"") + body + b"]", at + 1


class Subscriptions:
    """Channels and patterns in the order in which they were configured."""

    def __init__(self, names: Sequence[str]) -> None:
        self.channels = tuple(each for each in names if not is_pattern(each))
        self.patterns = tuple(each for each in names if is_pattern(each))
        self._globs = [(each, glob(each.encode())) for each in self.patterns]
        self._first = lru_cache(maxsize=10_000)(self._find_first)

    def takes(self, by: bytes, channel: bytes) -> bool:
        """Whether a message that was delivered for the subscription `by` is taken: for the first one alone."""
        return len(self._globs) + len(self.channels) == 1 or self._first(channel) == by

    def name_of(self, channel: bytes) -> str:
        """The configured name by which a channel is heard."""
        return self._first(channel).decode()

    def _find_first(self, channel: bytes) -> bytes:
        if channel in (each.encode() for each in self.channels):
            return channel
        return next((name.encode() for name, regex in self._globs if regex.fullmatch(channel)), b"")
