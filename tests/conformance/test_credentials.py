"""The ways in which a token comes, tickets among them, over every transport, on each server path."""

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.conformance.conftest import VARIANTS, Stand, Start
from tests.conformance.talking import is_served, talk
from tests.support.clients import (
    RefusedError,
    SseClient,
    WebSocketClient,
    catch_up,
    ids,
)
from tests.support.gateway import GatewayProcess
from tests.support.tokens import SECRET, bearer, make_token, may_see, reader

pytestmark = pytest.mark.parametrize("variant", ["fast", "portable"], indirect=True)

# Ways for a token to come


async def test_a_token_comes_as_the_authorization_header(guarded: Stand, transport: str) -> None:
    """Whatever the case of the scheme; a token that does not verify is refused."""
    for scheme in ("Bearer", "bearer"):
        stream = guarded.client(transport, headers={"Authorization": f"{scheme} {reader()}"}).open()
        assert (await anext(stream)).kind == "place"
    for bad in (reader(secret="another secret, which is long enough"), reader(lives=-1), "garbage", ""):
        with pytest.raises(RefusedError) as caught:
            await anext(guarded.client(transport, token=bad).open())
        assert caught.value.code in ("unauthorized", "token_expired")
        assert caught.value.status in (0, 401)


async def test_a_token_comes_as_a_cookie_from_an_allowed_page(start: Start, transport: str) -> None:
    """The page's own origin or a listed one; from a foreign page, or one that does not say, it is refused."""
    stand = await start(jwt_secret=SECRET, origins="https://shop.example")
    cookie = {"Cookie": f"a=b; gateway_token={reader()}"}
    for origin in (stand.url, "https://shop.example"):
        stream = stand.client(transport, headers={**cookie, "Origin": origin}).open()
        assert (await anext(stream)).kind == "place"
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {}):
        with pytest.raises(RefusedError) as caught:
            await anext(stand.client(transport, headers={**cookie, **headers}).open())
        assert caught.value.code == "forbidden"


async def test_a_foreign_page_is_refused_on_websocket_whatever_it_brings(guarded: Stand) -> None:
    """The handshake is answered 403, even with a token in it."""
    for headers in ({}, bearer(reader())):
        client = await talk(guarded, connect=False, headers={**headers, "Origin": "https://evil.example"})
        with pytest.raises(RefusedError) as caught:
            await client.connect()
        assert (caught.value.status, caught.value.code) == (403, "forbidden")


async def test_a_token_comes_as_a_subprotocol_which_is_never_answered(guarded: Stand) -> None:
    """`bearer.TOKEN` beside `gateway.v1`: only that is answered, and nothing where it was not offered."""
    for offered, answered in (
        (("gateway.v1", f"bearer.{reader()}"), "gateway.v1"),
        ((f"bearer.{reader()}", "gateway.v1"), "gateway.v1"),
    ):
        client = await talk(guarded, connect=False)
        client.subprotocols = offered
        await client.connect()
        assert client.connection.subprotocol == answered
        assert await is_served(client)


async def test_a_token_comes_as_the_first_message(guarded: Stand) -> None:
    """Answered with its expiry; then everything is as with any other way."""
    client = await talk(guarded)
    assert (await client.receive())["op"] == "hello"
    await client.send(op="auth", token=reader(lives=100))
    answer = await client.receive()
    assert answer["op"] == "auth"
    assert answer["expires"].endswith("Z")
    await client.send(op="subscribe", id="1", since="earliest")
    assert (await client.receive())["op"] == "subscribed"


@pytest.mark.parametrize(
    "message",
    [
        {"op": "subscribe", "id": "1"},
        {"op": "ping"},
        {"op": "auth", "token": "garbage"},
    ],
    ids=["subscribe", "ping", "bad token"],
)
async def test_any_other_first_message_ends_the_connection(guarded: Stand, message: Any) -> None:
    """With an error and 4001: it does not help to try again."""
    client = await talk(guarded)
    await client.receive()
    await client.send(**message)
    assert (await client.receive())["code"] == "unauthorized"
    assert await client.closed() == 4001


async def test_who_never_says_who_it_is_is_cut_off_after_five_seconds(variant: Any) -> None:
    """Not before, on either path."""

    async def wait(path: str) -> float:
        stand = Stand(VARIANTS[path])
        try:
            client = await talk(await stand.start(jwt_secret=SECRET))
            began = time.monotonic()
            assert await client.closed() == 4001
            return time.monotonic() - began
        finally:
            await stand.stop()

    if variant.path == "fast":  # both at once, since it takes its time
        for seconds in await asyncio.gather(wait("fast"), wait("portable")):
            assert 4.5 < seconds < 10


# Tickets


