"""Builds the index of latest events anew where it was built for other paths than those of GATEWAY_INDEX.

Nodes with other paths may run meanwhile: whoever appends does so for the paths that were set last, and a node looks
nothing up by an index that is not complete.
"""

import logging
from collections.abc import Sequence
from typing import Any, Final

import orjson

from gateway.log import _redis_scripts as scripts
from gateway.log._redis_follower import Follower
from gateway.log._redis_scripts import entry_of_row
from gateway.log._redis_writer import index_keys
from gateway.redis_clients import RedisClients

logger = logging.getLogger(__name__)

_PAGE: Final = 200


async def build_index(clients: RedisClients, follower: Follower) -> None:
    """Raises OtherLogError and what the connection raises; begun anew it does it all again."""
    wanted = follower.wanted_index
    if follower.index == follower.built == wanted:
        return
    paths = orjson.loads(wanted)
    logger.info("the index of latest events is built anew for %s", ", ".join(paths) or "the type alone")
    try:
        (head,) = await scripts.INDEX.run(clients.writes, follower.epoch, wanted)
        for orders in (0, 1):
            await _build(clients, follower, ("type", *paths), head, orders)
        await scripts.BUILT.run(clients.writes, follower.epoch, wanted)
    except scripts.OtherIndexError:
        logger.warning(
            "another node builds the index of latest events for other paths: GATEWAY_INDEX differs"
        )
    await follower.look()


async def _build(
    clients: RedisClients, follower: Follower, paths: Sequence[str], head: int, orders: int
) -> None:
    after = 0
    while True:
        span = (follower.epoch, after, head, _PAGE, 0, orders, "", "none")
        (rows,) = await scripts.LATEST.run(clients.commands, *span)
        if not rows:
            return
        args: list[Any] = [follower.epoch, follower.wanted_index, orders]
        for entry in map(entry_of_row, rows):
            args += (entry.subject or "", entry.offset, orjson.dumps(index_keys(entry.body, paths)))
            after = entry.offset
        await scripts.REINDEX.run(clients.writes, *args)
