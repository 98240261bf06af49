"""Metrics: the series that there are, what moves them, and that no label tells who."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import __version__
from gateway.metrics import Metrics
from tests.support.app import InProcess, in_process
from tests.support.waiting import until

LABELS = {
    "gateway_connections": {"transport"},
    "gateway_connections_opened": {"transport"},
    "gateway_connections_closed": {"transport", "code"},
    "gateway_subscriptions": {"transport"},
    "gateway_channels": set(),
    "gateway_events_ingested": {"ingest", "result"},
    "gateway_dead_letters": {"origin"},
    "gateway_events_delivered": {"transport"},
    "gateway_gaps": {"reason"},
    "gateway_catchups": {"transport", "reason"},
    "gateway_delivery_latency_seconds": {"transport"},
    "gateway_log_append_seconds": set[str](),
    "gateway_log_lag_events": set[str](),
    "gateway_event_loop_lag_seconds": set[str](),
    "gateway_store_up": set[str](),
    "gateway_build_info": {"version"},
}


def samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample by its name and the values of its labels."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (each.name, tuple(each.labels.values())): each.value for family in families for each in family.samples
    }


@pytest.fixture
async def app() -> AsyncIterator[InProcess]:
    async with in_process(flush_ms=0) as running:
        yield running


async def poll(app: InProcess, query: str) -> int:
    response = await app.http.get(f"/events?{query}", headers={"accept": "application/json"})
    return len(response.json()["events"])


def test_the_series_and_their_labels() -> None:
    """Each one has help, and labels of few values: no order, no user, no address."""
    metrics = Metrics()
    metrics.flushed("sse", [0], 1)
    families = {each.name: each for each in text_string_to_metric_families(metrics.render().decode())}
    assert set(families) == set(LABELS)
    for name, family in families.items():
        assert family.documentation
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == LABELS[name]
    assert samples(metrics)["gateway_build_info", (__version__,)] == 1


def test_a_flush_counts_for_all_its_clients() -> None:
    """Each event of it was delivered to each of them, and took as long as it did."""
    metrics = Metrics()
    now = time.time() * 1e6
    metrics.flushed("websocket", [int(now - 30_000), int(now + 1e6)], 1000)
    found = samples(metrics)
    assert found["gateway_events_delivered_total", ("websocket",)] == 2000
    name = "gateway_delivery_latency_seconds"
    assert found[f"{name}_count", ("websocket",)] == 2000
    assert 30 <= found[f"{name}_sum", ("websocket",)] < 60  # a clock that was set back is no negative time
    buckets = [value for (each, _), value in found.items() if each == f"{name}_bucket"]
    assert buckets == sorted(buckets)
    assert (buckets[0], buckets[-1]) == (1000, 2000)
    assert set(buckets) == {1000, 2000}


async def test_events_on_their_way(app: InProcess) -> None:
    """Ingested, appended, and nothing left to tell."""
    await app.publish({"type": "a", "id": "1"}, {"type": "a", "id": "1"})
    await app.http.post("/events", json={})
    await app.http.get("/metrics")
    found = samples(app.node.metrics)
    for result in ("accepted", "duplicate", "invalid"):
        assert found["gateway_events_ingested_total", ("http", result)] == 1
    assert found["gateway_log_append_seconds_count", ()] == 1
    assert (found["gateway_log_lag_events", ()], found["gateway_store_up", ()]) == (0, 1)


async def test_a_long_poll_is_counted_once(app: InProcess) -> None:
    """What it was answered, whether that was there before or came while it waited."""
    await app.publish({"type": "a"}, {"type": "a"})
    assert await poll(app, "since=earliest") == 2
    waiting = asyncio.create_task(poll(app, "wait=10"))
    await until(
        lambda: any(lane.sinks for each in app.node.hub.channels.values() for lane in each.lanes.values())
    )
    assert samples(app.node.metrics)["gateway_connections", ("longpoll",)] == 1
    await app.publish({"type": "a"})
    assert await waiting == 1
    found = samples(app.node.metrics)
    assert found["gateway_events_delivered_total", ("longpoll",)] == 3
    assert found["gateway_connections", ("longpoll",)] == 0
    assert found["gateway_connections_opened_total", ("longpoll",)] == 2


async def test_channels_are_those_that_are_open(app: InProcess) -> None:
    """As of the moment that somebody asks."""
    channels = [app.node.hub.open(None), app.node.hub.open(None, latest=True)]
    await app.http.get("/metrics")
    assert samples(app.node.metrics)["gateway_channels", ()] == 2
    for channel in channels:
        app.node.hub.release(channel)
    await app.http.get("/metrics")
    assert samples(app.node.metrics)["gateway_channels", ()] == 0
