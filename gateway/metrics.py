"""Metrics for Prometheus. No label ever holds an order, a user or an address."""

import bisect
import time
from collections.abc import Iterator
from itertools import groupby

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily, Metric

from gateway import __version__

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each counter, which nobody reads

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class WeightedHistogram:
    """A histogram whose observations count for many at once: one flush is a thousand deliveries.

    prometheus-client's own takes one observation at a time.
    """

    def __init__(self, name: str, documentation: str, label: str, registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._label = label
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        registry.register(self)

    def observe(self, label: str, value: float, times: int) -> None:
        counts = self._counts.setdefault(label, [0] * (len(_BUCKETS) + 1))
        counts[bisect.bisect_left(_BUCKETS, value)] += times
        self._sums[label] = self._sums.get(label, 0.0) + value * times

    def describe(self) -> Iterator[Metric]:
        yield HistogramMetricFamily(self._name, self._documentation, labels=[self._label])

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label])
        for label, counts in self._counts.items():
            total, buckets = 0, []
            for bound, count in zip((*map(str, _BUCKETS), "+Inf"), counts, strict=True):
                total += count
                buckets.append((bound, total))
            family.add_metric([label], buckets, self._sums[label])
        yield family


class Metrics:
    """Every metric of a node, in a registry of its own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.connections = Gauge(
            "gateway_connections", "Open streams and polls.", ["transport"], registry=registry
        )
        self.opened = Counter(
            "gateway_connections_opened", "Streams and polls opened.", ["transport"], registry=registry
        )
        self.closed = Counter(
            "gateway_connections_closed",
            "Streams and polls closed, by close code.",
            ["transport", "code"],
            registry=registry,
        )
        self.subscriptions = Gauge(
            "gateway_subscriptions", "Open subscriptions.", ["transport"], registry=registry
        )
        self.channels = Gauge("gateway_channels", "Distinct filters with their options.", registry=registry)
        self.ingested = Counter(
            "gateway_events_ingested",
            "Events that came, by what became of them: accepted, duplicate, invalid, unauthorized.",
            ["ingest", "result"],
            registry=registry,
        )
        self.dead_letters = Counter(
            "gateway_dead_letters",
            "Messages put aside, by the channel pattern, stream or webhook that the settings name.",
            ["origin"],
            registry=registry,
        )
        self.delivered = Counter(
            "gateway_events_delivered", "Messages handed to sockets.", ["transport"], registry=registry
        )
        self.gaps = Counter("gateway_gaps", "Gaps announced.", ["reason"], registry=registry)
        self.catchups = Counter(
            "gateway_catchups",
            "Subscriptions that read the log, because of `since` or a slow client.",
            ["transport", "reason"],
            registry=registry,
        )
        self.latency = WeightedHistogram(
            "gateway_delivery_latency_seconds",
            "From accepted to handed to the socket, of live deliveries.",
            "transport",
            registry,
        )
        self.append = Histogram(
            "gateway_log_append_seconds", "Commits of the log.", buckets=_BUCKETS, registry=registry
        )
        self.log_lag = Gauge(
            "gateway_log_lag_events", "Events in the log that this node has not told yet.", registry=registry
        )
        self.loop_lag = Gauge(
            "gateway_event_loop_lag_seconds", "How late the loop's last timer was.", registry=registry
        )
        self.store_up = Gauge("gateway_store_up", "1 where the log answers.", registry=registry)
        build = Gauge("gateway_build_info", "Always 1.", ["version"], registry=registry)
        build.labels(__version__).set(1)

    def flushed(self, transport: str, accepted: list[int], clients: int) -> None:
        """A flush wrote messages of events accepted at these times (microseconds) to so many clients."""
        now = time.time()
        for moment, group in groupby(accepted):  # what came in one append was accepted in one moment
            count = sum(1 for _ in group)
            self.latency.observe(transport, max(0.0, now - moment / 1e6), count * clients)
        self.delivered.labels(transport).inc(len(accepted) * clients)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)
