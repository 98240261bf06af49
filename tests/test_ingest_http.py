"""`POST /events`: every content type, the limits of each, and what the answer tells."""

import base64
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from tests.support.app import Exchange, InProcess, in_process
from tests.support.tokens import SECRET, bearer, make_token
from tests.support.waiting import until

EVENT = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
NDJSON = "application/x-ndjson"
MAX = 65_536


@pytest.fixture
async def app() -> AsyncIterator[InProcess]:
    async with in_process() as running:
        yield running


async def post(
    app: InProcess, content: Any, media_type: str | None = "application/json", **headers: str
) -> tuple[int, Any]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if media_type is not None:
        given["content-type"] = media_type
    body = content if isinstance(content, bytes) or hasattr(content, "__aiter__") else orjson.dumps(content)
    response = await app.http.post("/events", content=body, headers=given)
    return response.status_code, response.json()


async def stored(app: InProcess) -> list[Any]:
    """All events of the log, as they are there."""
    page = await app.node.log.read(0, 10_000)
    return [entry.body for entry in page.entries]


def cursor(app: InProcess, offset: int) -> str:
    return f"{app.node.log.epoch}.{offset}"


def lines(*values: Any) -> bytes:
    return b"".join(orjson.dumps(value) + b"\n" for value in values)


# One event, batches


@pytest.mark.parametrize(
    "media_type", ["application/json", EVENT, "Application/JSON; charset=UTF-8", EVENT + ";charset=utf-8"]
)
async def test_one_event(app: InProcess, media_type: str) -> None:
    """202 with what was accepted, its place and its id; it is in the log then."""
    status, answer = await post(app, {"type": "a", "id": "1"}, media_type)
    assert status == 202
    assert answer == {"accepted": 1, "duplicates": 0, "cursor": cursor(app, 1), "ids": ["1"]}
    [event] = await stored(app)
    assert (event["id"], event["source"]) == ("1", "/events")


@pytest.mark.parametrize("media_type", ["application/json", BATCH])
async def test_a_batch(app: InProcess, media_type: str) -> None:
    """Several events in order, each with its id; one answer."""
    status, answer = await post(app, [{"type": "a", "id": "1"}, {"type": "b"}], media_type)
    events = await stored(app)
    assert (status, answer["accepted"], answer["cursor"]) == (202, 2, cursor(app, 2))
    assert answer["ids"] == ["1", events[1]["id"]]
    assert [event["type"] for event in events] == ["a", "b"]


async def test_what_is_accepted_can_be_delivered(app: InProcess) -> None:
    """However deeply it is nested: what stands around it in an answer is no obstacle."""
    depth = 200

    async def nested() -> int:
        status, _ = await post(app, b'{"type":"a","data":%b%b}' % (b"[" * depth, b"]" * depth))
        return status

    while await nested() == 202:
        depth += 1
    assert (await nested(), depth) == (422, 254)  # the event itself is one level
    place = cursor(app, app.node.log.head - 1)
    response = await app.http.get(f"/events?since={place}", headers={"accept": "application/json"})
    assert (response.status_code, response.text.count("[")) == (200, depth)  # one is that of the answer


@pytest.mark.parametrize("depth", [254, 300, 1200, 20_000])
async def test_what_nests_too_deeply_is_told_by_the_limit(app: InProcess, depth: int) -> None:
    """The same error however deep it is, alone and in a batch with its place."""
    event = b'{"type":"a","data":%b%b}' % (b"[" * depth, b"]" * depth)
    for body, place in ((event, "#"), (b'[{"type":"a"},%b]' % event, "#/1")):
        status, problem = await post(app, body)
        assert (status, problem["code"]) == (422, "invalid_event")
        assert problem["detail"].endswith("nests more than 254 deep")
        assert [each["pointer"] for each in problem["errors"]] == [place]


@pytest.mark.parametrize("fault", ["1e400", r'"\ud800"', "9007199254740993.0"])
async def test_what_cannot_be_kept_is_told_by_its_place(app: InProcess, fault: str) -> None:
    """Of a batch, too, though none of its events was looked at yet."""
    body = f'[{{"type":"a"}},{{"type":"a","data":{{"n":{fault}}}}}]'.encode()
    status, problem = await post(app, body)
    assert (status, problem["errors"][0]["pointer"]) == (422, "#/1/data/n")


async def test_an_empty_batch_is_nothing(app: InProcess) -> None:
    """Accepted, with the head as its place."""
    await app.publish({"type": "a"})
    assert await post(app, []) == (202, {"accepted": 0, "duplicates": 0, "cursor": cursor(app, 1), "ids": []})


