"""Dead letters over HTTP: looking at them, redriving and deleting them."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.event import Event
from gateway.intake import Intake
from gateway.log import DeadLetter, LogUnavailableError
from tests.support.app import InProcess, in_process
from tests.support.letters import BAD, GOOD, give_reader, letter, read
from tests.support.tokens import SECRET, admin_token, bearer, make_token


@pytest.fixture
async def app() -> AsyncIterator[InProcess]:
    async with in_process() as running:
        give_reader(running.node)
        yield running


async def bury(app: InProcess, *letters: DeadLetter) -> None:
    await app.node.log.bury(letters)


async def kept(app: InProcess) -> dict[str, DeadLetter]:
    return {each.id: each for each in await app.node.log.dead_letters(limit=1000)}


async def in_log(app: InProcess) -> list[dict[str, Any]]:
    return [entry.body for entry in (await app.node.log.read(0, 10_000)).entries]


async def get(app: InProcess, query: str = "") -> Any:
    response = await app.http.get(f"/dead-letters{query}")
    assert response.status_code == 200, response.text
    return response.json()


def counted(app: InProcess, ingest: str, result: str) -> float:
    line = f'gateway_events_ingested_total{{ingest="{ingest}",result="{result}"}} '
    lines = app.node.metrics.render().decode().splitlines()
    return next((float(each.removeprefix(line)) for each in lines if each.startswith(line)), 0.0)


def check_problem(response: httpx.Response, status: int, code: str) -> Any:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["status"], problem["code"]) == (status, code)
    return problem


# Looking


async def test_a_letter_is_told_whole(app: InProcess) -> None:
    """With its origin, reason, time and tries, and its bytes as text."""
    await bury(app, letter("a", b'{"\xc3\xa4":\0', tries=3))
    told = {
        "id": "a",
        "origin": "redis:orders",
        "reason": "it was no event",
        "time": "2023-11-14T22:13:20.500Z",
        "tries": 3,
        "payload": '{"ä":\0',
    }
    assert await get(app, "/a") == told
    assert await get(app) == {"deadLetters": [told], "next": None}


async def test_bytes_that_are_no_text_come_as_base64(app: InProcess) -> None:
    """Whatever came can be read back, byte for byte."""
    payload = bytes(range(256))
    await bury(app, letter("a", payload))
    told = await get(app, "/a")
    assert "payload" not in told
    assert base64.b64decode(told["payload_base64"]) == payload


async def test_letters_are_listed_in_pages(app: InProcess) -> None:
    """By id, of one origin or of all; `next` is there exactly as long as there are more."""
    await bury(app, *[letter(f"{n}", origin=f"redis:{n % 2}") for n in range(7)])
    pages = []
    after = ""
    while True:
        page = await get(app, f"?limit=3{after}")
        pages.append([each["id"] for each in page["deadLetters"]])
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert pages == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert [each["id"] for each in (await get(app, "?origin=redis:1"))["deadLetters"]] == ["1", "3", "5"]
    assert (await get(app, "?origin=redis:1&limit=3"))["next"] is None
    assert await get(app, "?origin=redis:2") == {"deadLetters": [], "next": None}
    assert len((await get(app, "?origin="))["deadLetters"]) == 7


@pytest.mark.parametrize(
    "limit",
    ["0", "1001", "-1", "x", "", "1.5", "0000000019999999999", "000000001" + "0" * 5000],
    ids=lambda limit: limit[:20],
)
async def test_a_limit_is_a_number(app: InProcess, limit: str) -> None:
    """From 1 to 1,000."""
    check_problem(await app.http.get(f"/dead-letters?limit={limit}"), 400, "bad_request")


@pytest.mark.parametrize(
    "query", ["orgin=redis:a", "origin=a&origin=b", "limit=1&limit=2", "after=a&after=b"]
)
async def test_an_unknown_or_repeated_parameter_of_the_list_is_400(app: InProcess, query: str) -> None:
    """It is named: it may have been meant to narrow the list."""
    problem = check_problem(await app.http.get(f"/dead-letters?{query}"), 400, "bad_request")
    assert query.partition("=")[0] in problem["detail"]


async def test_any_id_can_be_named(app: InProcess) -> None:
    """Percent-encoded, slashes too."""
    await bury(app, letter("redis:a/b c?ä"))
    path = "/dead-letters/redis:a%2Fb%20c%3F%C3%A4"
    assert (await app.http.get(path)).json()["id"] == "redis:a/b c?ä"
    assert (await app.http.post(f"{path}/redrive")).status_code == 200
    assert (await app.http.get(path)).status_code == 404


async def test_what_is_not_there_is_404(app: InProcess) -> None:
    """Whatever is to be done with it."""
    for method, path in (("GET", "/x"), ("DELETE", "/x"), ("POST", "/x/redrive")):
        problem = check_problem(await app.http.request(method, f"/dead-letters{path}"), 404, "not_found")
        assert problem["detail"] == "there is no dead letter x"


async def test_other_methods_are_405(app: InProcess) -> None:
    """With those that there are."""
    for method, path, allowed in (
        ("POST", "", "GET, HEAD"),
        ("PATCH", "/a", "DELETE, GET, HEAD"),
        ("GET", "/redrive", "POST"),
        ("GET", "/a/redrive", "POST"),
    ):
        response = await app.http.request(method, f"/dead-letters{path}")
        assert (response.status_code, response.headers["allow"]) == (405, allowed)


# Deleting


async def test_a_deleted_letter_is_gone(app: InProcess) -> None:
    """It and no other."""
    await bury(app, letter("a"), letter("b"))
    response = await app.http.delete("/dead-letters/a")
    assert (response.status_code, response.content) == (204, b"")
    assert list(await kept(app)) == ["b"]
    assert (await app.http.delete("/dead-letters/a")).status_code == 404


# Redriving one


async def test_a_redriven_letter_is_an_event(app: InProcess) -> None:
    """In the log, with its cursor told, counted for the way in that it came by, and no letter any more."""
    await bury(app, letter("a"), letter("b"))
    response = await app.http.post("/dead-letters/a/redrive")
    assert response.status_code == 200
    answer = response.json()
    (body,) = await in_log(app)
    assert answer == {
        "accepted": 1,
        "duplicates": 0,
        "cursor": f"{app.node.log.epoch}.1",
        "ids": [body["id"]],
    }
    assert (body["type"], body["subject"]) == ("order.created", "o-1")
    assert list(await kept(app)) == ["b"]
    assert counted(app, "pubsub", "accepted") == 1


async def test_a_letter_that_still_is_no_event_stays(app: InProcess) -> None:
    """The answer tells why, and the letter has the new reason and one try more."""
    await bury(app, letter("a", BAD), letter("b", b"\xff"))
    problem = check_problem(await app.http.post("/dead-letters/a/redrive"), 422, "invalid_event")
    assert problem["detail"] == "type: is required"
    assert problem["errors"] == [{"pointer": "#/0/type", "detail": "is required"}]
    check_problem(await app.http.post("/dead-letters/b/redrive"), 422, "invalid_event")
    check_problem(await app.http.post("/dead-letters/a/redrive"), 422, "invalid_event")
    letters = await kept(app)
    assert letters["a"] == letter("a", BAD, reason="type: is required (at #/0/type)", tries=3)
    assert (letters["b"].tries, letters["b"].payload, letters["b"].time) == (2, b"\xff", 1_700_000_000.5)
    assert counted(app, "pubsub", "invalid") == 3
    assert await in_log(app) == []


async def test_a_kind_that_nobody_reads_is_a_conflict(app: InProcess) -> None:
    """The letter stays as it is."""
    strange = letter("a", kind="parcel")
    await bury(app, strange)
    problem = check_problem(await app.http.post("/dead-letters/a/redrive"), 409, "conflict")
    assert "parcel" in problem["detail"]
    assert (await app.http.post("/dead-letters/redrive")).json() == {"redriven": 0, "failed": 1}
    assert await kept(app) == {"a": strange}


async def test_a_death_between_append_and_delete_doubles_nothing(
    app: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The letter is there still, and redriving it again is a duplicate that deletes it."""
    await bury(app, letter("a"))

    async def die(_ids: object) -> int:
        raise LogUnavailableError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(app.node.log, "unbury", die)
        for path in ("/a/redrive", "/redrive"):
            check_problem(await app.http.post(f"/dead-letters{path}"), 503, "unavailable")
    assert (len(await in_log(app)), list(await kept(app))) == (1, ["a"])
    answer = (await app.http.post("/dead-letters/a/redrive")).json()
    assert (answer["accepted"], answer["duplicates"]) == (0, 1)
    assert (len(await in_log(app)), list(await kept(app))) == (1, [])


