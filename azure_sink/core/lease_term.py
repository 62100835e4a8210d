"""How long a writer may believe that it holds a replica, and what a refused lease or write means.

Called by ``replica_writer/replica_blob.py``. Take-over rules: a writer that is alive wins (its lease is renewed, so acquiring it is
refused); a lease that has expired is free for whoever asks first; nobody's lease is ever broken. Whoever takes over raises the page
blob's sequence number before anything else, so that whatever the writer before has still on its way is refused.
Believing ends before the lease does: the term counts from before the call that granted it, less a margin.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

MARGIN: Final = 0.2
"""Fraction of the term in which the holder no longer writes, though the store would still let it."""
RENEW_AFTER: Final = 0.33
"""Fraction of the term after which the lease is renewed."""


@dataclass(frozen=True, slots=True)
class LeaseTerm:
    """A granted lease. Times are seconds of one monotonic clock; ``asked_at_s`` is from before the call was sent."""

    duration_s: int
    asked_at_s: float

    def may_write(self, now_s: float) -> bool:
        return now_s < self.asked_at_s + self.duration_s * (1 - MARGIN)

    def renewal_due(self, now_s: float) -> bool:
        return now_s >= self.asked_at_s + self.duration_s * RENEW_AFTER

    @property
    def renewal_interval_s(self) -> float:
        return self.duration_s * RENEW_AFTER

    def renewed(self, asked_at_s: float) -> LeaseTerm:
        return replace(self, asked_at_s=asked_at_s)
