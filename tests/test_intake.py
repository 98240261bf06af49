"""The one door, and what it counts."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.errors import GatewayError
from gateway.event import Defaults
from gateway.intake import Intake, Sizes
from gateway.log import Appended, DeadLetter, LogStats, LogUnavailableError, Retention
from gateway.log.sqlite import SqliteLog
from gateway.metrics import Metrics
from gateway.principal import OPEN, Principal
from tests.support.core import Clock


@dataclass(frozen=True)
class Door:
    intake: Intake
    metrics: Metrics

    log: SqliteLog
    clock: Clock

    def counted(self, result: str) -> float:
        return self.value(f'gateway_events_ingested_total{{ingest="test",result="{result}"}} ')

    def value(self, line: str) -> float:
        text = self.metrics.render().decode()
        return next(
            (float(each.removeprefix(line)) for each in text.splitlines() if each.startswith(line)), 0.0
        )


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    metrics = Metrics()
    log = SqliteLog(None, retention=Retention(), stats=LogStats(observe_append=metrics.append.observe))
    await log.open(lambda _entries: None)
    clock = Clock()
    intake = Intake(log, metrics, Sizes(100, 3, 1000), Defaults("/test", clock), monotonic=clock)
    yield Door(intake, metrics, log, clock)
    await log.close()


def caught(call: Any) -> GatewayError:
    with pytest.raises(GatewayError) as info:
        call()
    return info.value


async def test_bytes_become_an_event_of_this_door(door: Door) -> None:
    """With its defaults and within its sizes."""
    assert door.intake.event(b'{"type":"a"}').source == "/test"
    assert caught(lambda: door.intake.event(b"{")).code == "bad_json"
    assert caught(lambda: door.intake.event(b"{}")).code == "invalid_event"
    assert caught(lambda: door.intake.event(b'{"type":"%b"}' % (b"x" * 100))).code == "too_large"


async def test_a_batch_tells_all_its_faults(door: Door) -> None:
    """With their places, up to a bound; the first fault's code is the batch's."""
    error = caught(lambda: door.intake.events([{"type": "x" * 100}, {}, {"type": "a"}]))
    assert error.code == "too_large"
    assert [each.pointer for each in error.errors] == ["#/0", "#/1/type"]
    assert caught(lambda: door.intake.events([{"type": "a"}] * 4)).code == "too_large"
    many = {f"Bad{number}": 1 for number in range(200)}
    assert len(caught(lambda: door.intake.events([many])).errors) == 100


async def test_accepted_and_duplicate_events_are_counted(door: Door) -> None:
    """By the ingest that brought them; the log's commits as well."""
    events = [door.intake.event(b'{"type":"a","id":"%d"}' % number) for number in (1, 2, 1)]
    assert await door.intake.append("test", events) == Appended(2, 1, 2)
    assert (door.counted("accepted"), door.counted("duplicate")) == (2, 1)
    assert b"\ngateway_log_append_seconds_count 1.0\n" in door.metrics.render()


async def test_one_type_without_right_refuses_them_all(door: Door) -> None:
    """And all of them are counted as unauthorized."""
    events = [door.intake.event(b'{"type":"%b"}' % name) for name in (b"order.x", b"note")]
    ann = Principal(sub="ann", publish=("order.*",))
    door.intake.authorize("test", events, OPEN)
    door.intake.authorize("test", events[:1], ann)
    assert door.counted("unauthorized") == 0
    error = caught(lambda: door.intake.authorize("test", events, ann))
    assert (error.code, "'note'" in error.detail) == ("forbidden", True)
    assert door.counted("unauthorized") == 2


def letter(id: str, origin: str = "redis:orders.eu", reason: str = "no") -> DeadLetter:  # noqa: A002 - the field's name
    return DeadLetter(id, origin, "message", reason, 1.0, 1, b"\xff")


def buried_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "gateway.intake"]


async def test_letters_are_stored_and_counted(door: Door) -> None:
    """As invalid for their way in, and by the origin that is configured, not by their own."""
    await door.intake.bury("test", "redis:orders.*", [letter("a"), letter("b", "redis:orders.us")])
    await door.intake.bury("test", "redis:orders.*", [])
    assert [each.origin for each in await door.log.dead_letters()] == ["redis:orders.eu", "redis:orders.us"]
    assert door.counted("invalid") == 2
    assert door.value('gateway_dead_letters_total{origin="redis:orders.*"} ') == 2
    assert door.metrics.render().count(b"gateway_dead_letters_total{") == 1


async def test_letters_that_come_often_are_a_line_now_and_then(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """One for each origin in some seconds, with how many they were and the last reason."""
    for number in range(10):
        await door.intake.bury("test", "redis:a", [letter(f"{number}", reason=f"reason {number}")])
    await door.intake.bury("test", "redis:b", [letter("b")])
    assert buried_lines(caplog) == [
        "1 of redis:a went to the dead letters, the last because reason 0",
        "1 of redis:b went to the dead letters, the last because no",
    ]
    door.clock.now += 5
    await door.intake.bury("test", "redis:a", [letter("x"), letter("y", reason="last")])
    assert buried_lines(caplog)[2:] == ["11 of redis:a went to the dead letters, the last because last"]


async def test_what_no_log_could_keep_is_made_so(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """A lone surrogate is escaped, and a reason that quotes much is cut."""
    await door.intake.bury("test", "redis:a", [letter("\udcff", "redis:\udcff", "\ud800" + "x" * 5000)])
    (kept,) = await door.log.dead_letters()
    assert (kept.id, kept.origin) == ("\\udcff", "redis:\\udcff")
    assert kept.reason == "\\ud800" + "x" * 999
    (line,) = buried_lines(caplog)
    assert "\\ud800x" in line
    assert len(line) < 1200


async def test_nothing_is_counted_that_was_not_stored(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """The ingest tries again, and then it counts."""
    await door.log.close()
    with pytest.raises(LogUnavailableError):
        await door.intake.bury("test", "redis:a", [letter("a")])
    assert door.counted("invalid") == 0
    assert buried_lines(caplog) == []
