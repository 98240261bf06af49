"""Who calls: tokens in time, garbage, revocations, and the order of credentials."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth import OPEN, Authenticator, Request, Revocations, Tickets, caller_key
from gateway.errors import GatewayError
from gateway.log import Revocation
from tests.tokens import NOW, Clock, Gate, Once, claims, code_of, forged, segment, token, verifier, without


async def test_a_token_lives_until_its_expiry_and_not_in_it() -> None:
    """exp is the first moment at which the token is void, also for one that was verified before."""
    clock = Clock()
    checked = verifier(clock)
    await checked.verify(token())
    clock.now = NOW + 599.9
    await checked.verify(token())
    clock.now = NOW + 600
    assert await code_of(checked.verify(token())) == "token_expired"


async def test_exp_is_required() -> None:
    """A token that would never expire is refused."""
    assert await code_of(verifier().verify(without("exp"))) == "unauthorized"


async def test_a_token_that_is_not_valid_yet_is_refused() -> None:
    """nbf has no leeway; iat has a little, for the issuer's clock."""
    assert await code_of(verifier().verify(token(nbf=NOW + 1))) == "unauthorized"
    await verifier().verify(token(nbf=NOW))
    assert await code_of(verifier().verify(token(iat=NOW + 31))) == "unauthorized"
    await verifier().verify(token(iat=NOW + 29))


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "ü.ü.ü",
        "\ud800",
        "x" * 8193,
        forged({"alg": "HS256", "crit": ["exp"]}, claims()),
        forged({"alg": "HS256", "kid": 7}, claims()),
        forged({"alg": "HS256", "b64": False, "crit": ["b64"]}, claims()),
        forged(b"[" * 3000, claims()),
        forged([], claims()),
        forged({"alg": "HS256"}, b"[" * 3000),
        forged({"alg": "HS256"}, []),
        forged({"alg": "HS256"}, b'{"exp":' + b"9" * 5000 + b"}"),
        token() + "x",
        token()[:-2],
    ],
)
async def test_garbage_is_unauthorized(garbage: str) -> None:
    """Whatever is sent as a token is answered, never a traceback."""
    assert await code_of(verifier().verify(garbage)) == "unauthorized"


@settings(max_examples=100)
@given(st.text(max_size=60) | st.lists(st.text(max_size=20), min_size=3, max_size=3).map(".".join))
def test_any_text_is_unauthorized(text: str) -> None:
    """No text without the secret's signature is a token."""
    assert asyncio.run(code_of(verifier().verify(text))) == "unauthorized"


async def test_a_changed_token_is_refused_though_it_was_seen_before() -> None:
    """What is remembered of a token holds for its exact text alone."""
    checked = verifier()
    good = token()
    await checked.verify(good)
    head, body, signature = good.split(".")
    other = segment(claims(sub="eve")).decode()
    assert await code_of(checked.verify(f"{head}.{other}.{signature}")) == "unauthorized"
    assert (await checked.verify(f"{head}.{body}.{signature}")).sub == "ann"


