"""What of an epoch's batches is written, and in which calls: overlaps are resolved before the first write, the higher batch wins (R5).

Called by ``replica_writer/epoch_application.py``, highest batch first: each batch claims what no higher one has claimed. The
resulting writes are disjoint, so they may go in parallel, be repeated, and arrive late, without changing the outcome.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from replication.extents import Extent, coalesced


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a batch's extent number ``index`` that this batch is to write."""

    index: int
    extent: Extent


@dataclass(frozen=True, slots=True)
class Part:
    """``length_bytes`` of extent number ``index``'s data, from ``start_bytes`` within it."""

    index: int
    start_bytes: int
    length_bytes: int


@dataclass(frozen=True, slots=True)
class PutRange:
    """One Put Page (update): ``parts`` in order."""

    offset_bytes: int
    length_bytes: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class ClearRange:
    """One Put Page (clear)."""

    offset_bytes: int
    length_bytes: int


PlannedWrite = PutRange | ClearRange


class Claims:
    """The ranges that batches have claimed so far, as sorted disjoint intervals (16 bytes each)."""

    def __init__(self) -> None:
        self._starts = array("q")
        self._ends = array("q")

    def __len__(self) -> int:
        return len(self._starts)

    def claim(self, extents: Sequence[Extent]) -> list[Piece]:
        """Claim ``extents`` (sorted, disjoint) and return those pieces of them that were still unclaimed, in order."""
        if not extents:
            return []
        low, high = extents[0].offset_bytes, extents[-1].end_bytes
        first, last = bisect_right(self._ends, low), bisect_left(self._starts, high)
        if first == last:
            pieces = [Piece(index, extent) for index, extent in enumerate(extents)]
        else:
            pieces = [piece for index, extent in enumerate(extents) for piece in self._unclaimed(index, extent)]
        self._merge(extents, low, high)
        return pieces

    def _unclaimed(self, index: int, extent: Extent) -> Iterator[Piece]:
        position, end = extent.offset_bytes, extent.end_bytes
        at = bisect_right(self._ends, position)
        while position < end and at < len(self._starts) and self._starts[at] < end:
            if position < self._starts[at]:
                yield Piece(index, Extent(position, self._starts[at] - position))
            position = max(position, self._ends[at])
            at += 1
        if position < end:
            yield Piece(index, Extent(position, end - position))

    def _merge(self, extents: Sequence[Extent], low: int, high: int) -> None:
        """Replace the intervals that touch [low, high] by their union with ``extents``."""
        first, last = bisect_left(self._ends, low), bisect_right(self._starts, high)
        touched = [
            Extent(start, end - start)
            for start, end in zip(self._starts[first:last], self._ends[first:last], strict=True)
        ]
        union = coalesced([*touched, *extents])
        self._starts[first:last] = array("q", [extent.offset_bytes for extent in union])
        self._ends[first:last] = array("q", [extent.end_bytes for extent in union])


def plan_writes(
    pieces: Sequence[Piece], extents: Sequence[Extent], zero: Sequence[bool], put_bytes: int
) -> list[PlannedWrite]:
    """The calls that write ``pieces``: adjacent data shares a put of at most ``put_bytes``, adjacent zeros one clear.

    :param extents: the batch's extents; ``zero`` says of each whether it reads as zeros.
    """
    run = _Run(put_bytes)
    for piece in pieces:
        offset, length = piece.extent.offset_bytes, piece.extent.length_bytes
        if zero[piece.index]:
            run.add_zeros(offset, length)
        else:
            run.add_data(offset, Part(piece.index, offset - extents[piece.index].offset_bytes, length))
    run.end()
    return run.planned


class _Run:
    """The call that is being put together; it grows while what follows is adjacent and of its kind."""

    def __init__(self, put_bytes: int) -> None:
        self.planned: list[PlannedWrite] = []
        self._put_bytes = put_bytes
        self._offset = 0
        self._length = 0
        self._parts: list[Part] = []

    def add_zeros(self, offset: int, length: int) -> None:
        if self._parts or offset != self._offset + self._length:
            self.end()
            self._offset = offset
        self._length += length

    def add_data(self, offset: int, part: Part) -> None:
        if (self._length and not self._parts) or offset != self._offset + self._length:
            self.end()
        while part.length_bytes:
            if self._length == self._put_bytes:
                self.end()
            if not self._length:
                self._offset = offset
            size = min(part.length_bytes, self._put_bytes - self._length)
            self._parts.append(Part(part.index, part.start_bytes, size))
            self._length += size
            offset += size
            part = Part(part.index, part.start_bytes + size, part.length_bytes - size)

    def end(self) -> None:
        if self._parts:
            self.planned.append(PutRange(self._offset, self._length, tuple(self._parts)))
        elif self._length:
            self.planned.append(ClearRange(self._offset, self._length))
        self._length = 0
        self._parts = []
