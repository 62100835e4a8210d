"""How long ago a stamp in the database was written, by a clock that nobody sets. Built by ``daemon.py``; asked by whatever judges silence.

Stamps are of this server's clock, which may be set while it runs, or be found set after a restart. So an age is made of two parts: what
the stamp says when this process sees it for the first time, and the time that has passed since then by the monotonic clock. A stamp that
has changed since the last look was written since then, whatever it says. One that lies in the future at first sight was written before the
clock was set back: how long ago is not known, only that it is at least as long as it has been looked at.

Remembered in memory only, and only what is still asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from config_server.core.age import Age
from config_server.events import Clock

FORGOTTEN_AFTER_S: Final = 3600.0
"""What nobody has asked for that long is seen anew when somebody does."""

TOLERANCE_S: Final = 1.0
"""So far in the future a stamp may lie and count as written now: clocks are corrected by as much without anybody noticing."""


@dataclass(slots=True)
class _Seen:
    """A stamp as it was first seen: its ``age`` then, at ``first_s``; ``looked_s``: when it was asked for last. Both monotonic."""

    stamp_ns: int
    age: Age
    first_s: float
    looked_s: float


class Ages:
    """Of every stamp that is asked for."""

    def __init__(self, clock: Clock, monotonic: Callable[[], float]) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._began_s = monotonic()
        self._seen: OrderedDict[tuple[str, str], _Seen] = OrderedDict()

    def monotonic_s(self) -> float:
        """The clock that nobody sets, for whoever remembers moments in memory only."""
        return self._monotonic()

    def watched_s(self) -> float:
        """Since when this process has been there to see stamps written: a longer silence may be its own."""
        return self._monotonic() - self._began_s

    def of(self, what: str, which: str, stamp_ns: int | None) -> Age | None:
        """The age of ``stamp_ns``, which says when ``what`` was last true of ``which``; None if it never was."""
        if stamp_ns is None:
            return None
        now_s = self._monotonic()
        seen = self._seen.pop((what, which), None)
        if seen is None or seen.stamp_ns != stamp_ns:
            seen = _Seen(
                stamp_ns, self._at_first_sight(stamp_ns, None if seen is None else now_s - seen.looked_s), now_s, now_s
            )
        seen.looked_s = now_s
        self._seen[what, which] = seen
        while next(iter(self._seen.values())).looked_s < now_s - FORGOTTEN_AFTER_S:
            self._seen.popitem(last=False)
        return Age(seen.age.seconds + now_s - seen.first_s, seen.age.known)

    def renew(self, what: str, which: str) -> None:
        """``what`` is true of ``which`` just now, though its stamp does not say so yet: the database may be busy for a while."""
        seen = self._seen.get((what, which))
        if seen is not None:
            seen.age, seen.first_s = Age(0.0), self._monotonic()

    def _at_first_sight(self, stamp_ns: int, since_last_look_s: float | None) -> Age:
        age_s = (self._clock() - stamp_ns) / 1e9
        if since_last_look_s is not None:
            return Age(max(0.0, min(age_s, since_last_look_s)))
        return Age(max(0.0, age_s), known=age_s >= -TOLERANCE_S)
