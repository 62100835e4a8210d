"""What an agent's doubt means: for health, and for the recovery points that it makes suspect (R12).

Called by ``health.py`` and ``observations.py``. Two kinds: marks were lost but everything that they can have covered was dirtied again (the
text ``doubt`` of a disk whose tracker tracks on): the replica repairs itself, points are not touched, since each was reconciled with the
kernel's counters before it was published (R3); health says so. Or tracking is lost (the tracker is degraded or blind, or the disk
resynchronizes without having been told to): the points newer than the *proved point time* may miss writes and become suspect. That time is
the cut of the newest point that was there when every disk was observed without such a loss. A suspect point stays suspect; points cut after
the resync are good. All times here are the agent's own cut times.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from replication.control_plane import DiskObservation

_NOT_TRACKED_YET: Final = ("waiting", "seeding", "failed", "held")


def doubt_of(disk: DiskObservation) -> str | None:
    """Why this disk is not healthy, as far as tracking is concerned, or None."""
    return disk.doubt or _lost_tracking(disk)


def _lost_tracking(disk: DiskObservation) -> str | None:
    if disk.generation is None or disk.phase in _NOT_TRACKED_YET or disk.tracker_health == "tracking":
        return None
    return f"the change tracker is {disk.tracker_health}: {disk.tracker_reason or 'no reason given'}"


def loss_among(disks: Sequence[DiskObservation], resync_ordered: Collection[str]) -> str | None:
    """Which disks have lost tracking, in one sentence, or None. ``resync_ordered``: disks that the operator told to resynchronize."""
    found = []
    for disk in disks:
        lost = _lost_tracking(disk)
        if lost is None and disk.phase == "resynchronizing" and disk.disk not in resync_ordered:
            lost = f"it is being resynchronized: {disk.doubt or disk.tracker_reason or 'tracking was interrupted'}"
        if lost is not None:
            found.append(f"disk {disk.disk}: {lost}")
    return "; ".join(found) or None


def proved_point_time(disks: Sequence[DiskObservation], point_times_ns: Mapping[str, int]) -> int | None:
    """The cut time of the newest point that all ``disks`` take part in; None if one of them names no known point."""
    times = [point_times_ns.get(disk.newest_cut or "") for disk in disks]
    known = [time_ns for time_ns in times if time_ns is not None]
    return min(known) if known and len(known) == len(disks) else None


def becomes_suspect(time_ns: int, proved_point_time_ns: int | None) -> bool:
    """Whether a point of this time is made suspect by a loss that is observed now."""
    return proved_point_time_ns is None or time_ns > proved_point_time_ns
