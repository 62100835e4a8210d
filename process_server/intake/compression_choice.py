"""The level that the next batch is compressed with: a fixed one, or what ``core/compression.py`` says of the pressure at that moment.

Called by ``sealing.py`` on the event loop, once a batch; made by the daemon. Counts what it chose.
"""

from __future__ import annotations

from prometheus_client import Counter

from process_server.core.backlog import Backlog
from process_server.core.compression import Pressure, level_for
from process_server.throttle import Throttle


class CompressionChoice:
    """``fixed``: zstd's level for every batch; None: by the pressure. ``threads``: those that compress."""

    def __init__(self, fixed: int | None, threads: int, backlog: Backlog, throttle: Throttle, chosen: Counter) -> None:
        self._fixed = fixed
        self._threads = threads
        self._backlog = backlog
        self._throttle = throttle
        self._chosen = chosen

    def level(self, sealing: int) -> int:
        """:param sealing: batches that are being compressed or wait for it, the next one included."""
        level = self._fixed
        if level is None:
            sent_bytes_per_s = self._throttle.measured_bytes_per_s()
            level = level_for(Pressure(sealing, self._threads, self._backlog.waiting_bytes, sent_bytes_per_s))
        self._chosen.labels(level).inc()
        return level
