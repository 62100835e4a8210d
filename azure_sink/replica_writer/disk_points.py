"""The recovery points of one disk: take the snapshot of a cut, complete the cut when all disks are there, drop what leads nowhere.

Called by ``disk_follower.py``. The next epoch is not applied before ``take`` has returned: the snapshot exists then, and if this disk
came last, the record does too. So a cut that is complete but not recorded, while a later one is, was pruned, or its parts do not belong
together: ``mismatch`` says so, nothing waits for it, and its snapshots are dropped as those of any cut that is never completed.
"""

from __future__ import annotations

import logging
from typing import Final

from azure_sink.core.recovery_points import CutMismatch, PointSnapshot, names, require_one_instant, still_awaited
from azure_sink.core.replica_state import Position
from azure_sink.replica_writer.metrics import WriterMetrics
from azure_sink.replica_writer.point_ledger import PointLedger
from azure_sink.replica_writer.replica_blob import ReplicaBlob
from replication.clock import Clock
from replication.errors import PeerProtocolError
from replication.failpoint import reached
from replication.identifiers import DiskId
from replication.store_documents import PointSummary, RecoveryPoint

RECHECK_S: Final = 5.0
"""How often the store is asked whether another writer has completed a cut that this disk waits for."""
_logger = logging.getLogger(__name__)


