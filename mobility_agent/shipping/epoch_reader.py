"""Reads one attempt of an epoch and fills batches: reads past the page cache, drops equal rewrites, tells zeros from data.

Called by ``epoch_shipper`` in the disk's executor thread: one call fills one buffer, so that reading runs ahead of sending by the
number of buffers and no more; under a limit of what may be read (``pace``) several calls do, and the batches are the same. A granule is
left out only if its digest equals the digest table's and it is in no other unconfirmed epoch (R1). Zero granules travel as runs without
data, whatever their length.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from mobility_agent.block_device.zero_runs import split_zero_runs
from mobility_agent.change_tracker.interface import ExtentSource
from mobility_agent.shipping.digest_table import DIGEST_BYTES, Digests, DigestTable, Indices
from replication.batch_frame import BatchExtent, DataExtent, ZeroExtent
from replication.dirty_bitmap import GranuleRuns
from replication.extents import Extent

MAX_EXTENTS: Final = 4096
"""A batch is handed on when it has this many extents: well below the frame's limit, since one window adds many."""


@dataclass(frozen=True, slots=True)
class FilledBatch:
    """What one buffer yielded. Data extents are views of the buffer; ``indices``/``digests`` are of the granules sent."""

    extents: tuple[BatchExtent, ...]
    indices: Indices
    digests: Digests


class Unfinished:
    """The buffer is not full yet: as much as allowed was read."""


class EpochReader:
    """One attempt's reading. ``next_batch`` returns None when every granule was read; ``read_bytes`` counts what was read so far."""

    def __init__(
        self,
        source: ExtentSource,
        runs: GranuleRuns,
        table: DigestTable,
        not_to_skip: Sequence[GranuleRuns],
        require_open: Callable[[], None] = lambda: None,
    ) -> None:
        """:param not_to_skip: the granules of the other unconfirmed epochs: sent even if they equal the table.
        :param require_open: raises once source and table may be closed: a point may still be read when its disk's session has failed.
        """
        self._require_open = require_open
        self._source = source
        self._geometry = table.geometry
        self._table = table
        self._not_to_skip = _Union(not_to_skip)
        self._runs = deque(runs)
        self._filling: _Filling | None = None
        """The batch that the last call has left unfinished."""
        self.read_bytes = 0

    def next_batch(self, buffer: memoryview, at_most_bytes: int | None = None) -> FilledBatch | Unfinished | None:
        """Read until ``buffer`` (whole granules, page-aligned) holds no further granule of data or the epoch ends.

        :param at_most_bytes: read no more in this call, but a granule in any case. If that is not enough the answer is ``Unfinished``:
            the next call goes on, with the same buffer.
        :raises Retryable: if the device reports an error; ``offset_bytes`` says where.
        :raises ResyncRequired: if the disk was made smaller. Raises what ``require_open`` does.
        """
        filling, self._filling = self._filling, None
        if not self._runs and filling is None:
            return None
        self._require_open()
        granularity = self._geometry.granularity_bytes
        filling = filling or _Filling()
        left = None if at_most_bytes is None else max(1, at_most_bytes // granularity)
        while self._runs and filling.used_bytes + granularity <= buffer.nbytes and len(filling.extents) < MAX_EXTENTS:
            if left == 0:
                self._filling = filling
                return Unfinished()
            start, count = self._runs.popleft()
            taken = min(count, (buffer.nbytes - filling.used_bytes) // granularity)
            if left is not None:
                taken = min(taken, left)
                left -= taken
            if taken < count:
                self._runs.appendleft((start + taken, count - taken))
            extent = self._geometry.run_extent(start, taken)
            window = buffer[filling.used_bytes : filling.used_bytes + extent.length_bytes]
            self._source.read_into(window, extent)
            self.read_bytes += extent.length_bytes
            filling.used_bytes += self._sort_window(filling, start, extent, window)
        return FilledBatch(
            tuple(filling.extents),
            np.concatenate(filling.indices),
            np.concatenate(filling.digests),
        )

    def _sort_window(self, filling: _Filling, first: int, extent: Extent, window: memoryview) -> int:
        """Add what must be sent; returns how much of the window is in use, in whole granules."""
        granularity = self._geometry.granularity_bytes
        _, zeros = split_zero_runs(window, granularity, first)
        starts = range(0, extent.length_bytes, granularity)
        is_zero = np.zeros(len(starts), dtype=np.bool_)
        for start, count in zeros:
            is_zero[start - first : start - first + count] = True
        digests = self._table.digests(window, is_zero)
        is_sent = (digests != self._table.known_from(first, len(starts))).any(axis=1)
        for index in np.flatnonzero(~is_sent).tolist():
            is_sent[index] = first + index in self._not_to_skip
        sent = np.flatnonzero(is_sent)
        filling.indices.append(sent + first)
        filling.digests.append(digests[sent])
        in_use = 0
        for begin, end in _alike(is_sent * (1 + is_zero.astype(np.int8))):
            at, until = begin * granularity, min(end * granularity, extent.length_bytes)
            part = Extent(extent.offset_bytes + at, until - at)
            if is_zero[begin]:
                filling.add_zero(part)
            else:
                filling.extents.append(DataExtent(part, window[at:until]))
                in_use = end * granularity
        return in_use


def _alike(kinds: npt.NDArray[np.int8]) -> Iterator[tuple[int, int]]:
    """The runs (begin, end) of one kind, but for kind 0."""
    borders = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    return ((begin, end) for begin, end in itertools.pairwise(borders) if kinds[begin])


class _Union:
    """Whether a granule is in any of several sets of runs. Its size goes with the runs, not with the disk."""

    def __init__(self, sets: Sequence[GranuleRuns]) -> None:
        pairs = np.concatenate([np.empty((0, 2), dtype=np.int64), *(runs.pairs for runs in sets)])
        pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        self._starts = pairs[:, 0]
        self._furthest_ends = np.maximum.accumulate(pairs.sum(axis=1)) if len(pairs) else self._starts

    def __contains__(self, granule: int) -> bool:
        before = int(np.searchsorted(self._starts, granule, side="right")) - 1
        return before >= 0 and granule < int(self._furthest_ends[before])


class _Filling:
    """A batch being filled: adjacent zero extents are merged, whatever windows they come from."""

    def __init__(self) -> None:
        self.used_bytes = 0
        """Of the buffer, in whole granules."""
        self.extents: list[BatchExtent] = []
        self.indices: list[Indices] = [np.empty(0, dtype=np.int64)]
        self.digests: list[Digests] = [np.empty((0, DIGEST_BYTES), dtype=np.uint8)]

    def add_zero(self, extent: Extent) -> None:
        last = self.extents[-1] if self.extents else None
        if isinstance(last, ZeroExtent) and last.extent.end_bytes == extent.offset_bytes:
            extent = Extent(last.extent.offset_bytes, last.extent.length_bytes + extent.length_bytes)
            self.extents.pop()
        self.extents.append(ZeroExtent(extent))
