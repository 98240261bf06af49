"""What hypothesis sends where the gateway expects JSON, queries, headers and cursors."""

import json
from urllib.parse import quote

from hypothesis import strategies as st

JSON_LEAVES = st.sampled_from(
    [
        "null", "true", "false", "0", "-0", "1.0", "1e400", "-1e400", "1e-400", "NaN", "Infinity", "-Infinity",
        "123456789012345678901234567890", "-9223372036854775809", "18446744073709551616", "0.1000000000000000055",
        "٣", "1٣", "\\u0000", '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\u2028"', '"٣"', '"²"', '""', "[]", "{}",
        '"0001-01-01T00:00:00+14:00"', '"9999-12-31T23:59:60-23:59"', '"2026-02-30T00:00:00Z"', '"order.created"',
        '"*"', '"1.0"', '"live"', '"earliest"', '"snapshot"', '"latest"', '"aaaa.99999999999999999999"', '"a.1-2"',
        '"data.items.*.sku"', '"data..a"', '"http://[::1"', '"a b"', "[" * 200 + "]" * 200, "<open>", "<deep>", "<long>",
        '{"not":' * 200 + "null" + "}" * 200,
    ]
)  # fmt: skip
NAMES = st.sampled_from(
    [
        "type", "subject", "id", "source", "specversion", "time", "datacontenttype", "dataschema", "data",
        "data_base64", "tenant", "Tenant", "items", "status", "orderId", "createdAt", "for", "token", "jti", "sub",
        "op", "since", "filter", "deliver", "leave", "exact", "prefix", "in", "gt", "exists", "all", "any", "not",
        "data.a", "data.items.*.sku", "", "\\ud800", "url", "callbackUrl", "events", "secret", "compatibility",
    ]
)  # fmt: skip
JSON_TEXTS = st.recursive(
    JSON_LEAVES | st.integers().map(str) | st.text(max_size=8).map(json.dumps),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda each: f"[{','.join(each)}]")
        | st.lists(st.tuples(NAMES, inner), max_size=6).map(
            lambda pairs: "{" + ",".join(f'"{name}":{value}' for name, value in pairs) + "}"
        )
    ),
    max_leaves=12,
).map(lambda text: text.encode("utf-8", "surrogatepass"))
CALLS = st.sampled_from(
    [
        ("POST", "/events"), ("POST", "/orders"), ("PATCH", "/orders/o-1/status"), ("PATCH", "/orders/%00%ff/status"),
        ("POST", "/tickets"), ("POST", "/revocations"), ("POST", "/connections/x/token"), ("POST", "/subscribe"),
        ("POST", "/webhooks"), ("PATCH", "/webhooks/x"), ("POST", "/webhooks/x/replay"), ("POST", "/schemas/a.b"),
        ("PUT", "/schemas/a.b"), ("POST", "/dead-letters/x/redrive"),
    ]
)  # fmt: skip
CONTENT_TYPES = st.sampled_from(
    [
        "application/json", "application/json; charset=utf-8", 'application/json;charset="UTF-8"',
        "application/json; charset=latin-1", "application/json; charset", "application/cloudevents+json",
        "application/cloudevents-batch+json", "application/x-ndjson", "text/plain", ";", "", "a/b; =; ;;",
    ]
)  # fmt: skip


LARGE = {
    b"<open>": b'{"a":' * 20_000,
    b"<deep>": b"[" * 10_000 + b"]" * 10_000,
    b"<long>": b'"' + b"x" * 70_000 + b'"',
}


def expand(text: bytes) -> bytes:
    """What is sent for a generated text, in which large parts have short names, so that it can be shown."""
    for name, part in LARGE.items():
        text = text.replace(name, part)
    return text


OPTIONS = st.sampled_from(
    ["since", "deliver", "leave", "filter", "lastEventId", "limit", "wait", "ticket", "type", "data.status", "status",
     "after", "data..x", "%ff", "", "subject", "connection", "cursor"]
)  # fmt: skip
VALUES = st.sampled_from(
    ["", "live", "earliest", "snapshot", "latest", "true", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:60-23:59",
     "2026-02-30T00:00:00Z", "%ff", "%ed%a0%80", "*", "order.*", "1e400", "-1", "0", "999999999999999999999999",
     "%D9%A3", "%C2%B2", "[[[[", "%7B%22not%22%3A" * 50, "a.1-2", "a.99999999999999999999", "%00", "+", "1+1"]
)  # fmt: skip
QUERIES = st.lists(
    st.tuples(OPTIONS, VALUES | JSON_TEXTS.map(lambda text: quote(text)[:4000]) | st.text(max_size=6).map(quote)),
    max_size=5,
).map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs))  # fmt: skip
HEADER_VALUES = st.sampled_from(
    [
        b"", b"*", b"*/*", b"application/json", b"application/json;q=0", b"text/event-stream, application/json",
        b"text/html", b"image/png;q=x", b";;;,,,", b'"', b'"k"', b'"k', b"k" * 255, b"k" * 256, b"\xff\xfe", b"\xc3\xa4",
        b"%ff", b"%C3%A4", b"0001-01-01T00:00:00+14:00", b"1.0", b"Bearer", b"Bearer x.y.z", b"Bearer " + b"." * 3000,
        b"gateway_token=a; gateway_token=b", b"gateway_token", b"null", b"http://localhost", b"http://[::1", b"://",
        b"gzip", b"identity", b"trailers", b"127.0.0.1, unknown", b"[::1]:x", b"localhost:99999", b"bytes=0-0,-1",
        b"aaaa.1", b"aaaa.1-9", b"application/json; charset=x", b"multipart/form-data; boundary=", b"bearer.x, gateway.v1",
    ]
) | st.binary(max_size=20).map(lambda raw: bytes(byte for byte in raw if byte > 31 and byte != 127))  # fmt: skip
CURSORS = st.text("abcdefghijklmnopqrstuvwxyz234567.-", min_size=1, max_size=80).filter(
    lambda text: text not in ("live", "earliest", "snapshot")
)
