"""Whether a disk comes forward and whether it falls behind, from one observation to the next. Called by ``observations.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from replication.control_plane import DiskObservation

PEAK_REMEMBERED_S: Final = 900.0
"""A backlog that was not exceeded for so long is being worked off."""


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


@dataclass(frozen=True, slots=True)
class FallingBehind:
    """A disk that changes faster than it is shipped. ``since_ns``: when that was first seen; the backlog was highest, ``peak_bytes``, at
    ``peak_ns``: so it has been growing from the one to the other.
    """

    since_ns: int
    peak_bytes: int
    peak_ns: int


def falling_behind(
    known: FallingBehind | None, before: DiskObservation | None, now: DiskObservation, now_ns: int
) -> FallingBehind | None:
    """Whether the source changes faster than it is shipped, from one observation to the next.

    It begins with churn above the sending rate and a backlog that does not shrink. Afterwards only the backlog's heights count: churn is
    known from one harvest to the next, and these are far apart just when much waits; and each epoch that is applied makes the backlog
    smaller for a moment, however much comes after it. So it ends when half of the greatest backlog is worked off, or when there was no
    greater one for ``PEAK_REMEMBERED_S``.
    """
    if before is None or now.phase in ("paused", "held", "waiting", "failed") or not now.backlog_bytes:
        return None
    backlog_bytes = now.backlog_bytes
    if known is None or now_ns - known.peak_ns > int(PEAK_REMEMBERED_S * 1e9):
        begins = now.churn_bytes_per_s > now.send_rate_bytes_per_s and backlog_bytes >= before.backlog_bytes
        return FallingBehind(now_ns, backlog_bytes, now_ns) if begins else None
    if backlog_bytes >= known.peak_bytes:
        return FallingBehind(known.since_ns, backlog_bytes, now_ns)
    return known if backlog_bytes > known.peak_bytes // 2 else None
