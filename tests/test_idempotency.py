"""Idempotency-Key: the same request again has the same answer and no second effect."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest

from gateway.limits import Rates
from gateway.log import Appended, LogUnavailableError, Remember
from gateway.log.sqlite import SqliteLog
from tests.support.app import Exchange, InProcess, in_process
from tests.support.tokens import EVERYTHING, SECRET, bearer, make_token
from tests.support.waiting import until

EVENT = {"type": "order.created", "subject": "o-1"}
ORDER = {"items": [{"sku": "a"}]}
DAY = 86_400


@pytest.fixture
async def app() -> AsyncIterator[InProcess]:
    async with in_process() as running:
        yield running


async def post(
    app: InProcess, key: str | bytes | None = "k", path: str = "/events", **options: Any
) -> httpx.Response:
    options = options or {"json": EVENT}
    headers = options.pop("headers", {})
    given = (
        headers
        if key is None
        else {**headers, b"idempotency-key": key if isinstance(key, bytes) else key.encode()}
    )
    return await app.http.post(path, headers=given, **options)


def head(app: InProcess) -> int:
    return app.node.log.head


def is_replay(response: httpx.Response) -> bool:
    return bool(response.headers.get("idempotent-replayed") == "true")


def move_on(app: InProcess, seconds: float) -> None:
    """The log's clock goes forward."""
    assert isinstance(app.node.log, SqliteLog)
    app.node.log._now = lambda: time.time() + seconds


async def test_the_same_again_is_the_first_answer(app: InProcess) -> None:
    """Status, body and headers, byte for byte, and one effect however often it is sent."""
    first = await post(app)
    assert (first.status_code, is_replay(first)) == (202, False)
    for _ in range(3):
        again = await post(app)
        assert (again.status_code, again.content, is_replay(again)) == (202, first.content, True)
        assert again.headers["content-type"] == first.headers["content-type"]
    assert head(app) == 1


async def test_location_and_etag_are_part_of_the_answer(app: InProcess) -> None:
    """An order is created once, and the second answer leads to it as well."""
    first, again = [await post(app, path="/orders", json=ORDER) for _ in range(2)]
    assert (again.status_code, again.content, is_replay(again)) == (201, first.content, True)
    for name in ("location", "etag"):
        assert again.headers[name] == first.headers[name]
    assert head(app) == 1


async def test_without_a_key_nothing_is_remembered(app: InProcess) -> None:
    """The same request twice is two events."""
    for _ in range(2):
        assert not is_replay(await post(app, None))
    assert head(app) == 2


