"""Back-pressure: below 20 % of free spool, batches are accepted ever more slowly, so that the spool is rarely full at once.

Asked by ``batch_intake.py`` before a body is read; how fast is decided in ``core/spool_budget.py`` (``intake_rate``), the pace is kept by a
token bucket. Who comes pays first and waits then: in the order of arrival, at most ``LONGEST_WAIT_S``; who would have to wait longer is
sent away with a time to come back, so that no more than that time's batches wait here. Manifests and repeated batches do not pass here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from process_server.core.spool_budget import SpoolBudget, SpoolUse
from replication.clock import Clock
from replication.data_plane import RETRY_AFTER_SPOOL_FULL_S
from replication.errors import Overloaded
from replication.token_bucket import TokenBucket

LONGEST_WAIT_S: Final = 2.0
"""Shorter than what agents wait for an answer, and for leave to send a body."""
LONGEST_RETRY_S: Final = 30.0
SLOWEST_BYTES_PER_S: Final = 65536.0
"""Less is not granted by this: whether there is room at all is decided by the budget."""


class BackPressure:
    """Used on one event loop. ``drained_bytes_per_s``: what goes to the store now."""

    def __init__(
        self,
        budget: SpoolBudget,
        use: Callable[[], SpoolUse],
        drained_bytes_per_s: Callable[[], float],
        clock: Clock,
    ) -> None:
        self._budget = budget
        self._use = use
        self._drained_bytes_per_s = drained_bytes_per_s
        self._clock = clock
        self._bucket = TokenBucket(None, clock.monotonic_s())
        self.file_system_available_bytes: int | None = None
        """Of the spool's file system, as it was found last; None: not known yet."""
        self.waited_s = 0.0
        """All the time that batches waited here since the start."""

    def rate_bytes_per_s(self) -> float | None:
        """What may be accepted now; None: whatever comes."""
        rate = self._budget.intake_rate(self._use(), self.file_system_available_bytes, self._drained_bytes_per_s())
        return None if math.isinf(rate) else max(rate, SLOWEST_BYTES_PER_S)

    async def admit(self, amount_bytes: int) -> None:
        """Return when a batch of ``amount_bytes`` may come in. On cancel it has paid all the same: others wait a little longer.

        :raises Overloaded: if it would have to wait too long; nothing was paid.
        """
        now_s = self._clock.monotonic_s()
        self._bucket.set_rate(self.rate_bytes_per_s(), now_s)
        delay_s = self._bucket.delay_s(now_s)
        if delay_s > LONGEST_WAIT_S:
            raise Overloaded(
                "cannot accept more now: the spool is nearly full, and batches are accepted more slowly",
                retry_after_s=max(RETRY_AFTER_SPOOL_FULL_S, min(delay_s, LONGEST_RETRY_S)),
                hint="uploads lag behind: more bandwidth to the store, or a larger spool",
            )
        self._bucket.take(amount_bytes, now_s)
        if delay_s > 0:
            self.waited_s += delay_s
            await self._clock.sleep(delay_s)
