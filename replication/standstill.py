"""A deadline that every sign of progress puts off: a slow line is slow and not broken, a peer that stands still is noticed.

Called by senders of large bodies, once a slice. Moving a timer costs more than the slice's own way through Python, so it is moved
only when that makes a difference: a standstill is noticed up to an eighth of its time early, and never late.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

_TOLERANCE: Final = 1 / 8


def put_off(deadline: asyncio.Timeout, seconds: float) -> None:
    """Something moved: ``deadline`` is ``seconds`` from now. One that is over stays over: a body may still be winding up."""
    now_s = asyncio.get_running_loop().time()
    when_s = deadline.when()
    if when_s is not None and now_s + seconds * (1 - _TOLERANCE) <= when_s <= now_s + seconds:
        return
    with contextlib.suppress(RuntimeError):
        deadline.reschedule(now_s + seconds)
