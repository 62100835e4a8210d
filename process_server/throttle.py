"""The throttle: every byte on its way to the store passes here first. A token bucket; the clock is injected, the rate changes live.

Called by the connections to the store (it is their ``Pace``: slice after slice, so that a segment goes out as evenly as the limit asks
for) and by ``upload_limits.py`` (``set_limit``). Those that wait go in order of arrival. What was taken is never given back: a repeated or
broken upload has paid, as it has on the wire. Only what goes to the store is throttled: neither agents, nor heartbeats, nor answers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from replication.blob_client.pace import on_the_wire
from replication.blob_client.transport import SLICE_BYTES
from replication.clock import Clock
from replication.token_bucket import TokenBucket

MEASURED_OVER_S: Final = 10.0
BITS_PER_BYTE: Final = 8
_SAMPLE_S: Final = 0.5
_LONGEST_SLEEP_S: Final = 0.25
"""So soon does a changed limit reach those that wait already."""


def _bytes_per_s(limit_bits_per_s: int | None) -> float | None:
    return None if limit_bits_per_s is None else limit_bits_per_s / BITS_PER_BYTE


class Throttle:
    """Shared by all connections of a process server to the store; used on one event loop."""

    def __init__(self, limit_bits_per_s: int | None, clock: Clock) -> None:
        self._clock = clock
        self._started_s = clock.monotonic_s()
        self._limit_bits_per_s = limit_bits_per_s
        self._bucket = TokenBucket(_bytes_per_s(limit_bits_per_s), self._started_s)
        self._turn = asyncio.Lock()
        self._samples: deque[tuple[float, int]] = deque()
        self.sent_bytes = 0
        """All that was taken since the start."""

    @property
    def limit_bits_per_s(self) -> int | None:
        """None: unlimited."""
        return self._limit_bits_per_s

    def set_limit(self, limit_bits_per_s: int | None) -> None:
        """Change the limit; those that wait already notice within a quarter of a second."""
        if limit_bits_per_s != self._limit_bits_per_s:
            self._limit_bits_per_s = limit_bits_per_s
            self._bucket.set_rate(_bytes_per_s(limit_bits_per_s), self._clock.monotonic_s())

    @property
    def slice_bytes(self) -> int:
        """The most of a body that may be sent at a time, so that every ten seconds keep to the limit."""
        return min(SLICE_BYTES, self._bucket.largest_amount or SLICE_BYTES)

    def try_take_slice(self, wanted_bytes: int) -> int:
        """Take a slice of ``wanted_bytes`` if it may be sent at once and nobody waits already; 0 if not."""
        if self._turn.locked() or self._bucket.delay_s(self._clock.monotonic_s()) > 0:
            return 0
        return self._take_slice(wanted_bytes)

    async def take_slice(self, wanted_bytes: int) -> int:
        """Wait for a slice of ``wanted_bytes``; it is cut when its turn has come, by the limit of then. On cancel nothing was taken."""
        async with self._turn:
            await self._out_of_debt()
            return self._take_slice(wanted_bytes)

    async def take(self, amount_bytes: int) -> None:
        """Return when ``amount_bytes`` may be sent. On cancel nothing was taken."""
        async with self._turn:
            await self._out_of_debt()
            self._take(amount_bytes, self._clock.monotonic_s())

    async def _out_of_debt(self) -> None:
        while (delay_s := self._bucket.delay_s(self._clock.monotonic_s())) > 0:
            await self._clock.sleep(min(delay_s, _LONGEST_SLEEP_S))

    def _take_slice(self, wanted_bytes: int) -> int:
        amount_bytes = min(wanted_bytes, self.slice_bytes)
        self._take(on_the_wire(amount_bytes), self._clock.monotonic_s())
        return amount_bytes

    def _take(self, amount_bytes: int, now_s: float) -> None:
        self._bucket.take(amount_bytes, now_s)
        self.sent_bytes += amount_bytes
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
        """What was taken in the last ten seconds (or since the start), per second."""
        now_s = self._clock.monotonic_s()
        self._forget(now_s)
        elapsed_s = min(MEASURED_OVER_S, max(1.0, now_s - self._started_s))
        return sum(amount for _, amount in self._samples) / elapsed_s
