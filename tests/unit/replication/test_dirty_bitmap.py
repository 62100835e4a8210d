"""Dirty bitmaps, granule runs and their encoded form at their edges; ``tests/property`` holds them against plain sets."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
import xxhash

from replication.dirty_bitmap import (
    MAX_GRANULARITY_BYTES,
    MAX_GRANULES,
    MIN_GRANULARITY_BYTES,
    DirtyBitmap,
    Geometry,
    GranuleRuns,
    decode_runs,
    encode_runs,
)
from replication.errors import IntegrityError, InvalidInput
from replication.extents import MAX_DISK_BYTES, Extent

KIB = 1024
MIB = 1024 * 1024


class TestGeometry:
    def test_short_last_granule_is_counted_and_cut(self) -> None:
        geometry = Geometry(3 * 64 * KIB + 512)
        assert geometry.granules == 4
        assert geometry.run_extent(3, 1) == Extent(3 * 64 * KIB, 512)
        assert geometry.run_extent(2, 5) == Extent(2 * 64 * KIB, 64 * KIB + 512)

    def test_granule_range_covers_every_byte_of_an_extent(self) -> None:
        geometry = Geometry(MIB)
        assert geometry.granule_range(Extent(0, 512)) == (0, 1)
        assert geometry.granule_range(Extent(64 * KIB - 512, 1024)) == (0, 2)
        assert geometry.granule_range(Extent(64 * KIB, 64 * KIB)) == (1, 1)

    @pytest.mark.parametrize("size", [0, -512, 511, MAX_DISK_BYTES + 512])
    def test_impossible_size_is_refused(self, size: int) -> None:
        with pytest.raises(InvalidInput, match="cannot use a disk"):
            Geometry(size)

    @pytest.mark.parametrize(
        "granularity", [0, 512, MIN_GRANULARITY_BYTES // 2, 96 * KIB, MAX_GRANULARITY_BYTES * 2, -64 * KIB]
    )
    def test_impossible_granularity_is_refused(self, granularity: int) -> None:
        with pytest.raises(InvalidInput, match="cannot use a granularity"):
            Geometry(MIB, granularity)

    def test_largest_disk_in_smallest_granules_is_accepted(self) -> None:
        assert Geometry(MAX_DISK_BYTES, MIN_GRANULARITY_BYTES).granules == MAX_GRANULES

    def test_run_past_the_end_has_no_bytes(self) -> None:
        with pytest.raises(InvalidInput):
            Geometry(MIB).run_extent(16, 1)


class TestGranuleRuns:
    def test_runs_are_sorted_and_merged(self) -> None:
        runs = GranuleRuns.of([(10, 5), (0, 2), (15, 1), (2, 1), (12, 2)])
        assert list(runs) == [(0, 3), (10, 6)]
        assert (len(runs), runs.granule_count) == (2, 9)

    @pytest.mark.parametrize("run", [(-1, 1), (0, 0), (0, -1), (MAX_GRANULES, 1), (0, MAX_GRANULES + 1)])
    def test_impossible_run_is_refused(self, run: tuple[int, int]) -> None:
        with pytest.raises(InvalidInput, match="granule run"):
            GranuleRuns.of([run])

    def test_empty_set_is_false_and_has_nothing(self) -> None:
        empty = GranuleRuns.of([])
        assert not empty
        assert (list(empty), empty.granule_count, empty.indices().tolist()) == ([], 0, [])
        assert empty.byte_count(Geometry(MIB)) == 0
        assert list(empty.extents(Geometry(MIB))) == []

    def test_short_last_granule_is_counted_as_it_is(self) -> None:
        geometry = Geometry(64 * KIB + 512)
        assert GranuleRuns.of([(0, 2)]).byte_count(geometry) == 64 * KIB + 512
        assert GranuleRuns.of([(1, 1)]).byte_count(geometry) == 512
        assert list(GranuleRuns.of([(0, 2)]).extents(geometry)) == [Extent(0, 64 * KIB + 512)]

    def test_equal_sets_are_equal_and_hash_alike(self) -> None:
        first, second = GranuleRuns.of([(0, 1), (1, 1)]), GranuleRuns.of([(0, 2)])
        assert first == second
        assert hash(first) == hash(second)
        assert first != GranuleRuns.of([(0, 3)])
        assert first != [(0, 2)]

    def test_indices_name_every_granule(self) -> None:
        assert GranuleRuns.of([(3, 2), (9, 1)]).indices().tolist() == [3, 4, 9]


class TestDirtyBitmap:
    @pytest.mark.parametrize("granules", [0, -1, MAX_GRANULES + 1])
    def test_impossible_size_is_refused(self, granules: int) -> None:
        with pytest.raises(InvalidInput, match="cannot make a bitmap"):
            DirtyBitmap(granules)

    def test_words_of_another_size_are_refused(self) -> None:
        with pytest.raises(InvalidInput, match="cannot use 2 words"):
            DirtyBitmap(64, np.zeros(2, dtype=np.uint64))

    def test_given_words_are_used_in_place_and_cleared_past_the_end(self) -> None:
        words = np.full(2, 2**64 - 1, dtype=np.uint64)
        bitmap = DirtyBitmap(65, words)
        assert bitmap.count() == 65
        bitmap.clear(0, 64)
        assert words.tolist() == [0, 1]

    @pytest.mark.parametrize(("start", "count"), [(0, 1), (63, 1), (63, 2), (0, 64), (64, 64), (1, 127), (60, 140)])
    def test_mark_and_clear_touch_exactly_the_run(self, start: int, count: int) -> None:
        bitmap = DirtyBitmap(200)
        bitmap.mark(start, count)
        assert bitmap.runs().indices().tolist() == list(range(start, start + count))
        bitmap.mark_all()
        bitmap.clear(start, count)
        assert bitmap.runs().indices().tolist() == [*range(start), *range(start + count, 200)]

    def test_what_lies_past_the_end_is_ignored(self) -> None:
        bitmap = DirtyBitmap(70)
        bitmap.mark(69, 1000)
        bitmap.mark(70, 1)
        bitmap.mark(5, 0)
        assert list(bitmap.runs()) == [(69, 1)]

    @pytest.mark.parametrize(("start", "count"), [(-1, 1), (0, -1)])
    def test_negative_run_is_refused(self, start: int, count: int) -> None:
        with pytest.raises(InvalidInput):
            DirtyBitmap(64).mark(start, count)

    def test_granules_outside_of_the_disk_are_not_in_it(self) -> None:
        bitmap = DirtyBitmap(70)
        bitmap.mark_all()
        assert 69 in bitmap
        assert not {-1, -64, 70, 127, 128, 10**9} & {n for n in (-1, -64, 70, 127, 128, 10**9) if n in bitmap}

    def test_mark_all_does_not_set_bits_past_the_end(self) -> None:
        bitmap = DirtyBitmap(65)
        bitmap.mark_all()
        assert (bitmap.count(), bitmap.words.tolist()) == (65, [2**64 - 1, 1])
        bitmap.clear_all()
        assert not bitmap.any()

    def test_words_of_a_longer_map_are_cut(self) -> None:
        bitmap = DirtyBitmap(65)
        bitmap.mark_words(np.full(9, 2**64 - 1, dtype=np.uint64))
        assert bitmap.count() == 65

    def test_words_of_a_shorter_map_are_refused(self) -> None:
        """One word would be spread by numpy over all of them."""
        with pytest.raises(InvalidInput, match="cannot mark 1 words"):
            DirtyBitmap(200).mark_words(np.ones(1, dtype=np.uint64))

    def test_copy_is_independent(self) -> None:
        bitmap = DirtyBitmap(64)
        other = bitmap.copy()
        other.mark(0, 1)
        assert not bitmap.any()
        assert bitmap != other
        assert bitmap == DirtyBitmap(64)
        assert bitmap != DirtyBitmap(63)

    def test_bitmap_has_no_hash(self) -> None:
        with pytest.raises(TypeError, match="mutable"):
            hash(DirtyBitmap(1))

    def test_runs_are_joined_across_slices(self) -> None:
        granules = 3 * 8192 * 64
        bitmap = DirtyBitmap(granules)
        bitmap.mark(10, granules - 20)
        assert list(bitmap.runs()) == [(10, granules - 20)]
        bitmap.mark_all()
        assert list(bitmap.runs()) == [(0, granules)]

    def test_runs_stop_at_the_limit_and_go_on_from_a_granule(self) -> None:
        bitmap = DirtyBitmap(1000)
        bitmap.mark(5, 10)
        bitmap.mark(100, 100)
        assert list(bitmap.runs(limit_granules=30)) == [(5, 10), (100, 20)]
        assert list(bitmap.runs(limit_granules=30, start_granule=120)) == [(120, 30)]
        assert list(bitmap.runs(limit_granules=0)) == []
        assert list(bitmap.runs(start_granule=1000)) == []
        assert list(bitmap.runs(start_granule=7)) == [(7, 8), (100, 100)]

    def test_intersection_with_runs_longer_than_the_disk(self) -> None:
        bitmap = DirtyBitmap(300)
        bitmap.mark(130, 1)
        assert bitmap.intersects(GranuleRuns.of([(0, 100), (120, 10_000)]))
        assert not bitmap.intersects(GranuleRuns.of([(0, 130), (131, 10_000)]))
        assert not bitmap.intersects(GranuleRuns.of([(10_000, 5)]))

    def test_scan_of_a_large_disk_needs_little_memory_beyond_the_bitmap(self) -> None:
        """16 TiB at 64 KiB: a map of 32 MiB; no temporary may grow with it."""
        bitmap = DirtyBitmap(16 * 2**40 // (64 * KIB))
        bitmap.mark(12_345_678, 3)
        bitmap.mark(200_000_000, 64 * 8192)
        tracemalloc.start()
        try:
            assert bitmap.count() == 3 + 64 * 8192
            assert list(bitmap.runs()) == [(12_345_678, 3), (200_000_000, 64 * 8192)]
            assert bitmap.any()
            bitmap.mark_words(bitmap.words)
            assert bitmap.intersects(GranuleRuns.of([(0, bitmap.granules)]))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2 * MIB


def _resealed(encoded: bytes, payload: bytes, kind: int | None = None, granules: int | None = None) -> bytes:
    """``encoded`` with another payload and a header that fits it: what a checksum does not catch."""
    magic, version, old_kind, old_granules, _, _ = struct.unpack_from("<4sHHQQQ", encoded)
    header = struct.pack(
        "<4sHHQQQ",
        magic,
        version,
        old_kind if kind is None else kind,
        old_granules if granules is None else granules,
        len(payload),
        xxhash.xxh3_64_intdigest(payload),
    )
    return header + payload


class TestEncoding:
    def test_documented_layout_byte_for_byte(self) -> None:
        payload = struct.pack("<QQ", 2, 3)
        expected = b"BFDB" + struct.pack("<HHQQQ", 1, 0, 100, 16, xxhash.xxh3_64_intdigest(payload)) + payload
        assert encode_runs(GranuleRuns.of([(2, 3)]), 1000)[:4] == expected[:4]
        assert encode_runs(GranuleRuns.of([(2, 3)]), 100) == expected

    def test_scattered_granules_are_encoded_as_words(self) -> None:
        granules = 64 * 64
        runs = GranuleRuns.of([(n, 1) for n in range(0, granules, 2)])
        encoded = encode_runs(runs, granules)
        assert len(encoded) == 32 + granules // 8
        assert decode_runs(encoded, granules) == runs

    @pytest.mark.parametrize("granules", [1, 63, 64, 65, 1000])
    def test_nothing_and_everything_survive(self, granules: int) -> None:
        for runs in (GranuleRuns.of([]), GranuleRuns.of([(0, granules)])):
            assert decode_runs(encode_runs(runs, granules), granules) == runs

    def test_runs_past_the_end_are_refused_before_they_are_written(self) -> None:
        with pytest.raises(InvalidInput, match="past the end"):
            encode_runs(GranuleRuns.of([(99, 2)]), 100)

    def test_truncation_at_every_byte_is_noticed(self) -> None:
        encoded = encode_runs(GranuleRuns.of([(1, 2), (50, 3)]), 1000)
        for length in range(len(encoded)):
            with pytest.raises(IntegrityError, match="cannot decode"):
                decode_runs(encoded[:length], 1000)

    def test_every_flipped_bit_is_noticed(self) -> None:
        encoded = encode_runs(GranuleRuns.of([(1, 2), (50, 3)]), 1000)
        for position in range(len(encoded) * 8):
            damaged = bytearray(encoded)
            damaged[position // 8] ^= 1 << position % 8
            with pytest.raises(IntegrityError):
                decode_runs(bytes(damaged), 1000)

    def test_another_disks_bitmap_is_refused(self) -> None:
        with pytest.raises(IntegrityError, match="the disk has 1001"):
            decode_runs(encode_runs(GranuleRuns.of([(1, 2)]), 1000), 1001)

    @pytest.mark.parametrize(
        "pairs",
        [
            [(5, 0)],
            [(999, 2)],
            [(1000, 1)],
            [(5, 2), (6, 1)],
            [(5, 2), (7, 1)],
            [(9, 1), (5, 1)],
            [(2**63, 1)],
            [(1, 2**63)],
            [(2**62, 2**62)],
            [(1, 2**63 - 1)],
            [(2**64 - 1, 2**64 - 1)],
        ],
    )
    def test_runs_that_are_no_set_inside_the_disk_are_refused(self, pairs: list[tuple[int, int]]) -> None:
        encoded = encode_runs(GranuleRuns.of([(1, 2)]), 1000)
        payload = b"".join(struct.pack("<QQ", *pair) for pair in pairs)
        with pytest.raises(IntegrityError, match="not sorted, disjoint and inside"):
            decode_runs(_resealed(encoded, payload), 1000)

    @pytest.mark.parametrize(("kind", "length"), [(0, 8), (1, 8), (1, 136), (2, 16), (9, 0)])
    def test_payload_that_does_not_fit_its_kind_is_refused(self, kind: int, length: int) -> None:
        encoded = encode_runs(GranuleRuns.of([(1, 2)]), 1000)
        with pytest.raises(IntegrityError):
            decode_runs(_resealed(encoded, bytes(length), kind=kind), 1000)

    def test_trailing_bytes_are_refused(self) -> None:
        with pytest.raises(IntegrityError):
            decode_runs(encode_runs(GranuleRuns.of([(1, 2)]), 1000) + b"\0", 1000)
