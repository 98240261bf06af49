"""Who calls: from the credentials of a request to a principal.

Plain values in, a Principal or a GatewayError out: nothing here knows HTTP's objects. What a principal
may do is `principal.py`, which keys verify a token `keys.py`, tickets are `tickets.py`.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt

from gateway.errors import GatewayError, invalid_token
from gateway.keys import Jwks, Key, public_key, secret_key
from gateway.log import Revocation
from gateway.principal import OPEN, Principal, caller_key, principal_of, time_claim
from gateway.tickets import TICKET_TYPE, Tickets, ticket_of

__all__ = [
    "OPEN",
    "Authenticator",
    "Principal",
    "Revocations",
    "Tickets",
    "Verifier",
    "caller_key",
    "unauthenticated",
]

MAX_TOKEN_BYTES: Final = 8192
IAT_LEEWAY: Final = 30.0  # seconds that an issuer's clock may be ahead of ours
CACHED_TOKENS: Final = 4096
CACHE_SECONDS: Final = 300.0  # how long a key that left the JWK set may go on opening doors
COOKIE: Final = "gateway_token"
_SUBPROTOCOL: Final = "bearer."

Headers = Sequence[tuple[bytes, bytes]]
UseOnce = Callable[[str, float], Awaitable[bool]]


def unauthenticated() -> GatewayError:
    """The answer to a request without credentials (RFC 6750, section 3)."""
    return GatewayError(
        "unauthorized", "no token came with the request", headers={"WWW-Authenticate": "Bearer"}
    )


class Verifier:
    """Verifies bearer tokens: JWTs (RFC 7519) signed by one of the keys it was made with.

    A token's `aud` is not checked: the claim `gateway`, without which a token has no right, says
    already whom it is meant for.
    """

    def __init__(
        self,
        *,
        secret: str | None = None,
        public_key_pem: str | None = None,
        jwks_url: str | None = None,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`now` is the wall clock, `clock` a monotonic one, both in seconds.

        Raises ValueError for a secret, a key or a URL that cannot be used.
        """
        self._secret = secret_key(secret) if secret else None
        self._public = public_key(public_key_pem) if public_key_pem else None
        self._jwks = Jwks(jwks_url, clock) if jwks_url else None
        self._now = now
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()

    async def verify(self, token: str) -> Principal:
        """The bearer of a token.

        Raises GatewayError `unauthorized`, `token_expired`, or `unavailable` where no key can be fetched.
        """
        if len(token) > MAX_TOKEN_BYTES or not token.isascii():
            raise invalid_token(f"a token is ASCII of at most {MAX_TOKEN_BYTES} bytes")
        digest = hashlib.sha256(token.encode()).digest()
        principal = self._recall(digest)
        if principal is None:
            principal = self._check(await self._claims(token))
            self._keep(digest, principal)
        if principal.expires is not None and principal.expires <= self._now():
            raise invalid_token("the token has expired", "token_expired")
        return principal

    async def _claims(self, token: str) -> dict[str, Any]:
        """The claims of a token whose signature holds."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            raise invalid_token("the token is no JWT") from None
        if header.get("typ") == TICKET_TYPE:
            raise invalid_token("a ticket is no bearer token")
        for key in await self._candidates(header):
            try:
                return _decode(token, key)
            except jwt.InvalidSignatureError:
                continue
            except jwt.PyJWTError as error:
                raise invalid_token(f"the token is malformed: {error}") from None
        raise invalid_token("no key of the gateway verifies the token")

    async def _candidates(self, header: Mapping[str, Any]) -> list[Key]:
        """The keys whose own algorithm is the header's; those of the JWK set by the header's `kid`."""
        keys = [each for each in (self._secret, self._public) if each and each.algorithm == header.get("alg")]
        kid = header.get("kid")
        if not keys and self._jwks is not None and isinstance(kid, str):
            found = await self._jwks.key(kid)
            if found is not None and found.algorithm == header.get("alg"):
                keys.append(found)
        return keys

    def _check(self, claims: dict[str, Any]) -> Principal:
        try:
            principal = principal_of(claims)
            not_before = time_claim(claims, "nbf")
        except ValueError as error:
            raise invalid_token(str(error)) from None
        now = self._now()
        if not_before is not None and not_before > now:
            raise invalid_token("the token is not valid yet (nbf)")
        if principal.issued is not None and principal.issued > now + IAT_LEEWAY:
            raise invalid_token("the token was issued in the future (iat)")
        return principal

    def _recall(self, digest: bytes) -> Principal | None:
        known = self._verified.get(digest)
        if known is None or known.until <= self._now():
            return None
        self._verified.move_to_end(digest)
        return known.principal

    def _keep(self, digest: bytes, principal: Principal) -> None:
        self._verified[digest] = _Verified(principal, self._now() + CACHE_SECONDS)
        self._verified.move_to_end(digest)
        if len(self._verified) > CACHED_TOKENS:
            self._verified.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Verified:
    principal: Principal
    until: float


def _decode(token: str, key: Key) -> dict[str, Any]:
    # Only the signature is PyJWT's: it reads the claims' times from the system's clock.
    return jwt.decode(
        token,
        key.material,
        algorithms=[key.algorithm],
        options={
            "verify_exp": False,
            "verify_nbf": False,
            "verify_iat": False,
            "verify_aud": False,
            "verify_sub": False,
            "verify_jti": False,
        },
    )


class Revocations:
    """The log's revocations, in memory."""

    def __init__(self, revocations: Sequence[Revocation] = ()) -> None:
        self._tokens: set[str] = set()
        self._users: dict[str, float] = {}
        for each in revocations:
            self.add(each)

    def add(self, revocation: Revocation) -> bool:
        """Whether it says something new."""
        if revocation.kind == "jti":
            new = revocation.value not in self._tokens
            self._tokens.add(revocation.value)
        else:
            new = revocation.at > self._users.get(revocation.value, 0.0)
            if new:
                self._users[revocation.value] = revocation.at
        return new

    def revoked(self, principal: Principal) -> bool:
        """Whether the principal's token is void. One without `iat` cannot show that it is newer."""
        if principal.jti is not None and principal.jti in self._tokens:
            return True
        at = self._users.get(principal.sub) if principal.sub is not None else None
        return at is not None and (principal.issued is None or principal.issued <= at)


