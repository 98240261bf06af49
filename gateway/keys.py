"""Keys that verify tokens: a shared secret, a public key, a JWK set behind a URL.

A key brings its one algorithm with it. What a token's header says only picks among the keys,
so `none` and a public key misused as a secret (RFC 8725, section 2.1) find no key at all.
"""

import asyncio
import http.client
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from gateway.errors import GatewayError

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

logger = logging.getLogger(__name__)

MIN_RSA_BITS: Final = 2048  # RFC 7518, section 3.3
MIN_SECRET_BYTES: Final = 32  # RFC 7518, section 3.2
JWKS_LIFESPAN: Final = 300.0  # seconds after which a key that was taken out of the set is known to be gone
JWKS_COOLDOWN: Final = 60.0  # seconds between two fetches, whatever tokens come and however they ended
JWKS_TIMEOUT: Final = 5.0  # seconds
# TypeError and AttributeError: PyJWT on members of a JWK that are not of the type they should be.
_FETCH_ERRORS: Final = (
    jwt.PyJWTError,
    http.client.HTTPException,
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    RecursionError,
)


@dataclass(frozen=True, slots=True)
class Key:
    """What verifies a signature, and the only algorithm that it verifies."""

    algorithm: str
    material: bytes | PublicKey


def secret_key(secret: str) -> Key:
    """The HS256 key of a secret. Raises ValueError for text that is a public key or a certificate."""
    raw = secret.encode()
    try:
        jwt.get_algorithm_by_name("HS256").prepare_key(raw)
    except jwt.InvalidKeyError as error:
        raise ValueError(str(error)) from None
    # HMAC fills a short key with zero bytes (RFC 2104, section 2), so this is the same key; that a
    # secret is short is said once, at the start.
    return Key("HS256", raw.ljust(MIN_SECRET_BYTES, b"\0"))


def public_key(pem: str) -> Key:
    """The key in a PEM public key: RSA, EC on P-256 or Ed25519. Raises ValueError for anything else."""
    if "PRIVATE KEY" in pem:
        raise ValueError("this is a private key: give the public one")
    try:
        material = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("this is no PEM public key") from None
    return _key_of(material)


def _key_of(material: Any) -> Key:
    if isinstance(material, RSAPublicKey):
        if material.key_size < MIN_RSA_BITS:
            raise ValueError(f"an RSA key has at least {MIN_RSA_BITS} bits")
        return Key("RS256", material)
    if isinstance(material, EllipticCurvePublicKey) and isinstance(material.curve, SECP256R1):
        return Key("ES256", material)
    if isinstance(material, Ed25519PublicKey):
        return Key("EdDSA", material)
    raise ValueError("the key must be RSA, EC on P-256 or Ed25519")


class Jwks:
    """The signing keys of a JWK set (RFC 7517), by their `kid`.

    Fetched in a thread when first needed, again every few minutes, and for an unknown `kid`, but
    never more than once in JWKS_COOLDOWN. Where a fetch fails the keys known so far go on serving.
    `clock` is monotonic, in seconds.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ValueError for a URL that is not http(s)."""
        try:
            self._client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=JWKS_TIMEOUT)
        except jwt.PyJWKClientError as error:
            raise ValueError(str(error)) from None
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._tried: float | None = None
        self._failed = False
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, kid: str) -> Key | None:
        """The key named `kid`. Raises GatewayError `unavailable` where the set could not be fetched."""
        if self._is_due(kid):
            self._tried = self._clock()
            self._fetching = asyncio.create_task(self._fetch())
        if kid not in self._keys and self._fetching is not None:
            # Shielded: a client that goes away must not take the fetch from the others who wait for it.
            await asyncio.shield(self._fetching)
        if kid not in self._keys and self._failed:
            raise GatewayError(
                "unavailable",
                "the keys that verify tokens cannot be fetched now",
                headers={"Retry-After": "5"},
            )
        return self._keys.get(kid)

    def _is_due(self, kid: str) -> bool:
        if self._tried is None:
            return True
        age = self._clock() - self._tried
        return age >= (JWKS_LIFESPAN if kid in self._keys else JWKS_COOLDOWN)

    async def _fetch(self) -> None:
        try:
            document = await asyncio.to_thread(self._client.fetch_data)
            keys = jwt.PyJWKSet.from_dict(document).keys
        except _FETCH_ERRORS as error:
            self._failed = True
            logger.warning("the JWK set cannot be fetched: %s", error)
        else:
            self._failed = False
            self._keys = _signing_keys(keys)
        finally:
            self._fetching = None


def _signing_keys(keys: Sequence[jwt.PyJWK]) -> dict[str, Key]:
    """The usable ones: with a `kid`, meant for signatures, public, and of an algorithm that is allowed."""
    usable = {}
    for each in keys:
        if not isinstance(each.key_id, str) or each.public_key_use not in ("sig", None):
            continue
        try:
            key = _key_of(each.key)
        except ValueError:
            continue
        if key.algorithm == each.algorithm_name:
            usable[each.key_id] = key
    return usable
