"""Which granules of a buffer are zero: they are sent as such, never as data. Pure.

Called by the agent's readers of epochs and of the initial replication, once per buffer read.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from replication.dirty_bitmap import MAX_GRANULARITY_BYTES, GranuleRuns
from replication.errors import InvalidInput

_ZEROS: Final = bytes(MAX_GRANULARITY_BYTES)


def is_zero(data: memoryview) -> bool:
    """Whether every byte of ``data`` is zero. One memcmp, without a copy."""
    return all(
        _ZEROS.startswith(data[at : at + MAX_GRANULARITY_BYTES]) for at in range(0, len(data), MAX_GRANULARITY_BYTES)
    )


def split_zero_runs(data: memoryview, granularity_bytes: int, first_granule: int) -> tuple[GranuleRuns, GranuleRuns]:
    """Return (granules with data, granules that are zero) of ``data``, numbered from ``first_granule``.

    The last granule may be short (the disk's end). Most data granules are told by their first word alone (measured:
    a look at 8 bytes against 2 microseconds for the whole 64 KiB); only the others are compared whole.

    :raises InvalidInput: if ``data`` is empty, not contiguous bytes, or not a multiple of 8 bytes long.
    """
    if not data or data.format != "B" or not data.contiguous or len(data) % 8:
        raise InvalidInput("cannot look for zero granules: expected contiguous bytes, a multiple of 8 of them")
    firsts = np.frombuffer(data, dtype=np.uint64)[:: granularity_bytes // 8]
    zero = np.zeros(len(firsts) + 2, dtype=np.int8)
    for index in np.flatnonzero(firsts == 0).tolist():
        start = index * granularity_bytes
        zero[index + 1] = is_zero(data[start : start + granularity_bytes])
    edges = np.flatnonzero(np.diff(zero)).reshape(-1, 2)
    zero_runs = [(first_granule + int(start), int(end - start)) for start, end in edges]
    bounds = [0, *edges.ravel().tolist(), len(firsts)]
    data_runs = [
        (first_granule + bounds[at], bounds[at + 1] - bounds[at])
        for at in range(0, len(bounds), 2)
        if bounds[at + 1] > bounds[at]
    ]
    return GranuleRuns.of(data_runs), GranuleRuns.of(zero_runs)
