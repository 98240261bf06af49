"""What a subscriber must be told, worked out from the log in the plainest way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.filters import parse_filter
from tests.support.clients import Message


@dataclass(frozen=True, slots=True)
class Expected:
    """One message: an event's id, or that of the event by which its subject left the filter."""

    offset: int
    kind: str
    id: str
    subject: str | None


def expected(
    log: Sequence[dict[str, Any]],
    wanted: dict[str, Any] | None = None,
    *,
    leave: bool = False,
    after: int = 0,
) -> list[Expected]:
    """The messages of `deliver=all` after an offset. `log` holds every event ever accepted, the first at 1."""
    matches = parse_filter(wanted).matches if wanted is not None else lambda _event: True
    latest: dict[str, dict[str, Any]] = {}
    told = []
    for offset, event in enumerate(log, 1):
        subject = event.get("subject")
        before = latest.get(subject) if subject is not None else None
        if subject is not None:
            latest[subject] = event
        if matches(event):
            told.append(Expected(offset, "event", event["id"], subject))
        elif leave and before is not None and matches(before):
            told.append(Expected(offset, "leave", event["id"], subject))
    return [each for each in told if each.offset > after]


def newest(messages: Sequence[Expected]) -> list[Expected]:
    """Of each subject only the newest, as `deliver=latest` has it."""
    last = {each.subject: each.offset for each in messages}
    return [each for each in messages if each.subject is None or last[each.subject] == each.offset]


def snapshot(log: Sequence[dict[str, Any]], wanted: dict[str, Any] | None = None) -> list[str]:
    """The ids of the latest event of each subject, where it matches, in log order."""
    matches = parse_filter(wanted).matches if wanted is not None else lambda _event: True
    last = {event["subject"]: event["id"] for event in log if "subject" in event}
    return [each["id"] for each in log if last.get(each.get("subject", "")) == each["id"] and matches(each)]


def as_pairs(messages: Sequence[Expected]) -> list[tuple[str, str | None]]:
    """An event by its id, a leave by its subject: what a message shows of itself."""
    return [(each.kind, each.id if each.kind == "event" else each.subject) for each in messages]


def told_pairs(messages: Sequence[Message]) -> list[tuple[str, str | None]]:
    """As `as_pairs`, of what a client was told; a gap by its reason."""
    shown = {"event": "id", "leave": "subject", "gap": "reason"}
    return [(each.kind, each.body[shown[each.kind]]) for each in messages]