async def test_remembered_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used is forgotten, and verified again when it comes back."""
    monkeypatch.setattr("gateway.auth.CACHED_TOKENS", 3)
    checked = verifier()
    tokens = [token(sub=f"user{number}") for number in range(5)]
    for each in tokens:
        await checked.verify(each)
    assert len(checked._verified) == 3
    assert (await checked.verify(tokens[0])).sub == "user0"
    assert len(checked._verified) == 3


async def test_a_revoked_token_is_refused_though_it_was_verified_before() -> None:
    """By its jti: that token and no other."""
    gate = Gate()
    await gate.principal(jti="j1")
    gate.revocations.add(Revocation("jti", "j1", NOW))
    assert await code_of(gate.principal(jti="j1")) == "unauthorized"
    await gate.principal(jti="j2")
    await gate.principal()


@pytest.mark.parametrize(("issued", "refused"), [(NOW - 1, True), (NOW, True), (NOW + 1, False)])
async def test_a_revoked_user_needs_a_newer_token(issued: float, refused: bool) -> None:
    """By sub: the tokens issued up to the revocation are void, later ones hold."""
    revocations = Revocations([Revocation("sub", "ann", NOW)])
    principal = await verifier().verify(token(iat=issued))
    assert revocations.revoked(principal) is refused
    assert not revocations.revoked(await verifier().verify(token(sub="bob", iat=issued)))


async def test_a_token_without_iat_falls_with_its_user() -> None:
    """It cannot show that it is newer."""
    revocations = Revocations([Revocation("sub", "ann", NOW - 1000)])
    assert revocations.revoked(await verifier().verify(without("iat")))


async def test_an_older_revocation_does_not_take_back_a_newer_one() -> None:
    """They may arrive in any order."""
    revocations = Revocations([Revocation("sub", "ann", NOW + 5), Revocation("sub", "ann", NOW - 5)])
    assert revocations.revoked(await verifier().verify(token()))


STREAM = "/events?type=order.*&subject=o-1"


async def test_no_credentials_are_nobody() -> None:
    """None, so that a WebSocket may still wait for its first message."""
    assert await Gate().ask() is None
    assert await Gate().ask(headers={"authorization": "Basic YTpi"}) is None
    assert await Gate().ask(subprotocols=["gateway.v1"]) is None
    assert await Gate().ask(headers={"cookie": "other=1; gateway_tokens=2"}) is None


async def test_the_first_credential_of_the_order_wins() -> None:
    """Authorization, ticket, subprotocol, cookie; a bad one is not passed over."""
    gate = Gate()
    ticket, _ = gate.tickets.issue(await gate.principal(sub="ticket"))
    request: dict[str, Any] = {
        "headers": {
            "authorization": f"bearer {token(sub='header')}",
            "cookie": f"gateway_token={token(sub='cookie')}",
        },
        "query": f"ticket={ticket}",
        "subprotocols": ["gateway.v1", f"bearer.{token(sub='protocol')}"],
        "origin_allowed": True,
    }
    request["headers"]["origin"] = "https://shop.example"

    async def who() -> str | None:
        principal = await gate.ask(**{**request, "headers": dict(request["headers"])})
        assert principal is not None
        return principal.sub

    assert await who() == "header"
    bad = {**request, "headers": {**request["headers"], "authorization": "Bearer x"}}
    assert await code_of(gate.ask(**bad)) == "unauthorized"
    del request["headers"]["authorization"]
    assert await who() == "ticket"
    request["query"] = ""
    assert await who() == "protocol"
    request["subprotocols"] = []
    assert await who() == "cookie"


async def test_an_empty_bearer_is_refused() -> None:
    """It is a credential, and a bad one."""
    assert await code_of(Gate().ask(headers={"authorization": "Bearer "})) == "unauthorized"
    assert await code_of(Gate().ask(headers={"authorization": "Bearer"})) == "unauthorized"


@pytest.mark.parametrize(
    ("headers", "method", "origin_allowed", "accepted"),
    [
        ({"origin": "https://shop.example"}, "GET", True, True),
        ({"origin": "https://shop.example"}, "POST", True, True),
        ({"origin": "https://evil.example"}, "GET", False, False),
        ({"origin": "https://evil.example", "sec-fetch-site": "same-origin"}, "GET", False, False),
        ({"sec-fetch-site": "same-origin"}, "GET", False, True),
        ({"sec-fetch-site": "same-origin"}, "HEAD", False, True),
        ({"sec-fetch-site": "same-origin"}, "POST", False, False),
        ({"sec-fetch-site": "same-site"}, "GET", False, False),
        ({"sec-fetch-site": "cross-site"}, "GET", False, False),
        ({}, "GET", True, False),
        ({}, "POST", True, False),
    ],
)
async def test_a_cookie_counts_from_the_gateways_own_pages_alone(
    headers: dict[str, str], method: str, origin_allowed: bool, accepted: bool
) -> None:
    """The browser sends it with every page's request: only an allowed Origin tells whose that is."""
    work = Gate().ask(
        headers={**headers, "cookie": f"a=1; gateway_token={token()}"},
        method=method,
        origin_allowed=origin_allowed,
    )
    if accepted:
        principal = await work
        assert principal is not None
        assert principal.sub == "ann"
    else:
        assert await code_of(work) == "forbidden"


async def test_a_bearer_token_needs_no_origin() -> None:
    """No page of a stranger can send it."""
    principal = await Gate().ask(
        headers={"authorization": f"Bearer {token()}", "origin": "https://x", "cookie": "gateway_token=x"}
    )
    assert principal is not None
    assert principal.sub == "ann"


async def test_a_refusal_says_how_to_authenticate() -> None:
    """RFC 6750: WWW-Authenticate with the reason's class."""
    with pytest.raises(GatewayError) as caught:
        await verifier().verify("x")
    assert caught.value.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}


async def test_without_keys_everyone_is_open() -> None:
    """Whatever they send; OPEN may do everything and counts as nobody."""
    gate = Authenticator(None, Revocations(), Tickets(b"s" * 32), Once())
    for request in (
        Request([]),
        Request([(b"authorization", b"Bearer x"), (b"cookie", b"gateway_token=x")], query="ticket=x"),
    ):
        assert await gate.authenticate(request) is OPEN
    assert await gate.bearer("x") is OPEN
    assert OPEN.may_publish("x")
    assert OPEN.may_see({})
    assert OPEN.restrict(None) is None
    OPEN.require_admin()
    assert caller_key(OPEN) == ""


async def test_a_ticket_of_an_open_gateway_opens_nothing_once_there_are_keys() -> None:
    """Clients that ask for tickets work without keys; what they got then is worth nothing later."""
    gate = Gate()
    for target in (None, STREAM):
        ticket, _ = gate.tickets.issue(OPEN, target)
        assert (
            await code_of(gate.ask(path="/events", query=f"type=order.*&subject=o-1&ticket={ticket}"))
            == "unauthorized"
        )


async def test_the_caller_is_the_tokens_user() -> None:
    """What limits and idempotency keys count by."""
    assert caller_key(await verifier().verify(token())) == "ann"
    assert caller_key(await verifier().verify(without("sub"))) == ""
