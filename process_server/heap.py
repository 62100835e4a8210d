"""Memory that the C library has free and keeps: given back to the system while nothing is under way, or when there is much of it.

Built by ``daemon``, ``run`` in a task. Buffers of closed connections and of sealed batches leave holes in glibc's heap that it does not
give back by itself; a lower mmap threshold would avoid them, but costs 20 % more processor time per batch, or twice as much below 256 KiB
(measured). With another C library this does nothing. Trimming walks the heap on the event loop, a few milliseconds, so it is done only
where memory has grown since the last time: what is in use is not walked again and again.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Final

from replication.clock import Clock

EVERY_S: Final = 2.0
MUCH_BYTES: Final = 144 * 2**20
WORTHWHILE_BYTES: Final = 4 * 2**20
"""Growth since the last trim from which on another is tried while it is quiet."""
WORTHWHILE_WHEN_BUSY_BYTES: Final = 16 * 2**20


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
        self._left_bytes = 0

    async def run(self) -> None:
        """Look every two seconds until cancelled."""
        while True:
            await self._clock.sleep(EVERY_S)
            self.look()

    def look(self) -> None:
        """Trim if memory has grown since the last time: a little while it is quiet, more while there is much anyway."""
        resident = self._resident()
        self._left_bytes = min(self._left_bytes, resident)
        grown = resident - self._left_bytes
        if (self._is_quiet() and grown >= WORTHWHILE_BYTES) or (
            resident > MUCH_BYTES and grown >= WORTHWHILE_WHEN_BUSY_BYTES
        ):
            self._trim()
            self._left_bytes = self._resident()
