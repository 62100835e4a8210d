"""Moving bits between the parts of the bitmap: nothing is lost wherever the agent dies. Plain arrays stand for the maps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobility_agent.change_tracker.ebpf import halves as halves_module
from mobility_agent.change_tracker.ebpf.halves import Halves
from mobility_agent.change_tracker.ebpf.layout import BitmapLayout, ControlRecord
from replication.dirty_bitmap import MAX_GRANULES, SLICE_WORDS, DirtyBitmap, Geometry, GranuleRuns

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


def test_a_program_that_ran_when_a_half_was_flipped_is_waited_for(kernel: Kernel) -> None:
    """It has read which half is active, and marks there before the wait is over (rule R2)."""

    def wait() -> None:
        kernel.words[1] |= np.uint64(1 << 6)  # granule 70, in the half that was active before the flip

    halves = Halves(kernel.words, kernel.control, LAYOUT, wait, lambda: None)
    kernel.mark(5)
    halves.flip()
    assert collected(halves) == [(5, 1), (70, 1)]


@pytest.mark.parametrize("dies", [True, False])
def test_a_program_that_outlives_a_flip_cut_off_before_it_had_waited_loses_no_mark(kernel: Kernel, dies: bool) -> None:
    """It has read which half is active, and marks there before the next wait is over (rule R2)."""
    waits = 0

    def wait() -> None:
        nonlocal waits
        waits += 1
        if waits == 1:
            raise OSError("killed here, or refused by the kernel")
        if waits == 2:
            kernel.words[1] |= np.uint64(1 << 6)  # granule 70, in the half that was active before the flip

    def opened() -> Halves:
        return Halves(kernel.words, kernel.control, LAYOUT, wait, lambda: None)

    halves = opened()
    kernel.mark(5)
    with pytest.raises(OSError, match="killed here"):
        halves.flip()
    if dies:
        halves = opened()
        halves.recover()
    else:
        halves.fold()
    halves.flip()
    assert collected(halves) == [(5, 1), (70, 1)]


@pytest.mark.parametrize("place", ["fine words", "coarse words", "clearing"])
def test_an_agent_killed_while_it_folds_has_each_mark_in_the_old_place_or_the_new(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    class Died(BaseException):
        """Killed here."""

    def killed(*_: object) -> None:
        raise Died

    opened = kernel.halves()
    kernel.mark(5)
    kernel.mark_word_coarsely(2)
    opened.flip()
    with monkeypatch.context() as patched:
        match place:
            case "fine words":
                patched.setattr(halves_module, "_or_slice", killed)
            case "coarse words":
                patched.setattr(halves_module._OwnWords, "fill", killed)
            case _:
                patched.setattr(Halves, "_clear_flipped", killed)
        with pytest.raises(Died):
            opened.fold()
    reborn = kernel.halves()
    reborn.recover()
    reborn.flip()
    assert collected(reborn) == [(5, 1), (128, 64)]


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


LARGE = BitmapLayout(Geometry((5 * SLICE_WORDS * 64 + 17) * 4096, 4096))


@st.composite
def _orders(draw: st.DrawFn) -> list[tuple[str, int]]:
    granules = LARGE.geometry.granules
    kinds = ["kernel", "coarse", "user", "harvest", "commit", "suspect", "carry", "rest", "die", "soil"]
    return draw(st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, granules - 1)), max_size=25))


@given(_orders())
def test_a_bitmap_of_many_slices_loses_nothing_in_any_order(orders: list[tuple[str, int]]) -> None:
    """Against sets: every granule marked since the last committed harvest comes back."""
    words, control = np.zeros(LARGE.total_words, dtype=np.uint64), ControlRecord()

    def attach() -> Halves:
        return Halves(words, control, LARGE, lambda: None, lambda: None)

    halves, bitmap = attach(), DirtyBitmap(LARGE.geometry.granules)
    owed: set[int] = set()
    since_flip: set[int] = set()
    by_programs: set[int] = set()
    flipped: set[int] = set()
    suspects: set[int] = set()
    harvested = False
    for kind, granule in [*orders, ("harvest", 0)]:
        match kind:
            case "kernel":
                words[control.active_word + granule // 64] |= np.uint64(1 << granule % 64)
                by_programs.add(granule)
            case "coarse":
                words[control.active_word + LARGE.fine_words + granule // 64 // 64] |= np.uint64(
                    1 << granule // 64 % 64
                )
                by_programs.add(granule)
            case "user":
                halves.mark(GranuleRuns.of([(granule, 1)]), harvest_open=harvested)
                since_flip.add(granule)
            case "harvest":
                if harvested:
                    halves.fold()
                halves.flip()
                halves.collect(bitmap)
                owed, flipped, harvested = owed | since_flip | by_programs, by_programs, True
                since_flip, by_programs = set(), set()
                assert all(marked in bitmap for marked in owed)
            case "soil":
                bitmap.mark(granule, 1)  # by whoever it was given to
            case "suspect" if harvested:
                halves.suspect_flipped()
                suspects |= flipped
            case "carry" if not harvested:
                halves.carry_suspects()
                since_flip |= suspects
            case "rest":
                halves.clear_suspects()
                suspects = set()
            case "commit" if harvested:
                halves.commit()
                owed, harvested = set(), False
            case "die":
                halves = attach()
                halves.recover()
                harvested = False


def test_nothing_of_an_earlier_harvest_nor_of_its_user_s_marks_is_left_in_a_bitmap_that_is_used_again() -> None:
    words, control = np.zeros(LARGE.total_words, dtype=np.uint64), ControlRecord()
    halves, bitmap = Halves(words, control, LARGE, lambda: None, lambda: None), DirtyBitmap(LARGE.geometry.granules)
    other, many = DirtyBitmap(LARGE.geometry.granules), SLICE_WORDS * 64
    other.mark_all()

    def harvest(into: DirtyBitmap) -> list[tuple[int, int]]:
        halves.flip()
        halves.collect(into)
        halves.commit()
        return list(into.runs())

    for granule in (7, 3 * many + 1):
        words[control.active_word + granule // 64] |= np.uint64(1 << granule % 64)
        assert harvest(bitmap) == [(granule, 1)]
    words[control.active_word + LARGE.fine_words] |= np.uint64(1 << 5)
    assert harvest(bitmap) == [(5 * 64, 64)]
    halves.mark(GranuleRuns.of([(2 * many, 3)]), harvest_open=False)
    assert harvest(bitmap) == [(2 * many, 3)]
    bitmap.mark(4 * many, 2)
    assert harvest(bitmap) == []
    bitmap.mark_words(other.words)
    assert harvest(bitmap) == []
    assert harvest(other) == []
    other.mark_all()
    assert harvest(bitmap) == []
    assert harvest(other) == []
