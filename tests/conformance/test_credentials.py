"""How a token comes, how long it holds, and how it ends: over every transport, on each server path."""

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.conformance.conftest import VARIANTS, Stand, Start, until
from tests.support.clients import (
    LongPollClient,
    RefusedError,
    SseClient,
    WebSocketClient,
    catch_up,
    ids,
    take,
)
from tests.support.gateway import GatewayProcess
from tests.support.tokens import EVERYTHING, SECRET, admin_token, bearer, make_token, may_see

pytestmark = pytest.mark.parametrize("variant", ["fast", "portable"], indirect=True)

STREAMS = ("websocket", "sse")


@pytest.fixture
async def guarded(start: Start) -> Stand:
    """A gateway with keys; who publishes through it is an admin."""
    stand = await start(jwt_secret=SECRET)
    stand.http.headers.update(bearer(admin_token()))
    return stand


def reader(**more: Any) -> str:
    """A token that sees everything."""
    return make_token(subscribe=(EVERYTHING,), **more)


async def talk(stand: Stand, *, connect: bool = True, **options: Any) -> WebSocketClient:
    """A WebSocket on which nothing is said yet."""
    client = stand.client("websocket", **options)
    assert isinstance(client, WebSocketClient)
    if connect:
        await client.connect()
    return client


async def is_served(client: WebSocketClient) -> bool:
    """Whether it is greeted and may subscribe."""
    first = await client.receive()
    if first["op"] == "error":
        return False
    await client.send(op="subscribe", id="1")
    answer = await client.receive()
    return bool(answer["op"] == "subscribed")


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


# Expiry and renewal


@pytest.mark.parametrize("transport", STREAMS)
async def test_a_stream_is_warned_before_its_token_expires_and_then_closed(
    guarded: Stand, transport: str
) -> None:
    """30 s before, or at once; 4200 says: come back at once with a new one."""
    stream = guarded.client(transport, token=reader(lives=1.5)).open()
    told = [each async for each in stream]
    warning = next(each for each in told if each.kind == "expiring")
    assert warning.body == {"op": "expiring", "in": warning.body["in"]}
    assert warning.body["in"] in (0, 1, 2)
    assert stream.code == 4200
    if transport == "sse":
        assert told[0].kind == "place"
        assert told[-1].kind == "close"
        assert told[-1].body["code"] == 4200
        assert {each.cursor for each in told} == {guarded.cursor(0)}


@pytest.mark.parametrize("since", ["1970-01-01T00:00:00Z", "snapshot", "earliest", None])
async def test_the_warning_never_comes_before_the_place(guarded: Stand, since: str | None) -> None:
    """The first block of an SSE stream carries the place where it starts, whatever else is to say at once."""
    await guarded.publish(*({"type": "t", "id": f"e{at}"} for at in range(3)))
    stream = guarded.client("sse", token=reader(lives=20)).open(since=since)
    first = await anext(stream)
    assert (first.kind, first.body) == ("place", {})
    while (await anext(stream)).kind != "expiring":
        pass


async def test_a_websocket_is_renewed_by_auth(guarded: Stand) -> None:
    """It lives on past the old token's end, unless the new one is another user's or has other rights."""
    client = await talk(guarded, token=reader(lives=1.0))
    await client.expect("expiring")
    await client.send(op="subscribe", id="1")
    await client.expect("subscribed")
    ends = time.time() + 1.1
    for other in (reader(sub="bob"), make_token(subscribe=(may_see("c-1"),))):
        await client.send(op="auth", token=other)
        assert (await client.expect("error"))["code"] == "forbidden"
    await client.send(op="auth", token=reader(lives=600))
    assert (await client.expect("auth"))["expires"]
    await until(lambda: time.time() > ends)
    await guarded.publish({"type": "t", "id": "later"})
    assert (await client.expect("event"))["event"]["id"] == "later"


async def test_a_stream_is_renewed_by_a_call(guarded: Stand) -> None:
    """The first block names the connection; only its own user may renew it."""
    stream = guarded.client("sse", token=reader(lives=1.0)).open()
    assert isinstance(stream, SseClient)
    await anext(stream)
    ends = time.time() + 1.1
    name = next(line for line in stream.blocks[0].split("\n") if line.startswith(": connected "))
    target = f"/connections/{name.removeprefix(': connected ')}/token"
    assert (await guarded.http.post(target, headers=bearer(reader(sub="bob")))).status_code == 404
    answer = await guarded.http.post(target, headers=bearer(reader(lives=600)))
    assert (answer.status_code, list(answer.json())) == (200, ["expires"])
    await until(lambda: time.time() > ends)
    await guarded.publish({"type": "t", "id": "later"})
    assert ids(await take(stream, 1)) == ["later"]
    assert (await guarded.http.post("/connections/none/token")).status_code == 404


# Revocation


