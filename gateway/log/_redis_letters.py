"""Dead letters in Redis: a hash of letters, and sorted sets of their ids. See `lua/letters.lua` for the keys."""

import logging
from collections.abc import Sequence
from typing import Any, Final

import orjson

from gateway.log import DeadLetter, Retention
from gateway.log import _redis_scripts as scripts
from gateway.log._redis_scripts import PREFIX
from gateway.logs import Sparing
from gateway.redis_clients import RedisClients

logger = logging.getLogger(__name__)

PAGE_BYTES: Final = 8 << 20  # in a page: a page of large letters is shorter
_ROOM_SECONDS: Final = 5.0  # between two lines about letters that had to go
_DEAD: Final = PREFIX + "dead"


class Letters:
    """All calls raise what the connection raises."""

    def __init__(self, clients: RedisClients, retention: Retention) -> None:
        self._clients = clients
        self._retention = retention
        self._sparing = Sparing(_ROOM_SECONDS)

    async def bury(self, letters: Sequence[DeadLetter], lease: tuple[str, str]) -> None:
        """Raises FencedError."""
        args: list[Any] = [*lease, self._retention.letters, self._retention.letter_bytes]
        for each in letters:
            args += (each.id, each.origin, each.time, len(each.payload), _encode(each))
        (gone,) = await scripts.BURY.run(self._clients.writes, *args)
        if gone and (count := self._sparing.take(gone)):
            logger.warning("%d of the oldest dead letters had to make room for newer ones", count)

    async def page(self, origin: str | None, after: str, limit: int) -> Sequence[DeadLetter]:
        client = self._clients.commands
        (found,) = await scripts.LETTERS_PAGE.run(client, origin or "", after, limit, PAGE_BYTES)
        return [_decode(id_.decode(), value) for id_, value in zip(found[::2], found[1::2], strict=True)]

    async def get(self, id_: str) -> DeadLetter | None:
        value = await self._clients.commands.hget(_DEAD, id_)
        return None if value is None else _decode(id_, value)

    async def delete(self, ids: Sequence[str]) -> int:
        (gone,) = await scripts.UNBURY.run(self._clients.writes, *ids)
        return int(gone)


def _encode(letter: DeadLetter) -> bytes:
    """The letter without its id: a line of JSON, then the bytes as they came."""
    told = (letter.origin, letter.kind, letter.reason, letter.time, letter.tries)
    return orjson.dumps(told) + b"\n" + letter.payload


def _decode(id_: str, value: bytes) -> DeadLetter:
    told, _, payload = value.partition(b"\n")
    origin, kind, reason, time, tries = orjson.loads(told)
    return DeadLetter(id_, origin, kind, reason, time, tries, payload)
