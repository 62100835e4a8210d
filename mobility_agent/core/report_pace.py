"""When the next report may go: news that follow one another closely are told at once, what changes without end is not.

Called by ``daemon`` before each report to the configuration server. A disk is seeded and a tenth of a second later its first point is
recorded: a fixed gap between two reports would hold back the second, which somebody waits for.
"""

from __future__ import annotations

from collections import deque
from typing import Final

IN_A_ROW: Final = 3


class ReportPace:
    """Any ``IN_A_ROW`` reports and the one after them are at least ``IN_A_ROW`` gaps apart. Times are monotonic seconds."""

    def __init__(self, gap_s: float) -> None:
        self._span_s = IN_A_ROW * gap_s
        self._newest: deque[float] = deque(maxlen=IN_A_ROW)

    def note(self, now_s: float) -> None:
        """A report goes now."""
        self._newest.append(now_s)

    def wait_s(self, now_s: float) -> float:
        """Until the next one may go; 0 if it may go now."""
        if len(self._newest) < IN_A_ROW:
            return 0.0
        return max(0.0, self._newest[0] + self._span_s - now_s)
