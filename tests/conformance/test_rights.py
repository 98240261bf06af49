"""What a token may see and do, through every transport, option and shape of filter."""

import json
from typing import Any

import httpx
import pytest

from tests.conformance.conftest import Stand, Start
from tests.support.clients import Client, RefusedError, catch_up, take, take_until
from tests.support.model import as_pairs, expected, newest, snapshot, told_pairs
from tests.support.tokens import SECRET, admin_token, bearer, make_token, may_see

pytestmark = pytest.mark.parametrize("variant", ["fast", "portable"], indirect=True)

MINE = may_see("c-1")
PAID = {"exact": {"data.status": "paid"}}
END = {"exact": {"type": "end"}}
SHAPES: tuple[dict[str, Any], ...] = (
    {"exists": {"type": True}},
    {"not": MINE},
    {"not": {"not": may_see("c-2")}},
    {"not": {"exists": {"data.coupon": True}}},
    {"any": [may_see("c-2"), {"prefix": {"type": "order."}}]},
    {"all": [{"not": {"exact": {"data.customerId": "c-3"}}}, PAID]},
    {"exists": {"data.customerId": False}},
    {"prefix": {"data.customerId": "c-"}},
    {"in": {"data.customerId": ["c-1", "c-2"]}},
    {"exact": {"subject": "o-moves"}},
    PAID,
)


def order(
    id_: str, subject: str, customer: str | None, status: str = "new", type_: str = "order.updated"
) -> Any:
    owned = {} if customer is None else {"customerId": customer}
    data = {"orderId": subject, "status": status, **owned}
    return {"type": type_, "source": "/t", "id": id_, "subject": subject, "data": data}


LOG = [
    order("a", "o-1", "c-1", "paid"),
    order("b", "o-2", "c-2", "paid"),
    order("c", "o-moves", "c-1", "paid"),
    order("d", "o-0", None, "paid"),
    order("e", "o-moves", "c-2", "paid"),
    order("f", "o-2", "c-3", "new"),
    order("g", "o-1", "c-1", "new"),
    order("h", "o-comes", "c-2", "paid"),
    order("i", "o-comes", "c-1", "paid"),
    {"type": "note", "source": "/t", "id": "j", "data": "no object"},
    order("k", "o-9", "c-11", "paid"),
]
LAST = order("end", "o-end", "c-1", "paid", "end")


def mine(**more: Any) -> str:
    return make_token(subscribe=(MINE,), **more)


def visible(wanted: dict[str, Any] | None) -> dict[str, Any]:
    return MINE if wanted is None else {"all": [MINE, wanted]}


# What is seen


@pytest.mark.parametrize("leave", [False, True], ids=["", "leave"])
@pytest.mark.parametrize("deliver", ["all", "latest"])
async def test_replay_tells_what_the_token_may_see_and_nothing_else(
    guarded: Stand, transport: str, deliver: str, *, leave: bool
) -> None:
    """Whatever the filter asks for; a leave comes only where the event before it was visible."""
    await guarded.publish(*LOG)
    for wanted in (None, *SHAPES):
        stream = guarded.client(transport, token=mine()).open(
            filter=wanted, since="earliest", deliver=deliver, leave=leave
        )
        model = expected(LOG, visible(wanted), leave=leave)
        told = await catch_up(stream)
        assert told_pairs(told) == as_pairs(newest(model) if deliver == "latest" else model), wanted
        await stream.cut()


async def test_a_snapshot_tells_what_the_token_may_see_and_nothing_else(
    guarded: Stand, transport: str
) -> None:
    """By an index or without: what was this customer's and now is another's is not told."""
    await guarded.publish(*LOG)
    for wanted in (None, *SHAPES):
        stream = guarded.client(transport, token=mine()).open(filter=wanted, since="snapshot", leave=True)
        told = await catch_up(stream)
        assert told_pairs(told) == [("event", each) for each in snapshot(LOG, visible(wanted))], wanted
        await stream.cut()


async def test_live_tells_what_the_token_may_see_and_nothing_else(guarded: Stand, transport: str) -> None:
    """To clients of all shapes of filters at once, with and without `leave`."""
    streams: list[tuple[dict[str, Any], bool, Client]] = []
    for wanted in SHAPES:
        for leave in (False, True):
            until_end = {"any": [wanted, END]}
            stream = guarded.client(transport, token=mine()).open(filter=until_end, leave=leave)
            await anext(stream)
            streams.append((until_end, leave, stream))
    for each in (*LOG, LAST):
        await guarded.publish(each)
    for wanted, leave, stream in streams:
        model = expected([*LOG, LAST], visible(wanted), leave=leave)
        assert told_pairs(await take_until(stream, "end")) == as_pairs(model), (wanted, leave)