async def test_a_batch_is_all_or_nothing(app: InProcess) -> None:
    """Every fault of every event is told with its pointer, and nothing is appended."""
    status, problem = await post(app, [{"type": "a"}, {"id": ""}, {"type": "a", "time": "now"}, 5])
    assert (status, problem["code"]) == (422, "invalid_event")
    assert [each["pointer"] for each in problem["errors"]] == ["#/1/type", "#/1/id", "#/2/time", "#/3"]
    assert await stored(app) == []


@pytest.mark.parametrize(
    ("body", "media_type", "status", "code"),
    [
        (b"{", "application/json", 400, "bad_json"),
        (b'{"type":"a","data":NaN}', "application/json", 400, "bad_json"),
        (b"", "application/json", 400, "bad_json"),
        (rb'{"type":"a","data":"\ud800"}', "application/json", 422, "invalid_event"),
        (b'{"type":"a","data":12345678901234567890123}', "application/json", 422, "invalid_event"),
        (b'{"type":"a"}', BATCH, 422, "invalid_event"),
        (b'[{"type":"a"}]', EVENT, 422, "invalid_event"),
        (b"5", "application/json", 422, "invalid_event"),
        (b'{"type":"a"}', "text/plain", 415, "unsupported_media_type"),
        (b'{"type":"a"}', "application/json; charset=latin-1", 415, "unsupported_media_type"),
        (b'{"type":"a"}', None, 415, "unsupported_media_type"),
    ],
)
async def test_what_is_refused(
    app: InProcess, body: bytes, media_type: str | None, status: int, code: str
) -> None:
    """Unreadable is 400, readable but wrong 422, another content type 415."""
    got, problem = await post(app, body, media_type)
    assert (got, problem["code"], problem["status"]) == (status, code, status)
    assert await stored(app) == []


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "gzip, identity", "GZIP"])
async def test_a_compressed_body_is_415(app: InProcess, encoding: str) -> None:
    """Nobody can say how large it becomes."""
    for media_type in ("application/json", NDJSON):
        status, problem = await post(app, b"{}", media_type, content_encoding=encoding)
        assert (status, problem["code"]) == (415, "unsupported_media_type")


async def test_identity_is_no_compression(app: InProcess) -> None:
    """It says that there is none."""
    assert (await post(app, {"type": "a"}, content_encoding="identity"))[0] == 202


# Sizes


async def test_an_event_may_have_65536_bytes_of_compact_json(app: InProcess) -> None:
    """White space counts nothing, nor what the gateway fills in; one byte more is 413."""
    empty = len(orjson.dumps({"type": "a", "data": ""}))
    largest = {"type": "a", "data": "x" * (MAX - empty)}
    assert (await post(app, b" " * 1000 + orjson.dumps(largest, option=orjson.OPT_INDENT_2)))[0] == 202
    status, problem = await post(app, {**largest, "data": largest["data"] + "x"})
    assert (status, problem["code"]) == (413, "too_large")
    status, problem = await post(app, [{"type": "a"}, {**largest, "data": largest["data"] + "x"}])
    assert (status, problem["errors"][0]["pointer"]) == (413, "#/1")
    assert len(await stored(app)) == 1


async def test_a_batch_may_have_1000_events(app: InProcess) -> None:
    """One more is 413, and nothing is appended."""
    status, problem = await post(app, [{"type": "a"}] * 1001)
    assert (status, problem["code"]) == (413, "too_large")
    status, answer = await post(app, [{"type": "a"}] * 1000)
    assert (status, answer["accepted"], len(answer["ids"])) == (202, 1000, 1000)


async def test_a_body_may_have_8_mib(app: InProcess) -> None:
    """What is larger is 413 as soon as that is seen: the rest is not read."""
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1 << 20
            yield b" " * (1 << 20)

    status, problem = await post(app, endless())
    assert (status, problem["code"]) == (413, "too_large")
    assert read == 9 << 20


# Duplicates and cursors


async def test_the_same_source_and_id_again_is_a_duplicate(app: InProcess) -> None:
    """Accepted, counted, not appended; the cursor is the highest place that any of the events has."""
    await app.publish({"type": "a", "id": "1"}, {"type": "a", "id": "2"}, {"type": "a", "id": "3"})
    status, answer = await post(app, {"type": "other", "id": "2"})
    assert (status, answer["accepted"], answer["duplicates"]) == (202, 0, 1)
    assert (answer["cursor"], answer["ids"]) == (cursor(app, 2), ["2"])
    _, answer = await post(
        app, [{"type": "a", "id": "1"}, {"type": "a", "id": "4"}, {"type": "a", "id": "4"}]
    )
    assert (answer["accepted"], answer["duplicates"], answer["cursor"]) == (1, 2, cursor(app, 4))
    _, answer = await post(app, [{"type": "a", "id": "3"}, {"type": "a", "id": "1"}])
    assert (answer["accepted"], answer["duplicates"], answer["cursor"]) == (0, 2, cursor(app, 3))
    assert len(await stored(app)) == 4


