"""Dead letters in Redis: a hash of letters, and sorted sets of their ids. See `lua/letters.lua` for the keys."""

import logging
from collections.abc import Sequence
from typing import Final

import orjson

from gateway.log import DeadLetter
from gateway.log import _redis_scripts as scripts
from gateway.log._redis_scripts import PREFIX
from gateway.redis_clients import RedisClients

logger = logging.getLogger(__name__)

MAX_LETTERS: Final = 100_000
MAX_BYTES: Final = 256 << 20
_DEAD: Final = PREFIX + "dead"


class Letters:
    """All calls raise what the connection raises."""

    def __init__(self, clients: RedisClients) -> None:
        self._clients = clients

    async def bury(self, letters: Sequence[DeadLetter], lease: tuple[str, str]) -> None:
        """Raises FencedError."""
        args: list[str | bytes | int] = [*lease, MAX_LETTERS, MAX_BYTES]
        for each in letters:
            args += (each.id, each.origin, _encode(each))
        (gone,) = await scripts.BURY.run(self._clients.writes, *args)
        if gone:
            logger.warning("%d of the oldest dead letters had to make room for newer ones", gone)

    async def page(self, origin: str | None, after: str, limit: int) -> Sequence[DeadLetter]:
        key = f"{_DEAD}:ids" if origin is None else f"{_DEAD}:ids:{origin}"
        low = f"({after}" if after else "-"
        ids = await self._clients.commands.execute_command("ZRANGEBYLEX", key, low, "+", "LIMIT", 0, limit)
        values = await self._clients.commands.hmget(_DEAD, ids) if ids else []
        pairs = zip(ids, values, strict=True)
        return [_decode(id_.decode(), value) for id_, value in pairs if value is not None]

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
