"""What subscribers want, said twice: as a filter for the gateway, and as plain Python to hold it against."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

STATUSES: Final = ("new", "paid", "shipped")
Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Interest:
    """A filter with its options; `matches` is the same as Python. `example` is data of an event that it matches."""

    name: str
    filter: dict[str, Any] | None
    matches: Callable[[Body], bool]
    leave: bool = False


def _data(body: Body, name: str) -> Any:
    return body["data"].get(name)


def _is_paid(body: Body) -> bool:
    return bool(_data(body, "status") == "paid")


def _is_of_http(body: Body) -> bool:
    return str(_data(body, "publisher")).startswith("http")


INTERESTS: Final = (
    Interest("all", None, lambda _body: True),
    Interest(
        "customer", {"exact": {"data.customerId": "c1"}}, lambda body: bool(_data(body, "customerId") == "c1")
    ),
    Interest("orders", {"prefix": {"type": "order."}}, lambda body: str(body["type"]).startswith("order.")),
    Interest("paid, told of leaves", {"exact": {"data.status": "paid"}}, _is_paid, leave=True),
    Interest(
        "open orders",
        {"in": {"data.status": ["new", "paid"]}},
        lambda body: _data(body, "status") in ("new", "paid"),
    ),
    Interest(
        "paid over HTTP, told of leaves",
        {"all": [{"exact": {"data.status": "paid"}}, {"prefix": {"data.publisher": "http"}}]},
        lambda body: _is_paid(body) and _is_of_http(body),
        leave=True,
    ),
    Interest(
        "not over HTTP", {"not": {"prefix": {"data.publisher": "http"}}}, lambda body: not _is_of_http(body)
    ),
    Interest(
        "one of the first orders",
        {"in": {"subject": ["o-0", "o-1"]}},
        lambda body: body.get("subject") in ("o-0", "o-1"),
    ),
)


def data_of(publisher: str, number: int) -> dict[str, Any]:
    """The payload of a publisher's message: orders, customers and states by turns, so that filters let them in and out."""
    return {
        "publisher": publisher,
        "number": number,
        "orderId": f"o-{(number + len(publisher)) % 7}",
        "customerId": f"c{number % 5}",
        "status": STATUSES[number % 3],
    }


def event_of(publisher: str, number: int, **attributes: str) -> dict[str, Any]:
    """The same as an event. What is not given is left to the gateway."""
    data = data_of(publisher, number)
    type_ = ("order.created", "order.updated", "parcel.moved")[number % 3 - 1]
    return {"type": type_, "subject": data["orderId"], "data": data, **attributes}


def markers() -> list[dict[str, Any]]:
    """Events of which each interest matches at least one, to be published last of all."""
    numbers = {0: "o-0", 1: "o-1"}
    found = [
        {
            "type": "order.updated",
            "source": "/faults",
            "id": f"marker-{publisher}-{number}",
            "subject": subject,
            "data": {"publisher": publisher, "number": number, "customerId": "c1", "status": "paid"},
        }
        for publisher in ("marker", "http-marker")
        for number, subject in numbers.items()
    ]
    assert all(any(each.matches(body) for body in found) for each in INTERESTS)
    return found
