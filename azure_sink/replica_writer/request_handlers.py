"""What each kind of request does, together the ``Handler`` of the desk.

Called by ``request_desk.py``. Requests of one item run one after the other, so that a point is not pruned while disks are made from it.
Each may be run again from its beginning after a crash.
"""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from azure_sink.core.recovery_points import not_prunable, still_awaited
from azure_sink.replica_writer.failures import ReplicaHeld
from azure_sink.replica_writer.follower_registry import FollowerRegistry
from azure_sink.replica_writer.made_disks import DiskMaker
from azure_sink.replica_writer.point_ledger import PointLedger
from azure_sink.replica_writer.replica_blob import ReplicaBlob
from azure_sink.replica_writer.request_desk import RequestWork
from azure_sink.replica_writer.store_cleaning import delete_all
from replication.blob_client.api import BlobClient
from replication.blob_client.failures import BlobNotFound
from replication.errors import NotFound, Refused
from replication.failpoint import reached
from replication.identifiers import CutId, DiskId, ItemId
from replication.store_documents import (
    NEVER_OPENED,
    TORN_EPOCH,
    CloseGeneration,
    DeleteDisks,
    DeleteReplicas,
    HashDisk,
    MakeDisks,
    PrunePoints,
    RecoveryPoint,
    WriterAnswer,
    WriterProblem,
    WriterRequest,
)
from replication.store_layout import KEYS_PREFIX, REPLICATION_CONTAINER


class RequestHandlers:
    """Handles requests of all kinds."""

    def __init__(self, client: BlobClient, ledger: PointLedger, followers: FollowerRegistry) -> None:
        self._client = client
        self._ledger = ledger
        self._followers = followers
        self._disk_maker = DiskMaker(client, ledger)
        self._items: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def handle(self, request: WriterRequest, work: RequestWork) -> WriterAnswer:
        """See ``request_desk.Handler``."""
        match request:
            case MakeDisks():
                async with self._item(request.item):
                    return await self._disk_maker.make(request, work)
            case DeleteDisks():
                return await self._disk_maker.delete(request)
            case HashDisk():
                return await self._disk_maker.hash(request, work)
            case CloseGeneration():
                return await self._close_generation(request, work)
            case PrunePoints():
                async with self._item(request.item):
                    return await self._prune_points(request)
            case DeleteReplicas():
                async with self._item(request.item):
                    return await self._delete_replicas(request)

    def _item(self, item: str) -> asyncio.Lock:
        return self._items.setdefault(item, asyncio.Lock())

    # -- close-generation -------------------------------------------------------------------------------------

    async def _close_generation(self, request: CloseGeneration, work: RequestWork) -> WriterAnswer:
        await self._followers.discover()
        follower = self._followers.find(DiskId(request.disk))
        if follower is None:
            raise NotFound(
                f"cannot close generation {request.generation}: its record is not in the store", disk=request.disk
            )
        async with follower.lock:
            closed = await follower.close_generation(request.generation, work.report)
        problem = None
        if not closed.opened:
            problem = WriterProblem(
                code=NEVER_OPENED,
                message=f"generation {request.generation} was refused and never opened",
                hint="the next generation continues what the replica is at and sends everything (R1)",
            )
        elif closed.torn_epoch is not None:
            problem = WriterProblem(
                code=TORN_EPOCH,
                message=f"epoch {closed.torn_epoch} was applied in part and could not be finished",
                hint="the next generation sends every extent of that epoch, whatever the digest table says (R1)",
            )
        return WriterAnswer(
            request=request.request,
            state="succeeded",
            final_epoch=closed.final_epoch,
            base=closed.base,
            problem=problem,
        )

    # -- prune-points -----------------------------------------------------------------------------------------

    async def _prune_points(self, request: PrunePoints) -> WriterAnswer:
        """Records first, then snapshots: what is listed can be restored.

        :raises Refused: one of the cuts must stay; then nothing is deleted.
        """
        item, cuts = ItemId(request.item), {CutId(cut) for cut in request.cuts}
        points = await self._ledger.read_all(item)
        pruned = {DiskId(part.disk) for point in points if point.cut in cuts for part in point.disks}
        kept = not_prunable(points, cuts, [disk for disk in pruned if not await self._ledger.has_replica(disk)])
        if kept:
            raise Refused(
                f"cannot prune recovery point {kept[0]}: it is the newest of one of its disks",
                hint="the last good recovery point is never deleted; make a newer one first",
            )
        for cut in cuts:
            await self._ledger.delete_record(item, cut)
        reached("sink.points.unlisted")
        remaining = [point for point in points if point.cut not in cuts]
        disks = {DiskId(part.disk) for point in points for part in point.disks} | self._followers.disks_of(item)
        for disk in sorted(disks):
            await self._prune_snapshots(disk, cuts, remaining)
        return WriterAnswer(request=request.request, state="succeeded")

    async def _prune_snapshots(self, disk: DiskId, cuts: set[CutId], remaining: list[RecoveryPoint]) -> None:
        """A snapshot goes only if no remaining record names it and nothing can complete its cut (any more)."""
        named = {part.snapshot for point in remaining for part in point.disks if part.disk == disk}
        for snapshot in await self._ledger.snapshots_of(disk):
            if snapshot.mark.cut not in cuts or snapshot.snapshot in named:
                continue
            awaited = still_awaited(snapshot, remaining)
            if not any([await self._ledger.has_replica(other) for other in awaited]):
                await self._ledger.delete_snapshot(disk, snapshot.snapshot)

    # -- delete-replicas --------------------------------------------------------------------------------------

    async def _delete_replicas(self, request: DeleteReplicas) -> WriterAnswer:
        """Keys first, so that nothing begins anew; then records that name no other disk's replica, replicas, what is left of epochs."""
        disks = [DiskId(disk) for disk in request.disks]
        for disk in disks:
            await self._followers.retire(disk)
        try:
            held = await self._hold(disks)
            for disk in disks:
                await delete_all(self._client, REPLICATION_CONTAINER, f"{KEYS_PREFIX}{disk}/")
            reached("sink.delete.keys-gone")
            await self._delete_records(ItemId(request.item), set(disks))
            for replica in held:
                await replica.delete()
                reached("sink.delete.replica-gone")
            for disk in disks:
                await delete_all(self._client, REPLICATION_CONTAINER, f"{disk}/")
        finally:
            for disk in disks:
                self._followers.allow(disk)
        return WriterAnswer(request=request.request, state="succeeded")

    async def _hold(self, disks: list[DiskId]) -> list[ReplicaBlob]:
        """Take over every replica that exists.

        :raises ReplicaHeld: another writer holds one of them; it will get this request once this writer lets go of the others.
        """
        held: list[ReplicaBlob] = []
        try:
            for disk in disks:
                try:
                    held.append(await self._followers.take_over(disk))
                except BlobNotFound:
                    continue
        except ReplicaHeld:
            for replica in held:
                await replica.release()
            raise
        return held

    async def _delete_records(self, item: ItemId, deleted: set[DiskId]) -> None:
        """A record stays while it still names a replica that is not being deleted: that disk can be restored from it."""
        for point in await self._ledger.read_all(item):
            others = [DiskId(part.disk) for part in point.disks if part.disk not in deleted]
            if not any([await self._ledger.has_replica(disk) for disk in others]):
                await self._ledger.delete_record(item, CutId(point.cut))
