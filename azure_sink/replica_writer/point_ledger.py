"""Recovery points in the store: the signed record of a cut, made when the snapshots of all its disks exist, and never twice.

Called by ``disk_follower.py`` after each point's snapshot and by ``point_requests.py``. The disk that comes last finds the others'
snapshots by listing, so the disks of a cut may be held by different writers. The record is put with If-None-Match:*.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Final

from azure_sink.core.recovery_points import PointSnapshot, complete_point, require_one_instant
from azure_sink.core.replica_metadata import decode_state
from replication.blob_client.api import BlobClient, BlobItem
from replication.blob_client.failures import BlobConflict, BlobNotFound
from replication.documents import MAX_DOCUMENT_BYTES, WriterIdentity
from replication.errors import PeerProtocolError
from replication.failpoint import reached
from replication.identifiers import CutId, DiskId, ItemId
from replication.store_documents import RecoveryPoint
from replication.store_layout import (
    RECOVERY_POINTS_CONTAINER,
    REPLICAS_CONTAINER,
    recovery_point_name,
    recovery_point_prefix,
    replica_name,
)

REMEMBERED_POINTS: Final = 256
_logger = logging.getLogger(__name__)


class PointLedger:
    """All recovery points of the account, as this writer needs them."""

    def __init__(self, client: BlobClient, identity: WriterIdentity) -> None:
        self._client = client
        self._identity = identity
        self._remembered: OrderedDict[CutId, RecoveryPoint] = OrderedDict()

    def remembered(self, cut: CutId) -> RecoveryPoint | None:
        """A point that this process has completed or read lately; no I/O."""
        return self._remembered.get(cut)

    def forget(self, cut: CutId) -> None:
        self._remembered.pop(cut, None)

    async def read(self, item: ItemId, cut: CutId) -> RecoveryPoint | None:
        """The record of a cut, verified; None if there is none.

        :raises IntegrityError: it is not signed by this writer.
        """
        try:
            found = await self._client.get_blob(
                RECOVERY_POINTS_CONTAINER, recovery_point_name(item, cut), max_bytes=2 * MAX_DOCUMENT_BYTES
            )
        except BlobNotFound:
            return None
        if found is None:
            raise PeerProtocolError("cannot read a recovery point: the store answered nothing")
        point = self._identity.public.open_signed(RecoveryPoint, found.content)
        if point.item != item or point.cut != cut:
            raise PeerProtocolError(f"cannot accept the record of recovery point {point.cut} as that of {cut}")
        self._remember(point)
        return point

    async def read_all(self, item: ItemId) -> list[RecoveryPoint]:
        points = []
        for cut in await self.recorded_cuts(item):
            point = await self.read(item, cut)
            if point is not None:
                points.append(point)
        return points

    async def recorded_cuts(self, item: ItemId) -> set[CutId]:
        prefix = recovery_point_prefix(item)
        return {
            CutId(found.name.removeprefix(prefix))
            async for found in self._client.list_blobs(RECOVERY_POINTS_CONTAINER, prefix)
        }

    async def snapshots_of(self, disk: DiskId) -> list[PointSnapshot]:
        """The point snapshots of a disk's replica, oldest first."""
        found = []
        async for item in self._client.list_blobs(
            REPLICAS_CONTAINER, replica_name(disk), include_snapshots=True, include_metadata=True
        ):
            snapshot = _point_snapshot(disk, item)
            if snapshot is not None:
                found.append(snapshot)
        return found

    async def complete(self, own: PointSnapshot) -> RecoveryPoint | None:
        """The record of ``own``'s cut: the one that is there, or a new one if every disk's snapshot exists, else None.

        Durable on return. Idempotent.

        :raises CutMismatch: the parts that are there do not belong together: ``own`` is in no record, and never will be.
        """
        mark = own.mark
        existing = await self.read(mark.item, mark.cut)
        if existing is not None:
            require_one_instant(mark.cut, (existing.time_ns, own.cut_time_ns))
            return existing
        snapshots = {own.disk: own}
        for disk in mark.disks:
            if disk == own.disk:
                continue
            theirs = [each for each in await self.snapshots_of(disk) if each.mark.cut == mark.cut]
            # All of them: a name that was given to two instants is not to be trusted for either.
            require_one_instant(mark.cut, (each.cut_time_ns for each in (own, *theirs)))
            if theirs:
                snapshots[disk] = theirs[0]
        point = complete_point(snapshots, mark)
        if point is None:
            return None
        try:
            await self._client.put_blob(
                RECOVERY_POINTS_CONTAINER,
                recovery_point_name(mark.item, mark.cut),
                self._identity.sign(point),
                if_none_match_any=True,
            )
        except BlobConflict:
            return await self.read(mark.item, mark.cut)
        reached("sink.point.recorded")
        if not await self._snapshot_exists(own):
            # This writer was stalled before the put, and meanwhile the point was pruned: it must not come back without its disks.
            await self.delete_record(mark.item, mark.cut)
            return None
        self._remember(point)
        _logger.info(
            "recovery point complete",
            extra={"fields": {"item": point.item, "cut": point.cut, "disks": len(point.disks)}},
        )
        return point

    async def delete_record(self, item: ItemId, cut: CutId) -> None:
        """Delete a record; success if it is gone already."""
        self.forget(cut)
        try:
            await self._client.delete_blob(RECOVERY_POINTS_CONTAINER, recovery_point_name(item, cut))
        except BlobNotFound:
            return

    async def delete_snapshot(self, disk: DiskId, snapshot: str) -> None:
        """Delete one snapshot of a replica; success if it is gone already."""
        try:
            await self._client.delete_blob(REPLICAS_CONTAINER, replica_name(disk), snapshot=snapshot)
        except BlobNotFound:
            return

    async def has_replica(self, disk: DiskId) -> bool:
        try:
            await self._client.head_blob(REPLICAS_CONTAINER, replica_name(disk))
        except BlobNotFound:
            return False
        return True

    async def _snapshot_exists(self, own: PointSnapshot) -> bool:
        try:
            await self._client.head_blob(REPLICAS_CONTAINER, replica_name(own.disk), snapshot=own.snapshot)
        except BlobNotFound:
            return False
        return True

    def _remember(self, point: RecoveryPoint) -> None:
        self._remembered[CutId(point.cut)] = point
        while len(self._remembered) > REMEMBERED_POINTS:
            self._remembered.popitem(last=False)


def _point_snapshot(disk: DiskId, item: BlobItem) -> PointSnapshot | None:
    if item.snapshot is None or item.name != replica_name(disk):
        return None
    try:
        state = decode_state(item.properties.metadata)
    except PeerProtocolError:
        return None  # taken by somebody else: not this writer's to judge or to delete
    if state.point is None:
        return None
    return PointSnapshot(
        disk=disk,
        snapshot=item.snapshot,
        position=state.applied,
        manifest_hash=state.manifest_hash,
        cut_time_ns=state.cut_time_ns,
        size_bytes=state.size_bytes,
        mark=state.point,
    )
