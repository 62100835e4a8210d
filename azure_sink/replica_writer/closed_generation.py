"""What closing a generation came to, and where the next one continues (R8).

Made by ``disk_follower.py``, told by ``request_handlers.py``. A base names the manifest that is applied, not only its epoch's number: an
agent that was restored from an older state may have sealed another epoch of that number, and must not take its digests for the replica's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from azure_sink.core.replica_state import Position, ReplicaState
from azure_sink.replica_writer.generation_book import GenerationBook
from replication.blob_client.api import BlobClient
from replication.blob_client.failures import BlobNotFound
from replication.epoch_manifest import MAX_MANIFEST_BYTES, decode_manifest, manifest_hash
from replication.errors import PeerProtocolError
from replication.identifiers import DiskId, EpochId, EpochKey, GenerationId
from replication.store_documents import GenerationBase
from replication.store_layout import REPLICATION_CONTAINER, manifest_name


@dataclass(frozen=True, slots=True)
class ClosedGeneration:
    """``base``: what the next generation continues; None: there is no replica.

    ``torn_epoch``: the next epoch was applied in part and can never be finished; all of it must be sent again.
    ``opened`` False: nothing of this generation was or will be applied; the replica is closed at ``base``.
    """

    final_epoch: int
    base: GenerationBase | None
    torn_epoch: int | None = None
    opened: bool = True


def base_of(applied: Position, applied_hash: str | None) -> GenerationBase:
    """``applied`` as a base."""
    return GenerationBase(generation=applied.generation, epoch=applied.epoch, manifest_hash=applied_hash)


def closed_at(state: ReplicaState) -> ClosedGeneration:
    """The applied generation is closed."""
    return ClosedGeneration(state.applied.epoch, base_of(state.applied, state.manifest_hash), state.torn_epoch)


def never_opened(state: ReplicaState | None) -> ClosedGeneration:
    """A refused generation is closed; ``state`` is None if there is no replica."""
    if state is None or not state.was_written:
        return ClosedGeneration(0, None, opened=False)
    return ClosedGeneration(0, base_of(state.applied, state.manifest_hash), state.torn_epoch, opened=False)


async def naming_torn_manifest(
    closed: ClosedGeneration, disk: DiskId, client: BlobClient, book: GenerationBook
) -> ClosedGeneration:
    """The same, with the manifest of the torn epoch, if there is one and it is still in the store and chains to the base.

    :raises Retryable: the store did not answer.
    """
    base = closed.base
    if base is None or closed.torn_epoch is None:
        return closed
    key = EpochKey(disk, GenerationId(base.generation), EpochId(closed.torn_epoch))
    try:
        found = await client.get_blob(REPLICATION_CONTAINER, manifest_name(key), max_bytes=MAX_MANIFEST_BYTES)
        if found is None:
            return closed
        manifest = decode_manifest(found.content, book.opened(key.generation_key).manifest_key, expected=key)
    except (BlobNotFound, PeerProtocolError):
        return closed  # without the name everything is sent again
    if manifest.previous_hash.hex() != base.manifest_hash:
        return closed
    named = base.model_copy(update={"torn_manifest_hash": manifest_hash(found.content).hex()})
    return replace(closed, base=named)
