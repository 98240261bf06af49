"""Tickets: what they open, how often, how long, and what they never open."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth import Revocations, Tickets
from gateway.errors import GatewayError
from gateway.log import Revocation
from gateway.tickets import TICKET_TYPE, without_ticket
from tests.tokens import NOW, Gate, claims, code_of, forged, token

STREAM = "/events?type=order.*&subject=o-1"


async def test_a_ticket_opens_once_within_30_seconds() -> None:
    """It is who its token is; the second use and the 31st second are refused."""
    gate = Gate()
    principal = await gate.principal(jti="j1")
    ticket, expires = gate.tickets.issue(principal)
    assert expires == NOW + 30
    assert await gate.ask(path="/ws", query=f"ticket={ticket}") == principal
    with pytest.raises(GatewayError, match="used already"):
        await gate.ask(path="/ws", query=f"ticket={ticket}")
    late, _ = gate.tickets.issue(principal)
    gate.clock.now = NOW + 30
    assert await code_of(gate.ask(path="/ws", query=f"ticket={late}")) == "unauthorized"


async def test_a_used_ticket_is_remembered_until_it_has_expired() -> None:
    """Forgotten earlier it could be used again."""
    gate = Gate()
    ticket, expires = gate.tickets.issue(await gate.principal())
    await gate.ask(query=f"ticket={ticket}")
    assert list(gate.once.used.values()) == [pytest.approx(expires - NOW + 1)]


async def test_a_ticket_does_not_outlive_its_token() -> None:
    """Nor does the principal that it opens."""
    gate = Gate()
    principal = await gate.principal(exp=NOW + 10)
    ticket, expires = gate.tickets.issue(principal)
    assert expires == NOW + 10
    opened = await gate.ask(query=f"ticket={ticket}")
    assert opened is not None
    assert opened.expires == NOW + 10


@pytest.mark.parametrize(
    "query",
    [
        "ticket=T&type=order.*&subject=o-1",
        "type=order.*&ticket=T&subject=o-1",
        "type=order.*&subject=o-1&ticket=T",
    ],
)
async def test_a_ticket_for_a_stream_opens_it_again_and_again(query: str) -> None:
    """As EventSource reconnects, wherever the ticket stands, until the token expires."""
    gate = Gate()
    principal = await gate.principal()
    ticket, expires = gate.tickets.issue(principal, STREAM)
    assert expires == principal.expires
    for _ in range(3):
        assert await gate.ask(path="/events", query=query.replace("T", ticket)) == principal
    gate.clock.now = NOW + 600
    assert await code_of(gate.ask(path="/events", query=query.replace("T", ticket))) == "token_expired"


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/events", "ticket=T"),
        ("/events", "type=order.*&ticket=T"),
        ("/events", "type=order.*&subject=o-2&ticket=T"),
        ("/events", "subject=o-1&type=order.*&ticket=T"),
        ("/events", "type=order.%2A&subject=o-1&ticket=T"),
        ("/events", "type=order.*&subject=o-1&since=earliest&ticket=T"),
        ("/events", "type=order.*&subject=o-1&&ticket=T"),
        ("/ws", "type=order.*&subject=o-1&ticket=T"),
        ("/events/", "type=order.*&subject=o-1&ticket=T"),
        ("/orders", "type=order.*&subject=o-1&ticket=T"),
    ],
)
async def test_a_ticket_for_a_stream_opens_no_other(path: str, query: str) -> None:
    """Path and query are compared character for character."""
    gate = Gate()
    ticket, _ = gate.tickets.issue(await gate.principal(), STREAM)
    with pytest.raises(GatewayError, match="another path and query"):
        await gate.ask(path=path, query=query.replace("T", ticket))


@pytest.mark.parametrize(
    "target",
    [
        "",
        "events",
        "/",
        "/ws",
        "/eventsx",
        "/events/1",
        "/events#top",
        "//evil.example/events",
        "https://evil.example/events",
        "/events?ticket=x",
        "/events?type=a&ticket=",
        "/events?type=a b",
        "/events?type=a\nb",
        "/events?type=ü",
        "\\events",
        "/../events",
    ],
)
async def test_a_ticket_is_for_a_stream_of_the_gateways(target: str) -> None:
    """Anything else in `for` is 422."""
    gate = Gate()
    with pytest.raises(GatewayError, match="invalid_request"):
        gate.tickets.issue(await gate.principal(), target)


async def test_a_revoked_token_takes_its_tickets_along() -> None:
    """By jti and by sub, for both kinds of ticket."""
    gate = Gate()
    principal = await gate.principal(jti="j1")
    queries = [
        f"ticket={gate.tickets.issue(principal)[0]}",
        f"type=order.*&subject=o-1&ticket={gate.tickets.issue(principal, STREAM)[0]}",
    ]
    for revocation in (Revocation("jti", "j1", NOW), Revocation("sub", "ann", NOW)):
        gate.revocations = Revocations([revocation])
        gate.authenticator._revocations = gate.revocations
        gate.once.used.clear()
        for query in queries:
            with pytest.raises(GatewayError, match="revoked"):
                await gate.ask(path="/events", query=query)


async def test_a_ticket_is_no_bearer_token_and_a_token_no_ticket() -> None:
    """Not even where the gateway's secret is the tickets' key, and whatever typ says."""
    gate = Gate()
    ticket, _ = gate.tickets.issue(await gate.principal())
    assert await code_of(gate.authenticator.bearer(ticket)) == "unauthorized"
    assert await code_of(gate.ask(headers={"authorization": f"Bearer {ticket}"})) == "unauthorized"
    assert await code_of(gate.ask(query=f"ticket={token()}")) == "unauthorized"
    assert await code_of(gate.ask(query=f"ticket={token(headers={'typ': TICKET_TYPE})}")) == "unauthorized"
    inside = {"exp": NOW + 600, "id": "1", "token": claims()}
    own_key = forged({"alg": "HS256", "typ": "JWT"}, inside, gate.tickets._key)
    assert await code_of(gate.ask(query=f"ticket={own_key}")) == "unauthorized"
    same_key = forged({"alg": "HS256", "typ": TICKET_TYPE}, claims())
    with pytest.raises(GatewayError, match="a ticket is no bearer token"):
        await gate.authenticator.bearer(same_key)


async def test_tickets_of_another_log_are_refused() -> None:
    """They are signed by the log's own secret."""
    gate = Gate()
    ticket, _ = Tickets(b"t" * 32, gate.clock).issue(await gate.principal())
    assert await code_of(gate.ask(query=f"ticket={ticket}")) == "unauthorized"


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
async def test_a_ticket_changes_nothing(method: str) -> None:
    """A URL leaks more easily than a header: it only opens streams."""
    gate = Gate()
    ticket, _ = gate.tickets.issue(await gate.principal())
    assert await code_of(gate.ask(method=method, query=f"ticket={ticket}")) == "unauthorized"
    assert gate.once.used == {}


@pytest.mark.parametrize("ticket", ["", "x", "a.b.c", "é", "x" * 20_000, "%00"])
async def test_garbage_is_no_ticket(ticket: str) -> None:
    """It is refused, never a traceback."""
    assert await code_of(Gate().ask(query=f"ticket={ticket}")) == "unauthorized"


async def test_a_token_too_large_for_a_url_gets_no_ticket() -> None:
    """It is told when the ticket is asked for, not when it is used."""
    gate = Gate()
    rights = {"publish": ["é" * 2000]}
    large = forged({"alg": "HS256"}, json.dumps(claims(gateway=rights), ensure_ascii=False).encode())
    principal = await gate.authenticator.bearer(large)
    with pytest.raises(GatewayError, match="too large"):
        gate.tickets.issue(principal)


@settings(max_examples=100)
@given(st.lists(st.text("abt=%", max_size=4), max_size=5), st.integers(0, 5))
def test_taking_a_ticket_out_restores_the_query(parts: list[str], place: int) -> None:
    """Whatever the query is, it is as it was before the ticket was put in."""
    query = "&".join(parts)
    pieces = query.split("&") if query else []
    pieces.insert(place, "ticket=T")
    assert without_ticket("&".join(pieces)) == query