async def test_another_source_is_another_event(app: InProcess) -> None:
    """Identity is the pair; the default source is one like any other."""
    answer = await app.publish(
        {"type": "a", "id": "1"},
        {"type": "a", "id": "1", "source": "/shop"},
        {"type": "a", "id": "1", "source": "/events"},
    )
    assert (answer["accepted"], answer["duplicates"]) == (2, 1)


# CloudEvents binary mode


async def test_binary_mode(app: InProcess) -> None:
    """Attributes in headers, percent-encoded; data is the body."""
    status, _ = await post(
        app, {"n": 1}, "application/json", ce_specversion="1.0", ce_type="order.created", ce_id="1",
        ce_source="/shop", ce_subject="caf%C3%A9%20%22x%22", ce_tenant="north",
    )  # fmt: skip
    assert status == 202
    [event] = await stored(app)
    del event["time"]
    assert event == {
        "specversion": "1.0", "type": "order.created", "id": "1", "source": "/shop", "subject": 'café "x"',
        "tenant": "north", "datacontenttype": "application/json", "data": {"n": 1},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("media_type", "body", "wanted"),
    [
        (
            "text/plain; charset=utf-8",
            "é".encode(),
            {"data": "é", "datacontenttype": "text/plain; charset=utf-8"},
        ),
        ("application/vnd.shop+json", b"[1]", {"data": [1], "datacontenttype": "application/vnd.shop+json"}),
        (
            "image/png",
            b"\x89\xff",
            {"data_base64": base64.b64encode(b"\x89\xff").decode(), "datacontenttype": "image/png"},
        ),
        (
            "application/octet-stream; charset=binary",
            b"\x00",
            {"data_base64": "AA==", "datacontenttype": "application/octet-stream; charset=binary"},
        ),
        ("application/json", b"null", {"data": None, "datacontenttype": "application/json"}),
        (None, b"", {"datacontenttype": "application/json"}),
        (None, b"5", {"data": 5, "datacontenttype": "application/json"}),
    ],
)
async def test_binary_data_by_its_content_type(
    app: InProcess, media_type: str | None, body: bytes, wanted: dict[str, Any]
) -> None:
    """JSON is parsed, text is a string, everything else base64; without a body there is no data."""
    assert (await post(app, body, media_type, ce_type="a"))[0] == 202
    [event] = await stored(app)
    assert {
        name: event[name] for name in ("data", "data_base64", "datacontenttype") if name in event
    } == wanted


@pytest.mark.parametrize(
    ("header", "subject"),
    [
        (r'"a \"b"', 'a "b'),
        (r'"a\\b"', r"a\b"),
        ('"a%20b"', "a b"),
        ('"%22"', '"'),
        ("a%20b", "a b"),
        ('a"b', 'a"b'),
        ('"a', '"a'),
        (r'"a\"', r'"a\"'),
        (r"a\b", r"a\b"),
    ],
)
async def test_a_quoted_header_is_unescaped_first(app: InProcess, header: str, subject: str) -> None:
    """Then percent-decoded; what is no quoted string is taken as it came (HTTP binding, section 3.1.3.2)."""
    assert (await post(app, b"", None, ce_type="a", ce_subject=header))[0] == 202
    assert (await stored(app))[0]["subject"] == subject


@pytest.mark.parametrize(
    ("header", "pointer"),
    [
        (("ce-subject", "%FF"), "#/subject"),
        (("ce-data", "x"), "#/data"),
        (("ce-datacontenttype", "x"), "#/datacontenttype"),
        (("ce-type", "b"), "#/type"),
        (("ce-time", "now"), "#/time"),
    ],
)
async def test_a_bad_header_is_told_as_its_attribute(
    app: InProcess, header: tuple[str, str], pointer: str
) -> None:
    """The pointer is that of the attribute in the event."""
    response = await app.http.post("/events", headers=[("ce-type", "a"), header])
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, pointer)


