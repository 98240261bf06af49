"""Which key verifies which token, with real keys and a real JWKS server."""

import asyncio
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from gateway.auth import Verifier
from tests.tokens import (
    ALGORITHMS,
    EC_KEY,
    ED_KEY,
    NOW,
    RSA_KEY,
    SECRET,
    Clock,
    claims,
    code_of,
    forged,
    pem,
    segment,
    token,
    verifier,
)


@pytest.mark.parametrize(("key", "algorithm"), [(RSA_KEY, "RS256"), (EC_KEY, "ES256"), (ED_KEY, "EdDSA")])
async def test_a_public_key_verifies_its_own_algorithm(key: Any, algorithm: str) -> None:
    """RSA, P-256 and Ed25519 in PEM verify RS256, ES256 and EdDSA."""
    checked = verifier(public_key_pem=pem(key))
    assert (await checked.verify(token(key=key, algorithm=algorithm))).sub == "ann"
    other = rsa.generate_private_key(65537, 2048)
    assert await code_of(checked.verify(token(key=other, algorithm="RS256"))) == "unauthorized"


async def test_a_public_key_is_no_secret() -> None:
    """HS256 over the text of the RSA key's PEM, which everybody knows, opens nothing."""
    public = pem(RSA_KEY)
    for secret in (public, public.strip(), public + "\n"):
        attack = forged({"alg": "HS256", "typ": "JWT"}, claims(), secret.encode())
        assert await code_of(verifier(public_key_pem=public).verify(attack)) == "unauthorized"
        both = verifier(public_key_pem=public, secret=SECRET)
        assert await code_of(both.verify(attack)) == "unauthorized"


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", None, 0, [], ["HS256"], {"HS256": 1}])
async def test_the_header_cannot_choose_an_algorithm(algorithm: Any) -> None:
    """`alg: none` and its spellings, and an alg that is no text, find no key."""
    unsigned = (segment({"alg": algorithm}) + b"." + segment(claims()) + b".").decode()
    for checked in (verifier(), verifier(public_key_pem=pem(RSA_KEY))):
        assert await code_of(checked.verify(unsigned)) == "unauthorized"
        assert await code_of(checked.verify(forged({"alg": algorithm}, claims()))) == "unauthorized"


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
async def test_the_secret_verifies_hs256_alone(algorithm: str) -> None:
    """Other HMACs with the right secret are refused."""
    long_secret = SECRET * 2
    checked = verifier(secret=long_secret)
    assert await code_of(checked.verify(token(key=long_secret, algorithm=algorithm))) == "unauthorized"


async def test_an_rsa_key_does_not_verify_pss_or_longer_hashes() -> None:
    """PS256 and RS512 by the right RSA key are not among the algorithms."""
    checked = verifier(public_key_pem=pem(RSA_KEY))
    for algorithm in ("PS256", "RS512"):
        assert await code_of(checked.verify(token(key=RSA_KEY, algorithm=algorithm))) == "unauthorized"


async def test_secret_and_public_key_stand_side_by_side() -> None:
    """Each verifies its own tokens."""
    checked = verifier(secret=SECRET, public_key_pem=pem(EC_KEY))
    await checked.verify(token())
    await checked.verify(token(key=EC_KEY, algorithm="ES256"))


async def test_a_short_secret_works_without_a_word() -> None:
    """Its weakness is said once at the start, not with each token (a warning would fail this test)."""
    short = forged({"alg": "HS256"}, claims(), b"short")
    assert (await verifier(secret="short").verify(short)).sub == "ann"


@pytest.mark.parametrize(
    "text",
    [
        "no PEM",
        pem(rsa.generate_private_key(65537, 1024)),
        pem(ec.generate_private_key(ec.SECP384R1())),
        RSA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    ],
)
def test_a_key_that_cannot_be_used_is_refused_at_the_start(text: str) -> None:
    """No PEM, too short, another curve, or a private key: ValueError, before any token comes."""
    with pytest.raises(ValueError, match="key"):
        Verifier(public_key_pem=text)


def test_a_pem_is_refused_as_a_secret_at_the_start() -> None:
    """A public key configured as secret would let everybody sign."""
    with pytest.raises(ValueError, match="HMAC"):
        Verifier(secret=pem(RSA_KEY))


def test_a_jwks_url_is_http() -> None:
    """file: and ftp: would read what the gateway can read."""
    for url in ("file:///etc/passwd", "ftp://keys.example/jwks"):
        with pytest.raises(ValueError, match="http"):
            Verifier(jwks_url=url)


class KeyServer:
    """A JWKS endpoint on a free port; `document` is what it answers, None for a 500."""

    def __init__(self) -> None:
        self.document: Any = None
        self.requests = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.requests += 1
                body = b"" if owner.document is None else json.dumps(owner.document).encode()
                self.send_response(200 if body else 500)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/jwks"

    def serve(self, **keys: Any) -> None:
        self.document = {"keys": [jwk(kid, key) for kid, key in keys.items()]}


