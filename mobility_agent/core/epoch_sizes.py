"""How much the next epoch of initial replication or resync takes. Called by ``disk_session`` when it cuts one.

The sink applies whole epochs: while the last one is applied, the agent and the process server have nothing to do, and nobody has a
recovery point. So the last ones are ever smaller: each takes half of what is left, which is sent about as fast as the one before it is
applied. Not below what keeps a window of batches full, since sending comes to rest between two epochs.
"""

from __future__ import annotations

from typing import Final

SMALLEST_BYTES: Final = 32 * 1024 * 1024
"""Four batches as they are by default."""


def seeding_epoch_bytes(pending_bytes: int, largest_bytes: int) -> int:
    """:param pending_bytes: what is still to be compared or sent, this epoch included.
    :param largest_bytes: the largest epoch allowed; it may be below ``SMALLEST_BYTES``.
    """
    return min(largest_bytes, max(SMALLEST_BYTES, pending_bytes // 2))