async def test_a_batch_that_is_no_array_is_told_with_its_place(app: InProcess) -> None:
    """The whole body."""
    status, problem = await post(app, {"type": "a"}, BATCH)
    assert (status, problem["errors"]) == (422, [{"pointer": "#", "detail": "not an array"}])


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"ce_id": "1"}, b"x", 422),  # no type
        ({"ce_type": "a", "ce_data": "x"}, b"x", 422),
        ({"ce_type": "a", "ce_datacontenttype": "x"}, b"x", 422),
        ({"ce_type": "a", "ce_order_id": "x"}, b"x", 422),
        ({"ce_type": "a", "ce_subject": "%FF"}, b"x", 422),
        ({"ce_type": "a", "ce_specversion": "0.3"}, b"x", 422),
        ({"ce_type": "a"}, b"\xff", 422),
        ({"ce_type": "a"}, b"x" * MAX, 413),
    ],
)
async def test_what_binary_mode_refuses(
    app: InProcess, headers: dict[str, str], body: bytes, status: int
) -> None:
    """As for an event in JSON."""
    assert (await post(app, body, "text/plain", **headers))[0] == status
    assert await stored(app) == []


async def test_a_structured_content_type_wins_over_headers(app: InProcess) -> None:
    """Event formats are told by their media type (CloudEvents HTTP binding, section 3)."""
    await post(app, {"type": "a"}, EVENT, ce_type="b", ce_specversion="1.0")
    await post(app, [{"type": "a"}], BATCH, ce_type="b", ce_specversion="1.0")
    assert [event["type"] for event in await stored(app)] == ["a", "a"]


async def test_an_attribute_sent_twice_is_refused(app: InProcess) -> None:
    """Nobody can know which one was meant."""
    response = await app.http.post(
        "/events", headers=[("ce-type", "a"), ("ce-type", "b"), ("content-type", "text/plain")]
    )
    assert response.status_code == 422


# Lines


async def test_lines_are_appended_in_order(app: InProcess) -> None:
    """Blank lines, carriage returns and a last line without its end are all right."""
    body = b'\n{"type":"a","id":"1"}\r\n  \n\t{"type":"b","id":"2"} \n\n{"type":"c","id":"3"}'
    status, answer = await post(app, body, NDJSON)
    assert status == 202
    assert answer == {"accepted": 3, "duplicates": 0, "cursor": cursor(app, 3), "ids": ["1", "2", "3"]}
    assert [event["type"] for event in await stored(app)] == ["a", "b", "c"]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_lines_may_be_cut_anywhere(app: InProcess, size: int) -> None:
    """A chunk of the body is no line."""
    body = lines(*({"type": "a", "id": f"é{number}"} for number in range(20)))

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    status, answer = await post(app, pieces(), NDJSON)
    assert (status, answer["ids"]) == (202, [f"é{number}" for number in range(20)])


@pytest.mark.parametrize(
    ("bad", "status", "code"),
    [
        (b"{", 422, "invalid_event"),
        (b'{"type":"a","data":NaN}', 422, "invalid_event"),
        (b'{"id":"1"}', 422, "invalid_event"),
        (b"\xff", 422, "invalid_event"),
        (b'"' + b"x" * MAX + b'"', 413, "too_large"),
        (b" " * (MAX + 1), 413, "too_large"),
        (b'{"type":"a"}' + b" " * MAX, 413, "too_large"),
    ],
    ids=["no json", "nan", "no type", "no utf-8", "too long", "blank and too long", "padded and too long"],
)
@pytest.mark.parametrize("size", [1 << 20, 16_384], ids=["in one chunk", "in many"])
async def test_a_bad_line_names_itself(app: InProcess, bad: bytes, status: int, code: str, size: int) -> None:
    """The lines before it stay accepted; the error has its number, how many they were and their place."""
    good = lines(*({"type": "a"} for _ in range(700)))
    body = good + bad + b"\n" + lines({"type": "never"})

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    got, problem = await post(app, pieces(), NDJSON)
    assert (got, problem["code"]) == (status, code)
    assert (problem["line"], problem["accepted"], problem["duplicates"]) == (701, 700, 0)
    assert problem["cursor"] == cursor(app, 700)
    assert len(await stored(app)) == 700


async def test_a_bad_first_line_accepts_nothing(app: InProcess) -> None:
    """The place told is the head."""
    await app.publish({"type": "a"})
    status, problem = await post(app, b"\n\nnonsense\n", NDJSON)
    assert (status, problem["line"], problem["accepted"], problem["cursor"]) == (422, 3, 0, cursor(app, 1))


async def test_a_line_may_have_65536_bytes(app: InProcess) -> None:
    """Its end does not count, however that is written."""
    start = b'{"type":"a","data":"'
    line = start + b"x" * (MAX - len(start) - 2) + b'"}'
    for end in (b"", b"\n", b"\r\n"):
        assert (await post(app, line + end, NDJSON))[0] == 202
        assert (await post(app, b" " + line + end, NDJSON))[0] == 413


