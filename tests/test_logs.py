"""Log lines: their form, and that no token ever stands in one."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.logs import Format, Sparing, configure, redact

TOKEN = jwt.encode({"sub": "ann"}, "a secret of more than thirty-two bytes", "HS256")


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def logged(monkeypatch: pytest.MonkeyPatch, log_format: Format | None, *message: Any, **more: Any) -> str:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure(log_format)
    logging.getLogger("gateway.test").warning(*message, **more)
    return stream.getvalue()


def test_a_json_line_has_time_level_logger_and_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """One object a line, for collectors."""
    line = logged(monkeypatch, "json", "%s is %d", "x", 1)
    assert line.count("\n") == 1
    entry = json.loads(line)
    assert entry.pop("time").endswith("Z")
    assert entry == {"level": "warning", "logger": "gateway.test", "message": "x is 1"}


def test_a_text_line_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a terminal: time, level, logger, message."""
    line = logged(monkeypatch, "text", "hello")
    assert line.endswith(" WARNING gateway.test: hello\n")


def test_by_default_a_collector_gets_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stderr is no terminal."""
    assert json.loads(logged(monkeypatch, None, "hello"))["message"] == "hello"


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_an_exception_comes_with_its_traceback_and_without_tokens(
    monkeypatch: pytest.MonkeyPatch, log_format: Format
) -> None:
    """In JSON within the same line."""
    try:
        int(TOKEN)
    except ValueError as error:
        line = logged(monkeypatch, log_format, "failed", exc_info=error)
    assert "Traceback" in line
    assert "base 10: '[redacted]'" in line
    assert TOKEN not in line
    if log_format == "json":
        assert json.loads(line)["exception"].startswith("Traceback")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET /events?ticket=abc.def&type=x", "GET /events?ticket=[redacted]&type=x"),
        ("GET /ws?type=x&TICKET=abc HTTP/1.1", "GET /ws?type=x&TICKET=[redacted] HTTP/1.1"),
        ("ticket%3Dabc", "ticket%3D[redacted]"),
        ("gateway_token=abc; other=1", "gateway_token=[redacted]; other=1"),
        ("protocols: gateway.v1, bearer.abc.def", "protocols: gateway.v1, bearer.[redacted]"),
        ("Authorization: Bearer abc", "Authorization: Bearer [redacted]"),
        (f"token {TOKEN} is bad", "token [redacted] is bad"),
        (f"'{TOKEN}'", "'[redacted]'"),
        ("redis://user:secret@h:6379/0 is down", "redis://[redacted]@h:6379/0 is down"),
        ("order o-1 shipped at http://h/x", "order o-1 shipped at http://h/x"),
    ],
)
def test_whatever_looks_like_a_token_is_cut_out(text: str, shown: str) -> None:
    """Tickets, cookies, subprotocols, headers, bare JWTs; nothing else."""
    assert redact(text) == shown


@settings(max_examples=200)
@given(st.text())
def test_a_line_is_one_line_without_control_characters(text: str) -> None:
    """No client writes a line of its own, nor moves a terminal's cursor."""
    shown = redact(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(each) < 32 or 127 <= ord(each) < 160 for each in shown)
    shown.encode()


def test_uvicorn_writes_no_access_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its paths may hold tickets; its errors come through."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure("text")
    logging.getLogger("uvicorn.access").error("GET /orders")
    logging.getLogger("uvicorn.error").info("started")
    logging.getLogger("uvicorn.error").error("broken")
    assert stream.getvalue().endswith("ERROR uvicorn.error: broken\n")
    assert stream.getvalue().count("\n") == 1


def test_lines_are_said_sparingly() -> None:
    """The first at once, then one in so many seconds, which stands for all that came since; none for nothing."""
    now = [0.0]
    sparing = Sparing(5, lambda: now[0])
    assert sparing.take(0) == 0
    assert [sparing.take(), sparing.take(), sparing.take(3)] == [1, 0, 0]
    now[0] = 5
    assert [sparing.take(2), sparing.take()] == [6, 0]
    now[0] = 10
    assert [sparing.take(0), sparing.take(0)] == [1, 0]
