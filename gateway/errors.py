"""Every error the outside can see: its code, HTTP status and WebSocket close code.

One table and one exception. HTTP renders it as problem details (RFC 9457), WebSocket
as an `error` message or a close; both use the same `code`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    """What an error code means on each transport. `close` is 0 where the connection stays."""

    status: int
    title: str
    close: int = 0


KINDS: dict[str, Kind] = {
    "bad_json": Kind(400, "The body is not JSON"),
    "bad_request": Kind(400, "The request is not valid here"),
    "bad_message": Kind(400, "The message is no valid request", 4008),
    "bad_since": Kind(400, "The cursor is malformed"),
    "bad_idempotency_key": Kind(400, "The Idempotency-Key is malformed"),
    "unauthorized": Kind(401, "A valid token is required", 4001),
    "token_expired": Kind(401, "The token has expired", 4200),
    "forbidden": Kind(403, "This is not allowed", 4003),
    "not_found": Kind(404, "There is nothing here"),
    "method_not_allowed": Kind(405, "This method is not allowed here"),
    "not_acceptable": Kind(406, "No representation is acceptable"),
    "request_timeout": Kind(408, "The request came too slowly"),
    "conflict": Kind(409, "The request conflicts with the present state"),
    "request_in_progress": Kind(409, "A request with this key is still running"),
    "already_subscribed": Kind(409, "This connection has that subscription"),
    "precondition_failed": Kind(412, "The precondition does not hold"),
    "too_large": Kind(413, "The request is too large", 1009),
    "unsupported_media_type": Kind(415, "The content type is not supported"),
    "misdirected_request": Kind(421, "This host name is not served"),
    "invalid_event": Kind(422, "The event is not valid"),
    "invalid_request": Kind(422, "The request is readable but wrong"),
    "bad_filter": Kind(422, "The filter is not valid"),
    "idempotency_key_reused": Kind(422, "The Idempotency-Key was used with another request"),
    "rate_limited": Kind(429, "Too many requests", 4101),
    "headers_too_large": Kind(431, "The request's head is too large"),
    "internal": Kind(500, "The gateway failed", 1011),
    "draining": Kind(503, "The gateway is about to restart", 1012),
    "too_many_connections": Kind(503, "The limit of connections is reached", 4101),
    "unavailable": Kind(503, "The store is not available", 1012),
    "too_many_subscriptions": Kind(429, "The limit of subscriptions is reached"),
    "too_slow": Kind(503, "The client reads too slowly", 4100),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of an input: `pointer` is a JSON pointer (RFC 6901) as a URI fragment, `#/1/type`."""

    pointer: str
    detail: str


class GatewayError(Exception):
    """An error with a code of `KINDS`. `members` are extra members of the problem details."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[Problem] = (),
        members: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.kind = KINDS[code]
        self.status = status or self.kind.status
        self.detail = detail
        self.errors = tuple(errors)
        self.members = members or {}
        self.headers = headers or {}

    def problem(self, docs: str = "/docs") -> dict[str, Any]:
        """The problem details of RFC 9457, section 3, as a JSON object."""
        body: dict[str, Any] = {
            "type": f"{docs}#{self.code}",
            "title": self.kind.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            **self.members,
        }
        if self.errors:
            body["errors"] = [{"pointer": each.pointer, "detail": each.detail} for each in self.errors]
        return body


def invalid_token(reason: str, code: str = "unauthorized") -> GatewayError:
    """Credentials that are refused, with the challenge of RFC 6750, section 3. `code` is that of a 401."""
    return GatewayError(code, reason, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})


def located(error: GatewayError) -> str:
    """The error's text with the place of its first fault unless it begins with that: for who does not see `errors`."""
    place = error.errors[0].pointer if error.errors else "#"
    if place == "#" or error.detail.startswith(f"{place[2:]}: "):
        return error.detail
    return f"{error.detail} (at {place})"


def pointer(*segments: str | int) -> str:
    """A JSON pointer in URI fragment form (RFC 6901, section 6), without percent-encoding."""
    return "#" + "".join("/" + str(each).replace("~", "~0").replace("/", "~1") for each in segments)
