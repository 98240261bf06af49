"""The orders API: an order's state is its latest event, whoever sent it."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from gateway.event import is_rfc3339
from tests.support.app import Exchange, InProcess, in_process
from tests.support.tokens import SECRET, bearer, make_token, may_see

ITEMS = [{"sku": "a", "count": 2}]


@pytest.fixture
async def app() -> AsyncIterator[InProcess]:
    async with in_process() as running:
        yield running


async def create(app: InProcess, **members: Any) -> str:
    """The id of a new order."""
    response = await app.http.post("/orders", json={"items": ITEMS, **members})
    assert response.status_code == 201, response.text
    order_id: str = response.json()["orderId"]
    return order_id


async def patch(app: InProcess, order_id: str, status: Any, **headers: str) -> httpx.Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return await app.http.patch(f"/orders/{order_id}/status", json={"status": status}, headers=given)


async def events(app: InProcess) -> list[Any]:
    return [entry.body for entry in (await app.node.log.read(0, 10_000)).entries]


# A new order


async def test_a_new_order(app: InProcess) -> None:
    """201 with its place and id; `order.created` carries the whole order and whatever else was given."""
    response = await app.http.post("/orders", json={"items": ITEMS, "customerId": "c-1", "note": None})
    order_id = response.json()["orderId"]
    assert response.status_code == 201
    assert response.json() == {"message": "Order created successfully", "orderId": order_id}
    assert response.headers["location"] == f"/orders/{order_id}"
    [event] = await events(app)
    assert (event["type"], event["subject"]) == ("order.created", order_id)
    order = event["data"]
    assert order == {
        "items": ITEMS, "customerId": "c-1", "note": None, "orderId": order_id, "status": "created",
        "createdAt": order["createdAt"], "updatedAt": order["createdAt"],
    }  # fmt: skip
    assert is_rfc3339(order["createdAt"])
    shown = await app.http.get(response.headers["location"])
    assert (shown.json(), shown.headers["etag"]) == (order, response.headers["etag"])


async def test_a_new_order_may_have_a_status(app: InProcess) -> None:
    """Otherwise it is `created`."""
    order_id = await create(app, status="paid")
    assert (await app.http.get(f"/orders/{order_id}")).json()["status"] == "paid"


async def test_the_location_is_that_of_the_proxy() -> None:
    """Behind a prefix the link leads through it."""
    async with in_process(root_path="/gw") as app:
        response = await app.http.post("/orders", json={"items": ITEMS})
        assert response.headers["location"].startswith("/gw/orders/")
        assert (await app.http.get(response.headers["location"])).status_code == 200


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, ["#/items"]),
        ({"items": []}, ["#/items"]),
        ({"items": "a"}, ["#/items"]),
        ({"items": {"0": 1}}, ["#/items"]),
        ({"items": ITEMS, "status": ""}, ["#/status"]),
        ({"items": ITEMS, "status": 5}, ["#/status"]),
        ({"items": ITEMS, "status": None}, ["#/status"]),
        ({"items": ITEMS, "status": "x" * 101}, ["#/status"]),
        ({"items": [], "orderId": "mine", "createdAt": "now"}, ["#/orderId", "#/createdAt", "#/items"]),
        ({"items": ITEMS, "updatedAt": "now", "previousStatus": "x"}, ["#/updatedAt", "#/previousStatus"]),
        ([], ["#"]),
        (5, ["#"]),
    ],
)
async def test_what_is_no_order_is_422(app: InProcess, body: Any, pointers: list[str]) -> None:
    """Every fault with its pointer; what the gateway sets itself cannot be given."""
    response = await app.http.post("/orders", json=body)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert sorted(each["pointer"] for each in response.json()["errors"]) == sorted(pointers)
    assert await events(app) == []


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"items":[NaN]}', "application/json", 400),
        (b'{"items":[1]}', "text/plain", 415),
        (b'{"items":[1]}', "application/json; charset=utf-16", 415),
        (b'{"items":["' + b"x" * 66_000 + b'"]}', "application/json", 413),
        (b'{"items":[1e400]}', "application/json", 422),
    ],
)
async def test_what_is_no_request_at_all(
    app: InProcess, content: bytes, media_type: str, status: int
) -> None:
    """As for every other body."""
    for method, path in (("POST", "/orders"), ("PATCH", "/orders/x/status")):
        if (method, status) == ("PATCH", 413):
            continue  # there is no event yet that could be too large
        response = await app.http.request(method, path, content=content, headers={"content-type": media_type})
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"


# Any subject is an order's id


@pytest.mark.parametrize("subject", ["ext 1/ü", "a/status", "/", "a%2Fb", "o-1/", "..", "?#", "status"])
@pytest.mark.parametrize("prefix", ["", "/gw"])
async def test_an_order_of_any_subject_is_found(subject: str, prefix: str) -> None:
    """Percent-encoded, its slashes as well, it is one segment of the path; behind a proxy's prefix too."""
    path = f"{prefix}/orders/{quote(subject, safe='').replace('.', '%2E')}"
    async with in_process(root_path="/gw") as app:
        await app.publish({"type": "order.x", "subject": subject, "data": {"orderId": subject, "n": 1}})
        assert (await app.http.get(path)).json() == {"orderId": subject, "n": 1}
        response = await app.http.patch(f"{path}/status", json={"status": "paid"})
        assert (response.status_code, response.json()["orderId"]) == (200, subject)
        assert (await app.http.get(path)).json()["status"] == "paid"
        assert (await app.http.get(f"{path}/status")).headers["allow"] == "PATCH"


