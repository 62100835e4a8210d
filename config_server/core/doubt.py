"""Which recovery points a doubt makes suspect (R12). Called by ``observations.py``.

A point is published only after the agent has reconciled its tracker with the kernel's counters (R3). The *proved point time* of an item
is therefore the time of the newest point that was there when every disk was observed tracking and without doubt. When a disk is in
doubt, or its tracker is degraded or blind, the points newer than that are suspect: they may miss writes. A suspect point stays suspect;
points cut after the resync, and after tracking is sound again, are good. All times here are the agent's own cut times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from replication.control_plane import DiskObservation


def doubt_of(disk: DiskObservation) -> str | None:
    """Why this disk's points cannot be vouched for, or None."""
    if disk.doubt is not None:
        return disk.doubt
    if disk.generation is None or disk.phase in ("waiting", "seeding", "failed", "held"):
        return None  # not tracked yet, or no point is cut
    if disk.tracker_health != "tracking":
        return f"the change tracker is {disk.tracker_health}: {disk.tracker_reason or 'no reason given'}"
    return None


def proved_point_time(disks: Sequence[DiskObservation], point_times_ns: Mapping[str, int]) -> int | None:
    """The cut time up to which all ``disks`` are proved by these observations, or None if they prove nothing."""
    if not disks or any(doubt_of(disk) is not None for disk in disks):
        return None
    times = [point_times_ns.get(disk.newest_cut or "") for disk in disks]
    known = [time_ns for time_ns in times if time_ns is not None]
    return min(known) if len(known) == len(disks) else None


def doubt_among(disks: Sequence[DiskObservation]) -> str | None:
    """The doubts of all disks in one sentence, or None."""
    found = [f"disk {disk.disk}: {reason}" for disk in disks if (reason := doubt_of(disk)) is not None]
    return "; ".join(found) or None


def becomes_suspect(time_ns: int, proved_point_time_ns: int | None) -> bool:
    """Whether a point of this time is made suspect by a doubt that appears now."""
    return proved_point_time_ns is None or time_ns > proved_point_time_ns
