"""What the writer states about one disk: the receipt of the generation it follows, and of one that it refuses.

Called by ``disk_follower.py``. One ``ReceiptBlob`` a generation; a receipt that says nothing new is not put.
"""

from __future__ import annotations

from azure_sink.core.replica_state import NO_HASH, Phase
from azure_sink.replica_writer.receipt_blob import ReceiptBlob
from azure_sink.replica_writer.replica_blob import ReplicaBlob
from replication.blob_client.api import BlobClient
from replication.documents import WriterIdentity
from replication.identifiers import DiskId, GenerationId, GenerationKey
from replication.store_documents import PointSummary, Receipt, WriterProblem


class DiskReceipts:
    """The receipts of one disk."""

    def __init__(self, disk: DiskId, client: BlobClient, identity: WriterIdentity) -> None:
        self._disk = disk
        self._client = client
        self._identity = identity
        self._blobs: dict[int, ReceiptBlob] = {}

    def forget(self) -> None:
        """The replica was taken over anew: what the store says is read again."""
        self._blobs.clear()

    def newest(self, generation: int) -> Receipt | None:
        """The newest durable receipt of a generation, as far as this writer knows."""
        blob = self._blobs.get(generation)
        return None if blob is None else blob.stated

    async def state(
        self, replica: ReplicaBlob, newest_point: PointSummary | None, problem: WriterProblem | None
    ) -> None:
        """State what is applied; nothing before the first generation is open.

        :raises FenceLost: this writer does not hold the replica any more.
        """
        state = replica.state
        if not state.was_written:
            return
        receipt = Receipt(
            disk=self._disk,
            generation=state.applied.generation,
            epoch=state.applied.epoch,
            manifest_hash=state.manifest_hash,
            cut_time_ns=state.cut_time_ns,
            closed=state.phase is Phase.CLOSED,
            newest_point=newest_point,
            problem=None if state.phase is Phase.CLOSED else problem,
        )
        await self._blob(state.applied.generation).state(receipt, replica)

    async def refuse(self, generation: int, replica: ReplicaBlob | None, problem: WriterProblem) -> None:
        """State that nothing of ``generation`` is applied, and why; raises as ``state`` does."""
        nothing = Receipt(
            disk=self._disk, generation=generation, epoch=0, manifest_hash=NO_HASH, cut_time_ns=0, problem=problem
        )
        await self._blob(generation).state(nothing, replica)

    def _blob(self, generation: int) -> ReceiptBlob:
        if generation not in self._blobs:
            key = GenerationKey(self._disk, GenerationId(generation))
            self._blobs[generation] = ReceiptBlob(self._client, self._identity, key)
        return self._blobs[generation]
