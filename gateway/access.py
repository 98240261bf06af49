"""Calls about access: tickets, revocations, and a newer token for a stream that cannot send one."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from typing import Any, Final

from gateway.errors import GatewayError, Problem, pointer
from gateway.event import rfc3339
from gateway.http import Call, unavailable
from gateway.idempotency import Perform, Slip, idempotent, json_reply
from gateway.jsontext import parse
from gateway.log import LogUnavailableError, Reply, Revocation
from gateway.node import Node
from gateway.peers import Answers, Json
from gateway.principal import OPEN, principal_of

logger = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 30.0
_AGAIN_SECONDS: Final = 1.0
_REVOKE: Final = "revoke"
_RENEW: Final = "renew"


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
            known = f"known are {', '.join(names)}" if names else "this call takes no members"
            raise _invalid(name, f"is unknown here: {known}")
        if type(member) is not str or not member:
            raise _invalid(name, "must be a non-empty string")
    return value


def _invalid(name: str, detail: str) -> GatewayError:
    return GatewayError("invalid_request", f"{name}: {detail}", errors=[Problem(pointer(name), detail)])


async def _prepare_ticket(call: Call, body: bytes) -> Perform:
    target = _members(call, body, ("for",)).get("for")
    if target is not None:
        target = _without_prefix(target, call.node.settings.root_path)

    async def perform(_slip: Slip) -> Reply:
        ticket, expires = call.node.tickets.issue(call.principal, target)
        return json_reply(
            201, {"ticket": ticket, "expires": rfc3339(expires)}, **{"Cache-Control": "no-store"}
        )

    return perform


def _without_prefix(target: str, root_path: str) -> str:
    """The stream as the gateway sees it: a browser's URL of it begins with a proxy's prefix."""
    return target.removeprefix(root_path) if target.startswith(f"{root_path}/") else target


async def _prepare_revocation(call: Call, body: bytes) -> Perform:
    call.principal.require_admin()
    members = _members(call, body, ("jti", "sub"))
    if len(members) != 1:
        detail = 'the body names one of "jti" and "sub"'
        raise GatewayError("invalid_request", detail, errors=[Problem("#", detail)])
    kind, value = next(iter(members.items()))
    revocation = Revocation(kind, value, time.time())

    async def perform(slip: Slip) -> Reply:
        node = call.node
        reply = json_reply(200, {"message": "Revoked", kind: value})
        await node.log.revoke(revocation, remember=slip.remember(reply))
        await node.peers.tell(_REVOKE, [kind, value, revocation.at])
        return reply

    return perform


async def _prepare_renewal(call: Call, body: bytes) -> Perform:
    """The caller's token is the newer one; the stream must be the same user's, on whichever node it is."""
    _members(call, body, ())

    async def perform(_slip: Slip) -> Reply:
        claims = None if call.principal.open else dict(call.principal.claims)
        question = [call.param("connection_id"), claims]
        answers = await call.node.peers.ask(_RENEW, question, enough=bool)
        outcome = next(filter(None, answers.given), None)
        if outcome is None:
            raise absent("you have no such connection", answers)
        if outcome["code"] is not None:
            raise GatewayError(outcome["code"], outcome["detail"])
        expires = call.principal.expires
        return json_reply(200, {"expires": None if expires is None else rfc3339(expires)})

    return perform


def absent(detail: str, answers: Answers) -> GatewayError:
    """The error where no node has what was asked for: nobody knows where one of them did not answer."""
    if answers.missing:
        return unavailable(f"no answer came from {', '.join(answers.missing)}")
    return GatewayError("not_found", detail)


# What other nodes say


def serve_peers(node: Node) -> None:
    """From now on this node does what the others say about access."""

    def revoke(payload: Json) -> None:
        kind, value, at = payload
        learn(node, [Revocation(kind, value, at)])

    def renew(payload: Json) -> Json:
        connection_id, claims = payload
        return _renew(node, connection_id, claims)

    node.peers.handle(_REVOKE, revoke)
    node.peers.handle(_RENEW, renew)


def learn(node: Node, revocations: Iterable[Revocation]) -> None:
    """Takes in revocations, whether they are known or not, and ends the streams that they concern."""
    news = [each for each in revocations if node.revocations.add(each)]
    if news:
        node.connections.revoke(node.revocations.revoked)


async def follow_revocations(node: Node, missed: asyncio.Event) -> None:
    """Reads the log's revocations anew every REFRESH_SECONDS, and at once when `missed` is set; until cancelled.

    So none is missed for long, whatever happens to what the other nodes tell.
    """
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REFRESH_SECONDS):
                await missed.wait()
        missed.clear()
        try:
            learn(node, await node.log.revocations())
        except LogUnavailableError as error:
            logger.info("the revocations could not be read: %s", error)
            await asyncio.sleep(_AGAIN_SECONDS)
            missed.set()


def _renew(node: Node, connection_id: str, claims: dict[str, Any] | None) -> Json:
    """None where this node has no such stream of that user; else the code and detail of the error, if there is one.

    The claims are those of a token that another node has verified.
    """
    connection = node.connections.get(connection_id)
    if connection is None or connection.principal is None:
        return None
    principal = OPEN if claims is None else principal_of(claims)
    if connection.principal.sub != principal.sub:
        return None
    try:
        node.connections.renew(connection, principal)
    except GatewayError as error:
        return {"code": error.code, "detail": error.detail}
    return {"code": None, "detail": None}


create_ticket = idempotent(_prepare_ticket)
create_revocation = idempotent(_prepare_revocation)
renew_token = idempotent(_prepare_renewal)
