"""When initial replication will be over. Called by ``item_status.py`` and the reconciler."""

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


def seeding_forecast(disks: Sequence[tuple[int, DiskObservation | None]]) -> SeedingForecast:
    """``disks``: size and newest observation of each.

    What is left is what was not read yet plus what changed meanwhile; it shrinks at the sending rate less the churn of the
    disks that are tracked already. A disk whose observation says nothing counts with its size.
    """
    done = total = left = 0
    rate = churn = 0.0
    for size_bytes, observed in disks:
        if observed is None or observed.phase == "waiting":
            total += size_bytes
            left += size_bytes
            continue
        disk_total = observed.seeding_total_bytes or size_bytes
        disk_done = min(observed.seeding_done_bytes, disk_total)
        if observed.phase not in ("seeding", "failed", "paused"):
            disk_done = disk_total
        done += disk_done
        total += disk_total
        left += disk_total - disk_done + (observed.backlog_bytes if observed.phase == "seeding" else 0)
        rate += observed.send_rate_bytes_per_s
        churn += observed.churn_bytes_per_s
    net = rate - churn
    eta_s = 0.0 if left == 0 else left / net if net > 0 else None
    return SeedingForecast(done, total, rate, eta_s)