@pytest.mark.parametrize("named", [{"jti": "t-1"}, {"sub": "ann"}], ids=["jti", "sub"])
@pytest.mark.parametrize("transport", STREAMS)
async def test_a_revocation_ends_the_streams_of_the_token_at_once(
    guarded: Stand, transport: str, named: dict[str, str]
) -> None:
    """With 4001, and the token opens nothing any more; other users' streams go on."""
    token = reader(jti="t-1")
    doomed = guarded.client(transport, token=token).open()
    spared = guarded.client(transport, token=reader(sub="bob", jti="t-2")).open()
    for stream in (doomed, spared):
        await anext(stream)
    assert (await guarded.http.post("/revocations", json=named)).status_code == 200
    assert [each.kind async for each in doomed] in ([], ["close"])
    assert doomed.code == 4001
    with pytest.raises(RefusedError):
        await anext(guarded.client(transport, token=token).open())
    await guarded.publish({"type": "t", "id": "x"})
    assert ids(await take(spared, 1)) == ["x"]


async def test_a_revocation_ends_a_waiting_poll_too(guarded: Stand) -> None:
    """It waits for events that its token may no longer see."""
    poll = guarded.client("longpoll", token=reader(jti="t-1"), wait=20)
    assert isinstance(poll, LongPollClient)
    waiting = asyncio.ensure_future(poll.poll(20))
    await until(lambda: bool(guarded.node.hub.channels))
    assert (await guarded.http.post("/revocations", json={"jti": "t-1"})).status_code == 200
    await guarded.publish({"type": "t", "id": "secret"})
    with pytest.raises(RefusedError) as caught:
        print(await waiting)  # noqa: T201 - what it should not have been told
    assert (caught.value.status, caught.value.code) == (401, "unauthorized")


async def test_a_waiting_poll_ends_with_its_token(guarded: Stand) -> None:
    """What comes after the token's end is not for it; its answer may come before that, and is empty."""
    poll = guarded.client("longpoll", token=reader(lives=1.0))
    assert isinstance(poll, LongPollClient)
    ends = time.time() + 1.1
    waiting = asyncio.ensure_future(poll.poll(20))
    await until(lambda: time.time() > ends)
    await guarded.publish({"type": "t", "id": "secret"})
    with contextlib.suppress(RefusedError):
        assert (await waiting)["events"] == []


# Limits


@pytest.mark.parametrize("transport", STREAMS)
async def test_a_token_has_so_many_connections(start: Start, transport: str) -> None:
    """One more is 4101; SSE is told so in the stream, so that it comes back; one that ends makes room."""
    stand = await start(jwt_secret=SECRET, max_connections_per_token=2)
    token = reader()
    streams = [stand.client(transport, token=token).open() for _ in range(2)]
    for stream in streams:
        await anext(stream)
    await _is_turned_away(stand, transport, reader(jti="of the same user"))
    assert (await anext(stand.client(transport, token=reader(sub="bob")).open())).kind == "place"
    await streams[0].cut()
    await until(lambda: len(stand.node.connections) == 2)
    assert (await anext(stand.client(transport, token=token).open())).kind == "place"


async def _is_turned_away(stand: Stand, transport: str, token: str) -> None:
    if transport == "websocket":
        client = await talk(stand, token=token)
        assert (await client.receive())["code"] == "too_many_connections"
        assert await client.closed() == 4101
        return
    stream = stand.client(transport, token=token).open()
    assert isinstance(stream, SseClient)
    assert [(each.kind, each.body["code"]) async for each in stream] == [("close", 4101)]
    assert stream.answer_headers["content-type"].startswith("text/event-stream")
    assert stream.blocks[0].startswith("retry: ")


async def test_a_poll_beyond_the_limit_is_told_when_to_come_back(start: Start) -> None:
    """503 with Retry-After; the streams of the token count too."""
    stand = await start(jwt_secret=SECRET, max_connections_per_token=1)
    await anext(stand.client("sse", token=reader()).open())
    with pytest.raises(RefusedError) as caught:
        await anext(stand.client("longpoll", token=reader()).open())
    assert (caught.value.status, caught.value.code) == (503, "too_many_connections")
    assert int(caught.value.headers["retry-after"]) > 0


async def test_renewals_do_not_count_as_connections(start: Start) -> None:
    """A token without a user counts by its id: a connection renewed under another id leaves nothing behind."""
    stand = await start(jwt_secret=SECRET, max_connections_per_token=1)
    first, second = reader(sub=None, jti="t-1"), reader(sub=None, jti="t-2")
    client = await talk(stand, token=first)
    await client.receive()
    await client.send(op="auth", token=second)
    await client.expect("auth")
    await client.cut()
    await until(lambda: not len(stand.node.connections))
    for token in (first, second):
        assert await is_served(await talk(stand, token=token))


async def test_a_node_has_so_many_connections(start: Start, transport: str) -> None:
    """Whoever they are: WebSocket 4101, SSE told in the stream, long poll 503."""
    stand = await start(jwt_secret=SECRET, max_connections=1)
    await anext(stand.client("sse", token=reader()).open())
    if transport in STREAMS:
        await _is_turned_away(stand, transport, reader(sub="bob"))
        return
    with pytest.raises(RefusedError) as caught:
        await anext(stand.client(transport, token=reader(sub="bob")).open())
    assert (caught.value.status, "retry-after" in caught.value.headers) == (503, True)


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
