"""The digest table: keyed BLAKE3 (128 bits) of each granule as applied at the sink; a file that is mapped to be read, never held in memory.

Called by the epoch reader (skip equal rewrites), ``scan`` and resync (compare), and ``disk_session`` (update after a receipt).
The header names the (generation, epoch) for which the table is exact (R1). Sixteen zero bytes mean: not known, counts as changed.

It is written with write(2), not through the mapping: a full file system then is an error of the call, where a store to a mapped hole would
end the agent with SIGBUS, and a frozen one blocks this thread alone.

File: 4,096-byte header (little-endian: magic ``BFDT``, u16 version, u16 reserved, 16 bytes disk, u32 generation, u32 granularity,
u64 size, u64 exact epoch, u64 applying epoch or 0, 8 bytes key check, xxh3-64 of all before), then 16 bytes a granule
(256 MiB per TiB at 64 KiB granules; unknown stretches are holes).
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import struct
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash
from blake3 import blake3

from replication.dirty_bitmap import Geometry, GranuleRuns
from replication.durable_file import sync_directory
from replication.errors import IntegrityError
from replication.failpoint import reached
from replication.identifiers import DiskId, EpochId, GenerationId

DIGEST_BYTES: Final = 16
_HEADER_BYTES: Final = 4096
_HEADER: Final = struct.Struct("<4sHH16sIIQQQ8s")
_CHECKSUM: Final = struct.Struct("<Q")
_MAGIC: Final = b"BFDT"
_VERSION: Final = 1
_SLICE_GRANULES: Final = 65536

Digests = npt.NDArray[np.uint8]
"""Shape (n, 16)."""
Indices = npt.NDArray[np.int64]


class DigestTable:
    """One disk's table. Not thread-safe for updates; lookups may run beside each other."""

    def __init__(self, path: Path, disk: DiskId, geometry: Geometry, key: bytes) -> None:
        """Open or create the table at ``path``. A file of another disk, size, granularity or key is started anew: all unknown."""
        self.geometry = geometry
        self._disk = disk
        self._key = key
        self._path = path
        self.generation = GenerationId(0)
        self.exact_epoch = EpochId(0)
        self.interrupted_epoch: EpochId | None = None
        """An update that a crash interrupted: apply it again or forget its granules, before anything is skipped."""
        self._zero_digests: dict[int, bytes] = {}
        fresh = not path.exists()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if fresh or not self._read_header():
                self._start_anew()
                sync_directory(path.parent)
            # Truncated and grown again by ``forget_all``, the file keeps its size, and the mapping stays good.
            self._map = mmap.mmap(self._descriptor, self._file_bytes, access=mmap.ACCESS_READ)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._entries = np.frombuffer(self._map, dtype=np.uint8, offset=_HEADER_BYTES).reshape(-1, DIGEST_BYTES)

    @property
    def _file_bytes(self) -> int:
        return _HEADER_BYTES + self.geometry.granules * DIGEST_BYTES

    def _key_check(self) -> bytes:
        return blake3(b"blockferry digest key check", key=self._key).digest(8)

    def _read_header(self) -> bool:
        raw = os.pread(self._descriptor, _HEADER.size + _CHECKSUM.size, 0)
        if len(raw) < _HEADER.size + _CHECKSUM.size:
            return False
        magic, version, _, disk, generation, granularity, size, exact, applying, key_check = _HEADER.unpack_from(raw)
        if (
            _CHECKSUM.unpack_from(raw, _HEADER.size)[0] != xxhash.xxh3_64_intdigest(raw[: _HEADER.size])
            or (magic, version) != (_MAGIC, _VERSION)
            or disk != uuid.UUID(self._disk).bytes
            or (granularity, size) != (self.geometry.granularity_bytes, self.geometry.size_bytes)
            or key_check != self._key_check()
            or os.fstat(self._descriptor).st_size != self._file_bytes
        ):
            return False
        self.generation, self.exact_epoch = GenerationId(generation), EpochId(exact)
        self.interrupted_epoch = EpochId(applying) if applying else None
        return True

    def _start_anew(self) -> None:
        os.ftruncate(self._descriptor, 0)
        os.ftruncate(self._descriptor, self._file_bytes)
        self.generation, self.exact_epoch, self.interrupted_epoch = GenerationId(0), EpochId(0), None
        self._write_header(applying=0)
        reached("agent.table.started-anew")

    def _write_header(self, *, applying: int) -> None:
        """Durable on return."""
        header = _HEADER.pack(
            _MAGIC,
            _VERSION,
            0,
            uuid.UUID(self._disk).bytes,
            self.generation,
            self.geometry.granularity_bytes,
            self.geometry.size_bytes,
            self.exact_epoch,
            applying,
            self._key_check(),
        )
        os.pwrite(self._descriptor, header + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(header)), 0)
        os.fsync(self._descriptor)

    # ---- digests

    def digest(self, granule: memoryview) -> bytes:
        """Keyed digest of one granule's bytes."""
        return blake3(granule, key=self._key).digest(DIGEST_BYTES)

    def zero_digest(self, length_bytes: int) -> bytes:
        """Keyed digest of ``length_bytes`` zeros; computed once per length (a disk has at most two)."""
        known = self._zero_digests.get(length_bytes)
        if known is None:
            known = self._zero_digests[length_bytes] = blake3(bytes(length_bytes), key=self._key).digest(DIGEST_BYTES)
        return known

    def digests(self, data: memoryview, is_zero: npt.NDArray[np.bool_]) -> Digests:
        """Of each granule of ``data``; of those marked as zero without reading them again."""
        step = self.geometry.granularity_bytes
        found = [
            self.zero_digest(min(step, data.nbytes - at))
            if zero
            else blake3(data[at : at + step], key=self._key).digest(DIGEST_BYTES)
            for at, zero in zip(range(0, data.nbytes, step), is_zero.tolist(), strict=True)
        ]
        return np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, DIGEST_BYTES)

    def known_from(self, first_granule: int, count: int) -> Digests:
        """As ``known`` of ``count`` granules: a view of the table."""
        return self._entries[first_granule : first_granule + count]

    def known(self, granule: int) -> bytes:
        """The stored digest; 16 zero bytes if unknown."""
        entry: bytes = self._entries[granule].tobytes()
        return entry

    def changed_in(self, first_granule: int, data: memoryview) -> GranuleRuns:
        """Granules whose bytes in ``data`` (from ``first_granule`` on) differ from what the sink holds; unknown ones count."""
        step = self.geometry.granularity_bytes
        changed = [
            (first_granule + index, 1)
            for index, at in enumerate(range(0, data.nbytes, step))
            if self.digest(data[at : at + step]) != self.known(first_granule + index)
        ]
        return GranuleRuns.of(changed)

    def changed_in_hole(self, first_granule: int, granule_count: int) -> GranuleRuns:
        """As ``changed_in`` for granules known to read as zeros. Callers bound ``granule_count``: the answer may have half as many runs."""
        zero = np.frombuffer(self.zero_digest(self.geometry.granularity_bytes), dtype=np.uint8)
        last = self.geometry.granules - 1
        pieces: list[npt.NDArray[np.int64]] = []
        for first in range(first_granule, first_granule + granule_count, _SLICE_GRANULES):
            count = min(_SLICE_GRANULES, first_granule + granule_count - first)
            differs = (self._entries[first : first + count] != zero).any(axis=1)
            if first + count - 1 == last:
                short_zero = self.zero_digest(self.geometry.run_extent(last, 1).length_bytes)
                differs[-1] = self.known(last) != short_zero
            edges = np.flatnonzero(np.diff(differs.view(np.int8), prepend=np.int8(0), append=np.int8(0)))
            runs = edges.reshape(-1, 2).astype(np.int64)
            runs[:, 1] -= runs[:, 0]
            runs[:, 0] += first
            if pieces and len(runs) and int(pieces[-1][-1].sum()) == int(runs[0, 0]):
                pieces[-1][-1, 1] += runs[0, 1]
                runs = runs[1:]
            if len(runs):
                pieces.append(runs)
        return GranuleRuns(np.concatenate(pieces)) if pieces else GranuleRuns.of(())

    # ---- updates, each crash-safe

    def apply(self, epoch: EpochId, indices: Indices, digests: Digests) -> None:
        """Record the digests of an epoch that a receipt confirmed; on return the table is exact for ``epoch``, durably.

        A crash in between leaves ``interrupted_epoch`` set at the next open. Repeating it is harmless.
        """
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= self.geometry.granules):
            raise IntegrityError("cannot record digests outside of the disk", disk=self._disk, epoch=epoch)
        self._begin(epoch)
        order = np.argsort(indices, kind="stable")
        sorted_indices, sorted_digests = indices[order], digests[order]
        breaks = np.flatnonzero(np.diff(sorted_indices) != 1) + 1
        for first, end in itertools.pairwise([0, *breaks.tolist(), len(sorted_indices)]):
            if first < end:
                self._write_entries(int(sorted_indices[first]), memoryview(sorted_digests[first:end].tobytes()))
        self._end(epoch)

    def forget(self, epoch: EpochId, runs: GranuleRuns) -> None:
        """As ``apply`` for an epoch whose applied content is not known: its granules become unknown."""
        self._begin(epoch)
        self._clear(runs)
        self._end(epoch)

    def _clear(self, runs: GranuleRuns) -> None:
        unknown = memoryview(bytes(_SLICE_GRANULES * DIGEST_BYTES))
        for start, count in runs:
            for first in range(start, start + count, _SLICE_GRANULES):
                self._write_entries(first, unknown[: min(_SLICE_GRANULES, start + count - first) * DIGEST_BYTES])

    def _write_entries(self, first_granule: int, entries: memoryview) -> None:
        position = _HEADER_BYTES + first_granule * DIGEST_BYTES
        while entries:
            written = os.pwrite(self._descriptor, entries, position)
            entries, position = entries[written:], position + written

    def _begin(self, epoch: EpochId) -> None:
        self.interrupted_epoch = EpochId(max(epoch, 1))
        self._write_header(applying=self.interrupted_epoch)
        reached("agent.table.announced")

    def _end(self, epoch: EpochId) -> None:
        os.fsync(self._descriptor)
        reached("agent.table.entries-durable")
        self.exact_epoch, self.interrupted_epoch = epoch, None
        self._write_header(applying=0)

    def begin_generation(self, generation: GenerationId, unknown: Iterable[GranuleRuns]) -> None:
        """The table without ``unknown`` is exact for epoch 0 of ``generation`` (its base): as ``forget_since``."""
        self.forget_since(generation, EpochId(0), unknown)

    def forget_since(self, generation: GenerationId, epoch: EpochId, unknown: Iterable[GranuleRuns]) -> None:
        """The table without ``unknown``, which is all that was recorded since or may have been, is exact for ``epoch``; durable on return.

        A crash in between leaves fewer granules known, under the old name: repeat it.
        """
        for runs in unknown:
            self._clear(runs)
        os.fsync(self._descriptor)
        reached("agent.table.entries-durable")
        self.generation, self.exact_epoch, self.interrupted_epoch = generation, epoch, None
        self._write_header(applying=0)

    def forget_all(self, generation: GenerationId, epoch: EpochId) -> None:
        """Every granule becomes unknown, which is exact for any epoch: for ``epoch`` of ``generation``; durable on return."""
        self._start_anew()
        self.generation, self.exact_epoch = generation, epoch
        self._write_header(applying=0)

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
            del self._entries
            with contextlib.suppress(BufferError):  # a failed lookup's traceback has a view still: it goes with that
                self._map.close()