def jwk(kid: str, key: Any, **more: Any) -> dict[str, Any]:
    algorithm = next(name for kind, name in ALGORITHMS.items() if isinstance(key, kind))
    public = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return {**public, "kid": kid, "use": "sig", **more}


@pytest.fixture
def key_server() -> Iterator[KeyServer]:
    server = KeyServer()
    thread = Thread(target=server.server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.server.shutdown()
    server.server.server_close()
    thread.join()


def by(kid: str | None, key: Any, algorithm: str = "RS256", **more: Any) -> str:
    headers = {} if kid is None else {"kid": kid}
    return token(key=key, algorithm=algorithm, headers=headers, **more)


async def test_a_jwk_set_is_fetched_once_and_verifies_by_kid(key_server: KeyServer) -> None:
    """RSA, EC and Ed25519 keys of one set, for many tokens at once, by one request."""
    key_server.serve(r=RSA_KEY, e=EC_KEY, d=ED_KEY)
    checked = verifier(jwks_url=key_server.url)
    principals = await asyncio.gather(
        checked.verify(by("r", RSA_KEY)),
        checked.verify(by("e", EC_KEY, "ES256")),
        checked.verify(by("d", ED_KEY, "EdDSA")),
    )
    assert {each.sub for each in principals} == {"ann"}
    assert key_server.requests == 1


async def test_a_token_names_its_key_and_that_key_alone_verifies_it(key_server: KeyServer) -> None:
    """Without kid, under another's kid, or with a secret in the set there is no key."""
    other = rsa.generate_private_key(65537, 2048)
    key_server.serve(r=RSA_KEY, other=other, e=EC_KEY)
    secret = {"kty": "oct", "kid": "s", "k": segment(SECRET.encode()).decode()}
    key_server.document["keys"] += [
        secret,
        {"kty": []},
        7,
        jwk("enc", RSA_KEY, use="enc"),
        jwk("512", RSA_KEY, alg="RS512"),
    ]
    checked = verifier(jwks_url=key_server.url)
    for refused in (
        by(None, RSA_KEY),
        by("other", RSA_KEY),
        by("e", RSA_KEY),
        by("s", SECRET, "HS256"),
        by("enc", RSA_KEY),
        by("512", RSA_KEY),
        by("512", RSA_KEY, "RS512"),
    ):
        assert await code_of(checked.verify(refused)) == "unauthorized"
    assert (await checked.verify(by("r", RSA_KEY))).sub == "ann"


async def test_rotated_keys_are_found_and_old_ones_forgotten(key_server: KeyServer) -> None:
    """An unknown kid fetches again, at most once a minute; a key that left the set ends within minutes."""
    clock, seconds = Clock(), Clock(0)
    checked = Verifier(jwks_url=key_server.url, now=clock, clock=seconds)
    new = rsa.generate_private_key(65537, 2048)
    key_server.serve(old=RSA_KEY)
    await checked.verify(by("old", RSA_KEY))
    key_server.serve(new=new)
    seconds.now = 59
    for _ in range(20):
        assert await code_of(checked.verify(by("new", new))) == "unauthorized"
    assert key_server.requests == 1
    seconds.now = 60
    assert (await checked.verify(by("new", new))).sub == "ann"
    assert key_server.requests == 2
    clock.now += 300  # also what was verified by the old key is asked for again
    assert await code_of(checked.verify(by("old", RSA_KEY))) == "unauthorized"


async def test_known_keys_outlive_an_outage_of_their_server(key_server: KeyServer) -> None:
    """A failed fetch takes no key away, and is not tried with every token."""
    clock, seconds = Clock(), Clock(0)
    checked = Verifier(jwks_url=key_server.url, now=clock, clock=seconds)
    key_server.serve(r=RSA_KEY)
    await checked.verify(by("r", RSA_KEY))
    key_server.document = None
    seconds.now, clock.now = 300, NOW + 300
    for number in range(5):
        assert (await checked.verify(by("r", RSA_KEY, sub=f"u{number}"))).sub == f"u{number}"
    assert key_server.requests <= 2


@pytest.mark.parametrize("document", [None, [], 7, {}, {"keys": 7}, {"keys": [{"kty": "RSA", "alg": []}]}])
async def test_without_keys_a_token_is_neither_good_nor_bad(key_server: KeyServer, document: Any) -> None:
    """Where the set never could be read the answer is `unavailable`, so that clients come again."""
    key_server.document = document
    checked = verifier(jwks_url=key_server.url)
    for _ in range(3):
        assert await code_of(checked.verify(by("r", RSA_KEY))) == "unavailable"
    assert key_server.requests == 1


async def test_a_caller_who_goes_away_does_not_take_the_fetch_along(key_server: KeyServer) -> None:
    """The one fetch goes on for those who wait for it too."""
    key_server.serve(r=RSA_KEY)
    checked = verifier(jwks_url=key_server.url)
    first = asyncio.create_task(checked.verify(by("r", RSA_KEY)))
    await asyncio.sleep(0)  # it has asked
    second = asyncio.create_task(checked.verify(by("r", RSA_KEY, sub="bob")))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).sub == "bob"
    assert key_server.requests == 1
