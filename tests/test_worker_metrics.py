"""The metrics of several workers as one exposition."""

import asyncio
import socket
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.app import Gateway
from gateway.metrics import Metrics
from gateway.settings import Settings
from gateway.worker_metrics import WorkerMetrics, merge
from gateway.workers import Worker
from tests.support.app import InProcess, in_process

Samples = dict[tuple[str, tuple[str, ...]], float]


def samples(exposition: bytes) -> Samples:
    """Every sample by its name and the values of its labels."""
    families = text_string_to_metric_families(exposition.decode())
    return {
        (each.name, tuple(each.labels.values())): each.value for family in families for each in family.samples
    }


def busy(step: int) -> Metrics:
    """Metrics as those of a worker with something to tell."""
    metrics = Metrics()
    metrics.connections.labels("sse").set(step)
    metrics.opened.labels("sse").inc(10 * step)
    metrics.append.observe(0.002 * step)
    metrics.flushed("sse", [0], 100 * step)
    metrics.loop_lag.set(0.25 * step)
    metrics.log_lag.set(7 * step)
    metrics.store_up.set(2 - step)
    return metrics


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short one: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_series_are_summed() -> None:
    """Counters, histograms of both kinds, and gauges that count."""
    merged = samples(merge([busy(1).render(), busy(2).render()]))
    assert merged["gateway_connections", ("sse",)] == 3
    assert merged["gateway_connections_opened_total", ("sse",)] == 30
    assert merged["gateway_events_delivered_total", ("sse",)] == 300
    assert merged["gateway_log_append_seconds_count", ()] == 2
    assert merged["gateway_log_append_seconds_sum", ()] == pytest.approx(0.006)
    assert merged["gateway_log_append_seconds_bucket", ("0.0025",)] == 1
    assert merged["gateway_log_append_seconds_bucket", ("+Inf",)] == 2
    assert merged["gateway_delivery_latency_seconds_bucket", ("+Inf", "sse")] == 300


def test_what_is_no_sum() -> None:
    """The worst lag, a store that is down for one, and one build."""
    merged = samples(merge([busy(1).render(), busy(2).render()]))
    assert merged["gateway_event_loop_lag_seconds", ()] == 0.5
    assert merged["gateway_log_lag_events", ()] == 14
    assert merged["gateway_store_up", ()] == 0
    assert [value for (name, _), value in merged.items() if name == "gateway_build_info"] == [1]


def test_a_series_of_one_worker_alone_is_there() -> None:
    """Labels come up as they are used."""
    one, other = Metrics(), Metrics()
    one.gaps.labels("slow").inc()
    other.gaps.labels("epoch").inc(2)
    merged = samples(merge([one.render(), other.render()]))
    assert (merged["gateway_gaps_total", ("slow",)], merged["gateway_gaps_total", ("epoch",)]) == (1, 2)


def test_one_alone_is_told_as_it_is() -> None:
    """Help, types, order and all."""
    alone = busy(1).render()
    assert merge([alone]) == alone


async def test_whoever_is_asked_tells_of_all(directory: Path) -> None:
    """The others are asked anew each time, and one that is gone is left out."""
    one, two, three = (WorkerMetrics(directory, number) for number in (1, 2, 3))

    async def told(text: bytes) -> bytes:
        return text

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(one.serving(lambda: told(b"one")))
        await stack.enter_async_context(two.serving(lambda: told(b"two")))
        async with three.serving(lambda: told(b"three")):
            assert sorted(await one.others()) == [b"three", b"two"]
            assert sorted(await two.others()) == [b"one", b"three"]
        assert await one.others() == [b"two"]
    assert await one.others() == []


async def test_a_worker_that_was_killed_is_left_out_and_followed(directory: Path) -> None:
    """Its socket's file stays behind; nobody answers there until its successor does."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "2.metrics"))
    one, two = (WorkerMetrics(directory, number) for number in (1, 2))
    assert await one.others() == []

    async def told() -> bytes:
        return b"two"

    async with two.serving(told):
        assert await one.others() == [b"two"]


@pytest.mark.parametrize("said", [None, b"", b"10\nhalf", b"what\n"])
async def test_a_worker_that_hangs_or_breaks_off_is_left_out(
    directory: Path, said: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a moment: half of an exposition is none."""
    monkeypatch.setattr("gateway.worker_metrics.DEADLINE", 0.2)
    over = asyncio.Event()

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if said is None:
            await over.wait()
        else:
            writer.write(said)
        writer.close()

    async with await asyncio.start_unix_server(answer, directory / "2.metrics"):
        assert await WorkerMetrics(directory, 1).others() == []
        over.set()


async def test_the_path_tells_of_all_workers(directory: Path) -> None:
    """Two gateways in one directory: either sums what both have done."""
    settings = Settings(store="memory:")
    other = Gateway(settings, Worker(2, directory, 0))
    async with in_process(worker=Worker(1, directory, 0)) as app, other.running() as node:
        await app.publish({"type": "a"})
        node.metrics.ingested.labels("http", "accepted").inc(41)
        found = samples((await app.http.get("/metrics")).content)
        assert found["gateway_events_ingested_total", ("http", "accepted")] == 42
        assert found["gateway_store_up", ()] == 1


async def test_a_store_that_hangs_does_not_hold_up_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as down."""

    async def hang() -> None:
        await asyncio.Event().wait()

    async with in_process() as app:
        monkeypatch.setattr(type(app.node.log), "check", lambda _log: hang())
        assert _store_up(await _metrics(app)) == 0
        monkeypatch.undo()
        assert _store_up(await _metrics(app)) == 1


async def _metrics(app: InProcess) -> bytes:
    return (await app.http.get("/metrics")).content


def _store_up(exposition: bytes) -> float:
    return samples(exposition)["gateway_store_up", ()]
