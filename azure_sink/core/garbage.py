"""Which blobs of the ``replication`` container nobody needs any more.

Called by ``replica_writer/sweep.py``. What is applied and stated by a receipt needs no segment; the newest applied manifest stays, so
that whoever relays it once more, or asks what decided that epoch, still finds it. Everything of a generation before the applied one
is stale, and so is everything of a closed generation but the receipt that says so.
"""

from __future__ import annotations

from azure_sink.core.replica_state import Position
from replication.identifiers import BatchKey, EpochKey


def is_collectable(key: EpochKey | BatchKey, receipted: Position, *, closed: bool) -> bool:
    """Whether this segment or manifest may be deleted, given what the newest durable receipt of its disk says."""
    if key.generation != receipted.generation:
        return key.generation < receipted.generation
    if closed:
        return True
    if isinstance(key, BatchKey):
        return key.epoch <= receipted.epoch
    return key.epoch < receipted.epoch
