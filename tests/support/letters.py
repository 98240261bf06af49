"""Dead letters for tests, and a reader of them as a way in has one."""

from typing import Any, cast

from gateway.event import Event, derived_id
from gateway.intake import Intake
from gateway.jsontext import parse
from gateway.log import DeadLetter
from gateway.node import Node, Redrive

GOOD = b'{"type":"order.created","subject":"o-1"}'
BAD = b'{"subject":"o-1"}'


def letter(
    id: str,  # noqa: A002 - the field's name
    payload: bytes = GOOD,
    *,
    origin: str = "redis:orders",
    kind: str = "message",
    reason: str = "it was no event",
    tries: int = 1,
) -> DeadLetter:
    return DeadLetter(id, origin, kind, reason, 1_700_000_000.5, tries, payload)


def read(intake: Intake, each: DeadLetter) -> list[Event]:
    """Events whose ids follow from the letter."""
    value = parse(each.payload)
    values: list[Any] = value if type(value) is list else [value]
    return intake.events(
        [{**value, "id": derived_id(0, f"{each.id}/{n}".encode())} for n, value in enumerate(values)]
    )


def give_reader(node: Node, kind: str = "message", reader: Redrive = read) -> None:
    """The node reads letters of this kind from now on."""
    cast(dict[str, Redrive], node.redrives)[kind] = reader
