"""Tickets: credentials for a URL, for where a browser cannot send a header.

A ticket is a JWT signed with a key of the log's, of a type of its own: it is never taken for
a bearer token, nor a bearer token for it. It carries its token's claims, so that what the token may do,
its expiry and its revocation hold for the ticket too.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import urlsplit

import jwt

from gateway.errors import GatewayError, Problem, invalid_token, pointer
from gateway.principal import Principal, principal_of

TICKET_TYPE: Final = "gateway-ticket+jwt"
SINGLE_USE_SECONDS: Final = 30.0
STREAM_PATH: Final = "/events"
MAX_TICKET_BYTES: Final = 12_288  # the claims of a token, which has at most 8 KiB, and a little more
_PARAMETER: Final = "ticket="


class Tickets:
    """Issues and opens tickets. `secret` is the log's: a ticket opens on every node."""

    def __init__(self, secret: bytes, now: Callable[[], float] = time.time) -> None:
        """`now` in seconds since 1970."""
        self._key = hmac.digest(secret, b"gateway ticket", "sha256")
        self._now = now

    def issue(self, principal: Principal, target: str | None = None) -> tuple[str, float]:
        """A ticket, and when it expires (seconds since 1970).

        Without `target` it opens once; with one (`/events?type=order.*`) it opens just this path and
        query, as often as it is asked to, as long as the token lives.

        Raises GatewayError `invalid_request` for a target that is no stream of the gateway's.
        """
        soon = self._now() + SINGLE_USE_SECONDS
        lives = soon if principal.expires is None else principal.expires
        expires = min(soon, lives) if target is None else lives
        claims: dict[str, Any] = {
            "token": dict(principal.claims),
            "exp": expires,
            "id": secrets.token_urlsafe(16),
        }
        if target is not None:
            claims["for"] = _fingerprint(_checked(target))
        ticket = jwt.encode(claims, self._key, "HS256", headers={"typ": TICKET_TYPE})
        if len(ticket) > MAX_TICKET_BYTES:
            raise GatewayError("invalid_request", "the token is too large for a ticket")
        return ticket, expires

    async def open(
        self, ticket: str, path: str, query: str, use_once: Callable[[str, float], Awaitable[bool]]
    ) -> Principal:
        """The bearer of the token that the ticket was made with.

        `query` is as it was sent, `use_once(id, seconds)` true for the first call with an id.

        Raises GatewayError `unauthorized`, or `token_expired` for a ticket that lived as long as its token.
        """
        claims = self._decode(ticket)
        now = self._now()
        bound = claims.get("for")
        if claims["exp"] <= now:
            raise invalid_token(
                "the ticket has expired", "unauthorized" if bound is None else "token_expired"
            )
        if bound is None:
            # Remembered a little longer than it lives: no clock decides between the two.
            if not await use_once("ticket:" + claims["id"], claims["exp"] - now + 1):
                raise invalid_token("the ticket was used already")
        elif not hmac.compare_digest(bound, _fingerprint(_joined(path, without_ticket(query)))):
            raise invalid_token("the ticket opens another path and query")
        try:
            return principal_of(claims["token"])
        except ValueError as error:  # a ticket for a gateway that was open then
            raise invalid_token(f"the ticket was made without a token: {error}") from None

    def _decode(self, ticket: str) -> dict[str, Any]:
        if len(ticket) > MAX_TICKET_BYTES or not ticket.isascii():
            raise invalid_token("this is no ticket")
        try:
            # The times are checked by the caller, on its own clock.
            decoded = jwt.decode_complete(
                ticket, self._key, algorithms=["HS256"], options={"verify_exp": False}
            )
        except jwt.PyJWTError:
            raise invalid_token("this is no ticket") from None
        if decoded["header"].get("typ") != TICKET_TYPE:
            raise invalid_token("this is no ticket")
        claims: dict[str, Any] = decoded["payload"]
        return claims


def ticket_of(query: str) -> str | None:
    """The ticket in a query string, as it was sent."""
    return next(
        (each.removeprefix(_PARAMETER) for each in query.split("&") if each.startswith(_PARAMETER)), None
    )


def without_ticket(query: str) -> str:
    """The query without its ticket, wherever that stands, and otherwise character for character."""
    return "&".join(each for each in query.split("&") if not each.startswith(_PARAMETER))


def _checked(target: str) -> str:
    # urlsplit drops tabs and newlines without a word, so whatever is not printable ASCII goes first.
    if not target.isascii() or not target.isprintable() or " " in target:
        raise _invalid("must be a path and query as a browser sends them, percent-encoded")
    parts = urlsplit(target)
    if parts.scheme or parts.netloc or parts.fragment or parts.path != STREAM_PATH:
        raise _invalid(f"must be {STREAM_PATH}, with the query of the stream")
    if ticket_of(parts.query) is not None:
        raise _invalid("must come without a ticket")
    return _joined(parts.path, parts.query)


def _joined(path: str, query: str) -> str:
    return f"{path}?{query}"


def _fingerprint(target: str) -> str:
    # A digest, so that a ticket stays short enough for a URL whatever the query is.
    return hashlib.sha256(target.encode()).hexdigest()


def _invalid(reason: str) -> GatewayError:
    return GatewayError("invalid_request", f"for: {reason}", errors=[Problem(pointer("for"), reason)])
