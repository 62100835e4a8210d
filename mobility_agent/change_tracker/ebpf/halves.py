"""The two halves of the bitmap and what is carried beside them: flip, collect, fold, commit. Pure over given memory.

Called by ``tracker`` with the memory of the pinned maps, by tests with plain arrays. The order of every step is such
that the agent may die between any two stores and lose no bit: bits are set in their new place before they are cleared in
the old one (rule R2). Works in slices and touches only slices that hold something, so an idle disk costs little.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from mobility_agent.change_tracker.ebpf.layout import WORD_BITS, BitmapLayout, ControlRecord
from replication.dirty_bitmap import DirtyBitmap, GranuleRuns

Words = npt.NDArray[np.uint64]

_SLICE_WORDS: Final = 8192
_FULL_WORD: Final = np.uint64(2**64 - 1)


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
        self._suspects = words[layout.suspects_at : layout.suspects_at + fine]
        self._carried = words[layout.carried_at : layout.carried_at + fine]
        self._late: list[GranuleRuns] = []

    @property
    def _flipped(self) -> int:
        """Index of the half that programs do not write."""
        return 1 if int(self._control.active_word) == 0 else 0

    def recover(self) -> None:
        """At attach: nobody knows whether the flipped half was persisted, so it goes forward."""
        self.fold()

    def fold(self) -> None:
        """Move what is in the flipped half to what is carried; afterwards that half is clear and may become active."""
        flipped = self._flipped
        _or_into(self._carried, self._fine[flipped])
        self._expand(self._coarse[flipped], self._carried)
        self._clear(flipped)

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
        flipped = self._flipped
        into.words[:] = self._fine[flipped]
        self._expand(self._coarse[flipped], into.words)
        _or_into(into.words, self._carried)

    def carry_suspects(self) -> None:
        """Marks were lost: all suspects belong to the next collection."""
        _or_into(self._carried, self._suspects)

    def suspect_flipped(self) -> None:
        """What is being harvested was issued in this window: it stays under suspicion until the next exact rest."""
        flipped = self._flipped
        _or_into(self._suspects, self._fine[flipped])
        self._expand(self._coarse[flipped], self._suspects)

    def clear_suspects(self) -> None:
        _clear(self._suspects)

    def commit(self) -> None:
        """Forget what was collected last; marks that came in since the flip stay."""
        self._clear(self._flipped)
        late = DirtyBitmap(self._layout.geometry.granules) if self._late else None
        if late is None:
            _clear(self._carried)
            return
        for runs in self._late:
            late.mark_runs(runs)
        self._carried[:] = late.words  # a word at a time from a superset to its subset: late marks never vanish
        self._late.clear()

    def mark(self, runs: GranuleRuns, *, harvest_open: bool) -> None:
        DirtyBitmap(self._layout.geometry.granules, self._carried).mark_runs(runs)
        if harvest_open:
            self._late.append(runs)

    def _clear(self, half: int) -> None:
        _clear(self._fine[half])
        _clear(self._coarse[half])

    def _expand(self, coarse: Words, into: Words) -> None:
        for at in np.flatnonzero(coarse).tolist():
            bits = np.unpackbits(coarse[at : at + 1].view(np.uint8), bitorder="little")
            into[at * WORD_BITS + np.flatnonzero(bits)] = _FULL_WORD


def _or_into(target: Words, source: Words) -> None:
    for at in range(0, len(source), _SLICE_WORDS):
        part = source[at : at + _SLICE_WORDS]
        if part.any():
            here = target[at : at + _SLICE_WORDS]
            np.bitwise_or(here, part, out=here)


def _clear(words: Words) -> None:
    for at in range(0, len(words), _SLICE_WORDS):
        part = words[at : at + _SLICE_WORDS]
        if part.any():
            part[:] = 0
