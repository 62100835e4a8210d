"""Memory that the C library has free and keeps: given back to the system while nothing is under way, or when there is much of it.

Built by ``daemon``, ``run`` in a task. Buffers of closed connections and of sealed batches leave holes in glibc's heap that it does not
give back by itself; a lower mmap threshold would avoid them, but costs 20 % more processor time per batch, or twice as much below 256 KiB
(measured). With another C library this does nothing. Trimming walks the heap on the event loop, a few milliseconds, so a trim that gave
nothing back is followed by a longer pause: what is in use is not walked again and again.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Final

from replication.clock import Clock

EVERY_S: Final = 2.0
SELDOM_S: Final = 64.0
LITTLE_BYTES: Final = 56 * 2**20
"""Below this nothing is worth it: an idle process server has 48 MiB."""
MUCH_BYTES: Final = 144 * 2**20
WORTHWHILE_BYTES: Final = 4 * 2**20


def anonymous_bytes(status: Path = Path("/proc/self/status")) -> int:
    """This process's resident anonymous memory (RssAnon, proc(5)); 0 where that is not known."""
    with contextlib.suppress(OSError):
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def trim_heap() -> None:
    """malloc_trim(3)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class HeapKeeper:
    """``is_quiet`` says that nothing is under way."""

    def __init__(
        self,
        clock: Clock,
        is_quiet: Callable[[], bool],
        *,
        resident: Callable[[], int] = anonymous_bytes,
        trim: Callable[[], None] = trim_heap,
    ) -> None:
        self._clock = clock
        self._is_quiet = is_quiet
        self._resident = resident
        self._trim = trim
        self._pause_s = EVERY_S
        self._next_s = 0.0

    async def run(self) -> None:
        """Look every two seconds until cancelled."""
        while True:
            await self._clock.sleep(EVERY_S)
            self.look()

    def look(self) -> None:
        """Trim while it is quiet, or while there is much: at every look if that gives something back, else more and more seldom."""
        now_s, before = self._clock.monotonic_s(), self._resident()
        if now_s < self._next_s or before <= (LITTLE_BYTES if self._is_quiet() else MUCH_BYTES):
            return
        self._trim()
        gave_back = before - self._resident() >= WORTHWHILE_BYTES
        self._pause_s = EVERY_S if gave_back else min(SELDOM_S, 2 * self._pause_s)
        self._next_s = now_s + self._pause_s
