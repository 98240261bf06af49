"""Calls about access: tickets, revocations, and a newer token for a stream that cannot send one."""

import time
from typing import Any

from gateway.errors import GatewayError, Problem, pointer
from gateway.event import rfc3339
from gateway.http import Call
from gateway.idempotency import Perform, Slip, idempotent, json_reply
from gateway.jsontext import parse
from gateway.log import Reply, Revocation


def _members(call: Call, body: bytes, names: tuple[str, ...]) -> dict[str, str]:
    """The body as an object of strings with these names. An empty body is an empty object."""
    if body and call.media_type != "application/json":
        raise GatewayError("unsupported_media_type", "the content type must be application/json")
    value: Any = parse(body) if body else {}
    if type(value) is not dict:
        raise GatewayError(
            "invalid_request", "the body must be a JSON object", errors=[Problem("#", "no object")]
        )
    for name, member in value.items():
        if name not in names:
            raise _invalid(name, f"is unknown here: known are {', '.join(names)}")
        if type(member) is not str or not member:
            raise _invalid(name, "must be a non-empty string")
    return value


def _invalid(name: str, detail: str) -> GatewayError:
    return GatewayError("invalid_request", f"{name}: {detail}", errors=[Problem(pointer(name), detail)])


async def _prepare_ticket(call: Call, body: bytes) -> Perform:
    target = _members(call, body, ("for",)).get("for")

    async def perform(_slip: Slip) -> Reply:
        ticket, expires = call.node.tickets.issue(call.principal, target)
        return json_reply(
            201, {"ticket": ticket, "expires": rfc3339(expires)}, **{"Cache-Control": "no-store"}
        )

    return perform


async def _prepare_revocation(call: Call, body: bytes) -> Perform:
    call.principal.require_admin()
    members = _members(call, body, ("jti", "sub"))
    if len(members) != 1:
        raise GatewayError("invalid_request", 'the body names one of "jti" and "sub"')
    kind, value = next(iter(members.items()))
    revocation = Revocation(kind, value, time.time())

    async def perform(slip: Slip) -> Reply:
        node = call.node
        reply = json_reply(200, {"message": "Revoked", kind: value})
        await node.log.revoke(revocation, remember=slip.remember(reply))
        node.revocations.add(revocation)
        node.connections.revoke(node.revocations.revoked)
        return reply

    return perform


async def _prepare_renewal(call: Call, body: bytes) -> Perform:
    """The caller's token is the newer one; the stream must be the same user's."""
    _members(call, body, ())

    async def perform(_slip: Slip) -> Reply:
        connection = call.node.connections.get(call.param("connection_id"))
        if (
            connection is None
            or connection.principal is None
            or connection.principal.sub != call.principal.sub
        ):
            raise GatewayError("not_found", "you have no such connection")
        call.node.connections.identify(connection, call.principal)
        expires = call.principal.expires
        return json_reply(200, {"expires": None if expires is None else rfc3339(expires)})

    return perform


create_ticket = idempotent(_prepare_ticket)
create_revocation = idempotent(_prepare_revocation)
renew_token = idempotent(_prepare_renewal)
