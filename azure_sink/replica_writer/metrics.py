"""The replica writer's Prometheus metrics, ``blockferry_writer_…``.

Called by ``daemon.py`` (one set a process) and moved by the parts of the writer. Byte counts are of page data, times in seconds.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)


class WriterMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.epochs_applied = Counter(
            "blockferry_writer_epochs_applied", "Epochs applied to replicas, void ones included", registry=registry
        )
        self.written_bytes = Counter("blockferry_writer_written_bytes", "Bytes written to replicas", registry=registry)
        self.cleared_bytes = Counter(
            "blockferry_writer_cleared_bytes", "Bytes of replicas cleared to zeros", registry=registry
        )
        self.page_writes = Counter("blockferry_writer_page_writes", "Put Page calls made", registry=registry)
        self.apply_seconds = Histogram(
            "blockferry_writer_apply_seconds",
            "From reading an epoch's manifest to its durable receipt",
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        )
        self.manifest_wait_seconds = Histogram(
            "blockferry_writer_manifest_wait_seconds",
            "Age of a manifest, by the store's clock and ours, when its epoch is begun",
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        )
        self.oldest_manifest_seconds = Gauge(
            "blockferry_writer_oldest_manifest_seconds",
            "Age of the oldest manifest that is found and not applied yet, of all disks; 0 if there is none",
            registry=registry,
        )
        self.recovery_points = Counter(
            "blockferry_writer_point_snapshots", "Snapshots taken of disks at a recovery point's cut", registry=registry
        )
        self.disks = Gauge("blockferry_writer_disks", "Disks followed", registry=registry)
        self.disk_problem = Gauge(
            "blockferry_writer_disk_problem",
            "1 while the writer cannot go on with a disk, or with code cut-mismatch a recovery point can never be completed",
            ["disk", "code"],
            registry=registry,
        )
        self.fences_lost = Counter(
            "blockferry_writer_fences_lost",
            "Times a replica was lost to another writer or had to be re-acquired",
            registry=registry,
        )
        self.requests = Counter(
            "blockferry_writer_requests", "Requests answered for good", ["kind", "state"], registry=registry
        )
        self.collected_blobs = Counter(
            "blockferry_writer_collected_blobs", "Segments, manifests and old answers deleted", registry=registry
        )
