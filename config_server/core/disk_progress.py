"""Whether a disk comes forward and whether it falls behind, from one observation to the next. Called by ``observations.py``."""

from __future__ import annotations

from replication.control_plane import DiskObservation


def came_forward(before: DiskObservation | None, now: DiskObservation) -> bool:
    """Whether anything was seeded, applied or cut since ``before``, or nothing had to be: a disk without backlog does not stall."""
    if before is None or now.generation != before.generation or now.phase != before.phase:
        return True
    if (now.seeding_done_bytes, now.applied_epoch, now.newest_cut) != (
        before.seeding_done_bytes,
        before.applied_epoch,
        before.newest_cut,
    ):
        return True
    if now.phase == "cutting-over" and now.sealed_epoch == now.applied_epoch:
        return True  # it waits for the operator, or reads: the job says which
    idle = now.phase in ("replicating", "held", "paused", "waiting")
    return idle and now.backlog_bytes == 0 and now.sealed_epoch == now.applied_epoch


def falls_behind(before: DiskObservation | None, now: DiskObservation, *, fell_behind: bool = False) -> bool:
    """Whether the source changes faster than it is shipped: churn above the sending rate and a backlog that does not shrink.

    Once it ``fell_behind`` only a backlog that shrinks ends it. Churn is known from one harvest to the next, and harvests are far apart
    just when much waits: a rate of nothing in between says nothing.
    """
    if before is None or now.phase in ("paused", "held", "waiting", "failed"):
        return False
    return (
        now.backlog_bytes > 0
        and (fell_behind or now.churn_bytes_per_s > now.send_rate_bytes_per_s)
        and now.backlog_bytes >= before.backlog_bytes
    )
