"""Logging: one short line for a terminal, one JSON object a line for a collector.

Nothing that is logged should hold a token. This is the fence behind that rule: whatever looks like one is
cut out of every line, and control characters are escaped, so that no client writes a line of its own.
"""

import logging
import math
import re
import sys
import time
from collections.abc import Callable
from typing import Final, Literal

import orjson

from gateway.event import rfc3339

Format = Literal["text", "json"]

REDACTED: Final = "[redacted]"
_SECRETS = re.compile(
    r"(?P<name>(?:ticket|token)(?:=|%3D)|bearer(?:\.|\s+))[^\s&;,\"'#]+"  # in a URL, a cookie, a header
    r"|(?<=://)[^/?#\s@]*(?=@)"  # the user and password of a URL
    r"|eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*",  # a JWT begins with the base64 of {"
    re.IGNORECASE,
)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def configure(log_format: Format | None = None) -> None:
    """Sends all logging to stderr in this format; by default text on a terminal, else JSON.

    uvicorn's access log stays off: the paths that it writes may hold tickets.
    """
    handler = logging.StreamHandler(sys.stderr)
    chosen = log_format or ("text" if sys.stderr.isatty() else "json")
    handler.setFormatter(JsonFormatter() if chosen == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"
        logger.setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").disabled = True


class Sparing:
    """Counts what would else be a line each: a line is said at most every `seconds`.

    `now` gives seconds, from whatever moment.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._now = now
        self._next = -math.inf
        self._count = 0

    def take(self, count: int = 1) -> int:
        """How many a line stands for that is to be said now; 0 where it is too soon for one."""
        self._count += count
        now = self._now()
        if self._count == 0 or now < self._next:
            return 0
        self._next = now + self._seconds
        told, self._count = self._count, 0
        return told


def redact(text: str) -> str:
    """The text without anything that looks like a ticket or token, in one line."""
    shown = _SECRETS.sub(lambda match: (match["name"] or "") + REDACTED, text)
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", shown)


class TextFormatter(logging.Formatter):
    """`12:00:00 INFO gateway.server: message`, and a traceback below where there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        line = redact(
            f"{self.formatTime(record, self.datefmt)} {record.levelname} {record.name}: {record.getMessage()}"
        )
        return "\n".join([line, *map(redact, _traceback(self, record).splitlines())])


class JsonFormatter(logging.Formatter):
    """One JSON object: `time`, `level`, `logger`, `message`, and `exception` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        traceback = _traceback(self, record)
        if traceback:
            entry["exception"] = "\n".join(map(redact, traceback.splitlines()))
        return orjson.dumps(entry).decode()


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""
