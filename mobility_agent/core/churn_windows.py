"""How many distinct bytes a disk dirties in windows of several lengths, from one bitmap for each of the shortest.

Called by ``churn_profiler.py``. A longer window is the union of the short ones in it, so what is written again in it counts once. Windows
lie side by side; one that is not full yet does not count. Holds one bitmap for each length: 2 MiB a TiB at 64 KiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replication.dirty_bitmap import DirtyBitmap, Geometry


@dataclass(slots=True)
class _Length:
    multiple: int
    union: DirtyBitmap
    collected: int = 0
    windows: int = 0
    sum_bytes: int = 0
    most_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """Over all full windows of this many intervals."""

    multiple: int
    windows: int
    mean_bytes: float
    most_bytes: int


class ChurnWindows:
    """``multiples``: lengths in intervals."""

    def __init__(self, geometry: Geometry, multiples: Sequence[int]) -> None:
        self._geometry = geometry
        self._lengths = [_Length(multiple, DirtyBitmap(geometry.granules)) for multiple in multiples]

    def add(self, changed: DirtyBitmap) -> None:
        """The next interval is over: ``changed`` is what was dirtied in it."""
        for length in self._lengths:
            length.union.mark_words(changed.words)
            length.collected += 1
            if length.collected == length.multiple:
                self._close(length)

    def _close(self, length: _Length) -> None:
        dirtied = min(length.union.count() * self._geometry.granularity_bytes, self._geometry.size_bytes)
        length.windows += 1
        length.sum_bytes += dirtied
        length.most_bytes = max(length.most_bytes, dirtied)
        length.union.clear_all()
        length.collected = 0

    def seen(self) -> list[Window]:
        """Of each length that was full at least once."""
        return [
            Window(length.multiple, length.windows, length.sum_bytes / length.windows, length.most_bytes)
            for length in self._lengths
            if length.windows
        ]
