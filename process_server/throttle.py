"""The throttle stage: bytes on their way to the store pass here first. A token bucket; the clock is injected, the rate changes live.

Called by the uploader (``acquire`` before it sends) and by the daemon (``set_limit``). Waiters go in order of arrival. Accounting is
exact: what was granted is never given back, so a repeated upload pays again, as it does on the wire.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from process_server.core.token_bucket import TokenBucket
from replication.clock import Clock

MEASURED_OVER_S: Final = 10.0
BITS_PER_BYTE: Final = 8
_SAMPLE_S: Final = 0.5
_LONGEST_SLEEP_S: Final = 0.25
"""So soon does a changed limit reach those that wait already."""


def _bytes_per_s(limit_bits_per_s: int | None) -> float | None:
    return None if limit_bits_per_s is None else limit_bits_per_s / BITS_PER_BYTE


class Throttle:
    """Shared by all uploads of a process server; used on one event loop."""

    def __init__(self, limit_bits_per_s: int | None, clock: Clock) -> None:
        self._clock = clock
        self._started_s = clock.monotonic_s()
        self._limit_bits_per_s = limit_bits_per_s
        self._bucket = TokenBucket(_bytes_per_s(limit_bits_per_s), self._started_s)
        self._turn = asyncio.Lock()
        self._samples: deque[tuple[float, int]] = deque()
        self.granted_bytes = 0

    @property
    def limit_bits_per_s(self) -> int | None:
        """None: unlimited."""
        return self._limit_bits_per_s

    def set_limit(self, limit_bits_per_s: int | None) -> None:
        """Change the limit; those that wait already notice within a quarter of a second."""
        if limit_bits_per_s != self._limit_bits_per_s:
            self._limit_bits_per_s = limit_bits_per_s
            self._bucket.set_rate(_bytes_per_s(limit_bits_per_s), self._clock.monotonic_s())

    async def acquire(self, amount_bytes: int) -> None:
        """Return when ``amount_bytes`` may be sent. On cancel nothing was taken."""
        async with self._turn:
            while (delay_s := self._bucket.delay_s(self._clock.monotonic_s())) > 0:
                await self._clock.sleep(min(delay_s, _LONGEST_SLEEP_S))
            now_s = self._clock.monotonic_s()
            self._bucket.take(amount_bytes, now_s)
            self.granted_bytes += amount_bytes
            self._note(now_s, amount_bytes)

    def _note(self, now_s: float, amount_bytes: int) -> None:
        if self._samples and now_s - self._samples[-1][0] < _SAMPLE_S:
            since_s, so_far = self._samples[-1]
            self._samples[-1] = (since_s, so_far + amount_bytes)
        else:
            self._samples.append((now_s, amount_bytes))
        self._forget(now_s)

    def _forget(self, now_s: float) -> None:
        while self._samples and self._samples[0][0] <= now_s - MEASURED_OVER_S:
            self._samples.popleft()

    def measured_bytes_per_s(self) -> float:
        """What was granted in the last ten seconds (or since the start), per second."""
        now_s = self._clock.monotonic_s()
        self._forget(now_s)
        elapsed_s = min(MEASURED_OVER_S, max(1.0, now_s - self._started_s))
        return sum(amount for _, amount in self._samples) / elapsed_s
