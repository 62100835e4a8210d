"""Time, as it is handed to what waits or measures: injected, so that tests and simulations decide when something has happened.

Called by the daemons' parts that wait, retry, throttle or measure an age; built in each ``daemon.py``.
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
