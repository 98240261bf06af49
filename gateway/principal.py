"""Principal: what a verified token's claims say about its bearer. No claim, no right.

Made from claims whose signature holds; shapes are checked here, keys and clocks elsewhere.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.errors import GatewayError
from gateway.filters import Filter, all_of, any_of, parse_filter

_MAX_TIME: Final = 253_402_300_799.0  # the last second of the year 9999, beyond which nobody can write it
_PATTERN = re.compile(r"\*|[^*]+\*?")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, and what they may do. Times are seconds since 1970.

    `publish` holds event types, a trailing `*` meaning a prefix; `subscribe` is what may be seen, None
    for nothing. `open` is the principal of a gateway without keys, who may do everything. `claims` are
    those that a ticket hands on.
    """

    sub: str | None = None
    jti: str | None = None
    issued: float | None = None
    expires: float | None = None
    publish: tuple[str, ...] = ()
    subscribe: Filter | None = None
    admin: bool = False
    open: bool = False
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def may_publish(self, event_type: str) -> bool:
        return self.open or any(_matches(pattern, event_type) for pattern in self.publish)

    def restrict(self, wanted: Filter | None) -> Filter | None:
        """The filter that holds where both `wanted` (None: everything) and the token's filters hold.

        Raises GatewayError `forbidden` where the token may see nothing.
        """
        if self.open:
            return wanted
        if self.subscribe is None:
            raise GatewayError("forbidden", "the token may not subscribe")
        return all_of([self.subscribe, wanted])

    def may_see(self, body: dict[str, Any]) -> bool:
        """Whether an event's JSON object is one that the token's filters let through."""
        return self.open or (self.subscribe is not None and self.subscribe.matches(body))

    def require_admin(self) -> None:
        """Raises GatewayError `forbidden`."""
        if not (self.open or self.admin):
            raise GatewayError("forbidden", "this call needs an admin token")

    def require_publish(self, event_type: str) -> None:
        """Raises GatewayError `forbidden`."""
        if not self.may_publish(event_type):
            raise GatewayError("forbidden", f"the token may not publish events of type {event_type!r}")


OPEN: Final = Principal(admin=True, open=True)


def caller_key(principal: Principal) -> str:
    """What limits and idempotency keys count by: the token's user, "" for those without one."""
    return principal.sub or ""


def _matches(pattern: str, event_type: str) -> bool:
    return event_type.startswith(pattern[:-1]) if pattern.endswith("*") else event_type == pattern


def principal_of(claims: dict[str, Any]) -> Principal:
    """The principal that these claims describe. Raises ValueError naming the claim that is malformed."""
    rights = claims.get("gateway", {})
    if type(rights) is not dict:
        raise ValueError("the claim gateway must be an object")
    expires = time_claim(claims, "exp")
    if expires is None:
        raise ValueError("the claim exp is required")
    admin = rights.get("admin", False)
    if type(admin) is not bool:
        raise ValueError("the claim gateway.admin must be true or false")
    return Principal(
        sub=_text_claim(claims, "sub"),
        jti=_text_claim(claims, "jti"),
        issued=time_claim(claims, "iat"),
        expires=expires,
        publish=_publish_claim(rights),
        subscribe=_subscribe_claim(rights),
        admin=admin,
        claims={name: claims[name] for name in ("sub", "jti", "iat", "exp", "gateway") if name in claims},
    )


def time_claim(claims: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519, section 2): seconds since 1970. Raises ValueError."""
    if name not in claims:
        return None
    value = claims[name]
    if type(value) not in (int, float) or not 0 <= value <= _MAX_TIME:  # which NaN and infinity are not
        raise ValueError(f"the claim {name} must be a time in seconds since 1970")
    return float(value)


def _text_claim(claims: Mapping[str, Any], name: str) -> str | None:
    if name not in claims:
        return None
    value = claims[name]
    if not isinstance(value, str) or not value or _CONTROLS.search(value):
        raise ValueError(f"the claim {name} must be a non-empty string of printable characters")
    return value


def _list_claim(rights: dict[str, Any], name: str) -> list[Any]:
    value = rights.get(name, [])
    if type(value) is not list:
        raise ValueError(f"the claim gateway.{name} must be a list")
    return value


def _publish_claim(rights: dict[str, Any]) -> tuple[str, ...]:
    patterns = _list_claim(rights, "publish")
    if not all(isinstance(each, str) and _PATTERN.fullmatch(each) for each in patterns):
        raise ValueError("the claim gateway.publish must list event types, each with at most a trailing *")
    return tuple(patterns)


def _subscribe_claim(rights: dict[str, Any]) -> Filter | None:
    filters = []
    for index, value in enumerate(_list_claim(rights, "subscribe")):
        try:
            filters.append(parse_filter(value))
        except GatewayError as error:
            raise ValueError(f"the claim gateway.subscribe/{index} is no filter: {error.detail}") from None
    return any_of(filters) if filters else None