class DiskPoints:
    """What this writer knows of one disk's points: the newest recorded one, and snapshots whose cut is not recorded (yet)."""

    def __init__(self, disk: DiskId, ledger: PointLedger, clock: Clock, metrics: WriterMetrics) -> None:
        self._disk = disk
        self._ledger = ledger
        self._clock = clock
        self._metrics = metrics
        self._unrecorded: list[PointSnapshot] = []
        self._recorded: dict[Position, RecoveryPoint] = {}
        """The newest recorded point, and the others that are later than an unrecorded snapshot."""
        self._latest: PointSnapshot | None = None
        self._checked_s = 0.0
        self._mismatches: dict[PointSnapshot, CutMismatch] = {}
        """Of the unrecorded snapshots those whose cut is never completed, and why."""

    @property
    def mismatch(self) -> CutMismatch | None:
        """Why the newest cut that can never be completed is none; None once its snapshot is dropped, after a later point."""
        return self._mismatches[max(self._mismatches, key=_position)] if self._mismatches else None

    @property
    def newest(self) -> PointSummary | None:
        """The newest recovery point that this disk takes part in."""
        if not self._recorded:
            return None
        position = max(self._recorded)
        point = self._recorded[position]
        return PointSummary(cut=point.cut, time_ns=point.time_ns, epoch=position.epoch)

    def forget(self) -> None:
        """The replica is not held (any more): what is the case its holder says."""
        self._unrecorded, self._recorded, self._latest = [], {}, None
        for snapshot in list(self._mismatches):
            self._settle(snapshot)

    async def load(self) -> None:
        """Learn from the store what there is; called at each take-over, after ``forget``."""
        snapshots = await self._ledger.snapshots_of(self._disk)
        recorded = set()
        for item in {snapshot.mark.item for snapshot in snapshots}:
            recorded |= await self._ledger.recorded_cuts(item)
        self._latest = max(snapshots, key=_position, default=None)
        self._unrecorded = [snapshot for snapshot in snapshots if snapshot.mark.cut not in recorded]
        self._checked_s = float("-inf")
        oldest = min((snapshot.position for snapshot in self._unrecorded), default=None)
        done = sorted((each for each in snapshots if each.mark.cut in recorded), key=lambda each: each.position)
        for snapshot in done:
            if snapshot is done[-1] or (oldest is not None and snapshot.position > oldest):
                point = await self._ledger.read(snapshot.mark.item, snapshot.mark.cut)
                if point is not None:
                    self._note(snapshot, point)

    async def take(self, replica: ReplicaBlob) -> None:
        """Snapshot the applied point, unless that was done before a crash; complete its cut if all disks are there.

        :raises FenceLost: the replica is not in the point's state (any more); nothing was taken.
        """
        state = replica.state
        mark = state.point
        if mark is None:
            raise PeerProtocolError("cannot take a point of a replica that is at none", disk=self._disk)
        own = self._latest
        if own is None or own.position != state.applied:
            own = PointSnapshot(
                disk=self._disk,
                snapshot=await replica.snapshot(),
                position=state.applied,
                manifest_hash=state.manifest_hash,
                cut_time_ns=state.cut_time_ns,
                size_bytes=state.size_bytes,
                mark=mark,
            )
        reached("sink.point.snapshot-taken")
        self._latest = own
        if own not in self._unrecorded:
            self._unrecorded.append(own)
        await self._complete(own)
        replica.note_snapshot()
        await self._drop_leading_nowhere()

    async def follow(self) -> None:
        """See whether cuts that waited for other disks have been completed."""
        completed = False
        for snapshot in list(self._unrecorded):
            known = self._ledger.remembered(snapshot.mark.cut)
            if known is not None and known.time_ns == snapshot.cut_time_ns:
                self._note(snapshot, known)
                completed = True
        now_s = self._clock.monotonic_s()
        if self._unrecorded and (completed or now_s >= self._checked_s + RECHECK_S):
            self._checked_s = now_s
            await self._drop_leading_nowhere()  # first: what was pruned in part must not be recorded again
            for snapshot in list(self._unrecorded):
                completed |= await self._complete(snapshot)
            if completed:
                await self._drop_leading_nowhere()

    async def _complete(self, snapshot: PointSnapshot) -> bool:
        try:
            same_cut = [each for each in self._unrecorded if each.mark.cut == snapshot.mark.cut]
            require_one_instant(snapshot.mark.cut, (each.cut_time_ns for each in same_cut))
            point = await self._ledger.complete(snapshot)
        except CutMismatch as error:
            self._tell(snapshot, error)
            return False
        if point is not None:
            self._note(snapshot, point)
        return point is not None

    def _tell(self, snapshot: PointSnapshot, error: CutMismatch) -> None:
        if snapshot not in self._mismatches:
            fields = {"disk": self._disk, "cut": snapshot.mark.cut, "code": error.code}
            _logger.error(str(error), extra={"fields": fields})
            self._metrics.disk_problem.labels(self._disk, error.code).set(1)
        self._mismatches[snapshot] = error

    def _note(self, snapshot: PointSnapshot, point: RecoveryPoint) -> None:
        self._settle(snapshot)
        self._recorded[snapshot.position] = point
        needed_after = min((each.position for each in self._unrecorded), default=max(self._recorded))
        newest = max(self._recorded)
        self._recorded = {at: point for at, point in self._recorded.items() if at > needed_after or at == newest}

    def _settle(self, snapshot: PointSnapshot) -> None:
        """It is recorded, about to be dropped, or another's to judge."""
        if snapshot in self._unrecorded:
            self._unrecorded.remove(snapshot)
        if self._mismatches.pop(snapshot, None) is not None and not self._mismatches:
            self._metrics.disk_problem.remove(self._disk, CutMismatch.code)

    async def _drop_leading_nowhere(self) -> None:
        for snapshot in list(self._unrecorded):
            awaited = still_awaited(snapshot, self._recorded.values())
            if self._disk in awaited or any([await self._ledger.has_replica(disk) for disk in awaited]):
                continue
            self._settle(snapshot)
            record = await self._ledger.read(snapshot.mark.item, snapshot.mark.cut)
            if record is not None and names(record, snapshot):
                continue
            await self._ledger.delete_snapshot(self._disk, snapshot.snapshot)
            fields = {"disk": self._disk, "cut": snapshot.mark.cut}
            _logger.info("snapshot of a cut that was never completed dropped", extra={"fields": fields})


def _position(snapshot: PointSnapshot) -> Position:
    return snapshot.position
