"""Messages of Redis pub/sub as events: an event, a batch of them, or bare data.

Redis gives a message no identity. `Message` has one by what was heard before it, the same on all nodes.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

from gateway.errors import GatewayError, located
from gateway.event import DerivedDefaults, Event, derived_id, make_event
from gateway.intake import Intake
from gateway.jsontext import parse
from gateway.log import DeadLetter

KIND: Final = "message"


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it came: the `number`-th after a mark (its token, and its time in milliseconds since 1970).

    `heard` is when this node heard it, in seconds since 1970.
    """

    token: str
    milliseconds: int
    number: int
    heard: float
    channel: bytes
    payload: bytes

    @property
    def identity(self) -> str:
        return f"{self.token}:{self.number}"

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return len(self.payload) + len(self.channel) + 200


@lru_cache(maxsize=1024)
def source_of(channel: str) -> str:
    """A channel or stream as the source of events (RFC 3986)."""
    return f"/redis/{quote(channel, safe='/:@!$&()*+,;=')}"


def events_of(intake: Intake, message: Message) -> list[Event]:
    """The message's events: the same ones on every node. Raises GatewayError where it is none."""
    value = parse(message.payload)
    channel = _channel_name(message.channel)
    if type(value) is list:
        if len(value) > intake.sizes.batch_events:
            raise GatewayError("too_large", f"a batch may have {intake.sizes.batch_events} events")
        return [_event(intake, message, channel, each, index) for index, each in enumerate(value)]
    if type(value) is not dict or "type" not in value:
        value = _bare(channel, value)
    return [_event(intake, message, channel, value, None)]


def _channel_name(channel: bytes) -> str:
    try:
        return channel.decode()
    except UnicodeDecodeError:
        raise GatewayError("invalid_event", "the channel's name is not UTF-8") from None


def _bare(channel: str, data: Any) -> dict[str, Any]:
    """An event around data that is none itself."""
    value = {"type": channel, "data": data}
    subject = _subject(data) if type(data) is dict else None
    if subject is not None:
        value["subject"] = subject
    return value


def _subject(data: dict[str, Any]) -> str | None:
    """`orderId`, else `id`: the first that is a text or a number. Where an order's id is left empty, it has none."""
    for found in (data.get("orderId"), data.get("id")):
        if type(found) is str and found:
            return found
        if type(found) in (int, float):
            return json.dumps(found)
    return None


def _event(intake: Intake, message: Message, channel: str, value: Any, index: int | None) -> Event:
    defaults = DerivedDefaults(
        source_of(channel),
        now=message.heard,
        milliseconds=message.milliseconds,
        seed=f"{message.identity}:{index or 0}",
    )
    at = () if index is None else (index,)
    return make_event(value, defaults, max_bytes=intake.sizes.event_bytes, at=at)


# Dead letters


def letter_of(message: Message, error: GatewayError) -> DeadLetter:
    """The dead letter of a message that is no event: the same one on every node."""
    channel = message.channel.decode(errors="backslashreplace")
    id_ = derived_id(message.milliseconds, message.identity.encode())
    return DeadLetter(id_, f"redis:{channel}", KIND, located(error), message.heard, 1, message.payload)


def read_again(intake: Intake, letter: DeadLetter) -> list[Event]:
    """The events of a dead letter, the same ones each time. Raises GatewayError where it still is none."""
    channel = letter.origin.partition(":")[2].encode()
    milliseconds = int(
        letter.id.replace("-", "")[:12], 16
    )  # the mark's: each node has heard it at another time
    return events_of(intake, Message(letter.id, milliseconds, 0, letter.time, channel, letter.payload))
