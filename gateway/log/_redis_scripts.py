"""The log's scripts: what Redis does at once and as a whole. The keys they use stand in `lua/common.lua`.

All keys carry one hash tag, so that a script finds them on one node of a Redis Cluster.
"""

import hashlib
from importlib import resources
from typing import Any, Final

from redis.exceptions import NoScriptError

from gateway.event import Event
from gateway.log import ConflictError, Entry, FencedError, KeyTakenError

PREFIX: Final = "{gateway}:"
META: Final = PREFIX + "meta"
LOG: Final = PREFIX + "log"
# What stands before a script: each needs the first, some need more.
_PARTS: Final = {
    "append": ("common", "evict"),
    "retain": ("common", "evict"),
    "bury": ("common", "letters"),
    "letters_page": ("common", "letters"),
    "unbury": ("common", "letters"),
}


# What makes room may run where Redis has no memory left, though it writes a little itself.
_FREEING: Final = ("retain", "unbury")
_ALLOW_OOM: Final = "#!lua flags=allow-oom\n"


class OtherLogError(Exception):
    """The log is another one than this node knows, or has lost its end."""


class OtherIndexError(Exception):
    """Latest events are indexed by other paths than this node knows, or not all of them yet."""


_REFUSAL_OF: Final[dict[bytes, type[Exception]]] = {
    b"EPOCH": OtherLogError,
    b"LOST": OtherLogError,
    b"INDEX": OtherIndexError,
    b"FENCED": FencedError,
    b"TAKEN": KeyTakenError,
    b"CONFLICT": ConflictError,
}


REFUSALS: Final = (FencedError, KeyTakenError, ConflictError)


class Script:
    """One script, which Redis is sent once and then knows by its digest."""

    def __init__(self, name: str) -> None:
        directory = resources.files("gateway.log") / "lua"
        parts = (*_PARTS.get(name, ("common",)), name)
        text = "\n".join((directory / f"{part}.lua").read_text("utf-8") for part in parts)
        self._text = _ALLOW_OOM + text if name in _FREEING else text
        self._digest = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    async def call(self, client: Any, *args: Any) -> list[Any]:
        """What the script returns, as it stands. Raises what redis-py raises."""
        try:
            reply: list[Any] = await client.evalsha(self._digest, 1, META, *args)
        except NoScriptError:
            reply = await client.eval(self._text, 1, META, *args)
        return reply

    async def run(self, client: Any, *args: Any) -> list[Any]:
        """What the script returns after its OK. Raises what stands in `_REFUSAL_OF`."""
        status, *reply = await self.call(client, *args)
        if status != b"OK":
            raise _REFUSAL_OF[status]
        return reply


APPEND: Final = Script("append")
BUILT: Final = Script("built")
BURY: Final = Script("bury")
GET: Final = Script("get")
INDEX: Final = Script("index")
LATEST: Final = Script("latest")
LETTERS_PAGE: Final = Script("letters_page")
LEASE: Final = Script("lease")
OFFSET_AT: Final = Script("offset_at")
OPEN: Final = Script("open")
REMEMBER: Final = Script("remember")
REINDEX: Final = Script("reindex")
RENEW: Final = Script("renew")
RETAIN: Final = Script("retain")
UNBURY: Final = Script("unbury")
USE_ONCE: Final = Script("use_once")


def entry_of_row(row: list[Any]) -> Entry:
    """An entry as the scripts tell it: offset, prev, accepted, JSON."""
    return Entry(int(row[0]), int(row[1]), int(row[2]), row[3])


def entries_of_items(items: list[Any], parsed: dict[bytes, Event]) -> tuple[list[Entry], bytes, bytes]:
    """Entries of the stream, the digest of the entry before the first one, and that of the last one.

    By its digest `parsed` may have an event already, for once. See `lua/common.lua` for the fields.
    """
    return [_entry_of_item(each, parsed) for each in items], items[0][1][1][16:32], items[-1][1][1][:16]


def _entry_of_item(item: list[Any], parsed: dict[bytes, Event]) -> Entry:
    id_, (_, told, _, json, _, previous) = item
    prev, accepted, _ = told[32:].split(b" ", 2)
    event = parsed.pop(told[:16], None)
    body = event.body if event is not None and event.json == json else None
    return Entry(int(id_[:-2]), int(prev), int(accepted), json, body=body, previous=previous or None)


def offset_id(offset: int) -> str:
    return f"{offset}-0"
