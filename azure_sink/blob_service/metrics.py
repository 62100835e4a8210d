"""What the Blob service counts for Prometheus. Called by ``app.py`` and the composition root."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from azure_sink.blob_store.arenas import ArenaFigures

_GROUP_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class BlobMetrics:
    """Declared once per process in ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "blockferry_blob_requests_total",
            "Requests to the Blob service by operation and HTTP status",
            ("operation", "status"),
            registry=registry,
        )
        self.seconds = Histogram(
            "blockferry_blob_request_seconds", "Duration of requests by operation", ("operation",), registry=registry
        )
        self.received_bytes = Counter(
            "blockferry_blob_received_bytes_total", "Bytes of request bodies", registry=registry
        )
        self.sent_bytes = Counter("blockferry_blob_sent_bytes_total", "Bytes of blobs in answers", registry=registry)
        self.group_size = Histogram(
            "blockferry_blob_commit_group_size",
            "Operations committed together",
            buckets=_GROUP_BUCKETS,
            registry=registry,
        )


class ArenaCollector(Collector):
    """Asks the store for its space when Prometheus asks."""

    def __init__(self, figures: Callable[[], ArenaFigures]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures()
        yield GaugeMetricFamily("blockferry_blob_arena_files", "Arena files", value=figures.files)
        yield GaugeMetricFamily(
            "blockferry_blob_arena_bytes", "Bytes that the arenas occupy on disk", value=figures.allocated_bytes
        )
        yield CounterMetricFamily(
            "blockferry_blob_punched_bytes", "Bytes returned to the file system", value=figures.punched_bytes
        )