async def test_a_bare_slash_in_an_id_is_another_path(app: InProcess) -> None:
    """So `status` at the end is never an order's name and a call at once."""
    await app.publish({"type": "order.x", "subject": "a/b", "data": {}})
    for path in ("/orders/a/b", "/orders/a/b/status", "/orders//status", "/orders/"):
        for method in ("GET", "PATCH"):
            assert (await app.http.request(method, path, json={"status": "paid"})).status_code == 404


async def test_a_server_that_tells_only_the_decoded_path(app: InProcess) -> None:
    """ASGI lets it: then all but ids with a slash are found."""
    await app.publish({"type": "order.x", "subject": "ü 1", "data": {"n": 1}})
    exchange = Exchange(app.gateway, "/orders/x")
    exchange.scope |= {"path": "/orders/ü 1", "raw_path": None}
    async with exchange:
        await exchange.done()
    assert (exchange.status, exchange.text) == (200, '{"n":1}')


# Changing one


async def test_a_new_status(app: InProcess) -> None:
    """`order.updated` carries the whole order with the new status, the one before it and the time."""
    order_id = await create(app, customerId="c-1")
    response = await patch(app, order_id, "shipped")
    assert (response.status_code, response.json()) == (
        200, {"message": "Order status updated", "orderId": order_id, "status": "shipped"},
    )  # fmt: skip
    created, updated = await events(app)
    assert (updated["type"], updated["subject"]) == ("order.updated", order_id)
    order = updated["data"]
    assert order == {
        **created["data"], "status": "shipped", "previousStatus": "created", "updatedAt": order["updatedAt"],
    }  # fmt: skip
    assert response.headers["etag"] == (await app.http.get(f"/orders/{order_id}")).headers["etag"]
    await patch(app, order_id, "returned")
    assert (await events(app))[2]["data"]["previousStatus"] == "shipped"


async def test_the_status_that_it_has_is_no_event(app: InProcess) -> None:
    """The answer is the same."""
    order_id = await create(app, status="paid")
    response = await patch(app, order_id, "paid")
    assert (response.status_code, response.json()["status"]) == (200, "paid")
    assert response.headers["etag"] == (await app.http.get(f"/orders/{order_id}")).headers["etag"]
    assert len(await events(app)) == 1


async def test_an_unknown_order_is_404(app: InProcess) -> None:
    """Also one of which only events of another kind are known, or whose data is no object."""
    await app.publish({"type": "note", "subject": "o-1"}, {"type": "order.x", "subject": "o-2", "data": 5})
    for order_id in ("nobody", "o-1", "o-2"):
        response = await patch(app, order_id, "paid")
        assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "body", [{}, {"status": ""}, {"status": 5}, {"status": "x" * 101}, {"status": "a", "items": []}, []]
)
async def test_what_is_no_status_is_422(app: InProcess, body: Any) -> None:
    """One member, a string of 1 to 100 characters."""
    order_id = await create(app)
    response = await app.http.patch(f"/orders/{order_id}/status", json=body)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert response.json()["errors"]


