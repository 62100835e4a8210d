"""Time, as it is handed to the replica writer: injected, so that tests and simulations decide when something has expired.

Called by every part of the writer that waits, renews a lease or measures an age.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """``monotonic_s`` for durations, ``unix_ns`` for ages of what others stamped, ``sleep`` to wait."""

    monotonic_s: Callable[[], float] = time.monotonic
    unix_ns: Callable[[], int] = time.time_ns
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