async def test_lines_are_appended_while_more_come(app: InProcess) -> None:
    """A stream that goes on for long is in the log as far as it came, and who watches sees it."""
    async with Exchange(app.gateway, "/events", method="POST", headers={"content-type": NDJSON}) as exchange:
        exchange.body(lines(*({"type": "a"} for _ in range(2000))), more=True)
        await until(lambda: app.node.hub.position >= 1000)
        assert exchange.sent == []
        exchange.body(lines({"type": "a"}))
        await exchange.done()
        assert (exchange.status, orjson.loads(exchange.text)["accepted"]) == (202, 2001)


async def test_what_was_read_of_a_broken_stream_stays_or_is_not_there(app: InProcess) -> None:
    """A client that is gone in the middle of a line gets no answer, and leaves no half event."""
    async with Exchange(app.gateway, "/events", method="POST", headers={"content-type": NDJSON}) as exchange:
        exchange.body(lines(*({"type": "a"} for _ in range(600))) + b'{"type":"a', more=True)
    assert exchange.sent == []
    assert (await post(app, {"type": "b"}))[0] == 202
    events = await stored(app)
    assert {event["type"] for event in events} == {"a", "b"}


@pytest.mark.parametrize(
    ("line", "count"),
    [
        (b'{"type":"a","id":"1","data":"' + b"x" * 65_000 + b'"}\n', 800),
        (b'{"type":"a","id":"1","data":[' + b"[]," * 20_000 + b"1]}\n", 40),
    ],
    ids=["50 MB", "lines that weigh much when parsed"],
)
async def test_a_stream_takes_bounded_memory(app: InProcess, line: bytes, count: int) -> None:
    """Any number of lines passes through, and those that wait to be written never weigh much."""

    async def flood() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield line

    await post(app, line, NDJSON)  # what is made once
    tracemalloc.start()
    try:
        status, answer = await post(app, flood(), NDJSON)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (status, answer["duplicates"]) == (202, count)
    assert peak < 40 << 20


# Rights and rates


async def test_types_need_the_right_to_publish() -> None:
    """Nothing of a batch is appended where one type may not be published; the metric says unauthorized."""
    async with in_process(jwt_secret=SECRET) as app:
        ann = bearer(make_token(publish=("order.*", "note")))
        assert (await app.http.post("/events", json={"type": "note"})).status_code == 401
        for types, status in (
            (["order.created", "note"], 202),
            (["order.x", "notes"], 403),
            (["order"], 403),
        ):
            response = await app.http.post("/events", json=[{"type": each} for each in types], headers=ann)
            assert response.status_code == status
        assert len(await stored(app)) == 2
        assert (
            'gateway_events_ingested_total{ingest="http",result="unauthorized"}'
            in app.node.metrics.render().decode()
        )


async def test_lines_before_one_without_right_stay() -> None:
    """As for every other fault of a line."""
    async with in_process(jwt_secret=SECRET) as app:
        ann = {**bearer(make_token(publish=("a",))), "content-type": NDJSON}
        response = await app.http.post("/events", content=lines({"type": "a"}, {"type": "b"}), headers=ann)
        assert (response.status_code, response.json()["line"], response.json()["accepted"]) == (403, 2, 1)


async def test_a_token_may_publish_so_often() -> None:
    """Beyond the rate it is 429 with Retry-After; other users are not concerned."""
    async with in_process(jwt_secret=SECRET, publish_rate=2) as app:
        ann, bob = (bearer(make_token(sub=sub, publish=("*",))) for sub in ("ann", "bob"))
        responses = [await app.http.post("/events", json={"type": "a"}, headers=ann) for _ in range(3)]
        assert [each.status_code for each in responses] == [202, 202, 429]
        assert (responses[2].headers["retry-after"], responses[2].json()["code"]) == ("1", "rate_limited")
        assert (await app.http.post("/events", json={"type": "a"}, headers=bob)).status_code == 202


# A slow or stalled body


async def test_a_body_that_does_not_come_is_408() -> None:
    """The next byte has a time; the connection ends with it."""
    async with (
        in_process(request_timeout=0.05) as app,
        Exchange(
            app.gateway, "/events", method="POST", headers={"content-type": "application/json"}
        ) as exchange,
    ):
        exchange.body(b"{", more=True)
        await exchange.done()
        assert (exchange.status, exchange.headers["connection"]) == (408, "close")
        assert orjson.loads(exchange.text)["code"] == "request_timeout"
