"""The orders API: a small service on top of the log, whose state is the latest event of each order."""

import hashlib
from collections.abc import Sequence
from typing import Any

import orjson
from starlette.responses import Response

from gateway.errors import GatewayError, Problem, pointer
from gateway.event import Event, make_event
from gateway.filters import Filter, parse_filter
from gateway.http import Call, JsonResponse, limit_rate, list_header
from gateway.idempotency import Perform, Slip, idempotent, json_reply
from gateway.jsontext import parse
from gateway.log import ConflictError, Entry, Expect, Lookup, Reply

INGEST = "orders"
SOURCE = "/orders"
CREATED, UPDATED = "order.created", "order.updated"
_OWN_MEMBERS = ("orderId", "createdAt", "updatedAt", "previousStatus")
_MAX_STATUS = 100
_DEFAULT_LIMIT, _MAX_LIMIT = 100, 1000
_PAGE, _MAX_SCANNED = 500, 20_000  # latest events looked at in one read, and for one answer


def etag_of(body: dict[str, Any]) -> str:
    """Strong: another event, another tag."""
    identity = f"{body['source']} {body['id']}".encode()
    return f'"{hashlib.blake2b(identity, digest_size=8).hexdigest()}"'


def _invalid(*problems: tuple[str, str]) -> GatewayError:
    errors = [Problem(pointer(name) if name else "#", detail) for name, detail in problems]
    return GatewayError("invalid_request", f"{problems[0][0]}: {problems[0][1]}", errors=errors)


def _object(call: Call, body: bytes) -> dict[str, Any]:
    if call.media_type != "application/json":
        raise GatewayError("unsupported_media_type", "the content type must be application/json")
    value = parse(body)
    if type(value) is not dict:
        raise GatewayError(
            "invalid_request", "the body must be a JSON object", errors=[Problem("#", "no object")]
        )
    return value


def _status(value: Any) -> str:
    if type(value) is not str or not 0 < len(value) <= _MAX_STATUS:
        raise _invalid(("status", f"must be a string of 1 to {_MAX_STATUS} characters"))
    return value


def _event(call: Call, type_: str, order: dict[str, Any]) -> Event:
    value = {"source": SOURCE, "type": type_, "subject": order["orderId"], "data": order}
    intake = call.node.intake
    return make_event(value, intake.defaults, max_bytes=intake.sizes.event_bytes)


# A new order


async def _prepare_create(call: Call, body: bytes) -> Perform:
    await limit_rate(call)
    call.principal.require_publish(CREATED)
    given = _object(call, body)
    items = given.get("items")
    faults = [(name, "is the gateway's to set") for name in _OWN_MEMBERS if name in given]
    if type(items) is not list or not items:
        faults.append(("items", "must be a non-empty array"))
    if faults:
        raise _invalid(*faults)
    defaults = call.node.intake.defaults
    now = defaults.new_time()
    order = {
        **given,
        "orderId": defaults.new_id(),
        "status": _status(given.get("status", "created")),
        "createdAt": now,
        "updatedAt": now,
    }
    event = _event(call, CREATED, order)

    async def perform(slip: Slip) -> Reply:
        reply = json_reply(
            201,
            {"message": "Order created successfully", "orderId": order["orderId"]},
            Location=f"{call.node.settings.root_path}/orders/{order['orderId']}",
            ETag=etag_of(event.body),
        )
        await call.node.intake.append(INGEST, [event], remember=slip.remember(reply))
        return reply

    return perform


create = idempotent(_prepare_create)


# Changing one


async def _prepare_update(call: Call, body: bytes) -> Perform:
    await limit_rate(call)
    call.principal.require_publish(UPDATED)
    given = _object(call, body)
    unknown = [(name, "is unknown here") for name in given if name != "status"]
    if unknown:
        raise _invalid(*unknown)
    status = _status(given.get("status"))

    async def perform(slip: Slip) -> Reply:
        while True:
            try:
                return await _update(call, status, slip)
            except ConflictError:
                continue  # someone else changed the order in between: look again

    return perform


update = idempotent(_prepare_update)


