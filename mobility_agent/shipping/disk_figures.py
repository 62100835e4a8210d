"""What a disk session counts, and the lags and rates computed from it: for observations to the config server and for metrics.

Written by ``epoch_shipper`` and ``disk_session``; read by ``observations``. Times are Unix nanoseconds of this machine's clock; ages are
computed against the same clock, so no two machines' clocks are compared. Rates are over the last ``RATE_WINDOW_S`` seconds.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Final

RATE_WINDOW_S: Final = 10.0
NANOSECONDS: Final = 1_000_000_000


class Rate:
    """Bytes per second over a sliding window, from a growing total."""

    def __init__(self, window_s: float = RATE_WINDOW_S) -> None:
        self._window_ns = int(window_s * NANOSECONDS)
        self._samples: deque[tuple[int, int]] = deque()

    def sample(self, now_ns: int, total: int) -> float:
        """Note the total at ``now_ns`` and return the rate since the oldest sample in the window."""
        self._samples.append((now_ns, total))
        while len(self._samples) > 2 and self._samples[1][0] <= now_ns - self._window_ns:
            self._samples.popleft()
        first_ns, first_total = self._samples[0]
        elapsed_ns = now_ns - first_ns
        return 0.0 if elapsed_ns <= 0 else max(0.0, (total - first_total) * NANOSECONDS / elapsed_ns)


@dataclass(slots=True)
class DiskFigures:
    """Totals since this agent process began with the disk, and the newest instants that matter."""

    read_bytes: int = 0
    """Everything that was read of the disk: to ship it, to compare it, to find changes without a tracker."""
    sent_bytes: int = 0
    changed_bytes: int = 0
    """Granules that the tracker reported, in bytes: what delta replication had to read."""
    epochs_sealed: int = 0
    newest_applied_cut_ns: int | None = None
    """The newest instant whose every earlier write is applied at the sink."""
    newest_point_ns: int | None = None
    newest_point_cut: str | None = None
    freezes_s: deque[float] = field(default_factory=lambda: deque(maxlen=256))
    send_rate: Rate = field(default_factory=Rate)
    churn_rate: Rate = field(default_factory=Rate)

    _reading: threading.Lock = field(default_factory=threading.Lock)

    def note_read(self, length_bytes: int) -> None:
        """Count a read. Callable from any thread."""
        with self._reading:
            self.read_bytes += length_bytes

    def note_applied_cut(self, cut_time_ns: int) -> None:
        """Every write before ``cut_time_ns`` is applied at the sink; 0: nothing can be said."""
        if cut_time_ns > (self.newest_applied_cut_ns or 0):
            self.newest_applied_cut_ns = cut_time_ns

    def replication_lag_s(self, now_ns: int) -> float | None:
        return _age_s(self.newest_applied_cut_ns, now_ns)

    def rpo_lag_s(self, now_ns: int) -> float | None:
        return _age_s(self.newest_point_ns, now_ns)


def _age_s(moment_ns: int | None, now_ns: int) -> float | None:
    return None if moment_ns is None else max(0, now_ns - moment_ns) / NANOSECONDS