async def test_two_at_once_are_one_event(app: InProcess) -> None:
    """Whoever else redrives or deletes the letter meanwhile."""
    await bury(app, letter("a"), letter("b"))
    paths = ["/a/redrive", "/redrive", "/a/redrive", "/redrive?origin=redis:orders"]
    answers = await asyncio.gather(*(app.http.post(f"/dead-letters{path}") for path in paths))
    assert {each.status_code for each in answers} <= {200, 404}
    assert (len(await in_log(app)), await kept(app)) == (2, {})


async def test_an_idempotency_key_answers_again(app: InProcess) -> None:
    """The redriven letter's cursor, the reason of one that stayed (without a try more), and a pass's counts."""
    await bury(app, letter("a"), letter("b", BAD))
    for path, status in (("/a/redrive", 200), ("/b/redrive", 422), ("/redrive", 200)):
        first, again = [
            await app.http.post(f"/dead-letters{path}", headers={"Idempotency-Key": "k"}) for _ in range(2)
        ]
        assert (first.status_code, again.status_code, again.content) == (status, status, first.content)
        assert again.headers["idempotent-replayed"] == "true"
    assert (await kept(app))["b"].tries == 3  # by its own redrive and by the one of all


async def test_a_key_belongs_to_one_origin(app: InProcess) -> None:
    """The same key for another origin is another request."""
    await bury(app, letter("a", origin="redis:a"), letter("b", origin="redis:b"))
    headers = {"Idempotency-Key": "k"}
    first = await app.http.post("/dead-letters/redrive?origin=redis:a", headers=headers)
    assert first.json() == {"redriven": 1, "failed": 0}
    other = await app.http.post("/dead-letters/redrive?origin=redis:b", headers=headers)
    check_problem(other, 422, "idempotency_key_reused")
    assert list(await kept(app)) == ["b"]


