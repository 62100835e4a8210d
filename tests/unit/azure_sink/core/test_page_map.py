"""Page maps: cutting, merging, comparing; the comparison is also held against a page-by-page one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from azure_sink.core.page_map import Change, Piece, changes, cut, merged_ranges


def test_cut_leaves_what_is_outside() -> None:
    assert cut(0, 10, 3, 5) == ([(0, 3), (5, 10)], (3, 5))
    assert cut(2, 10, 0, 5) == ([(5, 10)], (2, 5))
    assert cut(2, 10, 5, 20) == ([(2, 5)], (5, 10))
    assert cut(2, 10, 0, 20) == ([], (2, 10))


def test_a_part_knows_where_its_bytes_are() -> None:
    piece = Piece(100, 50, 3, 1000)
    assert piece.part(120, 500) == Piece(120, 30, 3, 1020)
    assert piece.part(0, 110) == Piece(100, 10, 3, 1000)


def test_adjacent_pieces_are_one_range() -> None:
    pieces = [Piece(0, 5, 1, 0), Piece(5, 5, 9, 70), Piece(20, 1, 1, 50)]
    assert list(merged_ranges(pieces)) == [(0, 10), (20, 21)]
    assert list(merged_ranges([])) == []


def test_equal_places_are_no_change() -> None:
    old = [Piece(0, 10, 1, 0), Piece(20, 10, 1, 100)]
    new = [Piece(0, 4, 1, 0), Piece(4, 2, 2, 0), Piece(6, 4, 1, 6), Piece(30, 5, 2, 50)]
    assert list(changes(new, old)) == [Change(4, 6, False), Change(20, 30, True), Change(30, 35, False)]


@st.composite
def maps(draw: st.DrawFn) -> list[Piece]:
    """A page map of 24 bytes in which several pieces share arenas."""
    cells = draw(st.lists(st.one_of(st.none(), st.integers(1, 3)), min_size=24, max_size=24))
    return [Piece(at, 1, cell, at) for at, cell in enumerate(cells) if cell is not None]


@given(maps(), maps())
def test_changes_are_those_that_a_comparison_byte_by_byte_finds(now: list[Piece], before: list[Piece]) -> None:
    new = {piece.start: piece.arena for piece in now}
    old = {piece.start: piece.arena for piece in before}
    expected = {at: at not in new for at in range(24) if new.get(at) != old.get(at)}
    found = {at: change.cleared for change in changes(now, before) for at in range(change.start, change.end)}
    assert found == expected
