"""Builds the index of latest events anew where it was built for other paths than those of GATEWAY_INDEX."""

import logging
from collections.abc import Sequence
from typing import Any, Final

import orjson

from gateway.log import _redis_scripts as scripts
from gateway.log._redis_follower import Follower
from gateway.log._redis_scripts import META, entry_of_row
from gateway.log._redis_writer import index_keys
from gateway.redis_clients import RedisClients

logger = logging.getLogger(__name__)

_PAGE: Final = 200


async def build_index(clients: RedisClients, follower: Follower, paths: Sequence[str]) -> None:
    """Raises what the connection raises; begun anew it does what is left."""
    wanted = orjson.dumps(list(paths))
    if follower.index == wanted:
        return
    if follower.index:
        logger.info("the index of latest events is built anew for %s", ", ".join(paths) or "the type alone")
        for orders in (0, 1):
            await _build(clients, follower, ("type", *paths), orders)
    await clients.writes.hset(META, "index", wanted)
    follower.index = wanted


async def _build(clients: RedisClients, follower: Follower, paths: Sequence[str], orders: int) -> None:
    after = 0
    while True:
        span = (follower.epoch, after, follower.head, _PAGE, 0, orders, "none")
        (rows,) = await scripts.LATEST.run(clients.commands, *span)
        if not rows:
            return
        args: list[Any] = [orders]
        for entry in map(entry_of_row, rows):
            keys = index_keys(entry.body, paths)
            args += (entry.subject or "", entry.offset, len(keys), *keys)
            after = entry.offset
        await scripts.REINDEX.run(clients.writes, *args)