# Redriving many


async def test_all_of_an_origin_are_redriven(app: InProcess) -> None:
    """The others stay; those that are no events stay with one try more, and both are counted."""
    await bury(
        app,
        letter("a"),
        letter("b", BAD),
        letter("c", b"[" + GOOD + b"," + GOOD + b"]"),
        letter("d", origin="redis:other"),
    )
    response = await app.http.post("/dead-letters/redrive?origin=redis:orders")
    assert (response.status_code, response.json()) == (200, {"redriven": 2, "failed": 1})
    assert len(await in_log(app)) == 3
    letters = await kept(app)
    assert list(letters) == ["b", "d"]
    assert (letters["b"].tries, letters["b"].reason) == (2, "type: is required (at #/0/type)")
    assert letters["d"].tries == 1
    assert (counted(app, "pubsub", "accepted"), counted(app, "pubsub", "invalid")) == (3, 1)


async def test_all_are_redriven_each_once(app: InProcess) -> None:
    """However many pages they are, and although those that fail stay; every way in counts its own."""
    await bury(
        app,
        *[letter(f"{n:04}", kind=("message", "entry")[n % 2]) for n in range(450)],
        *[letter(f"x{n:04}", BAD) for n in range(250)],
    )
    give_reader(app.node, "entry", read)
    response = await app.http.post("/dead-letters/redrive")
    assert response.json() == {"redriven": 450, "failed": 250}
    bodies = await in_log(app)
    assert [each["id"] for each in bodies if "x" in each["id"]] == []
    assert len({each["id"] for each in bodies}) == 450
    assert {each.tries for each in (await kept(app)).values()} == {2}
    assert [counted(app, each, "accepted") for each in ("pubsub", "streams")] == [225, 225]


