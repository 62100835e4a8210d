"""How large and how busy this machine is: processors, memory, and the fractions of both in use, from /proc.

Called by ``heartbeat``. Processor time is measured between two calls.
"""

from __future__ import annotations

import os
from pathlib import Path

_IDLE_FIELDS = (3, 4)
"""idle and iowait in the first line of /proc/stat (proc(5))."""


class MachineLoad:
    """``proc`` is where procfs is mounted."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._last = self._processor_times()

    def _processor_times(self) -> tuple[int, int]:
        """Idle and total ticks since boot."""
        fields = [int(word) for word in (self._proc / "stat").read_text().partition("\n")[0].split()[1:9]]
        return sum(fields[index] for index in _IDLE_FIELDS), sum(fields)

    def cpu_fraction(self) -> float:
        """Busy share of all processors since the last call (or since the start)."""
        (idle_before, total_before), (idle, total) = self._last, self._processor_times()
        self._last = (idle, total)
        elapsed = total - total_before
        return 0.0 if elapsed <= 0 else min(1.0, max(0.0, 1.0 - (idle - idle_before) / elapsed))

    def cpu_count(self) -> int:
        """Processors that this process may run on."""
        return len(os.sched_getaffinity(0))

    def memory_fraction(self) -> float:
        """Share of memory that is not available to new work."""
        figures = self._memory_kib()
        return min(1.0, max(0.0, 1.0 - figures["MemAvailable"] / figures["MemTotal"]))

    def memory_bytes(self) -> int:
        """What the kernel has to give, which is a little less than what is built in."""
        return self._memory_kib()["MemTotal"] * 1024

    def _memory_kib(self) -> dict[str, int]:
        lines = (self._proc / "meminfo").read_text().splitlines()
        return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest}