async def test_a_ticket_opens_one_websocket_once(guarded: Stand) -> None:
    """With the rights of the token that it was made with."""
    token = make_token(subscribe=(may_see("c-1"),))
    ticket = (await guarded.http.post("/tickets", headers=bearer(token))).json()["ticket"]
    client = await talk(guarded, query={"ticket": ticket})
    assert (await client.receive())["op"] == "hello"
    await client.send(op="subscribe", id="1")
    await client.receive()
    await guarded.publish({"type": "t", "id": "x", "data": {"customerId": "c-2"}})
    await guarded.publish({"type": "t", "id": "y", "data": {"customerId": "c-1"}})
    assert (await client.receive())["event"]["id"] == "y"
    again = await talk(guarded, query={"ticket": ticket})
    assert (await again.receive())["code"] == "unauthorized"
    assert await again.closed() == 4001


async def test_of_many_who_use_a_ticket_at_once_one_is_served(guarded: Stand) -> None:
    """Single use is decided in one place."""
    ticket = (await guarded.http.post("/tickets", headers=bearer(reader()))).json()["ticket"]
    clients = await asyncio.gather(*(talk(guarded, query={"ticket": ticket}) for _ in range(8)))
    served = await asyncio.gather(*(is_served(each) for each in clients))
    assert sum(served) == 1


async def test_a_ticket_for_a_stream_opens_just_that_as_often_as_it_reconnects(guarded: Stand) -> None:
    """Another query, another path or another method is refused."""
    asked = {"for": "/events?type=order.*&since=earliest"}
    ticket = (await guarded.http.post("/tickets", json=asked, headers=bearer(reader()))).json()["ticket"]
    await guarded.publish({"type": "order.created", "id": "a"}, {"type": "refund", "id": "b"})
    right = {"type": "order.*", "since": "earliest", "ticket": ticket}
    for _ in range(3):
        stream = SseClient(guarded.url, query=right)
        assert ids(await catch_up(stream.open())) == ["a"]
        last = stream.cursor
        await stream.cut()
    resumed = SseClient(guarded.url, query=right, headers={"Last-Event-ID": last or ""})
    assert await catch_up(resumed.open()) == []
    await resumed.cut()
    for query in ({"type": "refund", "ticket": ticket}, {"ticket": ticket}, {**right, "leave": "true"}):
        with pytest.raises(RefusedError) as caught:
            await anext(guarded.client("sse", query=query).open())
        assert caught.value.status == 401
    client = await talk(guarded, query={"ticket": ticket})
    assert not await is_served(client)
    del guarded.http.headers["Authorization"]
    posted = await guarded.http.post("/events", params={"ticket": ticket}, json={"type": "order.created"})
    assert posted.status_code == 401


async def test_a_ticket_ends_with_its_token(guarded: Stand) -> None:
    """When that is revoked."""
    asked = {"for": "/events"}
    token = reader(jti="lost")
    ticket = (await guarded.http.post("/tickets", json=asked, headers=bearer(token))).json()["ticket"]
    stream = guarded.client("sse", query={"ticket": ticket}).open()
    await anext(stream)
    await guarded.http.post("/revocations", json={"jti": "lost"})
    assert (await anext(stream)).kind == "close"
    with pytest.raises(RefusedError) as caught:
        await anext(guarded.client("sse", query={"ticket": ticket}).open())
    assert caught.value.status == 401


# The log


async def test_no_token_and_no_ticket_is_ever_logged(variant: Any, tmp_path: Path) -> None:
    """However they come, and whether they are good or bad."""
    if variant.path == "portable":
        return  # a process serves on the fast path alone
    with GatewayProcess(tmp_path, jwt_secret=SECRET, drain_seconds=0) as gateway:
        secrets = await _use_every_way(gateway.url)
        gateway.terminate()
        assert gateway.wait() == 0
        assert "serves" in gateway.log
        for each in secrets:
            assert each not in gateway.log


async def _use_every_way(url: str) -> list[str]:
    good, bad = reader(jti="x"), reader(secret="another secret, which is long enough")
    async with httpx.AsyncClient(base_url=url, verify=False) as http:
        ticket = (await http.post("/tickets", headers=bearer(good))).json()["ticket"]
        bound = (await http.post("/tickets", json={"for": "/events?wait=0"}, headers=bearer(good))).json()[
            "ticket"
        ]
        accept = {"Accept": "application/json"}
        for token in (good, bad):
            await http.get("/events?wait=0", headers={**bearer(token), **accept})
            await http.get(
                "/events?wait=0", headers={**accept, "Cookie": f"gateway_token={token}", "Origin": url}
            )
            await http.get(f"/{token}", headers=bearer(token))
            client = WebSocketClient(url)
            client.subprotocols = ("gateway.v1", f"bearer.{token}")
            await client.connect()
            await client.receive()
            with contextlib.suppress(ConnectionClosed):  # it was closed for a bad token
                await client.send(op="auth", token=token)
            await client.cut()
        for each in (bound, ticket, bad):
            await http.get("/events", params={"wait": "0", "ticket": each}, headers=accept)
            client = WebSocketClient(url, query={"ticket": each})
            await client.connect()
            await client.receive()
            await client.cut()
        await http.post("/revocations", content=json.dumps({"jti": good}), headers=bearer(bad))
    return [part for each in (good, bad, ticket, bound) for part in (each, each.rpartition(".")[2])]
