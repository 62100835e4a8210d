"""Moving bits between the parts of the bitmap: nothing is lost wherever the agent dies. Plain arrays stand for the maps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobility_agent.change_tracker.ebpf.halves import Halves
from mobility_agent.change_tracker.ebpf.layout import BitmapLayout, ControlRecord
from replication.dirty_bitmap import MAX_GRANULES, DirtyBitmap, Geometry, GranuleRuns

GEOMETRY = Geometry((64 * 64 * 3 + 17) * 4096, 4096)
LAYOUT = BitmapLayout(GEOMETRY)


class Kernel:
    """The maps, and marks as the programs make them."""

    def __init__(self) -> None:
        self.words = np.zeros(LAYOUT.total_words, dtype=np.uint64)
        self.control = ControlRecord()
        self.waits = 0

    def wait(self) -> None:
        self.waits += 1

    def mark(self, granule: int) -> None:
        self.words[self.control.active_word + granule // 64] |= np.uint64(1 << granule % 64)

    def mark_word_coarsely(self, word: int) -> None:
        at = self.control.active_word + LAYOUT.fine_words + word // 64
        self.words[at] |= np.uint64(1 << word % 64)

    def halves(self) -> Halves:
        return Halves(self.words, self.control, LAYOUT, self.wait, lambda: None)


def collected(halves: Halves) -> list[tuple[int, int]]:
    bitmap = DirtyBitmap(GEOMETRY.granules)
    bitmap.mark_all()
    halves.collect(bitmap)
    return list(bitmap.runs())


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def test_a_flip_waits_for_the_programs_and_shows_what_they_marked(kernel: Kernel) -> None:
    halves = kernel.halves()
    kernel.mark(5)
    halves.flip()
    assert kernel.waits == 1
    kernel.mark(6)
    assert collected(halves) == [(5, 1)]
    halves.commit()
    halves.flip()
    assert collected(halves) == [(6, 1)]


def test_coarse_bits_stand_for_whole_words(kernel: Kernel) -> None:
    halves = kernel.halves()
    kernel.mark(63)
    kernel.mark_word_coarsely(1)
    kernel.mark_word_coarsely(100)
    halves.flip()
    assert collected(halves) == [(63, 65), (6400, 64)]
    halves.commit()
    halves.flip()
    halves.commit()
    halves.flip()
    assert collected(halves) == []


def test_a_restart_carries_the_flipped_half_forward(kernel: Kernel) -> None:
    halves = kernel.halves()
    kernel.mark(5)
    kernel.mark_word_coarsely(2)
    halves.flip()
    kernel.mark(7)
    reborn = kernel.halves()
    reborn.recover()
    reborn.flip()
    assert collected(reborn) == [(5, 1), (7, 1), (128, 64)]


def test_marks_made_while_a_harvest_is_open_survive_its_commit(kernel: Kernel) -> None:
    halves = kernel.halves()
    halves.mark(GranuleRuns.of([(1, 2)]), harvest_open=False)
    halves.flip()
    assert collected(halves) == [(1, 2)]
    halves.mark(GranuleRuns.of([(2, 1), (9, 1)]), harvest_open=True)
    halves.commit()
    halves.flip()
    assert collected(halves) == [(2, 1), (9, 1)]
    halves.commit()
    halves.flip()
    assert collected(halves) == []


def test_suspects_come_back_only_when_they_are_carried(kernel: Kernel) -> None:
    halves = kernel.halves()
    kernel.mark(5)
    kernel.mark_word_coarsely(3)
    halves.flip()
    halves.suspect_flipped()
    halves.commit()
    halves.flip()
    assert collected(halves) == []
    halves.commit()
    halves.carry_suspects()
    halves.flip()
    assert collected(halves) == [(5, 1), (192, 64)]
    halves.commit()
    halves.clear_suspects()
    halves.carry_suspects()
    halves.flip()
    assert collected(halves) == []


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("mark"), st.integers(0, GEOMETRY.granules - 1)),
            st.tuples(st.sampled_from(["harvest", "harvest uncommitted", "die in harvest", "die"]), st.just(0)),
        ),
        max_size=40,
    )
)
def test_every_mark_is_in_a_harvest_that_was_committed(actions: list[tuple[str, int]]) -> None:
    kernel = Kernel()
    halves = kernel.halves()
    is_open = False
    due: set[int] = set()
    for action, granule in [*actions, ("harvest", 0)]:
        if action == "mark":
            kernel.mark(granule)
            due.add(granule)
            continue
        if action == "die":
            halves = kernel.halves()
            halves.recover()
            is_open = False
            continue
        if is_open:
            halves.fold()
        halves.flip()
        is_open = True
        if action == "die in harvest":
            halves = kernel.halves()
            halves.recover()
            is_open = False
            continue
        bitmap = DirtyBitmap(GEOMETRY.granules)
        halves.collect(bitmap)
        assert due <= set(bitmap.runs().indices().tolist())
        if action == "harvest":
            halves.commit()
            is_open = False
            due.clear()


@pytest.mark.parametrize("granules", [1, 63, 64, 65, 4096, 4097, MAX_GRANULES])
def test_the_parts_of_the_map_do_not_overlap(granules: int) -> None:
    layout = BitmapLayout(Geometry(granules * 4096, 4096))
    parts = [
        (0, layout.fine_words + layout.coarse_words),
        (layout.half_words, layout.half_words + layout.fine_words + layout.coarse_words),
        (layout.suspects_at, layout.suspects_at + layout.fine_words),
        (layout.carried_at, layout.carried_at + layout.fine_words),
    ]
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(parts))
    assert parts[-1][1] <= layout.total_words < 2**32