async def test_other_bytes_under_the_same_key_are_422(app: InProcess) -> None:
    """The first answer stays what it was."""
    first = await post(app)
    other = await post(app, json={**EVENT, "subject": "o-2"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert (await post(app, content=b"{}", headers={"content-type": "application/json"})).status_code == 422
    assert (await post(app)).content == first.content
    assert head(app) == 1


@pytest.mark.parametrize(
    "same",
    [
        ("k", '"k"'),
        ('"a b"', ' "a b" '),
        ("a-1:2/3", '"a-1:2/3"'),
        (r"a\b", r'"a\\b"'),
        ("k" * 255, f'"{"k" * 255}"'),
    ],
)
async def test_a_key_is_one_key_quoted_or_not(app: InProcess, same: tuple[str, str]) -> None:
    """The draft has it quoted, most clients send it bare."""
    first, again = [await post(app, key) for key in same]
    assert (first.status_code, is_replay(first), is_replay(again)) == (202, False, True)
    assert head(app) == 1


async def test_keys_are_told_apart_by_case_and_every_character(app: InProcess) -> None:
    """Another key is another request."""
    for key in ("k", "K", "k2", '"k "'):
        assert not is_replay(await post(app, key))
    assert head(app) == 4


@pytest.mark.parametrize(
    "key",
    [b"", b'""', b" ", b"k" * 256, b'"' + b"k" * 256 + b'"', "ké".encode(), "é".encode("latin-1"), b'"k', b'k"', b'k"k', b'"k"k"', b'"', b"a b", b"k\x7f", b'"k\t"'],
)  # fmt: skip
async def test_a_malformed_key_is_400(app: InProcess, key: bytes) -> None:
    """Empty, over 255 characters, not ASCII, or half quoted."""
    response = await post(app, key)
    assert (response.status_code, response.json()["code"]) == (400, "bad_idempotency_key")
    assert head(app) == 0


async def test_a_key_that_was_sent_twice_is_400(app: InProcess) -> None:
    """Even where both are equal."""
    headers = [("idempotency-key", "k"), ("idempotency-key", "k")]
    response = await app.http.post("/events", json=EVENT, headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "bad_idempotency_key")


# While it runs


async def test_a_key_is_taken_when_the_headers_have_arrived(app: InProcess) -> None:
    """The same key again before the first request's body is complete is 409, with when to come back."""
    headers = {"content-type": "application/json", "idempotency-key": "k"}
    async with Exchange(app.gateway, "/events", method="POST", headers=headers) as slow:
        slow.body(orjson.dumps(EVENT)[:5], more=True)
        await until(lambda: app.node.idempotent_keys)
        second = await post(app, '"k"')
        assert (second.status_code, second.json()["code"]) == (409, "request_in_progress")
        assert second.headers["retry-after"] == "1"
        assert (await post(app, "another")).status_code == 202
        slow.body(orjson.dumps(EVENT)[5:])
        await slow.done()
        assert slow.status == 202
    assert is_replay(await post(app))
    assert head(app) == 2


async def test_of_many_at_once_one_has_the_effect(app: InProcess) -> None:
    """The others are told to wait or get its answer."""
    responses = await asyncio.gather(*(post(app) for _ in range(20)))
    statuses = [each.status_code for each in responses]
    assert set(statuses) <= {202, 409}
    assert 202 in statuses
    assert head(app) == 1


async def test_a_client_that_is_gone_frees_its_key(app: InProcess) -> None:
    """Its request had no effect, and it may send it again."""
    headers = {"content-type": "application/json", "idempotency-key": "k"}
    async with Exchange(app.gateway, "/events", method="POST", headers=headers) as gone:
        gone.body(b"{", more=True)
        await until(lambda: app.node.idempotent_keys)
    assert not app.node.idempotent_keys
    assert not is_replay(await post(app))


# Whose key it is


async def test_a_key_belongs_to_caller_method_and_path() -> None:
    """Two users, or two paths, may use the same key; a newer token of the same user is the same caller."""
    async with in_process(jwt_secret=SECRET) as app:
        ann, bob, anew = (
            bearer(make_token(sub=sub, publish=("*",), subscribe=(EVERYTHING,), jti=jti))
            for sub, jti in (("ann", "1"), ("bob", "2"), ("ann", "3"))
        )
        assert not is_replay(await post(app, json=EVENT, headers=ann))
        assert not is_replay(await post(app, json=EVENT, headers=bob))
        assert is_replay(await post(app, json=EVENT, headers=anew))
        order = await post(app, path="/orders", json=ORDER, headers=ann)
        assert (order.status_code, is_replay(order)) == (201, False)
        other = await post(app, path="/orders", json=ORDER, headers=ann)
        assert is_replay(other)
        path = f"{order.headers['location']}/status"
        patch = await app.http.patch(path, json={"status": "paid"}, headers={**ann, "idempotency-key": "k"})
        assert (patch.status_code, is_replay(patch)) == (200, False)


async def test_a_key_is_the_same_with_and_without_the_prefix() -> None:
    """A retry may come through the proxy that strips the prefix or past it."""
    async with in_process(root_path="/gw") as app:
        assert not is_replay(await post(app, path="/gw/events", json=EVENT))
        assert is_replay(await post(app, path="/events", json=EVENT))


async def test_rights_are_checked_before_a_stored_answer() -> None:
    """Who may not publish any more does not read what he was answered then; and no 403 is stored."""
    async with in_process(jwt_secret=SECRET) as app:
        may, may_not = (bearer(make_token(publish=each)) for each in (("order.*",), ()))
        assert (await post(app, json=EVENT, headers=may_not)).status_code == 403
        assert not is_replay(await post(app, json=EVENT, headers=may))
        refused = await post(app, json=EVENT, headers=may_not)
        assert (refused.status_code, is_replay(refused)) == (403, False)
        assert (await post(app, json=EVENT)).status_code == 401
        assert is_replay(await post(app, json=EVENT, headers=may))


async def test_429_is_not_stored() -> None:
    """It says to come back, so the same request may succeed."""
    async with in_process(jwt_secret=SECRET, publish_rate=1) as app:
        ann = bearer(make_token(publish=("*",)))
        await post(app, "another", json=EVENT, headers=ann)
        assert (await post(app, json=EVENT, headers=ann)).status_code == 429
        assert isinstance(app.node.publish_rates, Rates)
        app.node.publish_rates._buckets.clear()
        assert (await post(app, json=EVENT, headers=ann)).status_code == 202


class Failing(SqliteLog):
    """A log whose store does not answer, once."""

    async def append(self, *args: Any, **options: Any) -> Appended:
        self.__class__ = SqliteLog  # type: ignore[assignment]
        raise LogUnavailableError("the store is away")


async def test_5xx_is_not_stored(app: InProcess) -> None:
    """Nothing is known of the effect, so the same request is tried again."""
    app.node.log.__class__ = Failing
    failed = await post(app)
    assert (failed.status_code, failed.json()["code"]) == (503, "unavailable")
    assert "retry-after" in failed.headers
    assert not is_replay(await post(app))
    assert head(app) == 1


async def test_other_errors_are_stored(app: InProcess) -> None:
    """422, 404 and 412 are answers like any other."""
    for path, content in (("/events", {"id": "1"}), ("/orders", {"items": 5})):
        first, again = [await post(app, path=path, json=content) for _ in range(2)]
        assert (first.status_code, is_replay(first)) == (422, False)
        assert (again.status_code, again.content, is_replay(again)) == (422, first.content, True)
        assert again.headers["content-type"] == "application/problem+json"
    unknown = [
        await app.http.patch("/orders/x/status", json={"status": "a"}, headers={"idempotency-key": "k"})
        for _ in range(2)
    ]
    assert [(each.status_code, is_replay(each)) for each in unknown] == [(404, False), (404, True)]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/events", {"content-type": "application/json", "content-encoding": "gzip"}),
        ("/events", {"content-type": "application/x-ndjson", "content-encoding": "gzip"}),
        ("/orders", {"content-type": "application/json", "content-encoding": "br"}),
        ("/events", {"content-type": "application/json; charset=latin-1"}),
        ("/events", {"content-type": "application/x-ndjson; charset=latin-1"}),
        ("/events", {"content-type": "text/csv"}),
        ("/orders", {"content-type": "text/plain"}),
    ],
)
async def test_415_is_stored(app: InProcess, path: str, headers: dict[str, str]) -> None:
    """A content type or a compression that is not taken is an answer too, and what is taken is another request."""
    first, again = [await post(app, path=path, content=b"{}", headers=dict(headers)) for _ in range(2)]
    assert (first.status_code, is_replay(first)) == (415, False)
    assert (again.status_code, again.content, is_replay(again)) == (415, first.content, True)
    plain = await post(app, path=path, content=b"{}", headers={"content-type": "application/json"})
    assert (plain.status_code, plain.json()["code"]) == (422, "idempotency_key_reused")


