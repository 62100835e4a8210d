"""The process server's Prometheus metrics, declared in one place: names start with ``blockferry_process_server_``.

Built by ``daemon``; moved by the intake, the spool and the uploader. Figures that are read rather than counted are refreshed by ``Gauges``
callbacks when they are asked for.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_PREFIX: Final = "blockferry_process_server_"
_GROUPS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128)


class ProcessServerMetrics:
    """One object per daemon; hand it a registry of its own in tests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(_PREFIX + name, text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(_PREFIX + name, text, registry=registry)

        self.batches = counter("batches", "Batches by outcome: accepted, repeated, refused, deferred (503).", "outcome")
        self.received_bytes = counter("received_bytes", "Bytes of batch frames that were accepted.")
        self.sealed_bytes = counter("sealed_bytes", "Bytes of the segments made of them.")
        self.segments_sealed = counter("segments_sealed", "Batches by the level chosen to compress them.", "level")
        self.segments_mended = counter("segments_mended", "Segments put again: the store had them, with other bytes.")
        self.key_conflicts = counter("key_conflicts", "Batches whose key was taken by another digest (R4).")
        self.manifests = counter(
            "manifests", "Manifests by outcome: accepted, repeated, stored, superseded, segments-missing.", "outcome"
        )
        self.receipts = counter("receipts", "Receipts handed to agents.")
        self.store_step_backs = counter(
            "store_step_backs",
            "Generations of which the store knew less than before: it was put back to an older state.",
        )
        self.segments_uploaded = counter("segments_uploaded", "Segments that the store has taken.")
        self.segments_from_memory = counter(
            "segments_from_memory", "Segments sent while they were still in memory: the spool was not read for them."
        )
        self.uploaded_bytes = counter("uploaded_bytes", "Bytes of segments and manifests that the store has taken.")
        self.upload_failures = counter("upload_failures", "Failed calls to the store, by the error's code.", "code")
        self.discarded_records = counter("discarded_records", "Spooled records given up because they can never count.")
        self.damaged_records = counter("damaged_records", "Spooled records that could not be read back.")
        self.fsync_groups = Histogram(
            _PREFIX + "fsync_group_records",
            "Appends that were answered by one sync of the spool.",
            buckets=_GROUPS,
            registry=registry,
        )
        self.spool_used_bytes = gauge("spool_used_bytes", "What the spool's records take.")
        self.spool_limit_bytes = gauge("spool_limit_bytes", "What they may take.")
        self.spool_free_ratio = gauge(
            "spool_free_ratio", "What may still be used of the limit: bounded by what the spool's file system has left."
        )
        self.intake_limit = gauge(
            "intake_limit_bytes_per_second",
            "So fast are batches accepted, since little of the spool is free; 0: no limit.",
        )
        self.intake_waited = counter("intake_waited_seconds", "Time that batches waited for that.")
        self.intake_broken_off = counter(
            "intake_broken_off", "Batches and manifests that came too slowly while other machines waited for a buffer."
        )
        self.intake_pressed_s = gauge(
            "intake_pressed_seconds",
            "So long have machines been turned away or broken off that had no other buffer; 0: not in the last minute.",
        )
        self.intake_slow_machines = gauge(
            "intake_slow_machines",
            "Machines whose lines are so slow that their bodies share a part of the buffers in turn.",
        )
        self.spool_files = gauge("spool_files", "Files of the spool.")
        self.index_bytes = gauge("index_bytes", "Memory that the index of the spool takes, about.")
        self.backlog_bytes = gauge("upload_backlog_bytes", "Spooled and not yet in the store.")
        self.backlog_age_s = gauge("upload_backlog_age_seconds", "Age of the oldest of it.")
        self.upload_rate = gauge("upload_bytes_per_second", "Sent to the store, over the last ten seconds.")
        self.store_sent_bytes = counter(
            "store_sent_bytes", "Bytes handed to the connections to the store: heads, bodies, repetitions, TLS records."
        )
        self.throttle_limit = gauge("throttle_limit_bits_per_second", "The limit that holds at this hour; 0: none.")
        self.throttle_measured = gauge(
            "throttle_measured_bits_per_second", "What was sent to the store over the last ten seconds."
        )
        self.upload_threads = gauge("upload_threads_per_machine", "Parallel uploads that a machine may have.")
        self.effective_upload_threads = gauge(
            "upload_threads_effective", "Of them, those that connections, buffers and the limit surely allow."
        )
        self.uploads_in_flight = gauge("uploads_in_flight", "Segments on their way to the store.")
        self.probed_hosts = counter(
            "probed_hosts",
            "Hosts of discoveries by outcome: found, silent, failed, host-key-unknown, host-key-changed.",
            "outcome",
        )
        self.installations = counter(
            "installations", "Agents that were to be installed over SSH, by outcome: installed, failed.", "outcome"
        )
        self.config_server_up = gauge("config_server_up", "1 if the last heartbeat was answered.")
