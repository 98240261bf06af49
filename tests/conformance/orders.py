"""Events for the suites of the transports: orders that change, some of them paid."""

from typing import Any

PAID = {"exact": {"data.status": "paid"}}


def event(id_: str, subject: str | None = None, **data: Any) -> dict[str, Any]:
    named = {} if subject is None else {"subject": subject}
    return {
        "specversion": "1.0",
        "type": "order.updated",
        "id": id_,
        "source": "/test",
        **named,
        "data": data,
    }


def events(count: int, subjects: int = 5, *, start: int = 0, **data: Any) -> list[dict[str, Any]]:
    """Events `e0`, `e1`, … of subjects in turn, every third of them paid."""
    return [
        event(f"e{at}", f"o-{at % subjects}", status="paid" if at % 3 == 0 else "new", at=at, **data)
        for at in range(start, start + count)
    ]


def id_range(start: int, end: int) -> list[str]:
    """The ids of `events` from `start` up to `end`."""
    return [f"e{at}" for at in range(start, end)]
