"""What the agent's buffers may be under a limit of its memory: less than configured if need be, never more.

Called by ``config``, once, when the file is read: buffers are made for the whole run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from replication.errors import SettingsError

RESERVED_BYTES: Final = 128 * 2**20
"""What is no buffer: interpreter and libraries (85 MiB), connections, bitmaps, epochs on their way, the freeze watchdog."""
MIN_MEMORY_BYTES: Final = RESERVED_BYTES + 8 * 2**20
MIN_BATCH_BYTES: Final = 2**20
MIN_LAST_ROUND_BYTES: Final = 2**20
_ALIGNMENT_BYTES: Final = 4096
_WANTED_BUFFERS: Final = 3
"""Smaller batches rather than fewer: one is filled while two are on their way."""
_FEWEST_BUFFERS: Final = 2


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The buffers: ``buffers`` of ``batch_bytes``, and ``last_round_bytes`` locked for a freeze."""

    batch_bytes: int
    buffers: int
    batches_in_flight: int
    last_round_bytes: int


def fitted(configured: MemoryPlan, memory_bytes: int, granularity_bytes: int) -> MemoryPlan:
    """``configured``, made smaller until it fits ``memory_bytes`` together with what is no buffer.

    :raises SettingsError: the limit is below what the agent can work with.
    """
    room_bytes = memory_bytes - RESERVED_BYTES
    least_round = max(MIN_LAST_ROUND_BYTES, 2 * granularity_bytes)
    last_round_bytes = min(configured.last_round_bytes, max(_aligned(room_bytes // 4), least_round))
    for_batches = room_bytes - last_round_bytes
    batch_bytes = configured.batch_bytes
    least_batch = min(batch_bytes, max(MIN_BATCH_BYTES, granularity_bytes))
    while batch_bytes > least_batch and for_batches // batch_bytes < _WANTED_BUFFERS:
        batch_bytes = max(least_batch, _aligned(batch_bytes // 2))
    buffers = min(configured.buffers, for_batches // batch_bytes)
    if buffers < _FEWEST_BUFFERS:
        least = RESERVED_BYTES + max(8 * 2**20, min(configured.last_round_bytes, least_round) + 2 * least_batch)
        raise SettingsError(
            f"cannot keep to memory_bytes {memory_bytes}",
            hint=f"at least {-(-least // 2**20)} MiB with granules of {granularity_bytes} bytes",
        )
    return MemoryPlan(batch_bytes, buffers, min(configured.batches_in_flight, buffers - 1), last_round_bytes)


def _aligned(count_bytes: int) -> int:
    return count_bytes // _ALIGNMENT_BYTES * _ALIGNMENT_BYTES
