"""`/connections`: who is there, on whichever node, and the way to end one's stream. For operators."""

import heapq
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import orjson
from starlette.responses import Response

from gateway.access import absent
from gateway.connection import Connection, Subscription
from gateway.connections import retry_ms
from gateway.http import Call, JsonResponse
from gateway.node import Node
from gateway.peers import Answers, Json

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
MAX_NODE_BYTES: Final = 1 << 20  # of one node's part of a page; its first connection counts whatever its size
ENDED: Final = (4003, "ended by an operator")
_LIST: Final = "connections"
_END: Final = "end"


async def index(call: Call) -> Response:
    """The streams of all nodes by id. `missing` names the nodes that did not answer."""
    _authorize(call)
    limit, after = _page(call)
    answers = await call.node.peers.ask(_LIST, [limit, after])
    return JsonResponse(_joined(answers, limit), headers={"Cache-Control": "no-store"})


async def delete(call: Call) -> Response:
    """Ends a stream, for good: its client is told not to come back by itself."""
    _authorize(call)
    answers = await call.node.peers.ask(_END, call.param("connection_id"), enough=bool)
    if not any(answers.given):
        raise absent("there is no such connection", answers)
    return Response(status_code=204)


def _authorize(call: Call) -> None:
    if not call.node.settings.ops_port:
        call.principal.require_admin()


def _page(call: Call) -> tuple[int, str]:
    return call.limit(DEFAULT_LIMIT, MAX_LIMIT), call.request.query_params.get("after", "")


def _joined(answers: Answers, limit: int) -> Json:
    """One page of the nodes' parts: it ends before the first place that one of them has not told."""
    parts: list[Json] = [each for each in answers.given if each is not None]
    ends = [part["connections"][-1]["id"] for part in parts if part["more"]]
    found = heapq.merge(*(part["connections"] for part in parts), key=lambda each: str(each["id"]))
    told = [each for each in found if not ends or each["id"] <= min(ends)]
    page = told[:limit]
    more = bool(ends) or len(told) > limit
    return {
        "connections": page,
        "next": page[-1]["id"] if more else None,
        "missing": list(answers.missing),
    }


# What nodes answer


def serve_peers(node: Node) -> None:
    """From now on this node tells of its connections, and ends them."""

    def listed(payload: Json) -> Json:
        limit, after = payload
        return _listed(node, limit, after)

    def end(payload: Json) -> bool:
        connection = node.connections.get(payload)
        if connection is None:
            return False
        connection.end(*ENDED, retry_ms())
        return True

    node.peers.handle(_LIST, listed)
    node.peers.handle(_END, end)


def _listed(node: Node, limit: int, after: str) -> Json:
    """Up to `limit` connections after an id, and whether there are more."""
    ids = heapq.nsmallest(limit + 1, (each.id for each in node.connections if each.id > after))
    taken = list(_within(_described(node, ids[:limit])))
    return {"connections": taken, "more": len(taken) < len(ids)}


def _described(node: Node, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    for each in ids:
        connection = node.connections.get(each)
        if connection is not None:
            yield describe(node, connection)


def _within(described: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    left = MAX_NODE_BYTES
    for each in described:
        size = len(orjson.dumps(each))
        if size > left and left < MAX_NODE_BYTES:
            return
        left -= size
        yield each


def describe(node: Node, connection: Connection) -> dict[str, Any]:
    """One stream as operators see it: times in seconds, sizes in bytes, lags in events."""
    traffic = connection.socket.traffic
    head = node.hub.position
    return {
        "id": connection.id,
        "node": node.id,
        "transport": connection.wire.transport,
        "user": connection.principal.sub if connection.principal else None,
        "age": round(time.time() - connection.opened, 3),
        "subscriptions": [_subscription(each, head) for each in connection.subscriptions.values()],
        "lag": max(0, head - connection.position),
        "sent": traffic.sent,
        "buffered": traffic.buffered,
    }


def _subscription(subscription: Subscription, head: int) -> dict[str, Any]:
    channel = subscription.channel
    return {
        "sub": channel.sub,
        "filter": orjson.loads(channel.filter.canonical) if channel.filter else None,
        "deliver": "latest" if channel.latest else "all",
        "leave": channel.leave,
        "state": "live" if subscription.live else "behind",
        "lag": max(0, head - subscription.position),
    }
