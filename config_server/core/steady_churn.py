"""The churn of a disk over the last hour or so, from what its agent reports every few seconds. Called by ``observations.py``.

What an agent reports is of the last few seconds: a backup at night makes it a hundred times as much for a minute. Placement must not follow
that, so it is smoothed exponentially; ``TIME_CONSTANT_S`` after a change two thirds of it have arrived.
"""

from __future__ import annotations

import math
from typing import Final

TIME_CONSTANT_S: Final = 3600.0
LONGEST_STEP_S: Final = 300.0
"""What an agent reports after a longer silence says nothing of all that time."""
DAY_S: Final = 86400.0


def steady_churn(before_bytes_per_s: float | None, now_bytes_per_s: float, elapsed_s: float) -> float:
    """The smoothed rate after a report; ``elapsed_s``: since the report before, by any clock (a negative one counts as none)."""
    if before_bytes_per_s is None:
        return now_bytes_per_s
    step_s = min(max(elapsed_s, 0.0), LONGEST_STEP_S)
    return before_bytes_per_s + (now_bytes_per_s - before_bytes_per_s) * -math.expm1(-step_s / TIME_CONSTANT_S)
