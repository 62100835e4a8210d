"""The level that the next batch is compressed with: a fixed one, or what ``core/compression.py`` says of the line at that moment.

Called by ``sealing.py`` on the event loop, once a batch; made by the daemon. Counts what it chose.
"""

from __future__ import annotations

from prometheus_client import Counter

from process_server.core.backlog import Backlog
from process_server.core.compression import level_for
from process_server.throttle import Throttle


class CompressionChoice:
    """``fixed``: zstd's level for every batch; None: by the line."""

    def __init__(self, fixed: int | None, backlog: Backlog, throttle: Throttle, chosen: Counter) -> None:
        self._fixed = fixed
        self._backlog = backlog
        self._throttle = throttle
        self._chosen = chosen

    def __call__(self) -> int:
        level = self._fixed
        if level is None:
            level = level_for(self._backlog.waiting_bytes, self._throttle.measured_bytes_per_s())
        self._chosen.labels(level).inc()
        return level
