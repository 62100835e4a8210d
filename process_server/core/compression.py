"""How hard to compress a batch: harder while the line to the store is what holds replication up.

Called by ``intake/compression_choice.py`` for every batch. Any reader opens a segment of any level, so each batch is decided for itself and
nothing is remembered. Of a file system with the usual files, level 3 makes 0.89 of the bytes of level 1 and takes 1.56 of its processor
time; that of level -1, while the processors are what holds it up, gained nothing worth its 1.11 of the bytes (docs/performance.md).
"""

from __future__ import annotations

from typing import Final

USUAL: Final = 1
SMALLER: Final = 3

BEHIND_S: Final = 30.0
BEHIND_BYTES: Final = 128 * 2**20
"""The line is behind where more waits than this, and than it takes in ``BEHIND_S``: a burst is not."""


def level_for(waiting_bytes: int, sent_bytes_per_s: float) -> int:
    """zstd's level for the next batch.

    :param waiting_bytes: sealed, and not in the store yet.
    :param sent_bytes_per_s: what the line took in the last seconds.
    """
    return SMALLER if waiting_bytes > max(BEHIND_BYTES, BEHIND_S * sent_bytes_per_s) else USUAL