async def test_a_token_sees_what_any_of_its_filters_lets_through(guarded: Stand, transport: str) -> None:
    """The filters of the claim are alternatives."""
    await guarded.publish(*LOG)
    token = make_token(subscribe=(may_see("c-3"), may_see("c-11")))
    stream = guarded.client(transport, token=token).open(since="earliest")
    assert told_pairs(await catch_up(stream)) == [("event", "f"), ("event", "k")]


async def test_a_token_without_the_claim_sees_nothing(guarded: Stand, transport: str) -> None:
    """No claim, no right: not even an empty stream."""
    for token in (make_token(publish=("*",)), make_token(gateway={}), make_token(admin=True)):
        with pytest.raises(RefusedError) as caught:
            await anext(guarded.client(transport, token=token).open(since="earliest"))
        assert (caught.value.code, caught.value.status) in {("forbidden", 403), ("forbidden", 0)}


async def test_nothing_is_told_without_a_token(guarded: Stand, transport: str) -> None:
    """Over HTTP it is 401 with the challenge; a WebSocket may still send one."""
    client = guarded.client(transport).open(since="earliest")
    with pytest.raises(RefusedError) as caught:
        await anext(client)
    assert (caught.value.code, caught.value.status) in {("unauthorized", 401), ("unauthorized", 0)}
    if caught.value.status:
        assert caught.value.headers["www-authenticate"].startswith("Bearer")


async def test_orders_are_those_that_the_token_may_see(guarded: Stand) -> None:
    """The list, its pages and its status filter; another's order is not found, as one that does not exist."""
    for at in range(9):
        customer, status = f"c-{at % 3}", ("paid", "new")[at % 2]
        await guarded.publish(order(f"x{at}", f"o-{at}", customer, status, "order.created"))
    await guarded.publish(order("moved", "o-1", "c-2", type_="order.updated"))
    async with httpx.AsyncClient(base_url=guarded.url, headers=bearer(mine()), verify=False) as http:
        assert await _order_pages(http, {}) == ["o-7", "o-4"]
        assert await _order_pages(http, {"limit": "1"}) == ["o-7", "o-4"]
        assert await _order_pages(http, {"status": "paid"}) == ["o-4"]
        assert (await http.get("/orders/o-4")).json()["customerId"] == "c-1"
        for hidden in ("o-1", "o-2", "nothing"):
            answer = await http.get(f"/orders/{hidden}")
            assert (answer.status_code, answer.json()["code"], answer.headers.get("etag")) == (
                404,
                "not_found",
                None,
            )
    async with httpx.AsyncClient(base_url=guarded.url, headers=bearer(make_token()), verify=False) as http:
        for path in ("/orders", "/orders/o-4", "/orders/nothing"):
            assert (await http.get(path)).status_code == 403


async def _order_pages(http: httpx.AsyncClient, query: dict[str, str]) -> list[str]:
    seen: list[str] = []
    while True:
        page = (await http.get("/orders", params=query)).json()
        seen += [each["orderId"] for each in page["orders"]]
        if page["next"] is None:
            return seen
        query = {**query, "after": page["next"]}


# What is published


@pytest.fixture
async def shop(guarded: Stand) -> Stand:
    """The publisher may publish `order.*` and `payment.done`."""
    token = make_token(publish=("order.*", "payment.done"), subscribe=(MINE,))
    guarded.http.headers.update(bearer(token))
    return guarded


@pytest.mark.parametrize("type_", ["order.created", "order.", "payment.done"])
async def test_a_token_publishes_the_types_of_its_claim(shop: Stand, type_: str) -> None:
    """A trailing `*` is a prefix."""
    assert (await shop.publish({"type": type_}))["accepted"] == 1


@pytest.mark.parametrize("type_", ["payment.done.twice", "orders", "Order.created", "refund", "*"])
async def test_no_other_type_is_published(shop: Stand, type_: str) -> None:
    """Not alone, not in a batch, of which then nothing is accepted, nor in binary mode."""
    alone = await shop.http.post("/events", json={"type": type_})
    batch = await shop.http.post("/events", json=[{"type": "order.created"}, {"type": type_}])
    binary = {"ce-type": type_, "ce-specversion": "1.0", "Content-Type": "application/json"}
    bare = await shop.http.post("/events", content=b"1", headers=binary)
    for answer in (alone, batch, bare):
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert shop.node.log.head == 0