async def test_a_body_that_was_not_read_whole_is_not_stored(app: InProcess) -> None:
    """Nobody can say whether the next one has the same bytes, so its key stays free; one that was read is stored."""
    headers = {"content-type": "application/json"}
    for _ in range(2):
        response = await post(app, content=b" " * ((8 << 20) + 1), headers=headers)
        assert (response.status_code, is_replay(response)) == (413, False)
    large = orjson.dumps({**EVENT, "data": "x" * 70_000})
    first, again = [await post(app, content=large, headers=headers) for _ in range(2)]
    assert (first.status_code, is_replay(first)) == (413, False)
    assert (again.content, is_replay(again)) == (first.content, True)


async def test_an_answer_is_kept_for_24_hours(app: InProcess) -> None:
    """Then the key is as good as new."""
    await post(app)
    move_on(app, DAY - 60)
    assert is_replay(await post(app))
    move_on(app, DAY + 60)
    assert not is_replay(await post(app))
    assert head(app) == 2


# With the effect, in one transaction


async def test_answer_and_effect_are_one_write(app: InProcess) -> None:
    """Where the key was taken meanwhile, nothing is appended and the stored answer is given."""
    log = app.node.log
    first = await post(app)
    [key] = [row[0] for row in (await keys(log))]
    event = orjson.loads(first.content)
    assert event["accepted"] == 1
    stored = await log.recall(key)
    assert stored is not None
    assert (stored.reply.status, stored.reply.appended) == (202, Appended(1, 0, 1))
    with pytest.raises(Exception, match=key):
        await log.append([], remember=Remember(key, b"", stored.reply))


