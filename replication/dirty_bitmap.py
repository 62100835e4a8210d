"""Dirty bitmaps: one bit a granule, set = may have changed; and granule runs, their sparse form.

Called by the agent's trackers and epochs. Pure numpy; no I/O. A ``DirtyBitmap`` costs 2 MiB per TiB at 64 KiB granules,
whatever is dirty; ``GranuleRuns`` cost 16 bytes a run. Every operation works in bounded slices, so that no temporary
grows with the disk beyond the bitmap itself.

Encoded form (for durable files; little-endian): magic ``BFDB``, u16 version, u16 kind (0 runs, 1 words),
u64 granules, u64 payload length, u64 xxh3-64 of the payload, payload (pairs of u64 start, count; or u64 words).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from replication.errors import IntegrityError, InvalidInput
from replication.extents import BLOCK_BYTES, MAX_DISK_BYTES, Extent

DEFAULT_GRANULARITY_BYTES: Final = 64 * 1024
MIN_GRANULARITY_BYTES: Final = 4 * 1024
MAX_GRANULARITY_BYTES: Final = 4 * 1024 * 1024
MAX_GRANULES: Final = MAX_DISK_BYTES // MIN_GRANULARITY_BYTES

_WORD_BITS: Final = 64
_FULL_WORD: Final = np.uint64(2**64 - 1)
SLICE_WORDS: Final = 8192
_ZERO_SLICE: Final = bytes(SLICE_WORDS * 8)
_SLICE_PAIRS: Final = 8192
_SPARSE: Final = 16
"""Where only one word in so many is dirty, only those are unpacked: few granules of a huge disk cost little, also under a freeze."""
_HEADER: Final = struct.Struct("<4sHHQQQ")
_MAGIC: Final = b"BFDB"
_VERSION: Final = 1
_KIND_RUNS: Final = 0
_KIND_WORDS: Final = 1

Words = npt.NDArray[np.uint64]
Pairs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Geometry:
    """A disk's size and granularity: the arithmetic between bytes and granules. The last granule may be short (R13)."""

    size_bytes: int
    granularity_bytes: int = DEFAULT_GRANULARITY_BYTES

    def __post_init__(self) -> None:
        if not 0 < self.size_bytes <= MAX_DISK_BYTES or self.size_bytes % BLOCK_BYTES:
            raise InvalidInput(
                f"cannot use a disk of {self.size_bytes} bytes",
                hint=f"a positive multiple of {BLOCK_BYTES} up to {MAX_DISK_BYTES} is expected",
            )
        granularity = self.granularity_bytes
        if not MIN_GRANULARITY_BYTES <= granularity <= MAX_GRANULARITY_BYTES or granularity & (granularity - 1):
            raise InvalidInput(
                f"cannot use a granularity of {granularity} bytes",
                hint=f"a power of two from {MIN_GRANULARITY_BYTES} to {MAX_GRANULARITY_BYTES}",
            )

    @property
    def granules(self) -> int:
        return -(-self.size_bytes // self.granularity_bytes)

    def run_extent(self, start: int, count: int) -> Extent:
        """The bytes of granules [start, start + count), cut at the disk's end."""
        offset = start * self.granularity_bytes
        return Extent(offset, min(count * self.granularity_bytes, self.size_bytes - offset))

    def granule_range(self, extent: Extent) -> tuple[int, int]:
        """(first granule, number of granules) that ``extent`` touches."""
        first = extent.offset_bytes // self.granularity_bytes
        return first, -(-extent.end_bytes // self.granularity_bytes) - first


class GranuleRuns:
    """Immutable sorted set of granules as disjoint, non-adjacent runs (start, count)."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    @classmethod
    def of(cls, runs: Iterable[tuple[int, int]]) -> GranuleRuns:
        """Build from runs in any order; overlapping and adjacent runs are merged.

        :raises InvalidInput: for a negative start or a count below 1.
        """
        merged: list[list[int]] = []
        for start, count in sorted(runs):
            if start < 0 or count < 1 or start + count > MAX_GRANULES:
                raise InvalidInput(f"cannot use granule run ({start}, {count})")
            if merged and start <= merged[-1][0] + merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], start + count - merged[-1][0])
            else:
                merged.append([start, count])
        return cls(np.array(merged, dtype=np.int64).reshape(-1, 2))

    @property
    def pairs(self) -> Pairs:
        return self._pairs

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for at in range(0, len(self._pairs), _SLICE_PAIRS):
            for start, count in self._pairs[at : at + _SLICE_PAIRS].tolist():
                yield start, count

    def __len__(self) -> int:
        return len(self._pairs)

    def __bool__(self) -> bool:
        return len(self._pairs) > 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GranuleRuns) and np.array_equal(self._pairs, other._pairs)

    def __hash__(self) -> int:
        return hash(self._pairs.tobytes())

    def __repr__(self) -> str:
        return f"GranuleRuns({len(self)} runs, {self.granule_count} granules)"

    @property
    def granule_count(self) -> int:
        return int(self._pairs[:, 1].sum())

    def extents(self, geometry: Geometry) -> Iterator[Extent]:
        for start, count in self:
            yield geometry.run_extent(start, count)

    def byte_count(self, geometry: Geometry) -> int:
        """Bytes covered, the short last granule counted as it is."""
        if not self:
            return 0
        last_start, last_count = int(self._pairs[-1, 0]), int(self._pairs[-1, 1])
        whole = self.granule_count * geometry.granularity_bytes
        return whole - max(0, (last_start + last_count) * geometry.granularity_bytes - geometry.size_bytes)

    def indices(self) -> npt.NDArray[np.int64]:
        """Every granule number, ascending (8 bytes each: for bounded sets, such as one epoch's, only)."""
        if not self:
            return np.empty(0, dtype=np.int64)
        starts, counts = self._pairs[:, 0], self._pairs[:, 1]
        first_positions = np.cumsum(counts) - counts
        return np.repeat(starts - first_positions, counts) + np.arange(int(counts.sum()), dtype=np.int64)


def filled_slices(words: Words) -> Iterator[int]:
    """Where a slice of ``SLICE_WORDS`` begins that is not all zeros.

    Compared with zeros, not summed or searched: memcmp(3) reads memory several times as fast as any reduction of numpy's (measured).
    """
    if not len(words):
        return
    octets = words.data.cast("B")
    for at in range(0, len(words), SLICE_WORDS):
        if not _ZERO_SLICE.startswith(octets[at * 8 : (at + SLICE_WORDS) * 8]):
            yield at


class DirtyBitmap:
    """A bit for each granule of a disk. When uncertain, callers mark; only durability downstream clears.

    ``words`` given at construction are used in place (a kernel's map, say), not copied; bits past the last granule are cleared.
    ``changes`` grows with each call that may set or clear a bit; who writes to ``words`` directly is not counted.
    """

    __slots__ = ("changes", "granules", "words")

    def __init__(self, granules: int, words: Words | None = None) -> None:
        if not 0 < granules <= MAX_GRANULES:
            raise InvalidInput(f"cannot make a bitmap of {granules} granules")
        self.granules = granules
        self.changes = 0
        word_count = -(-granules // _WORD_BITS)
        if words is None:
            words = np.zeros(word_count, dtype=np.uint64)
        elif len(words) != word_count:
            raise InvalidInput(f"cannot use {len(words)} words as a bitmap of {granules} granules")
        self.words = words
        self._mask_tail()

    def _mask_tail(self) -> None:
        spare = self.granules % _WORD_BITS
        if spare:
            self.words[-1] &= np.uint64((1 << spare) - 1)

    def copy(self) -> DirtyBitmap:
        return DirtyBitmap(self.granules, self.words.copy())

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, DirtyBitmap)
            and self.granules == other.granules
            and np.array_equal(self.words, other.words)
        )

    def __hash__(self) -> int:
        raise TypeError("a DirtyBitmap is mutable")

    def __contains__(self, granule: int) -> bool:
        if not 0 <= granule < self.granules:
            return False
        return bool(int(self.words[granule // _WORD_BITS]) >> (granule % _WORD_BITS) & 1)

    def any(self) -> bool:
        return next(filled_slices(self.words), None) is not None

    def count(self) -> int:
        """Number of set bits."""
        return sum(int(np.bitwise_count(self.words[at : at + SLICE_WORDS]).sum()) for at in filled_slices(self.words))

    def mark_all(self) -> None:
        self.changes += 1
        self.words[:] = _FULL_WORD
        self._mask_tail()

    def clear_all(self) -> None:
        self.changes += 1
        self.words[:] = 0

    def mark(self, start: int, count: int) -> None:
        """Set granules [start, start + count); what lies past the disk's end is ignored."""
        self._change(start, count, mark=True)

    def clear(self, start: int, count: int) -> None:
        self._change(start, count, mark=False)

    def _change(self, start: int, count: int, *, mark: bool) -> None:
        if start < 0 or count < 0:
            raise InvalidInput(f"cannot change granule run ({start}, {count})")
        end = min(start + count, self.granules)
        if start >= end:
            return
        self.changes += 1
        first_word, last_word, head, tail = _word_range(start, end)
        if first_word == last_word:
            self._change_word(first_word, head & tail, mark=mark)
            return
        self._change_word(first_word, head, mark=mark)
        self.words[first_word + 1 : last_word] = _FULL_WORD if mark else 0
        self._change_word(last_word, tail, mark=mark)

    def _change_word(self, word: int, mask: int, *, mark: bool) -> None:
        if mark:
            self.words[word] |= np.uint64(mask)
        else:
            self.words[word] &= np.uint64(~mask & (2**64 - 1))

    def mark_runs(self, runs: GranuleRuns) -> None:
        for start, count in runs:
            self.mark(start, count)

    def clear_runs(self, runs: GranuleRuns) -> None:
        for start, count in runs:
            self.clear(start, count)

    def mark_words(self, words: Words) -> None:
        """Set every bit that is set in ``words`` (same layout; longer input is cut at this bitmap's end).

        :raises InvalidInput: if ``words`` are fewer than this bitmap's.
        """
        if len(words) < len(self.words):
            raise InvalidInput(f"cannot mark {len(words)} words in a bitmap of {self.granules} granules")
        self.changes += 1
        np.bitwise_or(self.words, words[: len(self.words)], out=self.words)
        self._mask_tail()

    def intersects(self, runs: GranuleRuns) -> bool:
        """Whether any granule of ``runs`` is set."""
        return any(self._any_in(start, min(start + count, self.granules)) for start, count in runs)

    def _any_in(self, start: int, end: int) -> bool:
        if start >= end:
            return False
        first_word, last_word, head, tail = _word_range(start, end)
        if first_word == last_word:
            return bool(int(self.words[first_word]) & head & tail)
        if int(self.words[first_word]) & head or int(self.words[last_word]) & tail:
            return True
        return bool(self.words[first_word + 1 : last_word].any())

    def runs(self, limit_granules: int | None = None, start_granule: int = 0) -> GranuleRuns:
        """Return the set granules from ``start_granule`` on as runs, at most ``limit_granules`` of them."""
        pieces: list[Pairs] = []
        found = 0
        first_word = start_granule // _WORD_BITS
        for behind in filled_slices(self.words[first_word:]):
            at = first_word + behind
            part = self.words[at : at + SLICE_WORDS]
            if at == first_word and start_granule % _WORD_BITS:
                part = part.copy()
                part[0] &= np.uint64((2**64 - 1) << (start_granule % _WORD_BITS) & (2**64 - 1))
            pairs = _runs_of_words(part, at * _WORD_BITS)
            if not len(pairs):
                continue
            pieces.append(pairs)
            found += int(pairs[:, 1].sum())
            if limit_granules is not None and found >= limit_granules:
                break
        pairs = _joined(pieces)
        return GranuleRuns(pairs if limit_granules is None else _first_granules(pairs, limit_granules))


def _word_range(start: int, end: int) -> tuple[int, int, int, int]:
    """(first word, last word, mask in the first, mask in the last) of granules [start, end), which are not empty."""
    head = (2**64 - 1) << (start % _WORD_BITS) & (2**64 - 1)
    tail = (2**64 - 1) >> (_WORD_BITS - 1 - (end - 1) % _WORD_BITS)
    return start // _WORD_BITS, (end - 1) // _WORD_BITS, head, tail


def _runs_of_words(words: Words, first_granule: int) -> Pairs:
    """Runs of set bits inside one slice of words, numbered from ``first_granule``."""
    dirty = np.flatnonzero(words)
    if not len(dirty):
        return np.empty((0, 2), dtype=np.int64)
    if len(dirty) * _SPARSE <= len(words):
        return _runs_of_sparse_words(words, dirty, first_granule)
    if (words == _FULL_WORD).all():
        return np.array([[first_granule, len(words) * _WORD_BITS]], dtype=np.int64)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    edges = np.flatnonzero(np.diff(bits, prepend=np.uint8(0), append=np.uint8(0)))
    pairs = edges.reshape(-1, 2).astype(np.int64)
    pairs[:, 1] -= pairs[:, 0]
    pairs[:, 0] += first_granule
    return pairs


def _runs_of_sparse_words(words: Words, dirty: npt.NDArray[np.int64], first_granule: int) -> Pairs:
    """As ``_runs_of_words``, unpacking only the words numbered ``dirty``."""
    bits = np.unpackbits(words[dirty].view(np.uint8), bitorder="little").reshape(-1, _WORD_BITS)
    rows, columns = np.nonzero(np.diff(bits, prepend=np.uint8(0), append=np.uint8(0), axis=1))
    edges = (dirty[rows] * _WORD_BITS + columns + first_granule).reshape(-1, 2)
    edges[:, 1] -= edges[:, 0]
    return _merged(edges)


def _joined(pieces: list[Pairs]) -> Pairs:
    """Concatenate ascending pieces, merging runs that touch at the seams."""
    if not pieces:
        return np.empty((0, 2), dtype=np.int64)
    return _merged(np.concatenate(pieces))


def _merged(pairs: Pairs) -> Pairs:
    """Ascending runs that do not overlap, with those that touch made one."""
    ends = pairs[:, 0] + pairs[:, 1]
    starts_new = np.ones(len(pairs), dtype=bool)
    starts_new[1:] = pairs[1:, 0] != ends[:-1]
    first = np.flatnonzero(starts_new)
    last = np.append(first[1:], len(pairs)) - 1
    return np.stack([pairs[first, 0], ends[last] - pairs[first, 0]], axis=1)


def _first_granules(pairs: Pairs, limit: int) -> Pairs:
    if limit <= 0:
        return np.empty((0, 2), dtype=np.int64)
    before = np.cumsum(pairs[:, 1]) - pairs[:, 1]
    kept = pairs[before < limit].copy()
    if len(kept):
        kept[-1, 1] = min(kept[-1, 1], limit - int(before[len(kept) - 1]))
    return kept


def encode_runs(runs: GranuleRuns, granules: int) -> bytes:
    """Encode a set of granules of a disk with ``granules`` granules; the smaller of the two forms is chosen.

    :raises InvalidInput: if a run lies past the disk's end: it would be lost, or refused by ``decode_runs``.
    """
    if runs and int(runs.pairs[-1].sum()) > granules:
        raise InvalidInput(f"cannot encode granule runs past the end of a disk of {granules} granules")
    word_bytes = -(-granules // _WORD_BITS) * 8
    if len(runs) * 16 <= word_bytes:
        kind, payload = _KIND_RUNS, runs.pairs.astype("<u8").tobytes()
    else:
        bitmap = DirtyBitmap(granules)
        bitmap.mark_runs(runs)
        kind, payload = _KIND_WORDS, bitmap.words.astype("<u8").tobytes()
    return _HEADER.pack(_MAGIC, _VERSION, kind, granules, len(payload), xxhash.xxh3_64_intdigest(payload)) + payload


def decode_runs(encoded: bytes, granules: int) -> GranuleRuns:
    """Decode what ``encode_runs`` made for a disk of ``granules`` granules.

    :raises IntegrityError: if it is truncated, damaged, of another version or of another disk's size.
    """

    def damaged(why: str) -> IntegrityError:
        return IntegrityError(f"cannot decode a dirty bitmap: {why}")

    if len(encoded) < _HEADER.size:
        raise damaged(f"{len(encoded)} bytes are shorter than the header")
    magic, version, kind, stated_granules, length, digest = _HEADER.unpack_from(encoded)
    if magic != _MAGIC or version != _VERSION:
        raise damaged(f"magic {magic!r} version {version} is unknown")
    if stated_granules != granules:
        raise damaged(f"it describes {stated_granules} granules, the disk has {granules}")
    payload = encoded[_HEADER.size :]
    if len(payload) != length or xxhash.xxh3_64_intdigest(payload) != digest:
        raise damaged("length or checksum does not match")
    if kind == _KIND_WORDS:
        if length != -(-granules // _WORD_BITS) * 8:
            raise damaged(f"{length} bytes of words do not fit {granules} granules")
        return DirtyBitmap(granules, np.frombuffer(payload, dtype="<u8").astype(np.uint64)).runs()
    if kind != _KIND_RUNS or length % 16:
        raise damaged(f"kind {kind} with {length} bytes is unknown")
    pairs = np.frombuffer(payload, dtype="<u8").astype(np.int64).reshape(-1, 2)
    ends = pairs[:, 0] + pairs[:, 1]
    # no value above ``granules``, so that no sum overflows
    if len(pairs) and (
        pairs.min() < 0
        or pairs.max() > granules
        or (pairs[:, 1] < 1).any()
        or (pairs[1:, 0] <= ends[:-1]).any()
        or ends[-1] > granules
    ):
        raise damaged("runs are not sorted, disjoint and inside the disk")
    return GranuleRuns(pairs)
