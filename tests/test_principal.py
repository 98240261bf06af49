"""What a token allows: no claim, no right, and no guess where a claim is malformed."""

import json
from typing import Any

import pytest

from gateway.errors import GatewayError
from gateway.filters import parse_filter
from tests.tokens import NOW, ORDERS, claims, code_of, forged, token, verifier, without


async def test_a_token_tells_who_calls_and_what_they_may_do() -> None:
    """sub, jti, iat and exp are the principal's; publish is by pattern, subscribe by filter."""
    principal = await verifier().verify(token(jti="j1"))
    assert (principal.sub, principal.jti, principal.issued, principal.expires) == (
        "ann",
        "j1",
        NOW,
        NOW + 600,
    )
    assert principal.may_publish("order.created")
    assert not principal.may_publish("invoice.created")
    assert principal.may_see({"type": "order.created"})
    assert not principal.may_see({"type": "invoice.created"})
    assert not principal.admin
    assert not principal.open


async def test_no_claim_is_no_right() -> None:
    """A token without the claim `gateway` is valid and may do nothing."""
    principal = await verifier().verify(without("gateway"))
    assert not principal.may_publish("order.created")
    assert not principal.may_see({"type": "order.created"})
    with pytest.raises(GatewayError, match="forbidden"):
        principal.restrict(None)
    with pytest.raises(GatewayError, match="forbidden"):
        principal.require_admin()
    with pytest.raises(GatewayError, match="forbidden"):
        principal.require_publish("order.created")


async def test_an_empty_subscribe_list_is_no_right() -> None:
    """`subscribe: []` lets nothing through, not everything."""
    principal = await verifier().verify(token(gateway={"subscribe": []}))
    assert not principal.may_see({"type": "order.created"})
    with pytest.raises(GatewayError, match="forbidden"):
        principal.restrict(parse_filter(ORDERS))


async def test_any_of_the_tokens_filters_must_hold_beside_the_clients() -> None:
    """restrict joins the client's filter to the token's: neither widens the other."""
    rights = {"subscribe": [{"exact": {"tenant": "a"}}, {"exact": {"tenant": "b"}}]}
    principal = await verifier().verify(token(gateway=rights))
    joined = principal.restrict(parse_filter(ORDERS))
    assert joined is not None
    assert joined.matches({"type": "order.created", "tenant": "b"})
    assert not joined.matches({"type": "order.created", "tenant": "c"})
    assert not joined.matches({"type": "invoice.created", "tenant": "a"})
    alone = principal.restrict(None)
    assert alone is not None
    assert alone.matches({"type": "x", "tenant": "a"})
    assert not alone.matches({"type": "x"})


@pytest.mark.parametrize(
    ("pattern", "event_type", "allowed"),
    [
        ("order.*", "order.created", True),
        ("order.*", "order", False),
        ("order.created", "order.created", True),
        ("order.created", "order.created.eu", False),
        ("*", "anything", True),
    ],
)
async def test_a_publish_pattern_is_a_type_or_a_prefix(pattern: str, event_type: str, allowed: bool) -> None:
    """Only a trailing `*` means more than itself."""
    principal = await verifier().verify(token(gateway={"publish": [pattern]}))
    assert principal.may_publish(event_type) is allowed


async def test_admin_is_no_right_to_publish_or_see() -> None:
    """`admin` opens the admin calls and nothing else."""
    principal = await verifier().verify(token(gateway={"admin": True}))
    principal.require_admin()
    assert not principal.may_publish("order.created")
    assert not principal.may_see({"type": "order.created"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sub", 7),
        ("sub", ""),
        ("sub", "a\nb"),
        ("sub", "\ud800"),
        ("jti", ["j"]),
        ("exp", "soon"),
        ("exp", True),
        ("exp", None),
        ("exp", -1),
        ("exp", 1e300),
        ("exp", 10**400),
        ("iat", {}),
        ("nbf", "now"),
        ("gateway", []),
        ("gateway", "admin"),
        ("gateway", {"admin": 1}),
        ("gateway", {"publish": "order.*"}),
        ("gateway", {"publish": [1]}),
        ("gateway", {"publish": ["or*der"]}),
        ("gateway", {"publish": [""]}),
        ("gateway", {"subscribe": {}}),
        ("gateway", {"subscribe": [{}]}),
        ("gateway", {"subscribe": [ORDERS, {"exact": {}}]}),
    ],
)
async def test_a_malformed_claim_is_refused_by_name(name: str, value: Any) -> None:
    """A claim of the wrong shape is 401 with the claim in the reason, never a guess."""
    with pytest.raises(GatewayError) as caught:
        await verifier().verify(forged({"alg": "HS256", "typ": "JWT"}, claims(**{name: value})))
    assert caught.value.code == "unauthorized"
    assert f"the claim {name}" in caught.value.detail


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
async def test_an_expiry_that_is_no_number_is_refused(text: str) -> None:
    """Python's JSON reader takes NaN and Infinity; a token cannot live for ever by them."""
    body = json.dumps(claims()).replace(str(NOW + 600), text).encode()
    assert await code_of(verifier().verify(forged({"alg": "HS256"}, body))) == "unauthorized"
