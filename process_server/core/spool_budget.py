"""Admission to the spool: how much may still be accepted, so that it never outgrows its limit nor its index the memory.

Called by the intake (before a body is read) and the daemon (limits). A reservation is made before a batch is accepted and
given back when the record is written (its bytes are then *used*) or has failed. Headroom is kept for manifests: they let epochs
complete, and epochs that complete let the spool drain.

Before the spool is full, ``intake_rate`` says how fast batches may still come: below 20 % free it falls along a hyperbola, from no limit
to nothing where batches are refused; half-way, at 10 % free, it is what the store takes. So a spool whose uploads lag behind settles there,
and agents feel it gradually: their changes stay in their bitmaps, where a block that is written twice counts once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Self

from replication.data_plane import RETRY_AFTER_SPOOL_FULL_S, SPOOL_THROTTLED_BELOW
from replication.errors import InvalidInput, Overloaded

DEFAULT_LIMIT_BYTES: Final = 300 * 10**9
FILE_SYSTEM_FRACTION: Final = 0.8
MAX_FILE_BYTES: Final = 128 * 2**20
MIN_LIMIT_BYTES: Final = 64 * 2**20
MAX_HEADROOM_BYTES: Final = 256 * 2**20

LEAST_DRAIN_BYTES_PER_S: Final = 2**20
FILLED_IN_S: Final = 3600.0
"""With a store that takes nothing, the last fifth of the spool is filled as if it took a fifth within this time."""

SEGMENT_INDEX_BYTES: Final = 192
"""Memory that one segment's entry takes, measured and rounded up."""
EPOCH_INDEX_BYTES: Final = 1536
"""Memory that one epoch's bookkeeping takes besides its segments."""
DEFAULT_INDEX_LIMIT_BYTES: Final = 24 * 2**20
_INDEX_FRACTION_FOR_BATCHES: Final = 0.95


def spool_limit_bytes(configured_bytes: int, file_system_bytes: int) -> int:
    """The configured size or 80 % of the file system, whichever is less."""
    return min(configured_bytes, int(file_system_bytes * FILE_SYSTEM_FRACTION))


def spool_file_bytes(limit_bytes: int) -> int:
    """Size of one file of the log: a sixteenth of the limit, at most 128 MiB, so that space comes back in small steps."""
    return min(MAX_FILE_BYTES, limit_bytes // 16)


@dataclass(frozen=True, slots=True)
class SpoolUse:
    """What the spool holds now."""

    used_bytes: int
    index_bytes: int


class Reservation:
    """Room set aside for one record; ``close`` once its bytes are used or it has failed. Closing twice does nothing."""

    __slots__ = ("_budget", "_bytes")

    def __init__(self, budget: SpoolBudget, reserved_bytes: int) -> None:
        self._budget: SpoolBudget | None = budget
        self._bytes = reserved_bytes

    def close(self) -> None:
        if self._budget is not None:
            self._budget.reserved_bytes -= self._bytes
            self._budget = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class SpoolBudget:
    """Invariant: used + reserved + one preallocated file never exceed the limit; batches leave ``headroom_bytes`` of it."""

    def __init__(self, limit_bytes: int, *, index_limit_bytes: int = DEFAULT_INDEX_LIMIT_BYTES) -> None:
        """:raises InvalidInput: if the limit is smaller than a spool can work with."""
        if limit_bytes < MIN_LIMIT_BYTES:
            raise InvalidInput(
                f"cannot keep a spool within {limit_bytes} bytes",
                hint=f"at least {MIN_LIMIT_BYTES // 2**20} MiB; it is also at most 80 % of the file system",
            )
        self.limit_bytes = limit_bytes
        self.file_bytes = spool_file_bytes(limit_bytes)
        self.headroom_bytes = min(MAX_HEADROOM_BYTES, limit_bytes // 8)
        self.index_limit_bytes = index_limit_bytes
        self.reserved_bytes = 0

    def reserve_batch(self, use: SpoolUse, record_bytes: int) -> Reservation:
        """Set room aside for a batch whose record takes at most ``record_bytes``.

        :raises Overloaded: if that would leave too little for manifests; nothing was reserved.
        """
        index_limit = self.index_limit_bytes * _INDEX_FRACTION_FOR_BATCHES
        return self._reserve(use, record_bytes, self.limit_bytes - self.headroom_bytes, index_limit)

    def reserve_manifest(self, use: SpoolUse, record_bytes: int) -> Reservation:
        """As ``reserve_batch``, up to the limit itself."""
        return self._reserve(use, record_bytes, self.limit_bytes, self.index_limit_bytes)

    def _reserve(self, use: SpoolUse, record_bytes: int, limit_bytes: int, index_limit: float) -> Reservation:
        if use.used_bytes + self.reserved_bytes + record_bytes + self.file_bytes > limit_bytes:
            raise Overloaded(
                "cannot accept more: the spool is full",
                retry_after_s=RETRY_AFTER_SPOOL_FULL_S,
                hint="the store must take what is spooled first; check uploads, or raise spool.limit_bytes",
            )
        if use.index_bytes + EPOCH_INDEX_BYTES > index_limit:
            raise Overloaded(
                "cannot accept more: too many segments and epochs wait in the spool",
                retry_after_s=RETRY_AFTER_SPOOL_FULL_S,
                hint="the store must take what is spooled first; check uploads",
            )
        self.reserved_bytes += record_bytes
        return Reservation(self, record_bytes)

    def free_fraction(self, use: SpoolUse, file_system_available_bytes: int | None) -> float:
        """What may still be used, as a fraction of the limit: bounded by what the file system has left, if that is known (not None)."""
        available = self.limit_bytes if file_system_available_bytes is None else file_system_available_bytes
        free = min(self.limit_bytes - use.used_bytes, available)
        return max(0.0, min(1.0, free / self.limit_bytes))

    def is_low(self, use: SpoolUse, file_system_available_bytes: int | None) -> bool:
        """Whether so little is free that batches are accepted more slowly."""
        return self.free_fraction(use, file_system_available_bytes) < SPOOL_THROTTLED_BELOW

    def intake_rate(self, use: SpoolUse, file_system_available_bytes: int | None, drained_bytes_per_s: float) -> float:
        """Bytes of batches that may be accepted per second while ``drained_bytes_per_s`` go to the store; infinite: whatever comes.

        It falls steadily as less is free. ``file_system_available_bytes`` None: not known.
        """
        if not self.is_low(use, file_system_available_bytes):
            return math.inf
        available = self.limit_bytes if file_system_available_bytes is None else file_system_available_bytes
        kept = self.headroom_bytes + self.file_bytes  # what batches are never given
        threshold = self.limit_bytes * SPOOL_THROTTLED_BELOW - kept
        left = min(self.limit_bytes - use.used_bytes, available) - kept
        if left <= 0 or threshold <= left:
            return 0.0
        least = max(LEAST_DRAIN_BYTES_PER_S, self.limit_bytes * SPOOL_THROTTLED_BELOW / FILLED_IN_S)
        return max(least, drained_bytes_per_s) * left / (threshold - left)
