"""The ``scan`` change tracker: finds what changed by comparing the disk with the digests of what the sink holds. No privileges.

Called by the agent where ``ebpf`` cannot work, and for the resync. Its cost is a read of all data of the disk for each harvest
(holes of a plain file are compared without being read), and it says so by progress; it can be stopped between two slices.

It has no memory, so nothing can be lost: what a harvest returned and nobody confirmed differs from the reference still, and is
found again. A block that is written after it was looked at is found by the next harvest.

What it cannot do is prove that nobody wrote: a plain file's times say nothing of writes through a mapping, and a block device's
counters alone leave a window between landing and being accounted for. So ``wrote_since_flip`` is always True, ``is_idle`` always
False: a consistent point needs quiesce hooks that stop the writers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from mobility_agent.block_device.buffers import BufferPool
from mobility_agent.block_device.reader import DiskReader
from mobility_agent.change_tracker.interface import Harvest, ReferenceDigests, TrackerState, TrackerStatus
from replication.dirty_bitmap import DirtyBitmap, Geometry, GranuleRuns
from replication.errors import InvalidInput, ResyncRequired, Retryable
from replication.extents import Extent, split

SLICE_BYTES: Final = 4 * 1024 * 1024
HOLE_GRANULES: Final = 262144


@dataclass(frozen=True, slots=True)
class ScanProgress:
    """``compared_bytes`` of ``total_bytes`` (holes included), of which ``read_bytes`` were read."""

    compared_bytes: int
    total_bytes: int
    read_bytes: int
    changed_granules: int


class ScanTracker:
    """``ChangeTracker`` over anything that ``DiskReader`` reads. ``reader`` stays the caller's."""

    def __init__(
        self,
        reader: DiskReader,
        geometry: Geometry,
        reference: ReferenceDigests,
        *,
        progress: Callable[[ScanProgress], None] = lambda _: None,
        is_cancelled: Callable[[], bool] = lambda: False,
        before_read: Callable[[int], None] = lambda _bytes: None,
    ) -> None:
        """``progress`` and ``is_cancelled`` are called between slices, in the thread that harvests; ``before_read`` before each read of so
        many bytes: it may wait.
        """
        if geometry.size_bytes > reader.size_bytes:
            raise InvalidInput(
                f"cannot scan {reader.path}: it has {reader.size_bytes} bytes, {geometry.size_bytes} are expected"
            )
        self._reader = reader
        self._geometry = geometry
        self._reference = reference
        self._progress = progress
        self._is_cancelled = is_cancelled
        self._before_read = before_read
        self._pool = BufferPool(1, max(SLICE_BYTES, geometry.granularity_bytes))
        self._marked = DirtyBitmap(geometry.granules)
        self._late: list[GranuleRuns] = []
        self._is_open = False

    @property
    def kind(self) -> str:
        return "scan"

    @property
    def geometry(self) -> Geometry:
        return self._geometry

    @property
    def captures_order(self) -> bool:
        return False

    @property
    def proves_quiet(self) -> bool:
        return False

    @property
    def continued(self) -> bool:
        """True: there is no tracking that an absence could have interrupted."""
        return True

    def status(self) -> TrackerStatus:
        try:
            size_bytes = self._reader.current_size_bytes()
        except OSError as error:
            return TrackerStatus(TrackerState.BLIND, f"{self._reader.path} is gone: {error.strerror}")
        if size_bytes != self._geometry.size_bytes:
            return TrackerStatus(
                TrackerState.DEGRADED,
                f"{self._reader.path} was resized from {self._geometry.size_bytes} to {size_bytes} bytes; "
                "only the earlier size is tracked",
            )
        return TrackerStatus(TrackerState.TRACKING)

    def begin_harvest(self, into: DirtyBitmap | None = None) -> Harvest:
        """Read and compare the whole disk. See ``ChangeTracker``.

        :raises Retryable: if cancelled, or the device reports an error. The next call begins anew.
        :raises ResyncRequired: if the disk became smaller.
        """
        bitmap = DirtyBitmap(self._geometry.granules) if into is None else into
        bitmap.clear_all()
        self._require_whole_disk()
        compared = read = found = 0
        with self._pool.acquire(0) as buffer:
            for extent, is_hole in self._slices():
                if self._is_cancelled():
                    raise Retryable(f"cannot finish the scan of {self._reader.path}: it was cancelled")
                first, count = self._geometry.granule_range(extent)
                if is_hole:
                    changed = self._reference.changed_in_hole(first, count)
                else:
                    view = buffer.view[: extent.length_bytes]
                    self._before_read(extent.length_bytes)
                    self._reader.read_into(view, extent)
                    changed = self._reference.changed_in(first, view)
                    read += extent.length_bytes
                bitmap.mark_runs(changed)
                found += changed.granule_count
                compared += extent.length_bytes
                self._progress(ScanProgress(compared, self._geometry.size_bytes, read, found))
        self._require_whole_disk()
        bitmap.mark_words(self._marked.words)
        self._is_open = True
        self._late.clear()
        return Harvest(bitmap)

    def _require_whole_disk(self) -> None:
        """What is missing at the end of a file would look like a hole."""
        size_bytes = self._reader.current_size_bytes()
        if size_bytes < self._geometry.size_bytes:
            raise ResyncRequired(
                f"cannot scan {self._reader.path}: it became smaller, from {self._geometry.size_bytes} to {size_bytes} bytes",
                hint="protect the disk anew",
            )

    def _slices(self) -> Iterator[tuple[Extent, bool]]:
        """(extent, whether it is a hole), granule-aligned and in order, from the first to the last byte of the disk."""
        position = 0
        whole = Extent(0, self._geometry.size_bytes)
        for data in self._reader.data_extents(whole, self._geometry.granularity_bytes):
            if data.offset_bytes > position:
                yield from self._hole(Extent(position, data.offset_bytes - position))
            for part in split([data], self._pool.buffer_bytes):
                yield part, False
            position = data.end_bytes
        if position < whole.end_bytes:
            yield from self._hole(Extent(position, whole.end_bytes - position))

    def _hole(self, hole: Extent) -> Iterator[tuple[Extent, bool]]:
        """In parts, so that neither what is compared at once nor the time until a cancellation is seen grows with the disk."""
        for part in split([hole], HOLE_GRANULES * self._geometry.granularity_bytes):
            yield part, True

    @property
    def journal_serial(self) -> int:
        """0: nothing is ever forgotten that another harvest would not find."""
        return 0

    def commit_harvest(self, journal_serial: int = 0) -> None:  # noqa: ARG002  the contract's; see above
        if not self._is_open:
            return
        self._is_open = False
        self._marked.clear_all()
        for runs in self._late:
            self._marked.mark_runs(runs)
        self._late.clear()

    def wrote_since_flip(self) -> bool:
        return True

    def is_idle(self) -> bool:
        return False

    def mark(self, runs: GranuleRuns) -> None:
        self._marked.mark_runs(runs)
        if self._is_open:
            self._late.append(runs)

    def close(self) -> None:
        self._is_open = False

    def discard(self) -> None:
        self.close()
