"""How often somebody may guess: a token bucket for each caller and one for all. Called by ``enrolments.py``.

Pure: the time is an argument (seconds, monotonic). Memory is bounded: callers that have been quiet are forgotten, and beyond
``MAX_CALLERS`` only the common bucket counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_CALLERS: Final = 10_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


class AttemptLimiter:
    """``burst`` attempts at once, then one each ``interval_s``; for all callers together ten times as many."""

    def __init__(self, *, burst: int, interval_s: float) -> None:
        self._burst = float(burst)
        self._interval_s = interval_s
        self._callers: dict[str, _Bucket] = {}
        self._all = _Bucket(10.0 * burst, 0.0)

    def wait_s(self, caller: str, now_s: float) -> float:
        """0 if ``caller`` may try now (the attempt is counted), else the seconds after which it may."""
        self._forget_quiet_callers(now_s)
        buckets = [(self._all, self._burst * 10, self._interval_s / 10)]
        if caller in self._callers or len(self._callers) < MAX_CALLERS:
            bucket = self._callers.setdefault(caller, _Bucket(self._burst, now_s))
            buckets.append((bucket, self._burst, self._interval_s))
        waits = [self._refilled(bucket, capacity, interval_s, now_s) for bucket, capacity, interval_s in buckets]
        if any(waits):
            return max(waits)
        for bucket, _capacity, _interval_s in buckets:
            bucket.tokens -= 1.0
        return 0.0

    def give_back(self, caller: str) -> None:
        """The attempt was right: it does not count."""
        if caller in self._callers:
            self._callers[caller].tokens += 1.0
        self._all.tokens += 1.0

    @staticmethod
    def _refilled(bucket: _Bucket, capacity: float, interval_s: float, now_s: float) -> float:
        bucket.tokens = min(capacity, bucket.tokens + max(0.0, now_s - bucket.at_s) / interval_s)
        bucket.at_s = now_s
        return 0.0 if bucket.tokens >= 1.0 else (1.0 - bucket.tokens) * interval_s

    def _forget_quiet_callers(self, now_s: float) -> None:
        if len(self._callers) < MAX_CALLERS // 2:
            return
        full_after_s = self._burst * self._interval_s
        self._callers = {
            caller: bucket for caller, bucket in self._callers.items() if now_s - bucket.at_s < full_after_s
        }