async def test_large_letters_are_redriven_a_few_at_a_time(
    app: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held in memory is bounded by bytes too."""
    large = b'[{"type":"a","data":"' + b"x" * 60_000 + b'"}]'
    await bury(app, *[letter(f"{n:02}", large) for n in range(40)])
    appends: list[int] = []
    append = app.node.log.append

    async def watched(events: Any, **options: Any) -> Any:
        appends.append(len(events))
        return await append(events, **options)

    monkeypatch.setattr(app.node.log, "append", watched)
    assert (await app.http.post("/dead-letters/redrive")).json() == {"redriven": 40, "failed": 0}
    assert sum(appends) == 40
    assert max(appends) <= 9


async def test_a_node_that_drains_stops_between_pages(app: InProcess) -> None:
    """The answer is 503 with the counts so far; the same key may try again, since nothing is stored."""
    await bury(app, *[letter(f"{n:04}") for n in range(250)])
    seen: list[str] = []

    def read_and_drain(intake: Intake, each: DeadLetter) -> list[Event]:
        seen.append(each.id)
        app.node.connections.drain_began.set()
        return read(intake, each)

    give_reader(app.node, "message", read_and_drain)
    headers = {"Idempotency-Key": "k"}
    response = await app.http.post("/dead-letters/redrive", headers=headers)
    problem = check_problem(response, 503, "draining")
    assert (problem["redriven"], problem["failed"]) == (len(seen), 0)
    assert len(await kept(app)) == 250 - len(seen) > 0
    app.node.connections.drain_began.clear()
    give_reader(app.node)
    again = await app.http.post("/dead-letters/redrive", headers=headers)
    assert again.json() == {"redriven": 250 - len(seen), "failed": 0}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/redrive?orign=redis:a", b"", 400),
        ("/redrive?origin=", b"", 400),
        ("/redrive?origin=redis:a&origin=redis:b", b"", 400),
        ("/redrive", b'{"origin":"redis:a"}', 422),
        ("/a/redrive?origin=redis:a", b"", 400),
        ("/a/redrive", b"x", 422),
    ],
)
async def test_what_seems_to_narrow_a_redrive_is_not_ignored(
    app: InProcess, path: str, body: bytes, status: int
) -> None:
    """Else a slip of the pen would redrive everything."""
    await bury(app, letter("a"))
    response = await app.http.post(f"/dead-letters{path}", content=body)
    assert (response.status_code, list(await kept(app))) == (status, ["a"])


async def test_an_empty_object_is_no_body(app: InProcess) -> None:
    """Clients that always send JSON may."""
    assert (await app.http.post("/dead-letters/redrive", json={})).json() == {"redriven": 0, "failed": 0}


async def test_a_reader_that_fails_is_our_fault(app: InProcess, caplog: pytest.LogCaptureFixture) -> None:
    """500 with a line in the log, and the letter stays as it is."""

    def fail(_intake: Intake, _letter: DeadLetter) -> list[Event]:
        raise ZeroDivisionError

    await bury(app, letter("a"))
    give_reader(app.node, "message", fail)
    check_problem(await app.http.post("/dead-letters/a/redrive"), 500, "internal")
    assert any(record.exc_info for record in caplog.records)
    assert await kept(app) == {"a": letter("a")}


# Rights


CALLS = [
    ("GET", ""), ("GET", "/a"), ("DELETE", "/a"), ("POST", "/a/redrive"), ("POST", "/redrive"), ("GET", "/nobody"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_letters_are_for_admins(method: str, path: str) -> None:
    """Others hear 403, also of what is not there and under a key; nobody in particular 401."""
    everything: dict[str, Any] = {"publish": ("*",), "subscribe": ({"exists": {"type": True}},)}
    async with in_process(jwt_secret=SECRET) as app:
        give_reader(app.node)
        await bury(app, letter("a"))
        url = f"/dead-letters{path}"
        check_problem(await app.http.request(method, url), 401, "unauthorized")
        for key in ({}, {"Idempotency-Key": "k"} if method == "POST" else {}):
            headers = {**bearer(make_token(**everything)), **key}
            check_problem(await app.http.request(method, url, headers=headers), 403, "forbidden")
        assert await kept(app) == {"a": letter("a")}
        allowed = await app.http.request(method, url, headers=bearer(admin_token()))
        assert allowed.status_code == (404 if path == "/nobody" else 204 if method == "DELETE" else 200)
