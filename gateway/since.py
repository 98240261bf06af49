"""Since: where a subscription starts, from the text of the option to a place in the log."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from gateway.cursor import Cursors, Place
from gateway.errors import GatewayError
from gateway.event import is_rfc3339
from gateway.log import Log, LogUnavailableError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC).replace(tzinfo=None)

Word = Literal["live", "earliest", "snapshot"]


@dataclass(frozen=True, slots=True)
class AfterCursor:
    """Everything after a cursor. `place` is None where the text names none and a gap shall say so."""

    text: str | None
    place: Place | None


@dataclass(frozen=True, slots=True)
class FromTime:
    """Everything accepted since then, in microseconds since 1970."""

    accepted: int


Since = Word | AfterCursor | FromTime


@dataclass(frozen=True, slots=True)
class Lost:
    """A gap to announce: after `lost_from` (a cursor, or None where no place is known) up to offset `to`."""

    lost_from: str | None
    to: int
    reason: Literal["evicted", "slow", "epoch"]


@dataclass(frozen=True, slots=True)
class Start:
    """A place to read from.

    `snapshot` is set within a snapshot (the offset as of which it is told), `lost` where a gap comes first,
    `floating` where the place means "before the first kept event", so that none can be missing there.
    `cursor` is what the client is told as its place.
    """

    offset: int
    cursor: str
    snapshot: int | None = None
    lost: Lost | None = None
    floating: bool = False


def parse_since(text: str | None, cursors: Cursors) -> Since:
    """Raises GatewayError `bad_since` for what is neither a word, a time nor a cursor."""
    if text is None or text == "live":
        return "live"
    if text == "earliest":
        return "earliest"
    if text == "snapshot":
        return "snapshot"
    moment = text.replace(" ", "+")  # a query string's unescaped plus sign
    if is_rfc3339(moment):
        return FromTime(_microseconds(moment))
    try:
        return AfterCursor(text, cursors.decode(text))
    except ValueError as error:
        raise GatewayError(
            "bad_since", f"since is live, earliest, snapshot, an RFC 3339 time or a cursor: {error}"
        ) from None


def parse_last_event_id(text: str, cursors: Cursors) -> Since:
    """As `parse_since` for a cursor, but what names no place becomes one: an error would end an EventSource."""
    try:
        return AfterCursor(text, cursors.decode(text))
    except ValueError:
        return AfterCursor(None, None)


def _microseconds(text: str) -> int:
    """The instant of an RFC 3339 time. Works on plain numbers: an offset may lead out of datetime's years."""
    zone = 0
    if text[-1] in "Zz":
        text = text[:-1]
    else:
        zone = (int(text[-5:-3]) * 60 + int(text[-2:])) * (-1 if text[-6] == "-" else 1)
        text = text[:-6]
    whole, _, fraction = text.partition(".")
    leap = whole.endswith(":60")
    moment = datetime.fromisoformat(whole[:-2] + "59" if leap else whole)
    seconds = (moment - _EPOCH) // timedelta(seconds=1) + leap - zone * 60
    return seconds * 1_000_000 + int(fraction[:6].ljust(6, "0"))


async def resolve(since: Since, log: Log, cursors: Cursors, head: int) -> Start:
    """The place where a subscription starts. `head` is the hub's position. "live" is the caller's matter.

    Raises LogUnavailableError, also where the log is lost meanwhile.
    """
    if isinstance(since, FromTime):
        epoch = log.epoch
        offset = min(await log.offset_at(since.accepted), head)
        if log.epoch != epoch:
            raise LogUnavailableError("the log was lost meanwhile")
        return Start(offset, cursors.encode(log.epoch, offset), floating=True)
    if isinstance(since, AfterCursor):
        place = since.place
        if place and place.epoch == log.epoch and max(place.offset, place.start or 0) > head:
            before = log.head
            await log.catch_up(max(place.offset, place.start or 0))
            head += max(0, log.head - before)  # the hub takes what the log tells in the same turn
        return _after(since, log, cursors, head)
    if since == "snapshot":
        return Start(0, cursors.encode(log.epoch, 0, head), snapshot=head)
    if since == "earliest":
        offset = min(log.first - 1, head)
        return Start(offset, cursors.encode(log.epoch, offset), floating=True)
    return Start(head, cursors.encode(log.epoch, head))


def _after(since: AfterCursor, log: Log, cursors: Cursors, head: int) -> Start:
    place = since.place
    if place and place.epoch == log.epoch and max(place.offset, place.start or 0) <= head:
        return Start(place.offset, since.text or "", snapshot=place.start)
    lost = Lost(since.text, head, "epoch")
    return Start(head, since.text or cursors.encode(log.epoch, head), lost=lost)
