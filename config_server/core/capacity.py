"""What a machine of a given size can carry: the capacity tables of the appliance and of a scale-out process server, as data.

Called by placement (how loaded is a process server?) and by sizing (what is needed for so much churn?). The tables are those of FIELD.md:
each row says up to how much churn a day and up to how many servers a machine of that size takes. GB and TB are decimal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

GB: Final = 10**9
TB: Final = 10**12

FIT: Final = 0.9
"""A machine has the memory and the spool it was ordered with if it reports this much of them: kernel and file system keep some."""


@dataclass(frozen=True, slots=True)
class MachineSize:
    """Of the machine a process server runs on; ``spool_bytes``: what its spool may use."""

    cpu_count: int
    memory_bytes: int
    spool_bytes: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one machine carries: churn of all its servers a day, and servers. ``tier``: the table's row from 1; 0: below all of them."""

    tier: int
    churn_bytes_per_day: int
    servers: int


@dataclass(frozen=True, slots=True)
class CapacityTier:
    """A row: a machine at least of this ``size`` carries up to so much."""

    size: MachineSize
    churn_bytes_per_day: int
    servers: int

    def fits(self, size: MachineSize) -> bool:
        return size.cpu_count >= self.size.cpu_count and self.share_of(size) >= FIT

    def share_of(self, size: MachineSize) -> float:
        """How much of this row's machine ``size`` is, by what it has least of."""
        wanted = self.size
        return min(
            size.cpu_count / wanted.cpu_count,
            size.memory_bytes / wanted.memory_bytes,
            size.spool_bytes / wanted.spool_bytes,
        )


@dataclass(frozen=True, slots=True)
class CapacityTable:
    """``tiers`` from the smallest. ``name`` is what the row's machine is called in reports."""

    name: str
    tiers: Sequence[CapacityTier]

    @property
    def most_churn_bytes_per_day(self) -> int:
        """Above it another process server is needed, whatever the machine."""
        return self.tiers[-1].churn_bytes_per_day

    @property
    def most_servers(self) -> int:
        return self.tiers[-1].servers

    def capacity_of(self, size: MachineSize) -> Capacity:
        """What a machine carries: its highest row; below all rows its share of the lowest, so that a small one gets little, not nothing."""
        for number, tier in reversed(list(enumerate(self.tiers, start=1))):
            if tier.fits(size):
                return Capacity(number, tier.churn_bytes_per_day, tier.servers)
        lowest = self.tiers[0]
        share = max(0.0, lowest.share_of(size))
        return Capacity(0, max(1, int(lowest.churn_bytes_per_day * share)), max(1, int(lowest.servers * share)))

    def smallest_for(self, churn_bytes_per_day: float, servers: int) -> CapacityTier | None:
        """The smallest machine that carries this load alone; None: one machine does not."""
        for tier in self.tiers:
            if churn_bytes_per_day <= tier.churn_bytes_per_day and servers <= tier.servers:
                return tier
        return None


APPLIANCE: Final = CapacityTable(
    "appliance",
    (
        CapacityTier(MachineSize(8, 16 * GB, 300 * GB), 500 * GB, 99),
        CapacityTier(MachineSize(12, 18 * GB, 600 * GB), 1 * TB, 150),
        CapacityTier(MachineSize(16, 32 * GB, 1 * TB), 2 * TB, 200),
    ),
)
"""Configuration server and process server on one machine: the default. Over 200 servers, another appliance."""

PROCESS_SERVER: Final = CapacityTable(
    "process server",
    (
        CapacityTier(MachineSize(4, 8 * GB, 300 * GB), 250 * GB, 85),
        CapacityTier(MachineSize(8, 12 * GB, 600 * GB), 1 * TB, 150),
        CapacityTier(MachineSize(12, 24 * GB, 1 * TB), 2 * TB, 225),
    ),
)
"""A process server on a machine of its own, added to scale out. Over 2 TB a day, another one."""
