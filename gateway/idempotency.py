"""Idempotency-Key (draft-ietf-httpapi-idempotency-key-header): the same request again has the same answer.

A call is prepared (read, checked, authorised: no effect) and then performed; the answer is stored with the
effect. What the caller may do is so checked before any stored answer is given.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.responses import Response

from gateway.errors import GatewayError
from gateway.http import JSON, PROBLEM, Call, Handler
from gateway.log import KeyTakenError, Remember, Remembered, Reply
from gateway.node import Node
from gateway.principal import caller_key

_KEY = re.compile(
    r'"(?P<quoted>(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])+)"|(?P<bare>[\x21\x23-\x7e]+)', re.ASCII
)
_ESCAPED = re.compile(r"\\(.)")
_MAX_KEY = 255
_NOT_STORED = frozenset({401, 403, 408, 429})


class Slip:
    """Hands an answer to the log, so that it is stored in the effect's transaction."""

    def __init__(self, key: str | None, digest: bytes) -> None:
        self._key = key
        self._digest = digest
        self.used = False

    @property
    def wanted(self) -> bool:
        """Whether the answer will be stored."""
        return self._key is not None

    def remember(self, reply: Reply) -> Remember | None:
        """What to append with; None where the request has no key."""
        if self._key is None:
            return None
        self.used = True
        return Remember(self._key, self._digest, reply)


Perform = Callable[[Slip], Awaitable[Reply]]


Prepare = Callable[[Call, bytes], Awaitable[Perform]]


def json_reply(status: int, content: dict[str, Any], **headers: str) -> Reply:
    return Reply(status, {"Content-Type": JSON, **headers}, orjson.dumps(content))


def idempotent(prepare: Prepare) -> Handler:
    """The handler of a POST or PATCH: `prepare` gets the body and returns what performs the call."""

    async def handle(call: Call) -> Response:
        key = _storage_key(call)
        if key is None:
            perform = await prepare(call, await call.body())
            return respond(call.node, await perform(Slip(None, b"")))
        running = call.node.idempotent_keys
        if key in running:
            raise GatewayError(
                "request_in_progress", "a request with this key is running", headers={"Retry-After": "1"}
            )
        running.add(key)
        try:
            return await _handle_once(call, key, prepare)
        finally:
            running.discard(key)

    return handle


async def _handle_once(call: Call, key: str, prepare: Prepare) -> Response:
    # A body beyond the limit is never read whole, so that nothing tells whether the next one has the same bytes:
    # that 413 leaves here and is not stored.
    body = await call.raw_body()
    digest = _digest(call, body)
    slip = Slip(key, digest)
    try:
        call.refuse_compressed()
        perform = await prepare(call, body)
    except GatewayError as error:
        if error.status in _NOT_STORED or error.status >= 500:
            raise
        perform = _failing(error)
    stored = await call.log.recall(key)
    if stored is None:
        try:
            return respond(call.node, await _perform(call, slip, perform))
        except KeyTakenError:  # on another node, since we looked
            stored = await call.log.recall(key)
    if stored is None:
        raise GatewayError("request_in_progress", "the key is in use", headers={"Retry-After": "1"})
    return _again(call.node, stored, digest)


def _digest(call: Call, body: bytes) -> bytes:
    """Of all that makes the request: its body, the headers that say what the body is, and its query."""
    headers = [
        (name, value)
        for name, value in call.request.headers.items()
        if name in ("content-type", "content-encoding") or name[:3] == "ce-"
    ]
    if query := call.request.url.query:
        headers.append(("?", query))
    return hashlib.sha256(orjson.dumps(sorted(headers)) + b"\0" + body).digest()


def _failing(error: GatewayError) -> Perform:
    async def fail(_slip: Slip) -> Reply:
        raise error

    return fail


async def _perform(call: Call, slip: Slip, perform: Perform) -> Reply:
    try:
        reply = await perform(slip)
    except GatewayError as error:
        if error.status in _NOT_STORED or error.status >= 500:
            raise
        reply = _problem_reply(call, error)
        slip.used = False
    if not slip.used:
        remember = slip.remember(reply)
        assert remember is not None
        await call.log.remember(remember)
    return reply


def _problem_reply(call: Call, error: GatewayError) -> Reply:
    body = orjson.dumps(error.problem(f"{call.node.settings.root_path}/docs"))
    return Reply(error.status, {"Content-Type": PROBLEM, **error.headers}, body)


def _again(node: Node, stored: Remembered, digest: bytes) -> Response:
    if stored.digest != digest:
        raise GatewayError("idempotency_key_reused", "this Idempotency-Key came with another request")
    response = respond(node, stored.reply)
    response.headers["Idempotent-Replayed"] = "true"
    return response


def respond(node: Node, reply: Reply) -> Response:
    """The HTTP answer. What an append did stands before the reply's own members."""
    body = reply.body
    if reply.appended is not None:
        done = reply.appended
        told: dict[str, Any] = {
            "accepted": done.accepted,
            "duplicates": done.duplicates,
            "cursor": node.cursors.encode(node.log.epoch, done.offset),
        }
        body = orjson.dumps(told)[:-1] + (b"," + body[1:] if len(body) > 2 else b"}")
    return Response(body, reply.status, reply.headers)


def _storage_key(call: Call) -> str | None:
    """The key with all it belongs to, hashed; None without the header. Raises `bad_idempotency_key`."""
    if b"idempotency-key" not in call.headers:
        return None
    values = call.request.headers.getlist("idempotency-key")
    if len(values) > 1:
        raise GatewayError("bad_idempotency_key", "Idempotency-Key was sent twice")
    match = _KEY.fullmatch(values[0].strip())
    key = (match["bare"] or _ESCAPED.sub(r"\1", match["quoted"])) if match else ""
    if not key or len(key) > _MAX_KEY:
        raise GatewayError(
            "bad_idempotency_key",
            f"Idempotency-Key has 1 to {_MAX_KEY} visible ASCII characters, quoted or not",
        )
    parts = (caller_key(call.principal), call.request.method, call.request.url.path, key)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
