"""How long a token holds, how it is renewed, and how it ends; and how many connections it may have."""

import asyncio
import contextlib
import time

import pytest

from tests.conformance.conftest import Stand, Start
from tests.conformance.talking import is_served, talk
from tests.support.clients import LongPollClient, RefusedError, SseClient, ids, take
from tests.support.tokens import SECRET, bearer, make_token, may_see, reader
from tests.support.waiting import until

pytestmark = pytest.mark.parametrize("variant", ["fast", "portable"], indirect=True)

STREAMS = ("websocket", "sse")


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
        await waiting
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
