"""Tokens, keys and clocks for the tests of who may do what."""

import base64
import hashlib
import hmac
import json
from collections.abc import Awaitable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
)

from gateway.auth import Authenticator, Principal, Request, Revocations, Tickets, Verifier
from gateway.errors import GatewayError

SECRET = "a secret of more than thirty-two bytes"
NOW = 1_800_000_000.0
ORDERS = {"prefix": {"type": "order."}}
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
ALGORITHMS: dict[type, str] = {
    rsa.RSAPrivateKey: "RS256",
    ec.EllipticCurvePrivateKey: "ES256",
    ed25519.Ed25519PrivateKey: "EdDSA",
}


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Once:
    """The log's `use_once`, in memory."""

    def __init__(self) -> None:
        self.used: dict[str, float] = {}

    async def __call__(self, token: str, seconds: float) -> bool:
        if token in self.used:
            return False
        self.used[token] = seconds
        return True


def pem(key: Any) -> str:
    raw: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return raw.decode()


def claims(**more: Any) -> dict[str, Any]:
    rights = {"publish": ["order.*"], "subscribe": [ORDERS]}
    return {"sub": "ann", "exp": NOW + 600, "iat": NOW, "gateway": rights, **more}


def token(*, key: Any = SECRET, algorithm: str = "HS256", headers: Any = None, **more: Any) -> str:
    return jwt.encode(claims(**more), key, algorithm, headers=headers)


def without(name: str, **more: Any) -> str:
    body = claims(**more)
    del body[name]
    return jwt.encode(body, SECRET, "HS256")


def segment(value: Any) -> bytes:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def forged(header: Any, body: Any, secret: bytes = SECRET.encode()) -> str:
    """A token put together by hand, HMAC over whatever it says."""
    signed = segment(header) + b"." + segment(body)
    return (signed + b"." + segment(hmac.digest(secret, signed, hashlib.sha256))).decode()


def verifier(clock: Clock | None = None, **keys: Any) -> Verifier:
    return Verifier(now=clock or Clock(), **(keys or {"secret": SECRET}))


async def code_of(work: Awaitable[Any]) -> str:
    with pytest.raises(GatewayError) as caught:
        await work
    return caught.value.code


class Gate:
    """An authenticator with its parts at hand."""

    def __init__(self, **keys: Any) -> None:
        self.clock = Clock()
        self.once = Once()
        self.revocations = Revocations()
        self.tickets = Tickets(b"s" * 32, self.clock)
        self.authenticator = Authenticator(
            verifier(self.clock, **keys), self.revocations, self.tickets, self.once
        )

    async def ask(self, **request: Any) -> Principal | None:
        headers = [(name.encode(), value.encode()) for name, value in request.pop("headers", {}).items()]
        return await self.authenticator.authenticate(Request(headers=headers, **request))

    async def principal(self, **more: Any) -> Principal:
        return await self.authenticator.bearer(token(**more))
