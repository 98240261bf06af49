"""The query of `GET /events`: the options and the filter, the same for a stream and for long poll."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

from gateway.cursor import Cursors
from gateway.errors import GatewayError
from gateway.filters import Filter, all_of, parse_filter_json, parse_query
from gateway.since import Since, parse_last_event_id, parse_since

OPTIONS: Final = ("since", "deliver", "leave", "filter", "lastEventId", "limit", "wait", "ticket")
DEFAULT_LIMIT, MAX_LIMIT = 100, 1000
DEFAULT_WAIT, MAX_WAIT = 30.0, 60.0  # seconds
_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Query:
    """What a GET asks for. `filter` is the client's own, before the token's is joined to it."""

    filter: Filter | None
    since: Since
    latest: bool
    leave: bool
    limit: int
    wait: float


def parse_events_query(query: bytes, last_event_id: str | None, cursors: Cursors) -> Query:
    """Raises GatewayError `bad_request`, `bad_since` or `bad_filter`."""
    try:
        pairs = parse_qsl(
            query.decode("latin-1"), keep_blank_values=True, errors="strict", max_num_fields=200
        )
    except ValueError:
        raise GatewayError("bad_request", "the query is not percent-encoded UTF-8, or too long") from None
    options = _options(pairs)
    terms = parse_query((name, value) for name, value in pairs if name not in OPTIONS)
    whole = parse_filter_json(options["filter"]) if "filter" in options else None
    last_event_id = last_event_id or options.get("lastEventId") or None
    if last_event_id is not None:
        since = parse_last_event_id(last_event_id, cursors)
    else:
        since = parse_since(options.get("since"), cursors)
    return Query(
        all_of([whole, terms]),
        since,
        _word(options, "deliver", ("all", "latest")) == "latest",
        _word(options, "leave", ("false", "true")) == "true",
        _limit(options),
        _wait(options),
    )


def _options(pairs: list[tuple[str, str]]) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in pairs:
        if name in OPTIONS:
            if name in options:
                raise GatewayError("bad_request", f"{name} was given twice")
            options[name] = value
    return options


def _word(options: dict[str, str], name: str, words: tuple[str, str]) -> str:
    value = options.get(name, words[0])
    if value not in words:
        raise GatewayError("bad_request", f"{name} is {' or '.join(words)}")
    return value


def _limit(options: dict[str, str]) -> int:
    text = options.get("limit", str(DEFAULT_LIMIT))
    if not (text.isascii() and text.isdecimal()) or int(text[:9]) < 1:
        raise GatewayError("bad_request", f"limit is a number from 1 to {MAX_LIMIT}")
    return min(int(text[:9]), MAX_LIMIT)


def _wait(options: dict[str, str]) -> float:
    """Seconds."""
    text = options.get("wait", str(DEFAULT_WAIT))
    if _SECONDS.fullmatch(text) is None:
        raise GatewayError("bad_request", f"wait is a number of seconds from 0 to {MAX_WAIT:g}")
    return min(float(text), MAX_WAIT)
