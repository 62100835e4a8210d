"""When a certificate is renewed, and when it is too late to: decisions about times only. Called by ``renewal``, by the configuration
server for its own certificate, by ``config_server/core/certificate_health.py`` and by the agent's self-examination.

A certificate is renewed at two thirds of its life, spread over a twentieth of it: each holder has a moment of its own, which follows
from its identifier and not from chance, so that two hundred agents that were installed in one hour do not come back in one hour, and
that it can be foretold. An attempt that failed is repeated after a three-hundredth of the life, an hour at most, so hundreds of times
before the end. Pure: times are nanoseconds since 1970, and the clock is the caller's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

RENEW_AT: Final = 2 / 3
"""The share of its life after which a certificate is replaced."""
SPREAD: Final = 1 / 20
"""Of its life: over so long are the renewals of many holders spread."""
OVERDUE_SHARE: Final = RENEW_AT + 2 * SPREAD
"""Of a life; what is left of it when the renewal is overdue, which is a warning: 1 less this."""
CRITICAL_SHARE: Final = 0.9
"""Of a life: whoever has not renewed it by then is about to be cut off."""
RETRIES_IN_A_LIFE: Final = 300
LONGEST_PAUSE_S: Final = 3600.0
SHORTEST_PAUSE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class CertificateLife:
    """From when and until when a certificate is valid."""

    begins_ns: int
    ends_ns: int

    @property
    def length_s(self) -> float:
        return max(0, self.ends_ns - self.begins_ns) / 1e9

    def renewal_due_ns(self, holder: str) -> int:
        """The moment at which ``holder`` (an identifier) renews it."""
        digest = hashlib.sha256(holder.encode()).digest()
        share = int.from_bytes(digest[:8]) / 2**64
        return self.begins_ns + int((self.ends_ns - self.begins_ns) * (RENEW_AT + SPREAD * share))

    def overdue_ns(self) -> int:
        """The moment after which every holder should have renewed it, with some attempts that failed."""
        return self.begins_ns + int((self.ends_ns - self.begins_ns) * OVERDUE_SHARE)

    def is_due(self, now_ns: int, holder: str) -> bool:
        """Whether ``holder`` renews it now: its moment has come, or it is not valid yet."""
        return now_ns >= self.renewal_due_ns(holder) or now_ns < self.begins_ns

    def is_valid(self, now_ns: int) -> bool:
        """Not before it begins either: that one was issued by a server whose clock was ahead, and nobody accepts it."""
        return self.begins_ns <= now_ns <= self.ends_ns

    def left_s(self, now_ns: int) -> float:
        """Seconds to its end; negative after it."""
        return (self.ends_ns - now_ns) / 1e9

    def pause_s(self, now_ns: int, holder: str, *, failed: bool) -> float:
        """How long the holder waits before it looks again: for its moment, or for the next attempt.

        Never longer than an hour: the clock may be set meanwhile, and the machine may sleep.
        """
        again_s = min(LONGEST_PAUSE_S, max(SHORTEST_PAUSE_S, self.length_s / RETRIES_IN_A_LIFE))
        if failed:
            return again_s
        return min(LONGEST_PAUSE_S, max(SHORTEST_PAUSE_S / 10, (self.renewal_due_ns(holder) - now_ns) / 1e9))
