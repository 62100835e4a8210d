"""What went over a line, held against upload limits in every window of ten seconds.

Called by the bench and by the throttle's property test. A window in which one limit gives way to another may have what each allows for its
part; what is above that counts against the higher one. The ratio of a window without a change is plainly its bytes ÷ what the limit allows.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import Final

WINDOW_S: Final = 10.0
Passed = Sequence[tuple[float, int]]
"""(seconds, bytes), in order."""
Limits = Sequence[tuple[float, int]]
"""(holds from this second on, bits per second), in order."""


def allowed_bytes(limits: Limits, begin_s: float, end_s: float) -> tuple[float, float]:
    """What the limits allow between two instants, and what the highest of them would."""
    whole, highest = 0.0, 0.0
    for number, (since_s, bits) in enumerate(limits):
        until_s = limits[number + 1][0] if number + 1 < len(limits) else math.inf
        seconds = min(until_s, end_s) - max(since_s, begin_s)
        if seconds > 0:
            whole += bits / 8 * seconds
            highest = max(highest, bits / 8 * (end_s - begin_s))
    return whole, highest


def worst_window(passed: Passed, limits: Limits, until_s: float = math.inf) -> float:
    """The highest ratio; 1.03 is 3 % too much. Windows begin or end with what passed, or begin with a limit."""
    times = [at_s for at_s, _ in passed]
    sums = [0, *itertools.accumulate(amount for _, amount in passed)]
    begins = {*times, *(at_s - WINDOW_S + 1e-6 for at_s in times), *(since_s for since_s, _ in limits)}
    worst = 0.0
    for begin_s in begins:
        end_s = begin_s + WINDOW_S
        if begin_s < limits[0][0] or end_s > until_s:
            continue
        amount = sums[bisect.bisect_left(times, end_s)] - sums[bisect.bisect_left(times, begin_s)]
        whole, highest = allowed_bytes(limits, begin_s, end_s)
        worst = max(worst, 1 + (amount - whole) / highest)
    return worst
