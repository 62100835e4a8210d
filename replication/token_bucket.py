"""A token bucket with debt: exact arithmetic, the clock is the caller's, and so is the unit (bytes, seconds of a processor).

Called by the process server's ``throttle.py`` and the agent's ``pace.py``. A taker may go as soon as the level is not negative and takes
its whole amount at once, into debt if need be; the debt is paid off before the next one goes. So over any time T no more than T times the
rate + burst + one amount is granted, and in the long run exactly the rate. A taker that takes no more than ``largest_amount`` at a time
keeps every window of ten seconds within 2 % above the limit: 1.5 % that an idle bucket has saved up, and the debt.
"""

from __future__ import annotations

from typing import Final

BURST_S: Final = 0.15
"""How much an idle bucket saves up, in seconds of its rate: a timer that fires late costs no throughput."""
SHORTEST_DELAY_S: Final = 1e-6
"""Less is none: no clock would show that it has passed."""
AMOUNT_S: Final = 0.05
"""How much is taken at a time at most, in seconds of the rate."""


class TokenBucket:
    """``rate_per_s`` None: unlimited. ``now_s`` must not go backwards; if it does, no tokens are added."""

    def __init__(self, rate_per_s: float | None, now_s: float) -> None:
        self._rate = rate_per_s
        self._level = 0.0
        self._at_s = now_s

    @property
    def rate_per_s(self) -> float | None:
        return self._rate

    @property
    def largest_amount(self) -> int | None:
        """None: whatever one likes."""
        return None if self._rate is None else max(1, int(self._rate * AMOUNT_S))

    def _settle(self, now_s: float) -> None:
        elapsed_s = max(0.0, now_s - self._at_s)
        self._at_s = max(self._at_s, now_s)
        if self._rate is not None:
            self._level = min(self._rate * BURST_S, self._level + elapsed_s * self._rate)

    def set_rate(self, rate_per_s: float | None, now_s: float) -> None:
        """Change the rate from now on. A debt stays a debt in what was taken; becoming unlimited forgives it."""
        self._settle(now_s)
        self._rate = rate_per_s
        if rate_per_s is None:
            self._level = 0.0
        else:
            self._level = min(self._level, rate_per_s * BURST_S)

    def delay_s(self, now_s: float) -> float:
        """Seconds until the next taker may go: 0 for now."""
        if self._rate is None:
            return 0.0
        self._settle(now_s)
        delay_s = -self._level / self._rate
        return 0.0 if delay_s < SHORTEST_DELAY_S else delay_s

    def take(self, amount: float, now_s: float) -> None:
        """Take ``amount``; the caller has waited ``delay_s`` first. A negative one gives back what was taken and not used."""
        if self._rate is None:
            return
        self._settle(now_s)
        self._level = min(self._rate * BURST_S, self._level - amount)
