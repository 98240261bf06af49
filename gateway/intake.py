"""Intake: the one door. Whatever the ingest, the same parse, checks, deduplication and errors."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from prometheus_client import Counter

from gateway.errors import GatewayError, Problem
from gateway.event import Defaults, Event, make_event
from gateway.jsontext import parse
from gateway.log import Appended, DeadLetter, Expect, Fence, Log, Remember
from gateway.logs import Sparing
from gateway.metrics import Metrics
from gateway.principal import Principal

logger = logging.getLogger(__name__)

_MAX_PROBLEMS: Final = 100  # faults told of one batch
_MAX_REASON: Final = 1000  # characters: a reason may quote what came
_BURIED_SECONDS: Final = 5.0  # between two lines about one origin's dead letters


@dataclass(frozen=True, slots=True)
class Sizes:
    """Limits of what comes in: bytes of an event, events and bytes of a batch."""

    event_bytes: int = 65536
    batch_events: int = 1000
    batch_bytes: int = 8 << 20


class Intake:
    """Makes events of bytes and appends them. `ingest` is the way in, as metrics call it."""

    def __init__(
        self,
        log: Log,
        metrics: Metrics,
        sizes: Sizes,
        defaults: Defaults | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sizes = sizes
        self.defaults = defaults or Defaults()
        self._log = log
        self._metrics = metrics
        self._monotonic = monotonic
        self._buried: dict[str, Sparing] = {}  # lines, by origin
        self._accepted: dict[str, Counter] = {}  # by ingest: a look-up by label costs as much as the parse

    def event(self, data: bytes) -> Event:
        """One event. Raises GatewayError `bad_json`, `invalid_event` or `too_large`."""
        return make_event(parse(data), self.defaults, max_bytes=self.sizes.event_bytes)

    def events(self, values: Sequence[object]) -> list[Event]:
        """A batch of parsed events; the errors of all that are wrong name their places."""
        if len(values) > self.sizes.batch_events:
            raise GatewayError("too_large", f"a batch may have {self.sizes.batch_events} events")
        events: list[Event] = []
        problems: list[Problem] = []
        worst: GatewayError | None = None
        for index, value in enumerate(values):
            try:
                events.append(make_event(value, self.defaults, max_bytes=self.sizes.event_bytes, at=(index,)))
            except GatewayError as error:
                worst = worst or error
                problems += error.errors
        if worst is not None:
            raise GatewayError(worst.code, worst.detail, errors=problems[:_MAX_PROBLEMS])
        return events

    def authorize(self, ingest: str, events: Sequence[Event], principal: Principal) -> None:
        """Raises GatewayError `forbidden` unless all of the events' types may be published."""
        for event in events:
            if not principal.may_publish(event.type):
                self._metrics.ingested.labels(ingest, "unauthorized").inc(len(events))
                principal.require_publish(event.type)

    def count_invalid(self, ingest: str) -> None:
        self._metrics.ingested.labels(ingest, "invalid").inc()

    async def append(
        self,
        ingest: str,
        events: Sequence[Event],
        *,
        expect: Expect | None = None,
        remember: Remember | None = None,
        fence: Fence | None = None,
        on_stored: Callable[[], None] | None = None,
    ) -> Appended:
        """Durable when it returns. Raises, and calls `on_stored`, as `Log.append`."""
        appended = await self._log.append(
            events, expect=expect, remember=remember, fence=fence, on_stored=on_stored
        )
        accepted = self._accepted.get(ingest)
        if accepted is None:
            accepted = self._accepted[ingest] = self._metrics.ingested.labels(ingest, "accepted")
        accepted.inc(appended.accepted)
        if appended.duplicates:
            self._metrics.ingested.labels(ingest, "duplicate").inc(appended.duplicates)
        return appended

    async def bury(
        self, ingest: str, origin: str, letters: Sequence[DeadLetter], *, fence: Fence | None = None
    ) -> None:
        """Puts messages aside that are no events; durable when it returns. Counted, and told in a line now and then.

        `origin` is the configured channel pattern or stream, since it is a metric's label: never what came from
        outside, which may stand in the letters' own. Raises as `Log.bury`.
        """
        if not letters:
            return
        await self.put_back(ingest, letters, fence=fence)
        self._metrics.dead_letters.labels(origin).inc(len(letters))
        sparing = self._buried.get(origin)
        if sparing is None:
            sparing = self._buried[origin] = Sparing(_BURIED_SECONDS, self._monotonic)
        if count := sparing.take(len(letters)):
            reason = _unicode(letters[-1].reason[:_MAX_REASON])
            logger.warning("%d of %s went to the dead letters, the last because %s", count, origin, reason)

    async def put_back(
        self, ingest: str, letters: Sequence[DeadLetter], *, fence: Fence | None = None
    ) -> None:
        """Stores letters that were no events this time, first or again; counts them as invalid.

        Raises as `Log.bury`.
        """
        await self._log.bury([_storable(each) for each in letters], fence=fence)
        self._metrics.ingested.labels(ingest, "invalid").inc(len(letters))


def _storable(letter: DeadLetter) -> DeadLetter:
    """The letter with texts that a log can keep: what is no Unicode is escaped, and the reason is of some length."""
    return replace(
        letter,
        id=_unicode(letter.id),
        origin=_unicode(letter.origin),
        reason=_unicode(letter.reason[:_MAX_REASON]),
    )


def _unicode(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