async def test_if_match(app: InProcess) -> None:
    """The current tag, any, or a list with it: done. A stale or weak one: 412 with the current one, no event."""
    order_id = await create(app)
    first = (await app.http.get(f"/orders/{order_id}")).headers["etag"]
    assert re.fullmatch(r'"[!-~]+"', first)
    assert (await patch(app, order_id, "a", if_match=first)).status_code == 200
    stale = await patch(app, order_id, "b", if_match=first)
    current = (await app.http.get(f"/orders/{order_id}")).headers["etag"]
    assert (stale.status_code, stale.json()["code"]) == (412, "precondition_failed")
    assert stale.headers["etag"] == current != first
    assert (await patch(app, order_id, "b", if_match=f"W/{current}")).status_code == 412
    assert (
        await patch(app, order_id, "a", if_match=first)
    ).status_code == 412  # also where it has that status
    assert len(await events(app)) == 2
    assert (await patch(app, order_id, "b", if_match=f'"other", {current}')).status_code == 200
    assert (await patch(app, order_id, "c", if_match="*")).status_code == 200
    current = (await app.http.get(f"/orders/{order_id}")).headers["etag"]
    lines = [("if-match", '"other"'), ("if-match", current)]
    response = await app.http.patch(f"/orders/{order_id}/status", json={"status": "d"}, headers=lines)
    assert response.status_code == 200


async def test_of_concurrent_changes_none_is_lost(app: InProcess) -> None:
    """Each of many at once is an event whose `previousStatus` is the one right before it."""
    order_id = await create(app)
    responses = await asyncio.gather(*(patch(app, order_id, f"s-{number}") for number in range(40)))
    assert [each.status_code for each in responses] == [200] * 40
    orders = [event["data"] for event in await events(app)]
    assert len(orders) == 41
    assert {order["status"] for order in orders[1:]} == {f"s-{number}" for number in range(40)}
    assert [order["previousStatus"] for order in orders[1:]] == [order["status"] for order in orders[:-1]]


async def test_of_concurrent_changes_with_one_tag_one_wins(app: InProcess) -> None:
    """The others are told that the order has changed."""
    order_id = await create(app)
    tag = (await app.http.get(f"/orders/{order_id}")).headers["etag"]
    responses = await asyncio.gather(
        *(patch(app, order_id, f"s-{number}", if_match=tag) for number in range(20))
    )
    assert sorted(each.status_code for each in responses) == [200] + [412] * 19
    assert len(await events(app)) == 2


# One order


async def test_an_order_is_its_latest_order_event(app: InProcess) -> None:
    """Whichever ingest brought it, and whatever of another type came after it."""
    await app.publish(
        {"type": "order.created", "subject": "o-1", "data": {"status": "new", "n": 1}},
        {"type": "order.paid", "subject": "o-1", "data": {"status": "paid", "n": 2}},
        {"type": "payment.seen", "subject": "o-1", "data": {"status": "other"}},
    )
    response = await app.http.get("/orders/o-1")
    assert response.json() == {"status": "paid", "n": 2}
    assert (await patch(app, "o-1", "shipped")).status_code == 200
    order = (await app.http.get("/orders/o-1")).json()
    assert (order["status"], order["previousStatus"], order["n"], order["orderId"]) == (
        "shipped",
        "paid",
        2,
        "o-1",
    )


async def test_an_unknown_order_has_no_page(app: InProcess) -> None:
    """404, also for a subject without any order event."""
    await app.publish({"type": "note", "subject": "o-1"})
    for order_id in ("o-1", "nobody", "%00", "a%2Fb"):
        response = await app.http.get(f"/orders/{order_id}")
        assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_an_unchanged_order_is_304(app: InProcess) -> None:
    """For a client that has that very state, weak or not."""
    order_id = await create(app)
    tag = (await app.http.get(f"/orders/{order_id}")).headers["etag"]
    for asked in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        response = await app.http.get(f"/orders/{order_id}", headers={"if-none-match": asked})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", tag)
    assert (await app.http.get(f"/orders/{order_id}", headers={"if-none-match": '"x"'})).status_code == 200
    lines = [("if-none-match", '"x"'), ("if-none-match", tag)]
    assert (await app.http.get(f"/orders/{order_id}", headers=lines)).status_code == 304
    assert (await app.http.get("/orders/nobody", headers={"if-none-match": "*"})).status_code == 404


