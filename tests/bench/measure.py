"""How much time, processor and memory something took; medians over interleaved rounds.

Called by the scenarios of tests/bench. Nothing here judges: limits are in ``report``.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_SAMPLE_S: Final = 0.1
Figures = dict[str, float]
PEAK: Final = "peak_"
"""In the name of a figure whose highest value counts."""


@dataclass
class Usage:
    """Filled when ``measured`` is left, except ``started_s``.

    ``busy``: share of all cores that anything used; memory: peaks of RssAnon and RssShmem (buffers that are mapped shared, so that a fork
    in the middle of a direct read does not part them from the device) by process name.
    """

    started_s: float = field(default_factory=time.monotonic)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    busy: float = 0.0
    cpu_by_process_s: Figures = field(default_factory=dict)
    peak_bytes: Figures = field(default_factory=dict)
    peak_shared_bytes: Figures = field(default_factory=dict)


@contextlib.contextmanager
def measured(processes: Callable[[], dict[str, int]]) -> Iterator[Usage]:
    """Measure named processes (name → process id) while the block runs; they may come and go."""
    usage = Usage()
    stop = threading.Event()
    before = {pid: _cpu_s(pid) for pid in processes().values()}
    last: dict[int, tuple[str, float]] = {}

    def look() -> None:
        for name, pid in processes().items():
            last[pid] = (name, max(_cpu_s(pid), last.get(pid, (name, 0.0))[1]))
            for kind, peaks in (("RssAnon", usage.peak_bytes), ("RssShmem", usage.peak_shared_bytes)):
                peaks[name] = max(peaks.get(name, 0.0), _resident_bytes(pid, kind))

    def sample() -> None:
        while not stop.wait(_SAMPLE_S):
            look()

    sampler = threading.Thread(target=sample, name="samples", daemon=True)
    busy_before, all_before = _machine_ticks()
    usage.started_s = time.monotonic()
    sampler.start()
    try:
        yield usage
    finally:
        usage.wall_s = time.monotonic() - usage.started_s
        stop.set()
        sampler.join()
        look()
        busy_after, all_after = _machine_ticks()
        usage.busy = (busy_after - busy_before) / max(1, all_after - all_before)
        for pid, (name, cpu_s) in last.items():
            used_s = cpu_s - before.get(pid, 0.0)
            usage.cpu_by_process_s[name] = usage.cpu_by_process_s.get(name, 0.0) + used_s
        usage.cpu_s = sum(usage.cpu_by_process_s.values())


def peaks(*usages: Usage) -> Figures:
    """The highest of several measurements, as figures: ``peak_bytes NAME``, ``peak_shared_bytes NAME``."""
    figures: Figures = {}
    for usage in usages:
        for kind, by_name in (("bytes", usage.peak_bytes), ("shared_bytes", usage.peak_shared_bytes)):
            for name, peak in by_name.items():
                key = f"{PEAK}{kind} {name}"
                figures[key] = max(figures.get(key, 0.0), peak)
    return figures


def children_cpu_s() -> float:
    """Processor seconds of all children that have ended and were waited for."""
    times = os.times()
    return times.children_user + times.children_system


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def medians(rounds: Sequence[Figures]) -> Figures:
    """Each figure's median over the rounds that have it; of a peak the highest."""
    names = dict.fromkeys(name for figures in rounds for name in figures)
    of_all = {name: [figures[name] for figures in rounds if name in figures] for name in names}
    return {name: max(values) if PEAK in name else median(values) for name, values in of_all.items()}


def _cpu_s(pid: int) -> float:
    """User and system time, of its waited-for children too; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(ticks) for ticks in fields[11:15]) / _TICKS_PER_S


def _resident_bytes(pid: int, kind: str) -> float:
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return float(line.split()[1]) * 1024
    return 0.0


def _machine_ticks() -> tuple[int, int]:
    """Busy and all ticks of all processors since boot; time stolen by the host counts as neither."""
    user, nice, system, idle, iowait, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    busy = user + nice + system + irq + softirq
    return busy, busy + idle + iowait
