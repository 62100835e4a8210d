"""From what an agent reports to where an item's replication stands. Called by ``observations.py`` and by the verbs that lead back
to replication. ``seeded`` is this server's own memory that a disk's initial replication was once complete: an agent that starts over
(its state lost) is resynchronizing, never again in initial replication.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from config_server.core.protected_item import Progress
from replication.control_plane import DiskObservation

_ORDER: Final = (
    Progress.FAILED_SEEDING,
    Progress.FAILED_RESYNCHRONIZING,
    Progress.FAILED_REPLICATING,
    Progress.SEEDING,
    Progress.RESYNCHRONIZING,
    Progress.REPLICATING,
)
SEEDED_PHASES: Final = ("replicating", "cutting-over", "held")


@dataclass(frozen=True, slots=True)
class ObservedDisk:
    """A disk of an item: its newest observation, whether it was ever seeded, and whether a resync of it is ordered."""

    disk: str
    observation: DiskObservation | None
    seeded: bool
    resync_ordered: bool = False


def progress_of(disks: Sequence[ObservedDisk]) -> tuple[Progress, str | None]:
    """Where the item stands (its least advanced disk counts), and why it failed if it did."""
    each = [_progress_of_disk(disk) for disk in disks]
    if all(progress is Progress.WAITING for progress in each):
        return Progress.WAITING, None
    advanced = [Progress.SEEDING if progress is Progress.WAITING else progress for progress in each]
    worst = min(advanced, key=_ORDER.index)
    reasons = [
        disk.observation.problem.message
        for disk, progress in zip(disks, advanced, strict=True)
        if progress is worst and disk.observation is not None and disk.observation.problem is not None
    ]
    failed = worst.value.startswith("failed")
    return worst, ("; ".join(dict.fromkeys(reasons)) or "the agent gives no reason") if failed else None


def _progress_of_disk(disk: ObservedDisk) -> Progress:
    phase = "waiting" if disk.observation is None else disk.observation.phase
    if phase == "failed":
        if not disk.seeded:
            return Progress.FAILED_SEEDING
        return Progress.FAILED_RESYNCHRONIZING if disk.resync_ordered else Progress.FAILED_REPLICATING
    if not disk.seeded and phase not in SEEDED_PHASES:
        return Progress.WAITING if phase == "waiting" else Progress.SEEDING
    if disk.resync_ordered or phase in ("resynchronizing", "seeding"):
        return Progress.RESYNCHRONIZING
    return Progress.REPLICATING
