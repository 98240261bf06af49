"""The judgement: the log against what was acknowledged, and each subscriber against the log. No I/O, no clock.

Every function returns findings, one line each; none is what everybody wants.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.support.faults.interests import Interest
from tests.support.faults.ledger import Key, Ledger
from tests.support.faults.subscribers import Place, Subscriber, Told, key_of

MARKERS: Final = frozenset(("marker", "http-marker"))
_SHOWN: Final = 8  # of findings of one kind

Line = tuple[int, str, Key | str | None]  # offset, event or leave, and what


@dataclass(frozen=True, slots=True)
class Logged:
    """An event in the log."""

    epoch: str
    offset: int
    body: Mapping[str, Any]

    @property
    def place(self) -> Place:
        return Place(self.epoch, self.offset)

    @property
    def key(self) -> Key:
        return key_of(dict(self.body))


def judge_log(log: Sequence[Logged], ledger: Ledger, ordered: frozenset[str]) -> list[str]:
    """Each acknowledged message once, nothing else more than once, and each publisher's messages in order."""
    counts = Counter(each.key for each in log if each.key[0] not in MARKERS)
    missing, surplus = ledger.missing(counts), ledger.surplus(counts)
    found = [f"{len(missing)} acknowledged messages are not in the log"] if missing else []
    found += ledger.explain(missing[:_SHOWN])
    found += [f"{len(surplus)} messages are in the log too often"] if surplus else []
    for key in surplus[:_SHOWN]:
        at = [each.offset for each in log if each.key == key]
        found += [f"{key} is at {at}", *ledger.explain([key])]
    if [each.offset for each in log] != list(range(1, len(log) + 1)):
        found.append("the log's offsets are not dense")
    return found + _disorder(log, ledger, ordered)


def _disorder(log: Sequence[Logged], ledger: Ledger, ordered: frozenset[str]) -> list[str]:
    last: dict[str, Logged] = {}
    found = []
    for each in log:
        publisher, number = each.key
        if publisher not in ordered or not ledger.has_order(each.key):
            continue
        before = last.get(publisher)
        if before is not None and before.key[1] > number:
            found.append(f"{each.key} at {each.offset} stands behind {before.key} at {before.offset}")
            found += ledger.explain([before.key, each.key])
        last[publisher] = each
    return found[: 3 * _SHOWN]


# Subscribers


def expected_lines(log: Sequence[Logged], interest: Interest) -> Iterator[Line]:
    """What the log says to somebody with this interest, from its beginning."""
    before: dict[str, bool] = {}  # whether the event before it of the same subject matched
    for each in log:
        subject, matches = each.body.get("subject"), interest.matches(each.body)
        if matches:
            yield each.offset, "event", each.key
        elif interest.leave and subject is not None and before.get(subject):
            yield each.offset, "leave", subject
        if subject is not None:
            before[subject] = matches


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a log of which a subscriber must have everything: after < offset <= upto; to the end with None."""

    epoch: str
    after: int
    upto: int | None


def stretches(subscriber: Subscriber) -> list[Stretch]:
    """What it was promised: from its start on, but for what gaps have told."""
    if subscriber.start is None:
        return []
    start = subscriber.start
    epoch, after = start.epoch, start.offset if start.start is None else start.start
    found = []
    for each in subscriber.told:
        if each.kind != "gap":
            continue
        upto = each.lost_from.offset if each.lost_from and each.lost_from.epoch == epoch else after
        found.append(Stretch(epoch, after, upto))
        epoch, after = each.place.epoch, each.place.offset
    return [*found, Stretch(epoch, after, None)]


def judge_subscriber(
    subscriber: Subscriber, logs: Mapping[str, Sequence[Logged]], upto: int, allowed: frozenset[str]
) -> list[str]:
    """Whether it was told exactly what it must be told. `logs` by epoch; `upto` is the offset up to which it must
    have been told everything of the last one. `allowed` are the reasons for gaps that the faults explain."""
    found = list(subscriber.complaints)
    found += [
        f"a gap for {each.reason}: from {each.lost_from} to {each.place}"
        for each in subscriber.told
        if each.kind == "gap" and each.reason not in allowed
    ]
    told, disorder = _once(subscriber)
    found += disorder
    parts = stretches(subscriber)
    found += [f"told what it was not to be told: {each}" for each in told if not _is_due(parts, each)]
    for each in parts:
        if each.epoch not in logs:
            found.append(f"the log {each.epoch} is nobody's")
            continue
        found += _compare(subscriber, told, logs[each.epoch], each, upto)
    if subscriber.start is not None and subscriber.start.start is not None:
        found += _judge_snapshot(subscriber, logs[subscriber.start.epoch], subscriber.start.start)
    return found and [f"{subscriber}:", *found[: 3 * _SHOWN], *subscriber.story]


def _once(subscriber: Subscriber) -> tuple[list[Told], list[str]]:
    """What it was told, without what a new connection has told again; and what is out of order."""
    kept: list[Told] = []
    known: dict[Place, Told] = {}
    found = []
    last = None
    for each in subscriber.told:
        if each.kind == "gap":
            last = each
            continue
        again = known.get(each.place)
        if again is not None and (again.kind, again.what) == (each.kind, each.what):
            if again.connection == each.connection:
                found.append(f"told twice by one connection: {each}")
            continue
        known[each.place] = each
        if last is not None and last.place.epoch == each.place.epoch and not _follows(last.place, each.place):
            found.append(f"out of order: {each} after {last}")
        last = each
        kept.append(each)
    return kept, found


def _follows(before: Place, after: Place) -> bool:
    """Whether a place is a later one: a snapshot's lie before those of the log that comes after it."""
    return (before.start is None, before.offset) < (after.start is None, after.offset)


