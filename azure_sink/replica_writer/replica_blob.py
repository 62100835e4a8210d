"""The one handle through which a replica is written; it exists only while this writer holds the lease (R7).

Called by ``disk_follower.py`` and ``epoch_application.py``. Every Put Page carries the lease id and the sequence number, which is raised at
each take-over and at each epoch, so that a write which was on its way before is refused. Every step of the replica's life
(``core/replica_state.py``) is durable metadata before the next one begins, set only on the etag that this handle knows.

A control call that failed or was cancelled may have happened all the same: the handle is then unusable, and taking over anew
(with the same lease id) finds out what is the case. Recovery is the normal start-up path.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final, Self

from azure_sink.core.lease_term import LeaseTerm
from azure_sink.core.replica_metadata import decode_state, encode_state
from azure_sink.core.replica_state import (
    GenerationOpened,
    PointSnapshotTaken,
    ReplicaEvent,
    ReplicaState,
    advance,
    created,
)
from azure_sink.replica_writer.failures import FenceLost, ReplicaHeld
from azure_sink.vhd import FOOTER_BYTES, FixedVhd
from replication.blob_client.api import BlobClient, Body
from replication.blob_client.failures import BlobConflict, BlobNotFound
from replication.clock import Clock
from replication.errors import PeerProtocolError
from replication.failpoint import reached
from replication.identifiers import DiskId, ItemId
from replication.store_layout import REPLICAS_CONTAINER, replica_name

MIN_LEASE_S: Final = 15
MAX_LEASE_S: Final = 60


class ReplicaBlob:
    """A replica held by this writer. Made by ``take_over``; ``usable`` is false once it must be taken over anew."""

    def __init__(
        self,
        client: BlobClient,
        disk: DiskId,
        lease_id: str,
        term: LeaseTerm,
        clock: Clock,
        state: ReplicaState,
        etag: str,
        sequence_number: int,
        length_bytes: int,
    ) -> None:
        self.disk = disk
        self.usable = True
        self._client = client
        self._name = replica_name(disk)
        self._lease_id = lease_id
        self._term = term
        self._clock = clock
        self._state = state
        self._etag: str | None = etag
        self._sequence_number = sequence_number
        self._length_bytes = length_bytes

    @property
    def state(self) -> ReplicaState:
        return self._state

    @property
    def sequence_number(self) -> int:
        return self._sequence_number

    # -- coming and going -------------------------------------------------------------------------------------

    @classmethod
    async def create(cls, client: BlobClient, disk: DiskId, item: ItemId, size_bytes: int) -> None:
        """Make an empty replica if there is none; whoever takes it over lays it out."""
        metadata = encode_state(created(item, size_bytes))
        with contextlib.suppress(BlobConflict):  # another writer was faster: the same blob
            await client.create_page_blob(
                REPLICAS_CONTAINER, replica_name(disk), FixedVhd(size_bytes).blob_bytes, metadata=metadata
            )

    @classmethod
    async def take_over(cls, client: BlobClient, disk: DiskId, lease_id: str, lease_s: int, clock: Clock) -> Self:
        """Acquire the lease, raise the sequence number, read the state.

        ``lease_id`` is this writer's own: after a restart it gets its lease back at once.

        :raises BlobNotFound: there is no replica.
        :raises ReplicaHeld: another writer holds it.
        :raises PeerProtocolError: its metadata is not a replica's.
        """
        name = replica_name(disk)
        term = LeaseTerm(lease_s, clock.monotonic_s())
        try:
            await client.acquire_lease(REPLICAS_CONTAINER, name, lease_s, lease_id)
        except BlobConflict as error:
            raise ReplicaHeld(
                "cannot take over a replica: another writer holds it",
                disk=disk,
                retry_after_s=lease_s / 3,
                hint="this writer stands by; it goes on if the other one's lease expires",
            ) from error
        properties = await client.head_blob(REPLICAS_CONTAINER, name)
        try:
            stamp = await client.set_sequence_number(
                REPLICAS_CONTAINER,
                name,
                (properties.sequence_number or 0) + 1,
                lease_id=lease_id,
                if_match=properties.etag,
            )
        except BlobConflict as error:
            raise FenceLost("cannot take over a replica: it changed meanwhile", disk=disk) from error
        state = decode_state(properties.metadata)
        sequence_number = (properties.sequence_number or 0) + 1
        return cls(client, disk, lease_id, term, clock, state, stamp.etag, sequence_number, properties.length_bytes)

    async def renew(self) -> None:
        """Start the lease's term anew.

        :raises FenceLost: it is another's.
        """
        asked_at_s = self._clock.monotonic_s()
        with self._stopping_at_conflict("renew the lease of"):
            await self._client.renew_lease(REPLICAS_CONTAINER, self._name, self._lease_id)
        self._term = self._term.renewed(asked_at_s)

    @property
    def renewal_due(self) -> bool:
        return self._term.renewal_due(self._clock.monotonic_s())

    async def release(self) -> None:
        """Give the lease back; the handle is unusable from now on."""
        self.usable = False
        with contextlib.suppress(BlobConflict, BlobNotFound):
            await self._client.release_lease(REPLICAS_CONTAINER, self._name, self._lease_id)

    async def delete(self) -> None:
        """Delete the replica and all of its snapshots."""
        self.require_held()
        self.usable = False
        with contextlib.suppress(BlobNotFound):
            await self._client.delete_blob(REPLICAS_CONTAINER, self._name, with_snapshots=True, lease_id=self._lease_id)

    # -- the replica's life -----------------------------------------------------------------------------------

    async def record(self, event: ReplicaEvent) -> None:
        """Make ``event`` durable. On return the state is the one after it.

        :raises FenceLost: another writer, or a write that is not this handle's, changed the replica.
        """
        following = advance(self._state, event)
        with self._undecided_on_failure("set the metadata of"):
            etag = await self._current_etag()
            stamp = await self._client.set_metadata(
                REPLICAS_CONTAINER, self._name, encode_state(following), lease_id=self._lease_id, if_match=etag
            )
        self._etag = stamp.etag
        self._state = following

    async def raise_fence(self) -> None:
        """Refuse from now on whatever was sent before."""
        with self._undecided_on_failure("raise the sequence number of"):
            etag = await self._current_etag()
            stamp = await self._client.set_sequence_number(
                REPLICAS_CONTAINER, self._name, self._sequence_number + 1, lease_id=self._lease_id, if_match=etag
            )
        self._sequence_number += 1
        self._etag = stamp.etag
        reached("sink.replica.fence-raised")

    async def finish_opening(self) -> None:
        """Lay out the generation that is being opened (R13): grow or shrink, zeros beyond the kept data, footer at the end."""
        opening = self._state.opening
        if opening is None:
            raise PeerProtocolError("cannot lay out a replica: no generation is being opened", disk=self.disk)
        old, new = FixedVhd(self._state.size_bytes), FixedVhd(opening.size_bytes)
        if old.size_bytes != new.size_bytes:
            # In this order every crash leaves a blob on which the same steps lead to the same end.
            await self._resize(max(old.blob_bytes, new.blob_bytes))
            kept = min(old.writable_bytes, new.writable_bytes)
            await self.clear(kept, max(old.blob_bytes, new.blob_bytes) - kept)
            reached("sink.replica.cleared")
            await self._resize(new.blob_bytes)
        await self.put(new.blob_bytes - FOOTER_BYTES, new.footer(self.disk))
        reached("sink.replica.footer-put")
        await self.record(GenerationOpened())

    async def snapshot(self) -> str:
        """Take the snapshot of the applied point, of exactly this state.

        :raises FenceLost: the replica is not (any more) in the state that this handle knows.
        """
        with self._undecided_on_failure("snapshot"):
            etag = await self._current_etag()
            return await self._client.snapshot_blob(
                REPLICAS_CONTAINER, self._name, lease_id=self._lease_id, if_match=etag
            )

    def note_snapshot(self) -> None:
        """The snapshot of the applied point is known to exist; its own metadata says so, the replica's need not."""
        self._state = advance(self._state, PointSnapshotTaken())

    # -- bytes ------------------------------------------------------------------------------------------------

    async def put(self, offset_bytes: int, body: Body) -> None:
        """Write up to 4 MiB; durable on return. May be repeated.

        :raises FenceLost: this writer may not write any more.
        """
        self.require_held()
        self._etag = None
        with self._stopping_at_conflict("write"):
            await self._client.put_pages(
                REPLICAS_CONTAINER,
                self._name,
                offset_bytes,
                body,
                lease_id=self._lease_id,
                if_sequence_number_eq=self._sequence_number,
            )

    async def clear(self, offset_bytes: int, length_bytes: int) -> None:
        """Make a range read as zeros; raises as ``put`` does. May be repeated."""
        self.require_held()
        self._etag = None
        with self._stopping_at_conflict("clear pages of"):
            await self._client.clear_pages(
                REPLICAS_CONTAINER,
                self._name,
                offset_bytes,
                length_bytes,
                lease_id=self._lease_id,
                if_sequence_number_eq=self._sequence_number,
            )

    async def _resize(self, blob_bytes: int) -> None:
        if blob_bytes == self._length_bytes:
            return
        with self._undecided_on_failure("resize"):
            etag = await self._current_etag()
            stamp = await self._client.resize_page_blob(
                REPLICAS_CONTAINER, self._name, blob_bytes, lease_id=self._lease_id, if_match=etag
            )
        self._etag = stamp.etag
        self._length_bytes = blob_bytes
        reached("sink.replica.resized")

    # -- fence ------------------------------------------------------------------------------------------------

    def require_held(self) -> None:
        """:raises FenceLost: if the lease may have expired by this writer's own clock, or was lost."""
        if not self.usable or not self._term.may_write(self._clock.monotonic_s()):
            self.usable = False
            raise FenceLost("cannot write a replica: the lease is no longer certain", disk=self.disk)

    async def _current_etag(self) -> str:
        """The etag to set conditions on; after writes it is read anew, once sequence number and metadata are this handle's."""
        self.require_held()
        if self._etag is not None:
            return self._etag
        properties = await self._client.head_blob(REPLICAS_CONTAINER, self._name)
        mine = {name.lower(): value for name, value in properties.metadata.items()} == encode_state(self._state)
        if properties.sequence_number != self._sequence_number or not mine:
            raise FenceLost("cannot go on with a replica: another writer has changed it", disk=self.disk)
        return properties.etag

    @contextlib.contextmanager
    def _stopping_at_conflict(self, what: str) -> Iterator[None]:
        try:
            yield
        except (BlobConflict, BlobNotFound) as error:
            self.usable = False
            raise FenceLost(
                f"cannot {what} a replica: {error.storage_code}",
                disk=self.disk,
                hint="another writer has taken it over, or it was deleted; this one stands by",
            ) from error

    @contextlib.contextmanager
    def _undecided_on_failure(self, what: str) -> Iterator[None]:
        try:
            with self._stopping_at_conflict(what):
                yield
        except BaseException:
            self.usable = False
            raise
