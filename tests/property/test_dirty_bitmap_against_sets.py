"""Dirty bitmaps and granule runs held against plain sets of integers, over any sequence of operations."""

from __future__ import annotations

import itertools

import hypothesis
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from replication.dirty_bitmap import DirtyBitmap, Geometry, GranuleRuns, decode_runs, encode_runs
from replication.errors import IntegrityError
from replication.extents import BLOCK_BYTES, Extent

# Sizes around words and slices of words, where the seams are.
SIZES = st.one_of(st.integers(1, 300), st.sampled_from([8192 * 64 - 1, 8192 * 64, 8192 * 64 + 1, 2 * 8192 * 64 + 65]))


@st.composite
def runs_within(draw: st.DrawFn, granules: int, *, most: int = 12) -> list[tuple[int, int]]:
    """Runs inside a disk, near its ends and seams more often than not."""
    near = [n for n in (0, 63, 64, 8192 * 64 - 1, 8192 * 64, granules - 1) if n < granules]
    starts = st.one_of(st.sampled_from(near), st.integers(0, granules - 1))
    found = []
    for _ in range(draw(st.integers(0, most))):
        start = draw(starts)
        found.append((start, draw(st.integers(1, min(200, granules - start)))))
    return found


def _set_of(runs: list[tuple[int, int]]) -> set[int]:
    return {granule for start, count in runs for granule in range(start, start + count)}


class BitmapAgainstSet(RuleBasedStateMachine):
    """Every operation is done to a bitmap and to a set; they agree after each."""

    @initialize(granules=SIZES)
    def make(self, granules: int) -> None:
        self.granules = granules
        self.bitmap = DirtyBitmap(granules)
        self.model: set[int] = set()

    @rule(data=st.data())
    def mark(self, data: st.DataObject) -> None:
        start, count = data.draw(st.integers(0, self.granules + 100)), data.draw(st.integers(0, 300))
        self.bitmap.mark(start, count)
        self.model |= {n for n in range(start, start + count) if n < self.granules}

    @rule(data=st.data())
    def clear(self, data: st.DataObject) -> None:
        start, count = data.draw(st.integers(0, self.granules + 100)), data.draw(st.integers(0, 300))
        self.bitmap.clear(start, count)
        self.model -= set(range(start, start + count))

    @rule(data=st.data())
    def mark_runs(self, data: st.DataObject) -> None:
        runs = data.draw(runs_within(self.granules))
        self.bitmap.mark_runs(GranuleRuns.of(runs))
        self.model |= _set_of(runs)

    @rule(data=st.data())
    def clear_runs(self, data: st.DataObject) -> None:
        runs = data.draw(runs_within(self.granules))
        self.bitmap.clear_runs(GranuleRuns.of(runs))
        self.model -= _set_of(runs)

    @rule(data=st.data())
    def mark_words_of_another(self, data: st.DataObject) -> None:
        runs = data.draw(runs_within(self.granules))
        other = DirtyBitmap(self.granules)
        other.mark_runs(GranuleRuns.of(runs))
        longer = np.concatenate([other.words, np.full(3, 2**64 - 1, dtype=np.uint64)])
        self.bitmap.mark_words(data.draw(st.sampled_from([other.words, longer])))
        self.model |= _set_of(runs)

    @precondition(lambda self: self.granules <= 300)
    @rule()
    def mark_all(self) -> None:
        self.bitmap.mark_all()
        self.model = set(range(self.granules))

    @rule()
    def clear_all(self) -> None:
        self.bitmap.clear_all()
        self.model = set()

    @rule()
    def replace_by_its_encoding(self) -> None:
        runs = decode_runs(encode_runs(self.bitmap.runs(), self.granules), self.granules)
        self.bitmap = DirtyBitmap(self.granules)
        self.bitmap.mark_runs(runs)

    @rule(data=st.data())
    def ask_for_intersection(self, data: st.DataObject) -> None:
        runs = data.draw(runs_within(self.granules, most=3))
        assert self.bitmap.intersects(GranuleRuns.of(runs)) == bool(self.model & _set_of(runs))

    @rule(data=st.data())
    def ask_for_some_runs(self, data: st.DataObject) -> None:
        limit, start = data.draw(st.integers(0, 400)), data.draw(st.integers(0, self.granules))
        expected = sorted(n for n in self.model if n >= start)[:limit]
        runs = self.bitmap.runs(limit_granules=limit, start_granule=start)
        assert runs.indices().tolist() == expected
        assert runs == GranuleRuns.of((n, 1) for n in expected)

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "bitmap"):
            return
        runs = self.bitmap.runs()
        assert runs.indices().tolist() == sorted(self.model)
        assert self.bitmap.count() == runs.granule_count == len(self.model)
        assert self.bitmap.any() == bool(self.model) == bool(runs)
        pairs = list(runs)
        assert all(start + count < after for (start, count), (after, _) in itertools.pairwise(pairs))


TestBitmapAgainstSet = BitmapAgainstSet.TestCase
TestBitmapAgainstSet.settings = hypothesis.settings(max_examples=60, stateful_step_count=25, deadline=None)


@given(st.data(), SIZES)
def test_encoding_round_trips(data: st.DataObject, granules: int) -> None:
    runs = GranuleRuns.of(data.draw(runs_within(granules, most=40)))
    assert decode_runs(encode_runs(runs, granules), granules) == runs


@given(st.binary(max_size=200), st.integers(1, 500))
def test_any_bytes_are_refused_or_a_set_inside_the_disk(noise: bytes, granules: int) -> None:
    try:
        runs = decode_runs(noise, granules)
    except IntegrityError:
        return
    assert runs.indices().max(initial=-1) < granules


@given(st.data(), st.integers(1, 400), st.sampled_from([4096, 65536]))
def test_extents_of_runs_cover_exactly_their_granules(data: st.DataObject, blocks: int, granularity: int) -> None:
    geometry = Geometry(blocks * BLOCK_BYTES, granularity)
    runs = GranuleRuns.of(data.draw(runs_within(geometry.granules)))
    covered = [
        n for extent in runs.extents(geometry) for n in range(extent.offset_bytes, extent.end_bytes, BLOCK_BYTES)
    ]
    expected = [
        n for n in range(0, geometry.size_bytes, BLOCK_BYTES) if n // granularity in set(runs.indices().tolist())
    ]
    assert covered == expected
    assert runs.byte_count(geometry) == len(expected) * BLOCK_BYTES


@given(st.data(), st.integers(1, 4000), st.sampled_from([4096, 65536]))
def test_granules_of_an_extent_are_those_it_touches(data: st.DataObject, blocks: int, granularity: int) -> None:
    geometry = Geometry(blocks * BLOCK_BYTES, granularity)
    first = data.draw(st.integers(0, blocks - 1))
    extent = Extent(first * BLOCK_BYTES, data.draw(st.integers(1, blocks - first)) * BLOCK_BYTES)
    start, count = geometry.granule_range(extent)
    touched = {byte // granularity for byte in range(extent.offset_bytes, extent.end_bytes, BLOCK_BYTES)}
    assert touched == set(range(start, start + count))
    assert start + count <= geometry.granules
