"""The receipt of one disk and generation: signed, and put only over the one that this writer saw last.

Called by ``disk_follower.py``. Since every put names the etag it replaces, a writer that was stalled and has lost the replica cannot
put an older receipt over a newer one.
"""

from __future__ import annotations

from typing import Final

from azure_sink.replica_writer.failures import FenceLost
from azure_sink.replica_writer.replica_blob import ReplicaBlob
from replication.blob_client.api import BlobClient
from replication.blob_client.failures import BlobConflict, BlobNotFound
from replication.documents import MAX_DOCUMENT_BYTES, WriterIdentity
from replication.errors import PeerProtocolError
from replication.identifiers import GenerationKey
from replication.store_documents import Receipt
from replication.store_layout import REPLICATION_CONTAINER, receipt_name

_ATTEMPTS: Final = 3


class ReceiptBlob:
    """Knows what the receipt in the store says; ``state`` makes it say something else."""

    def __init__(self, client: BlobClient, identity: WriterIdentity, key: GenerationKey) -> None:
        self.key = key
        self.stated: Receipt | None = None
        """The newest durable receipt, as far as this writer knows."""
        self._client = client
        self._identity = identity
        self._name = receipt_name(key)
        self._etag: str | None = None
        self._known = False

    async def state(self, receipt: Receipt, replica: ReplicaBlob | None) -> bool:
        """Make ``receipt`` durable; returns whether anything had to be put.

        :param replica: None only where there is no replica to hold (a generation refused for that reason).

        :raises FenceLost: this writer does not hold the replica any more; nothing was put over the other writer's receipt.
        """
        for _ in range(_ATTEMPTS):
            if not self._known:
                await self._load(replica)
            if self.stated == receipt:
                return False
            if replica is not None:
                replica.require_held()
            try:
                self._known = False
                stamp = await self._client.put_blob(
                    REPLICATION_CONTAINER,
                    self._name,
                    self._identity.sign(receipt),
                    if_none_match_any=self._etag is None,
                    if_match=self._etag,
                )
            except BlobConflict:
                # Another writer's, unless the lease still is ours: then an earlier put of ours has arrived late.
                if replica is not None:
                    await replica.renew()
                continue
            self._etag, self.stated, self._known = stamp.etag, receipt, True
            return True
        raise FenceLost("cannot put a receipt: another writer keeps changing it", disk=self.key.disk)

    async def _load(self, replica: ReplicaBlob | None) -> None:
        """Learn what is there; on return it was not put by a writer that took the replica over while this one was stalled."""
        await self._read()
        if replica is not None:
            await replica.renew()  # by the store's clock: this writer's own may have stood still before it read
        self._known = True

    async def _read(self) -> None:
        try:
            found = await self._client.get_blob(REPLICATION_CONTAINER, self._name, max_bytes=2 * MAX_DOCUMENT_BYTES)
        except BlobNotFound:
            self._etag, self.stated = None, None
            return
        if found is None:
            raise PeerProtocolError("cannot read a receipt: the store answered nothing", disk=self.key.disk)
        try:
            self.stated = self._identity.public.open_signed(Receipt, found.content)
        except PeerProtocolError:
            self.stated = None  # damaged, or signed by the identity before this one: it is put anew
        self._etag = found.properties.etag
