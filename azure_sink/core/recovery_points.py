"""Recovery points: when a cut is complete, which of two is newer, what may be pruned, which snapshots lead nowhere.

Called by ``replica_writer/point_ledger.py`` and ``point_requests.py``.

Invariant: no disk's newest recovery point is given up, and the snapshot of a cut that is not recorded is dropped only when every disk of
that cut is in a later recorded point.
A point's parts are of one instant (R9): a cut whose parts have different cut times is never completed, as one whose parts name other disks.
Order is that of the disks' histories, not of clocks: of two points that share a disk the one with the later (generation, epoch) is newer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from azure_sink.core.replica_state import PointMark, Position
from replication.errors import PeerProtocolError
from replication.identifiers import CutId, DiskId
from replication.store_documents import RecoveryPoint, RecoveryPointDisk


class CutMismatch(PeerProtocolError):
    """The parts of a cut do not belong together: it is never completed. The disks' epochs are good, and a later cut may be complete."""

    code = "cut-mismatch"


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

    :raises CutMismatch: if the snapshots disagree about what was cut together, or are of different instants.
    """
    for found in snapshots.values():
        theirs = found.mark
        if theirs.cut != mark.cut or theirs.item != mark.item or set(theirs.disks) != set(mark.disks):
            raise _mismatch(mark.cut, "its disks' manifests name different cuts")
    require_one_instant(mark.cut, (found.cut_time_ns for found in snapshots.values()))
    if any(disk not in snapshots for disk in mark.disks):
        return None
    parts = [snapshots[disk] for disk in sorted(mark.disks)]
    return RecoveryPoint(
        item=mark.item,
        cut=mark.cut,
        time_ns=parts[0].cut_time_ns,
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


def require_one_instant(cut: CutId, times_ns: Iterable[int]) -> None:
    """:raises CutMismatch: if parts of ``cut`` have different cut times (of the one agent that cuts all disks of an item)."""
    times = sorted(set(times_ns))
    if len(times) > 1:
        apart_s = (times[-1] - times[0]) / 1e9
        raise _mismatch(cut, f"its parts were cut at different times, {apart_s:.3f} s apart")


def _mismatch(cut: CutId, why: str) -> CutMismatch:
    return CutMismatch(
        f"cannot complete recovery point {cut}: {why}",
        hint="the replicas are unharmed and the next recovery point may be complete; report the agent's version and log",
    )


def positions_of(point: RecoveryPoint) -> dict[str, Position]:
    return {part.disk: Position(part.generation, part.epoch) for part in point.disks}


def names(point: RecoveryPoint, snapshot: PointSnapshot) -> bool:
    return any((part.disk, part.snapshot) == (snapshot.disk, snapshot.snapshot) for part in point.disks)


def is_newer(one: RecoveryPoint, other: RecoveryPoint) -> bool:
    """Whether ``one`` stands later in the history of a disk that both have; without a common disk the clock decides."""
    mine, theirs = positions_of(one), positions_of(other)
    common = mine.keys() & theirs.keys()
    if common:
        return all(mine[disk] > theirs[disk] for disk in common)
    return one.time_ns > other.time_ns


def not_prunable(points: Collection[RecoveryPoint], cuts: Collection[str], gone: Collection[str]) -> list[str]:
    """Those of ``cuts`` that must stay: without them some disk would have no newer point (P5).

    :param gone: disks without a replica, for which no point is kept.
    """
    remaining = [point for point in points if point.cut not in cuts]

    def must_stay(point: RecoveryPoint) -> bool:
        covered = {part.disk for other in remaining if is_newer(other, point) for part in other.disks}
        return any(part.disk not in covered and part.disk not in gone for part in point.disks)

    must = [point.cut for point in points if point.cut in cuts and must_stay(point)]
    if not must and points and not remaining:
        return [point.cut for point in points]  # an item keeps a point, even if all of its disks are gone
    return must


def still_awaited(snapshot: PointSnapshot, recorded: Iterable[RecoveryPoint]) -> frozenset[DiskId]:
    """Disks that may still complete the unrecorded cut of ``snapshot``; if none of them has a replica, it leads nowhere.

    Epochs are applied in order, and a disk completes its point, if the others are there, before it goes on. So when a later point
    of this disk is recorded, every disk in that point has gone past the earlier cut. While no later point is recorded, this disk
    itself is among the awaited: its snapshot is its newest.
    """
    passed: set[str] = set()
    for point in recorded:
        positions = positions_of(point)
        if snapshot.disk in positions and positions[snapshot.disk] > snapshot.position:
            passed |= positions.keys()
    return frozenset(disk for disk in snapshot.mark.disks if disk not in passed)
