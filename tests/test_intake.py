"""The one door, and what it counts."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.errors import GatewayError
from gateway.event import Defaults
from gateway.intake import Intake, Sizes
from gateway.log import Appended, LogStats, Retention
from gateway.log.sqlite import SqliteLog
from gateway.metrics import Metrics
from gateway.principal import OPEN, Principal
from tests.support.core import Clock


@dataclass(frozen=True)
class Door:
    intake: Intake
    metrics: Metrics

    def counted(self, result: str) -> float:
        line = f'gateway_events_ingested_total{{ingest="test",result="{result}"}} '
        text = self.metrics.render().decode()
        return next(
            (float(each.removeprefix(line)) for each in text.splitlines() if each.startswith(line)), 0.0
        )


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    metrics = Metrics()
    log = SqliteLog(None, retention=Retention(), stats=LogStats(observe_append=metrics.append.observe))
    await log.open(lambda _entries: None)
    yield Door(Intake(log, metrics, Sizes(100, 3, 1000), Defaults("/test", Clock())), metrics)
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
