"""Who publishes and who subscribes in a trial: every way in and every way out, over both gateways."""

from collections.abc import Iterator, Sequence
from typing import Final

from tests.support.faults.interests import INTERESTS
from tests.support.faults.ledger import Ledger
from tests.support.faults.publishers import (
    ChannelPublisher,
    HttpPublisher,
    Publisher,
    StreamPublisher,
    bare,
    batch,
    equal,
    whole,
)
from tests.support.faults.subscribers import Bodies, Subscriber

CHANNELS: Final = ("news", "deals.*", "equal")
STREAMS: Final = ("orders", "parcels")
_TRANSPORTS: Final = ("websocket", "sse", "longpoll")
_STARTS: Final = (None, "earliest", "snapshot", "2020-01-01T00:00:00Z", "earliest")


def make_http_publishers(ledger: Ledger, urls: Sequence[str]) -> Iterator[Publisher]:
    """Eight: four of single events, two with two requests in flight each, one of batches, one of lines."""
    here, there = list(urls), list(reversed(urls))
    for at in range(4):
        yield HttpPublisher(f"http-{at}", ledger, 0.08, urls=(here, there)[at % 2])
    for at in range(2):
        for lane in range(2):  # no order is promised to requests that are in flight together
            yield HttpPublisher(
                f"http-free-{at}",
                ledger,
                0.15,
                in_order=False,
                first=lane,
                step=2,
                urls=(here, there)[lane],
            )
    yield HttpPublisher("http-batch", ledger, 0.3, urls=here, size=10)
    yield HttpPublisher("http-lines", ledger, 0.3, urls=there, size=10, lines=True)


def make_redis_publishers(ledger: Ledger, url: str) -> Iterator[Publisher]:
    """Four channels and two streams, with one publisher each."""
    yield ChannelPublisher("news", ledger, 0.08, url=url, to="news", messages=bare)
    yield ChannelPublisher("deals-a", ledger, 0.08, url=url, to="deals.a", messages=whole)
    yield ChannelPublisher("deals-b", ledger, 0.2, url=url, to="deals.b", messages=batch)
    yield ChannelPublisher("equal", ledger, 0.2, url=url, to="equal", messages=equal)
    yield StreamPublisher("orders", ledger, 0.06, url=url, to="orders", with_id=True)
    yield StreamPublisher("parcels", ledger, 0.06, url=url, to="parcels", with_id=False)


def make_subscribers(
    numbers: range, ledger: Ledger, urls: Sequence[str], bodies: Bodies
) -> Iterator[Subscriber]:
    """Those of these numbers: every interest over every transport and from every start, at both gateways."""
    for at in numbers:
        own = at // len(INTERESTS) % 2
        yield Subscriber(
            f"subscriber {at}",
            INTERESTS[at % len(INTERESTS)],
            _TRANSPORTS[at % len(_TRANSPORTS)],
            _STARTS[at % len(_STARTS)],
            [urls[own], urls[1 - own]],
            ledger,
            bodies,
        )