async def test_lines_before_one_that_is_forbidden_stay_accepted(shop: Stand) -> None:
    """The answer names the line, what was accepted and its cursor; under a key it is all or nothing."""
    types = ["order.created", "order.paid", "refund", "order.sent"]
    lines = "\n".join(json.dumps({"type": each, "id": str(at)}) for at, each in enumerate(types))
    kind = {"Content-Type": "application/x-ndjson"}
    whole = await shop.http.post("/events", content=lines, headers={**kind, "Idempotency-Key": "k"})
    assert (whole.status_code, shop.node.log.head) == (403, 0)
    answer = await shop.http.post("/events", content=lines, headers=kind)
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["line"]) == (403, "forbidden", 3)
    assert (problem["accepted"], problem["cursor"], shop.node.log.head) == (2, shop.cursor(2), 2)


async def test_orders_are_made_and_changed_by_who_may_publish_that(guarded: Stand) -> None:
    """POST needs `order.created`, PATCH `order.updated`."""
    body = {"items": ["tea"]}
    answers = {}
    for name in ("order.created", "order.updated"):
        headers = bearer(make_token(publish=(name,)))
        made = await guarded.http.post("/orders", json=body, headers=headers)
        answers[name, "POST"] = made.status_code
        target = f"/orders/{made.json().get('orderId', 'none')}/status"
        changed = await guarded.http.patch(target, json={"status": "paid"}, headers=headers)
        answers[name, "PATCH"] = changed.status_code
    assert answers == {
        ("order.created", "POST"): 201,
        ("order.created", "PATCH"): 403,
        ("order.updated", "POST"): 403,
        ("order.updated", "PATCH"): 404,
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/events"),
        ("POST", "/orders"),
        ("PATCH", "/orders/o-1/status"),
        ("GET", "/orders"),
        ("POST", "/tickets"),
    ],
)
async def test_a_call_without_a_token_is_401(guarded: Stand, method: str, path: str) -> None:
    """With the challenge of RFC 6750."""
    del guarded.http.headers["Authorization"]
    answer = await guarded.http.request(method, path, json={"type": "order.created"})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_admin_calls_need_an_admin(guarded: Stand) -> None:
    """Neither the right to publish everything nor to see everything is enough."""
    token = make_token(publish=("*",), subscribe=({"exists": {"type": True}},))
    for headers, status in ((bearer(token), 403), (bearer(admin_token()), 200)):
        assert (await guarded.http.get("/metrics", headers=headers)).status_code == status
        revoked = await guarded.http.post("/revocations", json={"jti": "nobody's"}, headers=headers)
        assert revoked.status_code == status


async def test_who_publishes_too_often_is_told_when_to_come_back(start: Start) -> None:
    """429 with Retry-After, for each user and whichever way of publishing; others are not held up."""
    stand = await start(jwt_secret=SECRET, publish_rate=0.01)
    ann = bearer(make_token(publish=("*",)))
    again = bearer(make_token(publish=("*",), jti="another"))
    lines = {"Content-Type": "application/x-ndjson"}
    answers = [
        await stand.http.post("/events", json={"type": "t"}, headers=ann),
        await stand.http.post("/events", content='{"type":"t"}', headers={**again, **lines}),
        await stand.http.post("/events", json=[{"type": "t"}], headers=ann),
        await stand.http.post("/orders", json={"items": [1]}, headers=again),
        await stand.http.patch("/orders/o-1/status", json={"status": "paid"}, headers=again),
    ]
    assert [each.status_code for each in answers] == [202, 429, 429, 429, 429]
    assert all(1 <= int(each.headers["Retry-After"]) <= 100 for each in answers[1:])
    assert stand.node.log.head == 1
    bob = bearer(make_token(sub="bob", publish=("*",)))
    assert (await stand.http.post("/events", json={"type": "t"}, headers=bob)).status_code == 202


async def test_what_may_not_be_seen_does_not_hold_up_what_may(guarded: Stand, transport: str) -> None:
    """A stream with nothing to see is live all the same, and gets the first event that it may see."""
    await guarded.publish(*LOG)
    stream = guarded.client(transport, token=make_token(subscribe=(may_see("nobody"),))).open(
        since="earliest"
    )
    assert await catch_up(stream) == []
    await guarded.publish(*(dict(each, id=each["id"] + "2") for each in LOG))
    await guarded.publish(order("mine", "o-5", "nobody"))
    assert told_pairs(await take(stream, 1)) == [("event", "mine")]