async def keys(log: Any) -> list[Any]:
    rows: list[Any] = await log._read(lambda db: db.execute("SELECT key FROM remembered").fetchall())
    return rows


async def test_an_answer_that_told_no_effect_is_stored_with_none(app: InProcess) -> None:
    """A PATCH to the status that the order has answers the same again, and appends nothing either time."""
    order = await post(app, None, path="/orders", json={**ORDER, "status": "paid"})
    path = f"{order.headers['location']}/status"
    first, again = [
        await app.http.patch(path, json={"status": "paid"}, headers={"idempotency-key": "k"})
        for _ in range(2)
    ]
    assert (first.status_code, again.content, is_replay(again)) == (200, first.content, True)
    assert head(app) == 1


# Lines, tickets, revocations


async def test_lines_under_a_key_are_appended_as_a_whole_or_not_at_all(app: InProcess) -> None:
    """One bad line, and nothing of it is there; without one, the same stream again is answered again."""
    good = b"".join(orjson.dumps({"type": "a", "data": number}) + b"\n" for number in range(1200))
    headers = {"content-type": "application/x-ndjson"}
    await app.publish(EVENT)
    for key, bad_line in (("bad", b"nonsense\n"), ("long", b" " * 70_000 + b"\n")):
        bad, again = [await post(app, key, content=good + bad_line, headers=headers) for _ in range(2)]
        told = bad.json()
        assert (told["line"], told["accepted"], told["duplicates"]) == (1201, 0, 0)
        assert told["cursor"] == f"{app.node.log.epoch}.1"
        assert (again.content, is_replay(again), head(app)) == (bad.content, True, 1)
    invalid = 'gateway_events_ingested_total{ingest="http",result="invalid"} 4.0'
    assert invalid in app.node.metrics.render().decode()
    first, again = [await post(app, content=good, headers=headers) for _ in range(2)]
    assert (first.status_code, first.json()["accepted"]) == (202, 1200)
    assert (again.content, is_replay(again), head(app)) == (first.content, True, 1201)


async def test_a_replayed_answer_counts_duplicates_as_the_first_did(app: InProcess) -> None:
    """What the append did then, not what it would do now."""
    await app.publish({"type": "a", "id": "1"})
    first, again = [await post(app, json=[{"type": "a", "id": "1"}, {"type": "a"}]) for _ in range(2)]
    assert (first.json()["accepted"], first.json()["duplicates"]) == (1, 1)
    assert again.content == first.content


@pytest.mark.parametrize(
    ("path", "content"), [("/tickets", {"for": "/events?type=a"}), ("/revocations", {"sub": "bob"})]
)
async def test_every_post_takes_a_key(path: str, content: Any) -> None:
    """Its second answer is the first one, byte for byte."""
    async with in_process(jwt_secret=SECRET) as app:
        root = bearer(make_token(sub="root", admin=True, subscribe=(EVERYTHING,)))
        first, again = [await post(app, path=path, json=content, headers=root) for _ in range(2)]
        assert first.is_success
        assert (again.status_code, again.content, is_replay(again)) == (
            first.status_code,
            first.content,
            True,
        )
