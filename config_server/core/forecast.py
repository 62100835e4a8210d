"""When initial replication, or a resync, will be over. Called by ``item_status.py`` and the reconciler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replication.control_plane import DiskObservation


@dataclass(frozen=True, slots=True)
class SeedingForecast:
    """Over all disks. ``eta_s`` None: not known, or it will not end at these rates (see NOT_CONVERGING)."""

    done_bytes: int
    total_bytes: int
    rate_bytes_per_s: float
    eta_s: float | None

    @property
    def fraction(self) -> float:
        return 1.0 if self.total_bytes == 0 else min(1.0, self.done_bytes / self.total_bytes)


@dataclass(frozen=True, slots=True)
class SeedingDisk:
    """A disk's size, its newest observation, and whether its initial replication was complete once."""

    size_bytes: int
    observation: DiskObservation | None
    seeded: bool


def seeding_forecast(disks: Sequence[SeedingDisk]) -> SeedingForecast:
    """How far all ``disks`` are together.

    What is left is what was not read yet plus what changed meanwhile; it shrinks at the sending rate less the churn of the
    disks that are tracked already. A disk whose observation says nothing counts with its size, done if it was seeded once.
    """
    done = total = left = 0
    rate = churn = 0.0
    for disk in disks:
        observed = disk.observation
        if observed is None or observed.generation is None or observed.phase == "waiting":
            total += disk.size_bytes
            done += disk.size_bytes if disk.seeded else 0
            left += 0 if disk.seeded else disk.size_bytes
            continue
        disk_total = observed.seeding_total_bytes or disk.size_bytes
        copying = observed.phase in ("seeding", "resynchronizing", "paused", "failed")
        disk_done = min(observed.seeding_done_bytes, disk_total) if copying else disk_total
        done += disk_done
        total += disk_total
        left += disk_total - disk_done + (observed.backlog_bytes if disk_done < disk_total else 0)
        rate += observed.send_rate_bytes_per_s
        churn += observed.churn_bytes_per_s
    net = rate - churn
    eta_s = 0.0 if left == 0 else left / net if net > 0 else None
    return SeedingForecast(done, total, rate, eta_s)