@dataclass(frozen=True, slots=True)
class Request:
    """What of a request matters here.

    `path` is without the root path, `query` as it was sent. `origin_allowed` is about the Origin
    header that came; it says nothing where none did.
    """

    headers: Headers
    path: str = "/"
    query: str = ""
    method: str = "GET"
    subprotocols: Sequence[str] = ()
    origin_allowed: bool = False

    def header(self, name: bytes) -> str | None:
        """The first header of that (lower case) name."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), None)


class Authenticator:
    """The credentials of a request, in this order: Authorization, ticket, subprotocol, cookie.

    Without a verifier the gateway is open: everyone is OPEN.
    """

    def __init__(
        self, verifier: Verifier | None, revocations: Revocations, tickets: Tickets, use_once: UseOnce
    ) -> None:
        """`use_once(id, seconds)` is the log's: true for the first call with an id."""
        self._verifier = verifier
        self._revocations = revocations
        self._tickets = tickets
        self._use_once = use_once

    async def authenticate(self, request: Request) -> Principal | None:
        """Who sends this request; None where no credentials came.

        Raises GatewayError `unauthorized`, `token_expired`, `forbidden` (a cookie from a foreign page)
        or `unavailable`.
        """
        if self._verifier is None:
            return OPEN
        token = _authorization(request)
        if token is not None:
            return await self.bearer(token)
        ticket = ticket_of(request.query)
        if ticket is not None:
            return await self._open_ticket(ticket, request)
        token = _subprotocol(request) or _cookie(request)
        return None if token is None else await self.bearer(token)

    async def bearer(self, token: str) -> Principal:
        """Who bears this token. Raises GatewayError `unauthorized`, `token_expired` or `unavailable`."""
        if self._verifier is None:
            return OPEN
        return self._unrevoked(await self._verifier.verify(token))

    async def _open_ticket(self, ticket: str, request: Request) -> Principal:
        # A ticket stands in a URL, which leaks more easily than a header: it opens streams and changes nothing.
        if request.method not in ("GET", "HEAD"):
            raise invalid_token("a ticket opens streams only: send the token for this call")
        principal = await self._tickets.open(ticket, request.path, request.query, self._use_once)
        return self._unrevoked(principal)

    def _unrevoked(self, principal: Principal) -> Principal:
        if self._revocations.revoked(principal):
            raise invalid_token("the token was revoked")
        return principal


def _authorization(request: Request) -> str | None:
    scheme, _, token = (request.header(b"authorization") or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _subprotocol(request: Request) -> str | None:
    offered = (each for each in request.subprotocols if each.startswith(_SUBPROTOCOL))
    return next((each.removeprefix(_SUBPROTOCOL) for each in offered), None)


def _cookie(request: Request) -> str | None:
    """The cookie's token. Raises GatewayError `forbidden` where a foreign page may have sent it."""
    token = _cookie_value(request)
    if token is not None and not _is_own_page(request):
        raise GatewayError("forbidden", "a cookie counts only from an allowed Origin")
    return token


def _cookie_value(request: Request) -> str | None:
    for key, value in request.headers:
        if key == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                name, _, token = pair.strip().partition("=")
                if name == COOKIE:
                    return token.strip('"')
    return None


def _is_own_page(request: Request) -> bool:
    if request.header(b"origin") is not None:
        return request.origin_allowed
    # A page's requests to its own origin carry no Origin where they only read (Fetch, section 3.2).
    return request.method in ("GET", "HEAD") and request.header(b"sec-fetch-site") == "same-origin"
