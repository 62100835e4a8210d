"""Sizing from observed churn: what the history of ``churn_history.py`` needs by the arithmetic of ``core/sizing.py``. Called by the API."""

from __future__ import annotations

from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.churn_history import HOUR_NS, KEPT_HOURS, churn_by_hour
from config_server.churn_profiles import measured_disks, profiled_churn
from config_server.core.capacity import APPLIANCE, PROCESS_SERVER, CapacityTable
from config_server.core.sizing import (
    DAY_S,
    LINES_BITS_PER_S,
    Machines,
    SiteChurn,
    bandwidth_needed_bits_per_s,
    fleet_for,
    intervals_of,
    profiled_rpo_s,
    reach_of,
    site_churn,
    with_profiles,
)
from config_server.core.target_disks import DiskType
from config_server.operator_plane import timestamp
from config_server.sized_disks import SizedDisks, sized_disks
from config_server.sizing_documents import (
    HourlyChurn,
    PlannedInterval,
    SizedLine,
    SizedMachines,
    SizedServer,
    SizingReport,
)
from config_server.tables import MachineRow
from config_server.target_disks import churn_limits

SHORT_S: Final = DAY_S
MOST_NAMED: Final = 10


async def size_site(
    session: AsyncSession,
    bandwidth_bits_per_s: float | None,
    wire_ratio: float,
    point_interval_s: float,
    now_ns: int,
    *,
    profiles: bool = False,
    disk_limit_bytes: int | None = None,
    target_disk_type: DiskType | None = None,
) -> SizingReport:
    """Every enrolled server counts with its disks (``sized_disks.py``), and these with what they changed while they replicated.

    ``profiles``: the others with what was measured of them; ``target_disk_type``: what is planned for their disks, None: what the default
    policy says. ``disk_limit_bytes``: what the configuration sets for every type.
    """
    limits = await churn_limits(session, disk_limit_bytes, target_disk_type)
    servers = await session.scalar(select(func.count()).select_from(MachineRow)) or 0
    disks = await sized_disks(session, await measured_disks(session) if profiles else ())
    disk_bytes = sum(disks.size_bytes.values())
    hours = await churn_by_hour(session, now_ns // HOUR_NS - KEPT_HOURS, limits, disks.size_bytes)
    profiled = await profiled_churn(session, limits, disks.size_bytes) if profiles else []
    observed = {(hour.server, hour.disk) for hour in hours}
    churn = with_profiles(site_churn(hours), [each for each in profiled if (each.server, each.disk) not in observed])
    intervals = intervals_of(profiled)
    measured = {(each.server, each.disk) for each in profiled}
    beside = site_churn([hour for hour in hours if (hour.server, hour.disk) not in measured])
    is_known = bool(churn.servers)
    needed = bandwidth_needed_bits_per_s(churn.busiest_bytes_per_s, wire_ratio) if is_known else None
    fleet = fleet_for(churn.bytes_per_day, servers)
    machines = [_sized(APPLIANCE, fleet.appliances, is_known=is_known)]
    if fleet.process_servers is not None:
        machines.append(_sized(PROCESS_SERVER, fleet.process_servers, is_known=is_known))
    lines = [*LINES_BITS_PER_S, *(line for line in (bandwidth_bits_per_s, needed) if line)]
    return SizingReport(
        made_at=timestamp(now_ns),
        servers=servers,
        disk_bytes=disk_bytes,
        churn_bytes_per_day=churn.bytes_per_day if is_known else None,
        busiest_hour_bytes_per_s=churn.busiest_bytes_per_s if is_known else None,
        wire_ratio=wire_ratio,
        point_interval_s=point_interval_s,
        bandwidth_needed_bits_per_s=needed,
        machines=machines,
        lines=[
            SizedLine(
                bits_per_s=reach.bits_per_s,
                initial_replication_s=reach.initial_replication_s,
                rpo_s=reach.rpo_s if is_known else None,
                profiled_rpo_s=profiled_rpo_s(intervals, beside.busiest_bytes_per_s, reach.bits_per_s, wire_ratio),
                asked_for=reach.bits_per_s == bandwidth_bits_per_s,
                needed=reach.bits_per_s == needed,
            )
            for reach in reach_of(
                lines, disk_bytes, churn.mean_bytes_per_s, churn.busiest_bytes_per_s, wire_ratio, point_interval_s
            )
        ],
        intervals=[
            PlannedInterval(
                interval_s=each.interval_s,
                mean_bytes=each.mean_bytes,
                most_bytes=each.most_bytes,
                amplification=each.amplification,
            )
            for each in intervals
        ],
        hours=[
            HourlyChurn(at=timestamp(hour * HOUR_NS), bytes_per_s=bytes_per_s) for hour, bytes_per_s in churn.by_hour
        ],
        observed=[
            SizedServer(
                server=each.server,
                mean_bytes_per_s=each.mean_bytes_per_s,
                busiest_hour_bytes_per_s=each.busiest_bytes_per_s,
                observed_s=each.observed_s,
                warnings=list(each.warnings),
            )
            for each in churn.servers
        ],
        notes=_notes(churn, servers, disks),
    )


def _sized(table: CapacityTable, machines: Machines, *, is_known: bool) -> SizedMachines:
    size = machines.tier.size
    return SizedMachines(
        kind=table.name,
        count=machines.count,
        tier=table.tiers.index(machines.tier) + 1,
        cpu_count=size.cpu_count,
        memory_bytes=size.memory_bytes,
        spool_bytes=size.spool_bytes,
        each_churn_bytes_per_day=machines.each_churn_bytes_per_day if is_known else None,
        each_servers=machines.each_servers,
    )


def _notes(churn: SiteChurn, servers: int, disks: SizedDisks) -> list[str]:
    return [*_notes_on_churn(churn, servers), *_notes_on_disks(disks)]


def _notes_on_disks(disks: SizedDisks) -> list[str]:
    if not disks.left_out:
        return []
    more = len(disks.left_out) - MOST_NAMED
    named = ", ".join(disks.left_out[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    return [f"left out, with their bytes and their churn: {named}"]


def _notes_on_churn(churn: SiteChurn, servers: int) -> list[str]:
    if not churn.servers:
        return [
            "no churn was observed yet: bandwidth and RPO are not known; `migratectl plan --profile 24h` measures it",
            "machines go by the number of servers, initial replication is without changes meanwhile",
        ]
    notes = ["churn counts whole granules of 64 KiB, once an epoch: an upper bound of what longer intervals would send"]
    unseen = servers - len(churn.servers)
    if unseen > 0:
        notes.append(f"{unseen} of {servers} servers have no observed churn: they count with their disks only")
    short = [each.server for each in churn.servers if each.observed_s < SHORT_S]
    if short:
        notes.append(f"observed for less than a day, so a day is extrapolated: {', '.join(short[:MOST_NAMED])}")
    return notes
