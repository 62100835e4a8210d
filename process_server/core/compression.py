"""How hard to compress a batch: by what holds replication up at that moment, the processors or the line to the store.

Called by ``intake/compression_choice.py`` for every batch. Any level can be opened by any reader, so each batch is decided for itself and
nothing is remembered. Of a file system with the usual files, measured on one machine: level -1 takes 0.86 of the processor time of level 1
and makes 1.11 of its bytes; level 3 takes 1.56 of the time and makes 0.89 of the bytes (docs/performance.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FASTER: Final = -1
USUAL: Final = 1
SMALLER: Final = 3

BEHIND_S: Final = 30.0
BEHIND_BYTES: Final = 128 * 2**20
"""The line is behind where more waits than this, and than it takes in ``BEHIND_S``: a burst is not."""
ABREAST_S: Final = 5.0
ABREAST_BYTES: Final = 64 * 2**20
"""It keeps up where less waits than this, or than it takes in ``ABREAST_S``."""
BUSY: Final = 2
"""A single batch is no press, also where there is a single thread."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """What is to be done at this moment.

    ``sealing``: batches that are being compressed or wait for it, this one included. ``threads``: how many can be compressed at a time.
    ``waiting_bytes``: sealed, and not in the store yet. ``sent_bytes_per_s``: what the line took in the last seconds.
    """

    sealing: int
    threads: int
    waiting_bytes: int
    sent_bytes_per_s: float


def level_for(pressure: Pressure) -> int:
    """zstd's level for the next batch: ``SMALLER`` while the line is behind; ``FASTER`` while it keeps up and every thread has work."""
    if pressure.waiting_bytes > max(BEHIND_BYTES, BEHIND_S * pressure.sent_bytes_per_s):
        return SMALLER
    keeps_up = pressure.waiting_bytes <= max(ABREAST_BYTES, ABREAST_S * pressure.sent_bytes_per_s)
    return FASTER if keeps_up and pressure.sealing >= max(BUSY, pressure.threads) else USUAL
