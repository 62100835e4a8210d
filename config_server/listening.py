"""For how long this server has been able to hear anybody. Built by ``placement.py``; asked before silence is held against a process server.

Silence proves nothing while nobody could have been heard: before this server was up, while its own process stood still (a suspended virtual
machine), while its network was cut. In all of these listening begins anew, and whoever is silent then has all his time again. That it stood
still shows in a tick that comes late; that it was cut off, in nobody being heard at all, neither an agent nor a process server.
"""

from __future__ import annotations

from typing import Final

TICK_S: Final = 1.0
STOOD_STILL_S: Final = 5.0
"""Between two ticks."""


class Listening:
    """``tick`` every ``TICK_S``; all times by the clock that nobody sets."""

    def __init__(self, now_s: float, deaf_after_s: float) -> None:
        """``deaf_after_s``: so long without hearing anybody means that nobody can be heard."""
        self._deaf_after_s = deaf_after_s
        self._since_s = self._ticked_s = now_s

    def tick(self, now_s: float) -> None:
        """This process lives."""
        if now_s - self._ticked_s > STOOD_STILL_S:
            self._since_s = now_s
        self._ticked_s = now_s

    def listened_s(self, now_s: float, newest_heard_s: float | None) -> float:
        """Seconds of unbroken listening. ``newest_heard_s``: how long ago anybody was heard last; None: nobody ever was."""
        self.tick(now_s)
        if newest_heard_s is None or newest_heard_s > self._deaf_after_s:
            self._since_s = now_s
        return now_s - self._since_s
