"""When a recovery point was cut, by a time that retention and RPO may count with. Called by ``point_history.py``.

A point's record carries the time of the protected server's clock, which anybody may set; it is found by this server's clock, which may be
set as well. Neither says which of two points is newer: that is their place in the history, (generation, epoch). What is counted with is
made when the point is found, from three things that no single wrong clock breaks:

- it is not before the point before it in the history, and not after the moment at which it was found;
- from one point to the next the protected server's clock says how much time has passed, as long as that respects these bounds: how late
  a point is found doesn't matter, nor that the clock is wrong by always the same;
- where it does not, the clock was set: then the difference of the clocks at the newest inventory explains the new time, or else this
  server's clock says how much time has passed, up to ``LONGEST_STEP_S``. Less than what has passed is harmless: everything looks younger;
- where this server's clock is behind what it has counted already, it was set back, and the protected server's clock alone says it.

By the same reasoning the difference of the clocks, measured with this server's clock, corrects only what it changes little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TOLERANCE_S: Final = 60.0
"""By so much clocks may differ without anybody being told."""

CATCH_UP_S: Final = 600.0
LONGEST_STEP_S: Final = 3600.0
_TOLERANCE_NS: Final = int(TOLERANCE_S * 1e9)


@dataclass(frozen=True, slots=True)
class Cut:
    """A point's times: by the protected server's clock, when it was found, and what is counted with (by this server's clock)."""

    time_ns: int
    found_ns: int
    counted_ns: int

    @property
    def clock_error_ns(self) -> int | None:
        """By how much the protected server's clock was ahead (else behind) at the cut; None: within tolerance."""
        return clock_error_ns(self.time_ns, self.counted_ns)


def clock_error_ns(time_ns: int, counted_ns: int) -> int | None:
    error_ns = time_ns - counted_ns
    return error_ns if abs(error_ns) > _TOLERANCE_NS else None


def counted(time_ns: int, found_ns: int, offset_ns: int, before: Cut | None, created_ns: int) -> Cut:
    """A point that is found now. ``offset_ns``: the protected server's clock less this one's, when it was last measured; ``before``: the
    point before it in the history; ``created_ns``: since when the item is protected.
    """
    corrected_ns, latest_ns = time_ns - offset_ns, found_ns + _TOLERANCE_NS
    if before is None:
        fits = created_ns - _TOLERANCE_NS <= corrected_ns <= latest_ns
        return Cut(time_ns, found_ns, min(corrected_ns, found_ns) if fits else found_ns)
    fits = before.counted_ns - _TOLERANCE_NS <= corrected_ns <= latest_ns
    stepped_ns = before.counted_ns + time_ns - before.time_ns
    if time_ns >= before.time_ns - _TOLERANCE_NS and stepped_ns <= latest_ns:
        near = abs(corrected_ns - stepped_ns) <= int(CATCH_UP_S * 1e9) or abs(offset_ns) <= _TOLERANCE_NS
        chosen_ns = corrected_ns if fits and near else stepped_ns
    elif fits:
        chosen_ns = corrected_ns
    elif latest_ns < before.counted_ns and not (abs(offset_ns) <= _TOLERANCE_NS and corrected_ns <= latest_ns):
        # This server's own clock was set back: that it was found then bounds nothing.
        return Cut(time_ns, found_ns, before.counted_ns + _step_ns(time_ns - before.time_ns))
    else:
        chosen_ns = before.counted_ns + _step_ns(found_ns - before.found_ns)
    return Cut(time_ns, found_ns, max(before.counted_ns, min(chosen_ns, found_ns)))


def _step_ns(passed_ns: int) -> int:
    return min(max(passed_ns, 0), int(LONGEST_STEP_S * 1e9))