def _compare(
    subscriber: Subscriber, told: Sequence[Told], log: Sequence[Logged], stretch: Stretch, upto: int
) -> list[str]:
    got = [
        (each.place.offset, each.kind, each.what)
        for each in told
        if each.place.epoch == stretch.epoch and each.place.start is None and _lies_in(stretch, each.place)
    ]
    want = [each for each in expected_lines(log, subscriber.interest) if each[0] > stretch.after]
    end = upto if stretch.upto is None else stretch.upto
    rest = [each for each in want if each[0] > end]
    want = [each for each in want if each[0] <= end]
    if got[: len(want)] == want and got[len(want) :] == rest[: len(got) - len(want)]:
        return []
    missing = [each for each in want if each not in set(got)]
    strange = [each for each in got if each not in set(want) | set(rest)]
    return [
        f"after {stretch.epoch}.{stretch.after} up to {end}: {len(missing)} missing, {len(strange)} that are not so"
        if missing or strange
        else f"after {stretch.epoch}.{stretch.after}: not in the log's order",
        *(f"missing {each}" for each in missing[:_SHOWN]),
        *(f"not so {each}" for each in strange[:_SHOWN]),
    ]


def _is_due(parts: Sequence[Stretch], told: Told) -> bool:
    """Whether a message lies where the subscriber was to be told something."""
    place = told.place
    return place.start is not None or any(
        each.epoch == place.epoch and _lies_in(each, place) for each in parts
    )


def _lies_in(stretch: Stretch, place: Place) -> bool:
    return place.offset > stretch.after and (stretch.upto is None or place.offset <= stretch.upto)


def _judge_snapshot(subscriber: Subscriber, log: Sequence[Logged], start: int) -> list[str]:
    """The latest event of each subject as of `start`, where it matches; what came after may have superseded it."""
    latest: dict[str, Logged] = {}
    superseded: set[str] = set()
    for each in log:
        subject = each.body.get("subject")
        if subject is not None and each.offset <= start:
            latest[subject] = each
        elif subject is not None:
            superseded.add(subject)
    want = {
        (each.offset, each.key): subject
        for subject, each in latest.items()
        if subscriber.interest.matches(each.body)
    }
    got = {(each.place.offset, each.what) for each in subscriber.told if each.place.start is not None}
    missing = [each for each, subject in want.items() if each not in got and subject not in superseded]
    strange = [each for each in got if each not in want]
    return [f"the snapshot lacks {each}" for each in missing] + [
        f"the snapshot has {each}" for each in strange
    ]