# All orders


async def pages(app: InProcess, query: str = "", **headers: str) -> list[list[Any]]:
    """All pages of a walk."""
    found: list[list[Any]] = []
    after = ""
    while True:
        response = await app.http.get(f"/orders?{query}{after}", headers=headers)
        assert response.status_code == 200, response.text
        found.append(response.json()["orders"])
        if response.json()["next"] is None:
            return found
        after = f"&after={response.json()['next']}"


async def fill(app: InProcess, count: int, **data: Any) -> None:
    await app.publish(
        *(
            {
                "type": "order.created",
                "subject": f"o-{number}",
                "data": {"n": number, "status": "open", **data},
            }
            for number in range(count)
        )
    )


async def test_orders_are_listed_newest_first(app: InProcess) -> None:
    """The latest state of each, once; a change brings an order to the front; other subjects are no orders."""
    await fill(app, 4)
    await app.publish({"type": "note", "subject": "x", "data": {"n": 99}}, {"type": "note", "subject": "o-2"})
    await patch(app, "o-1", "paid")
    [orders] = await pages(app)
    assert [order["n"] for order in orders] == [1, 3, 2, 0]
    assert orders[0]["status"] == "paid"


async def test_orders_are_listed_by_status(app: InProcess) -> None:
    """By the latest state alone."""
    await fill(app, 4)
    await patch(app, "o-1", "paid")
    await patch(app, "o-2", "paid")
    await patch(app, "o-2", "shipped")
    assert [order["n"] for order in (await pages(app, "status=paid"))[0]] == [1]
    assert [order["n"] for order in (await pages(app, "status=open"))[0]] == [3, 0]
    assert await pages(app, "status=unknown") == [[]]


async def test_several_statuses_are_any_of_them(app: InProcess) -> None:
    """As a parameter of a filter that is repeated; an empty one is none."""
    await fill(app, 4)
    await patch(app, "o-1", "paid")
    await patch(app, "o-2", "shipped")
    assert [order["n"] for order in (await pages(app, "status=paid&status=shipped"))[0]] == [2, 1]
    assert len((await pages(app, "status="))[0]) == 4


@pytest.mark.parametrize("query", ["stauts=paid", "limit=1&limit=2", "after=a&after=b", "type=x", "=", "a"])
async def test_what_would_be_left_out_of_account_is_400(app: InProcess, query: str) -> None:
    """It may have been meant to narrow the list; the parameter is named."""
    response = await app.http.get(f"/orders?{query}")
    assert (response.status_code, response.json()["code"]) == (400, "bad_request")
    assert query.partition("=")[0] in response.json()["detail"]


