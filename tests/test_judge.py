"""The judge of the fault tests finds what it is there for: without that, their silence would mean nothing."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.support.faults.interests import INTERESTS, Interest, event_of
from tests.support.faults.judge import Logged, expected_lines, judge_log, judge_subscriber
from tests.support.faults.ledger import MARGIN, Ledger, Listeners, Publication, Sample
from tests.support.faults.subscribers import Place, Subscriber, Told

ALL = next(each for each in INTERESTS if each.name == "all")
LEAVES = next(each for each in INTERESTS if each.name == "paid, told of leaves")
ORDERED = frozenset(("http-0",))


def log_of(*numbers: int, epoch: str = "a") -> list[Logged]:
    return [Logged(epoch, at, event_of("http-0", number)) for at, number in enumerate(numbers, 1)]


def ledger_of(count: int) -> Ledger:
    """The first numbers, all of them acknowledged."""
    ledger = Ledger()
    for number in range(count):
        ledger.acknowledge(ledger.open(("http-0", number), "http"))
    return ledger


LOG = log_of(*range(30))


def test_a_log_that_has_each_message_once_in_order_is_right() -> None:
    """And so is one that has a message that was never acknowledged."""
    ledger = ledger_of(29)
    ledger.open(("http-0", 29), "http")
    assert not judge_log(LOG, ledger, ORDERED)
    assert not judge_log(LOG[:29], ledger, ORDERED)


@pytest.mark.parametrize(
    ("numbers", "finding"),
    [
        ((0, 2), "1 acknowledged messages are not in the log"),
        ((0, 1, 2, 1), "1 messages are in the log too often"),
        ((0, 1, 2, 3), "1 messages are in the log too often"),  # was never published
        ((0, 2, 1), "('http-0', 1) at 3 stands behind ('http-0', 2) at 2"),
    ],
)
def test_what_is_wrong_with_a_log_is_found(numbers: tuple[int, ...], finding: str) -> None:
    """Loss, doubles, strangers and disorder, with the story of what was published."""
    assert finding in judge_log(log_of(*numbers), ledger_of(3), ORDERED)


def test_a_hole_in_the_offsets_is_found() -> None:
    """Offsets are dense."""
    assert judge_log([LOG[0], replace(LOG[1], offset=3)], ledger_of(2), ORDERED)


def test_what_was_published_before_a_log_was_lost_may_be_missing() -> None:
    """What came after may not."""
    ledger = ledger_of(2)
    ledger.lost_before = ledger.now()
    ledger.acknowledge(ledger.open(("http-0", 2), "http"))
    assert not judge_log(log_of(2), ledger, ORDERED)
    assert judge_log(log_of(1), ledger, ORDERED)


# Subscribers


def subscriber_of(interest: Interest, told: list[Told], start: Place | None = None) -> Subscriber:
    subscriber = Subscriber("one", interest, "sse", "earliest", [], Ledger(), {})
    subscriber.start, subscriber.told = start or Place("a", 0), told
    return subscriber


def lines_of(interest: Interest, log: list[Logged] = LOG) -> list[Told]:
    """What a subscriber of one connection is told."""
    return [
        Told(kind, Place(log[0].epoch, offset), what, 1)
        for offset, kind, what in expected_lines(log, interest)
    ]


def findings(interest: Interest, told: list[Told], *allowed: str, logs: list[Logged] | None = None) -> str:
    both = {"a": LOG, "b": logs or []}
    last = both["b"] or LOG
    return "\n".join(
        judge_subscriber(subscriber_of(interest, told), both, last[-1].offset, frozenset(allowed))
    )


@pytest.mark.parametrize("interest", INTERESTS, ids=lambda each: each.name)
def test_who_is_told_what_the_log_says_is_right(interest: Interest) -> None:
    """Also where a new connection tells the last message once more."""
    told = lines_of(interest)
    again = [replace(each, connection=2) for each in told[-2:]]
    assert not findings(interest, told)
    assert not findings(interest, [*told, *again])


def test_leaves_are_told() -> None:
    """The log of these tests has some, so that one that lacks is found."""
    told = lines_of(LEAVES)
    left = [each for each in told if each.kind == "leave"]
    assert len(left) > 3
    assert "1 missing" in findings(LEAVES, [each for each in told if each is not left[1]])


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda told: told[:5] + told[6:], "1 missing, 0 that are not so"),
        (lambda told: told[:-1], "1 missing, 0 that are not so"),
        (lambda told: [*told, told[3]], "told twice by one connection"),
        (lambda told: [*told[:3], told[4], told[3], *told[5:]], "out of order"),
        (lambda told: [replace(told[0], what=("http-1", 0)), *told[1:]], "1 missing, 1 that are not so"),
        (lambda told: [*told, Told("event", Place("c", 1), ("http-0", 0), 1)], "was not to be told"),
    ],
)
def test_what_is_wrong_with_a_subscriber_is_found(
    change: Callable[[list[Told]], list[Told]], finding: str
) -> None:
    """Loss in the middle and at the end, doubles, disorder, strangers, another log without a gap."""
    assert finding in findings(ALL, change(lines_of(ALL)))


def gap(lost_from: Place, to: Place, reason: str) -> Told:
    return Told("gap", to, None, 1, lost_from, reason)


def test_a_gap_explains_what_it_names_and_no_more() -> None:
    """And nothing where no fault explains the gap."""
    told = lines_of(ALL)
    shown = gap(Place("a", 5), Place("a", 9), "evicted")
    assert not findings(ALL, [*told[:5], shown, *told[9:]], "evicted")
    assert "1 missing" in findings(ALL, [*told[:4], shown, *told[9:]], "evicted")
    assert "1 missing" in findings(ALL, [*told[:5], shown, *told[10:]], "evicted")
    assert "a gap for evicted" in findings(ALL, [*told[:5], shown, *told[9:]], "epoch")


def test_a_gap_leads_into_another_log() -> None:
    """Of both logs everything must be told but what the gap names."""
    other = log_of(*range(40, 50), epoch="b")
    told, after = lines_of(ALL), lines_of(ALL, other)
    shown = gap(Place("a", 20), Place("b", 3), "epoch")
    assert not findings(ALL, [*told[:20], shown, *after[3:]], "epoch", logs=other)
    assert "1 missing" in findings(ALL, [*told[:19], shown, *after[3:]], "epoch", logs=other)
    assert "1 missing" in findings(ALL, [*told[:20], shown, *after[4:]], "epoch", logs=other)


def test_a_snapshot_has_the_latest_of_each_subject() -> None:
    """Unless a later event supersedes it, which the log tells then."""
    told = [
        Told("event", Place("a", each.offset, 30), each.key, 1)
        for each in LOG[-7:]  # seven subjects take turns
    ]

    def judged(shown: list[Told]) -> list[str]:
        subscriber = subscriber_of(ALL, shown, Place("a", 0, 30))
        return judge_subscriber(subscriber, {"a": LOG}, 30, frozenset())

    assert not judged(told)
    assert any("lacks" in each for each in judged(told[1:]))
    stranger = Told("event", Place("a", 2, 30), LOG[1].key, 1)
    assert any("has" in each for each in judged([stranger, *told]))


# Pub/sub


def test_only_what_all_have_heard_has_an_order() -> None:
    """What some gateways alone heard, while others had lost Redis, may come later; what is sure may not."""
    ledger = Ledger()
    for number in range(3):
        ledger.acknowledge(ledger.open(("http-0", number), "pubsub"))
    ledger.is_heard = lambda publication: publication.key[1] != 1
    assert not judge_log(log_of(0, 2, 1), ledger, ORDERED)
    assert judge_log(log_of(2, 0, 1), ledger, ORDERED)


def test_a_message_is_sure_where_a_ready_gateway_heard_it_and_stayed() -> None:
    """Its connection listened before, and still did a while after."""
    listeners = Listeners()
    listeners.trust(Sample(1, 1.1, frozenset("x")))
    listeners.add(Sample(5, 5.1, frozenset("xy")))
    listeners.add(Sample(9, 9.1, frozenset("y")))

    def is_heard(started: float, answered: float | None) -> bool:
        return listeners.heard(Publication(("news", 0), "pubsub", started, answered))

    assert is_heard(2, 2.1)
    assert not is_heard(2, None)  # nobody says that it was published
    assert not is_heard(0.5, 2.1)  # nobody was known to be ready
    assert not is_heard(5.2, 5.3)  # who was ready has gone by then, and y is not known to be
    assert not is_heard(2, 5.1 - MARGIN + 1)  # x went within the margin, as far as is known
