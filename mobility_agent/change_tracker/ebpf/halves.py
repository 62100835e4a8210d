"""The two halves of the bitmap and what is carried beside them: flip, collect, fold, commit. Pure over given memory.

Called by ``tracker`` with the memory of the pinned maps, by tests with plain arrays. The order of every step is such
that the agent may die between any two stores and lose no bit: bits are set in their new place before they are cleared in
the old one (rule R2). Works in slices: a harvest reads the flipped half once, and touches of the rest only what holds something, so an
idle disk of any size costs little: that is 128 MiB for 64 TiB, at the speed of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from mobility_agent.change_tracker.ebpf.layout import WORD_BITS, BitmapLayout, ControlRecord
from replication.dirty_bitmap import SLICE_WORDS, DirtyBitmap, GranuleRuns, filled_slices
from replication.failpoint import reached

Words = npt.NDArray[np.uint64]

_FULL_WORD: Final = np.uint64(2**64 - 1)


class _OwnWords:
    """Words that only this process writes, so that it may remember which slices hold something: after the start nobody looks for them."""

    def __init__(self, words: Words) -> None:
        self.words = words
        self._filled = set(filled_slices(words))

    @property
    def filled(self) -> list[int]:
        return sorted(self._filled)

    def include(self, source: Words, slices: Iterable[int]) -> None:
        for at in slices:
            self._filled.add(at)
            _or_slice(self.words, source, at)

    def fill(self, word_numbers: npt.NDArray[np.int64]) -> None:
        """Set all bits of these words."""
        self._filled.update((np.unique(word_numbers // SLICE_WORDS) * SLICE_WORDS).tolist())
        self.words[word_numbers] = _FULL_WORD

    def mark(self, granules: int, runs: GranuleRuns) -> None:
        for start, count in runs:
            last = min(start + count, granules) - 1
            first_slice, last_slice = start // WORD_BITS // SLICE_WORDS, last // WORD_BITS // SLICE_WORDS
            self._filled.update(range(first_slice * SLICE_WORDS, (last_slice + 1) * SLICE_WORDS, SLICE_WORDS))
        DirtyBitmap(granules, self.words).mark_runs(runs)

    def reduce_to(self, subset: Words | None) -> None:
        """Keep only what ``subset`` has (None: nothing), a word at a time: what is in both never vanishes."""
        for at in self.filled:
            if subset is None:
                self.words[at : at + SLICE_WORDS] = 0
            else:
                self.words[at : at + SLICE_WORDS] = subset[at : at + SLICE_WORDS]
        if subset is None:
            self._filled.clear()


class Halves:
    """``wait_for_programs`` returns when no program that began before still runs; ``fence`` is a full memory barrier."""

    def __init__(
        self,
        words: Words,
        control: ControlRecord,
        layout: BitmapLayout,
        wait_for_programs: Callable[[], None],
        fence: Callable[[], None],
    ) -> None:
        self._layout = layout
        self._control = control
        self._wait_for_programs = wait_for_programs
        self._fence = fence
        fine, half = layout.fine_words, layout.half_words
        self._fine = [words[at : at + fine] for at in (0, half)]
        self._coarse = [words[at + fine : at + fine + layout.coarse_words] for at in (0, half)]
        self._suspects = _OwnWords(words[layout.suspects_at : layout.suspects_at + fine])
        self._carried = _OwnWords(words[layout.carried_at : layout.carried_at + fine])
        self._collected: list[int] = []
        """Slices of the flipped half that held something when it was collected; nothing is added to it until the next flip."""
        self._late: list[GranuleRuns] = []
        self._given: tuple[DirtyBitmap, int] | None = None
        """The bitmap that was collected into last, and its count of changes then; what was set in it by that is in ``_given_slices``."""
        self._given_slices: set[int] = set()

    @property
    def _flipped(self) -> int:
        """Index of the half that programs do not write."""
        return 1 if int(self._control.active_word) == 0 else 0

    def recover(self) -> None:
        """At attach: nobody knows whether the flipped half was persisted, so it goes forward."""
        self.fold()

    def fold(self) -> None:
        """Move what is in the flipped half to what is carried; afterwards that half is clear and may become active.

        The flip may have been cut off before it had waited, by a death or an error:
        what a program still marks there would be cleared unread.
        """
        self._wait_for_programs()
        fine, coarse = self._fine[self._flipped], self._coarse[self._flipped]
        filled = list(filled_slices(fine))
        self._carried.include(fine, filled)
        self._carried.fill(_fine_words_of(coarse))
        self._clear_flipped(filled)

    def flip(self) -> None:
        """The clear half becomes active. On return no program writes to the other one any more.

        The flipped half must be clear: ``fold`` or ``commit`` comes before.
        """
        self._late.clear()
        self._fence()  # no program may find a bit that was cleared here, and skip setting it
        self._control.active_word = 0 if int(self._control.active_word) else self._layout.half_words
        self._wait_for_programs()

    def collect(self, into: DirtyBitmap) -> None:
        """Replace ``into`` by the union of the flipped half and what is carried."""
        fine, coarse = self._fine[self._flipped], self._coarse[self._flipped]
        self._collected = list(filled_slices(fine))
        for at in self._perhaps_filled(into):
            into.words[at : at + SLICE_WORDS] = 0
        for at in self._collected:
            _or_slice(into.words, fine, at)
        whole = _fine_words_of(coarse)
        into.words[whole] = _FULL_WORD
        for at in self._carried.filled:
            _or_slice(into.words, self._carried.words, at)
        self._given = into, into.changes
        self._given_slices = {*self._collected, *self._carried.filled, *(whole // SLICE_WORDS * SLICE_WORDS).tolist()}

    def _perhaps_filled(self, into: DirtyBitmap) -> Iterable[int]:
        """Slices of ``into`` that may hold something. The caller's bitmap is mostly the one of the last harvest, unchanged: then they are
        known, and not looked for. Were it changed unseen, bits would stay set that need not be, and none would be lost.
        """
        if self._given is not None and self._given[0] is into and self._given[1] == into.changes:
            return self._given_slices
        return filled_slices(into.words)

    def carry_suspects(self) -> None:
        """Marks were lost: all suspects belong to the next collection."""
        self._carried.include(self._suspects.words, self._suspects.filled)

    def suspect_flipped(self) -> None:
        """What was collected last was issued in this window: it stays under suspicion until the next exact rest."""
        self._suspects.include(self._fine[self._flipped], self._collected)
        self._suspects.fill(_fine_words_of(self._coarse[self._flipped]))

    def clear_suspects(self) -> None:
        self._suspects.reduce_to(None)

    def commit(self) -> None:
        """Forget what was collected last; marks that came in since the flip stay."""
        self._clear_flipped(self._collected)
        reached("agent.harvest.half-cleared")
        late = DirtyBitmap(self._layout.geometry.granules) if self._late else None
        if late is None:
            self._carried.reduce_to(None)
            return
        for runs in self._late:
            late.mark_runs(runs)
        self._carried.reduce_to(late.words)
        self._late.clear()

    def mark(self, runs: GranuleRuns, *, harvest_open: bool) -> None:
        self._carried.mark(self._layout.geometry.granules, runs)
        if harvest_open:
            self._late.append(runs)

    def _clear_flipped(self, filled: Iterable[int]) -> None:
        fine, coarse = self._fine[self._flipped], self._coarse[self._flipped]
        for at in filled:
            fine[at : at + SLICE_WORDS] = 0
        for at in filled_slices(coarse):
            coarse[at : at + SLICE_WORDS] = 0


def _or_slice(target: Words, source: Words, at: int) -> None:
    here = target[at : at + SLICE_WORDS]
    np.bitwise_or(here, source[at : at + SLICE_WORDS], out=here)


def _fine_words_of(coarse: Words) -> npt.NDArray[np.int64]:
    """Numbers of the fine words that coarse bits stand for."""
    found = []
    for at in filled_slices(coarse):
        part = coarse[at : at + SLICE_WORDS]
        numbers = np.flatnonzero(part)
        bits = np.unpackbits(part[numbers].view(np.uint8), bitorder="little").reshape(-1, WORD_BITS)
        rows, columns = np.nonzero(bits)
        found.append((at + numbers[rows]) * WORD_BITS + columns)
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)
