"""Recovery points: when a cut is complete, which of two is newer, what may be pruned, which snapshots lead nowhere.

Called by ``replica_writer/point_ledger.py`` and ``point_requests.py``.

Invariant: an item's newest recovery point is never given up, and a snapshot is dropped only when a later point of its disk is recorded.
Order is that of the disks' histories, not of clocks: of two points that share a disk the one with the later (generation, epoch) is newer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from azure_sink.core.replica_state import PointMark, Position
from replication.errors import PeerProtocolError
from replication.identifiers import DiskId
from replication.store_documents import RecoveryPoint, RecoveryPointDisk


@dataclass(frozen=True, slots=True)
class PointSnapshot:
    """One disk's snapshot of a cut, as its metadata tells."""

    disk: DiskId
    snapshot: str
    position: Position
    manifest_hash: str
    cut_time_ns: int
    size_bytes: int
    mark: PointMark


def complete_point(snapshots: Mapping[DiskId, PointSnapshot], mark: PointMark) -> RecoveryPoint | None:
    """The record of ``mark``'s cut if every disk's snapshot is there, else None. The same snapshots always make the same record.

    :raises PeerProtocolError: if the snapshots disagree about what was cut together.
    """
    for found in snapshots.values():
        theirs = found.mark
        if theirs.cut != mark.cut or theirs.item != mark.item or set(theirs.disks) != set(mark.disks):
            raise PeerProtocolError(
                f"cannot complete recovery point {mark.cut}: its disks' manifests name different cuts", disk=found.disk
            )
    if any(disk not in snapshots for disk in mark.disks):
        return None
    parts = [snapshots[disk] for disk in sorted(mark.disks)]
    return RecoveryPoint(
        item=mark.item,
        cut=mark.cut,
        time_ns=min(part.cut_time_ns for part in parts),
        consistency="app" if all(part.mark.app_consistent for part in parts) else "crash",
        final=all(part.mark.final for part in parts),
        disks=[
            RecoveryPointDisk(
                disk=part.disk,
                generation=part.position.generation,
                epoch=part.position.epoch,
                manifest_hash=part.manifest_hash,
                snapshot=part.snapshot,
                size_bytes=part.size_bytes,
            )
            for part in parts
        ],
    )


def positions_of(point: RecoveryPoint) -> dict[str, Position]:
    return {part.disk: Position(part.generation, part.epoch) for part in point.disks}


def is_newer(one: RecoveryPoint, other: RecoveryPoint) -> bool:
    """Whether ``one`` stands later in the history of a disk that both have; without a common disk the clock decides."""
    mine, theirs = positions_of(one), positions_of(other)
    common = mine.keys() & theirs.keys()
    if common:
        return all(mine[disk] > theirs[disk] for disk in common)
    return one.time_ns > other.time_ns


def not_prunable(points: Collection[RecoveryPoint], cuts: Collection[str]) -> list[str]:
    """Those of ``cuts`` that must stay: no newer point of the same item would remain without them (P5)."""
    remaining = [point for point in points if point.cut not in cuts]
    return [
        point.cut for point in points if point.cut in cuts and not any(is_newer(other, point) for other in remaining)
    ]


def leading_nowhere(unrecorded: Iterable[PointSnapshot], newest_recorded: Position | None) -> list[PointSnapshot]:
    """Snapshots of one disk whose cut was never completed and never will be: a later point of the disk is recorded.

    Epochs are applied in order and a disk completes its point, if the others are there, before it goes on. So when a later point
    is recorded, every disk in it has gone past the earlier cut.
    """
    if newest_recorded is None:
        return []
    return [snapshot for snapshot in unrecorded if snapshot.position < newest_recorded]