async def test_an_event_without_an_object_is_no_order(app: InProcess) -> None:
    """Whatever its type: it tells no state, and the one before it is over. A full page is not shortened by it."""
    none: list[Any] = [None, 5, "a", [{}]]
    await fill(app, 3)
    await app.publish(
        {"type": "order.updated", "subject": "o-none"},
        *({"type": "order.x", "subject": f"x-{number}", "data": data} for number, data in enumerate(none)),
        {"type": "order.updated", "subject": "o-1", "data": 7},
    )
    for subject in ("o-none", "x-0", "x-1", "x-2", "x-3", "o-1"):
        assert (await app.http.get(f"/orders/{subject}")).status_code == 404
        assert (await patch(app, subject, "paid")).status_code == 404
    assert [[order["n"] for order in page] for page in await pages(app, "limit=2")] == [[2, 0]]


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 250])
async def test_pages_hold_a_hundred_unless_asked_otherwise(app: InProcess, count: int) -> None:
    """All orders, once, in order; a page that ends the list says so."""
    await fill(app, count)
    walked = await pages(app)
    assert [order["n"] for page in walked for order in page] == list(reversed(range(count)))
    assert all(len(page) == 100 for page in walked[:-1])
    assert len(walked) == max(1, -(-count // 100))


@pytest.mark.parametrize("limit", [1, 3, 7, 1000])
async def test_pages_of_any_size_are_one_walk(app: InProcess, limit: int) -> None:
    """With a filter as well."""
    await fill(app, 20)
    for number in range(0, 20, 3):
        await patch(app, f"o-{number}", "paid")
    walked = await pages(app, f"status=open&limit={limit}")
    wanted = [number for number in reversed(range(20)) if number % 3]
    assert [order["n"] for page in walked for order in page] == wanted
    assert all(len(page) <= limit for page in walked)


async def test_a_walk_while_orders_change(app: InProcess) -> None:
    """No order comes twice, none in a state that is over, and every one that did not change comes."""
    await fill(app, 60)
    seen: list[int] = []
    after, changed = "", set()
    for step in range(100):
        answer = (await app.http.get(f"/orders?limit=7{after}")).json()
        assert all(order["n"] not in changed for order in answer["orders"])
        seen += [order["n"] for order in answer["orders"]]
        if answer["next"] is None:
            break
        after = f"&after={answer['next']}"
        number = step * 11 % 60
        assert (await patch(app, f"o-{number}", f"s-{step}")).status_code == 200
        changed.add(number)
        await create(app)
    assert len(seen) == len(set(seen))
    assert set(range(60)) - changed <= set(seen)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=",
        "limit=-1",
        "limit=0000000019999999999",
        "limit=000000001" + "0" * 5000,
        "after=nonsense",
        "after=",
    ],
    ids=lambda query: query[:20],
)
async def test_bad_pages_are_400(app: InProcess, query: str) -> None:
    """A limit from 1 to 1,000, and a place that an answer gave."""
    response = await app.http.get(f"/orders?{query}")
    assert (response.status_code, response.json()["code"]) == (400, "bad_request")


async def test_deep_orders_are_listed(app: InProcess) -> None:
    """Whatever was accepted can be answered, alone and in a list."""
    deep: Any = 1
    depth = 0
    while True:
        response = await app.http.post(
            "/events", json={"type": "order.x", "subject": f"o-{depth}", "data": {"a": deep}}
        )
        if response.status_code != 202:
            break
        deep, depth = [deep], depth + 1
    assert response.json()["code"] == "invalid_event"
    assert (await app.http.get(f"/orders/o-{depth - 1}")).status_code == 200
    assert (await app.http.get("/orders?limit=1")).status_code == 200


# Rights


async def test_rights() -> None:
    """POST and PATCH need to publish the event's type, GET a filter that lets it through."""
    async with in_process(jwt_secret=SECRET) as app:
        rights: list[dict[str, Any]] = [
            {"publish": ("order.created",)},
            {"publish": ("order.updated",)},
            {"subscribe": (may_see("c-1"),)},
            {},
        ]
        creator, updater, reader, nobody = (
            bearer(make_token(sub=str(number), **each)) for number, each in enumerate(rights)
        )
        mine, other = [
            (
                await app.http.post("/orders", json={"items": ITEMS, "customerId": customer}, headers=creator)
            ).json()["orderId"]
            for customer in ("c-1", "c-2")
        ]
        for method, path, allowed in (
            ("POST", "/orders", creator),
            ("PATCH", f"/orders/{mine}/status", updater),
            ("GET", f"/orders/{mine}", reader),
            ("GET", "/orders", reader),
        ):
            body = {"items": ITEMS} if method == "POST" else {"status": "paid"} if method == "PATCH" else None
            for caller in (creator, updater, reader, nobody):
                response = await app.http.request(method, path, json=body, headers=caller)
                assert response.status_code == (
                    403 if caller is not allowed else 201 if method == "POST" else 200
                )
            assert (await app.http.request(method, path, json=body)).status_code == 401
        assert (await app.http.get(f"/orders/{other}", headers=reader)).status_code == 404
        listed = (await app.http.get("/orders", headers=reader)).json()["orders"]
        assert [order["orderId"] for order in listed] == [mine]