async def _update(call: Call, status: str, slip: Slip) -> Reply:
    order_id = call.param("order_id")
    entry = await call.log.order(order_id)
    order = _order_of(entry)
    if entry is None or order is None:
        raise GatewayError("not_found", f"there is no order {order_id}")
    _check_match(call, etag_of(entry.body))
    message = {"message": "Order status updated", "orderId": order_id, "status": status}
    if order.get("status") == status:
        return json_reply(200, message, ETag=etag_of(entry.body))
    changed = {
        **order,
        "orderId": order_id,
        "status": status,
        "previousStatus": order.get("status"),
        "updatedAt": call.node.intake.defaults.new_time(),
    }
    event = _event(call, UPDATED, changed)
    reply = json_reply(200, message, ETag=etag_of(event.body))
    expect = Expect(order_id, entry.offset)
    await call.node.intake.append(INGEST, [event], expect=expect, remember=slip.remember(reply))
    return reply


def _check_match(call: Call, etag: str) -> None:
    """RFC 9110, section 13.1.1: strong comparison."""
    wanted = list_header(call.request, "if-match")
    if (
        wanted is not None
        and wanted.strip() != "*"
        and etag not in (each.strip() for each in wanted.split(","))
    ):
        raise GatewayError("precondition_failed", "the order has changed since", headers={"ETag": etag})


# Reading


async def show(call: Call) -> Response:
    entry = await call.log.order(call.param("order_id"))
    if call.principal.subscribe is None and not call.principal.open:
        raise GatewayError("forbidden", "the token may not see orders")
    order = _order_of(entry)
    if entry is None or order is None or not call.principal.may_see(entry.body):
        raise GatewayError("not_found", f"there is no order {call.param('order_id')}")
    etag = etag_of(entry.body)
    if _is_known(call, etag):
        return Response(status_code=304, headers={"ETag": etag})
    return JsonResponse(order, headers={"ETag": etag})


def _order_of(entry: Entry | None) -> dict[str, Any] | None:
    """The order that its latest event tells; None where that has no object as data, and so tells none."""
    order = entry.body.get("data") if entry is not None else None
    return order if type(order) is dict else None


def _is_known(call: Call, etag: str) -> bool:
    """RFC 9110, section 13.1.2: weak comparison; `*` is any state of what there is."""
    asked = list_header(call.request, "if-none-match") or ""
    return asked.strip() == "*" or etag in (each.strip().removeprefix("W/") for each in asked.split(","))


async def index(call: Call) -> Response:
    query = call.query("limit", "after", repeated=("status",))
    limit = call.limit(_DEFAULT_LIMIT, _MAX_LIMIT)
    filter_ = call.principal.restrict(_of_status(call))
    before = _after(call, query.get("after"))
    orders: list[Any] = []
    scanned = 0
    while len(orders) < limit and scanned < _MAX_SCANNED:
        page = await _newest(call, filter_, before)
        for entry in page:
            before = entry.offset - 1
            order = _order_of(entry)
            if order is not None and (filter_ is None or filter_.matches(entry.body)):
                # As text: an order may be nested as deeply as orjson writes, and stands deeper here.
                orders.append(orjson.Fragment(orjson.dumps(order)))
                if len(orders) == limit:
                    break
        scanned += len(page)
        if len(page) < _PAGE and len(orders) < limit:
            return JsonResponse({"orders": orders, "next": None})
    more = await _newest(call, filter_, before, limit=1)
    cursor = call.node.cursors.encode(call.log.epoch, before) if more else None
    return JsonResponse({"orders": orders, "next": cursor})


def _of_status(call: Call) -> Filter | None:
    """The orders that have any of the statuses that were named. Raises `bad_filter` for too many."""
    statuses = [each for each in call.request.query_params.getlist("status") if each]
    return parse_filter({"in": {"data.status": statuses}}) if statuses else None


async def _newest(call: Call, filter_: Filter | None, before: int, limit: int = _PAGE) -> Sequence[Entry]:
    return await call.log.latest(
        _lookup(call, filter_), after=0, upto=before, limit=limit, newest_first=True, orders=True
    )


def _lookup(call: Call, filter_: Filter | None) -> Lookup | None:
    usable = [each for each in (filter_.lookups() if filter_ else ()) if each[0] in call.node.streams.index]
    return min(usable, key=lambda each: (each[0] == "type", len(each[1])), default=None)


def _after(call: Call, text: str | None) -> int:
    if text is None:
        return call.node.hub.position
    try:
        place = call.node.cursors.decode(text)
    except ValueError as error:
        raise GatewayError("bad_request", f"after is the `next` of an earlier answer: {error}") from None
    if place.epoch != call.log.epoch:
        raise GatewayError("bad_request", "after is of an earlier log: begin again without it")
    return place.offset
