"""Tokens for tests that run a whole gateway: signed with one secret, valid now."""

import time
from typing import Any, Final

import jwt

SECRET: Final = "a secret that is known to the tests alone"
EVERYTHING: Final[dict[str, Any]] = {"exists": {"type": True}}


def make_token(
    *,
    sub: str | None = "ann",
    lives: float = 600.0,
    subscribe: tuple[dict[str, Any], ...] = (),
    publish: tuple[str, ...] = (),
    admin: bool = False,
    secret: str = SECRET,
    **claims: Any,
) -> str:
    """A bearer token. `lives` in seconds; `claims` are further ones, such as `jti`."""
    now = time.time()
    rights = {"subscribe": list(subscribe), "publish": list(publish), "admin": admin}
    named = {} if sub is None else {"sub": sub}
    body = {**named, "iat": now, "exp": now + lives, "gateway": rights, **claims}
    return jwt.encode(body, secret, "HS256")


def may_see(customer: str) -> dict[str, Any]:
    """The filter of a token that sees one customer's events."""
    return {"exact": {"data.customerId": customer}}


def admin_token(**more: Any) -> str:
    """One that may do everything."""
    return make_token(sub="root", subscribe=(EVERYTHING,), publish=("*",), admin=True, **more)


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


def reader(**more: Any) -> str:
    """A token that sees everything and may do nothing."""
    return make_token(subscribe=(EVERYTHING,), **more)
