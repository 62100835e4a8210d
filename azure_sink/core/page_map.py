"""Page maps: which stored bytes stand behind which range of a page blob; cutting, merging and comparing them. Pure.

Called by the blob store's page table and its readers. A *piece* is a run of pages that holds data, with the place of its bytes in an
arena. Lists of pieces are sorted by ``start`` and disjoint; what no piece covers reads as zeros.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """``length`` bytes from ``start`` of the blob are at ``arena_offset`` of arena ``arena``."""

    start: int
    length: int
    arena: int
    arena_offset: int

    @property
    def end(self) -> int:
        return self.start + self.length

    def part(self, start: int, end: int) -> Piece:
        """The part inside [start, end), which must overlap."""
        begin = max(self.start, start)
        return Piece(begin, min(self.end, end) - begin, self.arena, self.arena_offset + begin - self.start)


def cut(start: int, end: int, hole_start: int, hole_end: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Cut [hole_start, hole_end) out of [start, end), which it overlaps: (what is left, what is cut) as (start, end) pairs."""
    middle = (max(start, hole_start), min(end, hole_end))
    left = [(s, e) for s, e in ((start, middle[0]), (middle[1], end)) if s < e]
    return left, middle


@dataclass(frozen=True, slots=True)
class Change:
    """One range that differs between two states: rewritten, or cleared."""

    start: int
    end: int
    cleared: bool


def merged_ranges(pieces: Iterable[Piece]) -> Iterator[tuple[int, int]]:
    """The ranges covered by sorted ``pieces`` as (start, end), adjacent ones joined."""
    begin = end = -1
    for piece in pieces:
        if piece.start == end:
            end = piece.end
            continue
        if begin >= 0:
            yield begin, end
        begin, end = piece.start, piece.end
    if begin >= 0:
        yield begin, end


def changes(now: Sequence[Piece], before: Sequence[Piece]) -> Iterator[Change]:
    """What must be applied to ``before`` to make it ``now``; equal bytes at another place count as rewritten."""
    joined: Change | None = None
    for start, end, new, old in _side_by_side(now, before):
        if new == old:
            continue
        change = Change(start, end, cleared=new is None)
        if joined is not None and joined.end == change.start and joined.cleared == change.cleared:
            joined = Change(joined.start, change.end, joined.cleared)
            continue
        if joined is not None:
            yield joined
        joined = change
    if joined is not None:
        yield joined


_Place = tuple[int, int] | None


def _side_by_side(now: Sequence[Piece], before: Sequence[Piece]) -> Iterator[tuple[int, int, _Place, _Place]]:
    """Cut both maps at each other's borders: (start, end, place now, place before)."""
    borders = sorted({border for piece in (*now, *before) for border in (piece.start, piece.end)})
    new, old = iter(now), iter(before)
    new_piece, old_piece = next(new, None), next(old, None)
    for start, end in itertools.pairwise(borders):
        while new_piece is not None and new_piece.end <= start:
            new_piece = next(new, None)
        while old_piece is not None and old_piece.end <= start:
            old_piece = next(old, None)
        yield start, end, _place(new_piece, start), _place(old_piece, start)


def _place(piece: Piece | None, position: int) -> _Place:
    if piece is None or position < piece.start:
        return None
    return piece.arena, piece.arena_offset + position - piece.start
