"""How much of everything the observed churn needs: machines, bandwidth, time for initial replication, and which RPO a line allows.

Called by ``config_server/sizing.py``. Plain arithmetic over the capacity tables (``capacity.py``). *Churn* is what is dirtied, in whole
granules of 64 KiB: a write of 4 KiB counts sixteenfold when it comes alone. Bytes dirtied again within an epoch are counted once, so longer
intervals between epochs would show less; what is computed here from churn at the usual interval is therefore an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from config_server.core.capacity import APPLIANCE, PROCESS_SERVER, CapacityTier
from config_server.core.target_disks import ChurnLimit

DAY_S: Final = 86_400.0
HEADROOM: Final = 1.25
"""A line that is exactly as wide as the churn never catches up with anything."""
MOST_MACHINE_CHURN_BYTES_PER_S: Final = 54e6
"""FIELD.md's limit; those of disks go by the type that is to be made of them (``target_disks.py``)."""
SHORTEST_HOUR_S: Final = 600.0
"""An hour that was watched for less counts as if for ten minutes: a burst of seconds is no busiest hour. But no busiest hour is below the
mean, which goes by the time that was watched: the line that meets it would lose to the mean."""
LINES_BITS_PER_S: Final = (10_000_000, 50_000_000, 100_000_000, 200_000_000, 500_000_000, 1_000_000_000)


@dataclass(frozen=True, slots=True)
class Machines:
    """So many of one size. ``each_churn_bytes_per_day``, ``each_servers``: what one of them will carry."""

    count: int
    tier: CapacityTier
    each_churn_bytes_per_day: float
    each_servers: int


@dataclass(frozen=True, slots=True)
class Fleet:
    """``process_servers`` are beside the appliances, for all of them together; None: the appliances do it alone."""

    appliances: Machines
    process_servers: Machines | None


def fleet_for(churn_bytes_per_day: float, servers: int) -> Fleet:
    """Over 200 servers another appliance; where the churn is more than the largest appliance takes, process servers take the rest."""
    appliances = max(1, math.ceil(servers / APPLIANCE.most_servers))
    each_servers, each_churn = math.ceil(servers / appliances), churn_bytes_per_day / appliances
    tier = APPLIANCE.smallest_for(each_churn, each_servers)
    if tier is not None:
        return Fleet(Machines(appliances, tier, each_churn, each_servers), None)
    kept, largest = APPLIANCE.most_churn_bytes_per_day, APPLIANCE.tiers[-1]
    rest = each_churn - kept
    each = math.ceil(rest / PROCESS_SERVER.most_churn_bytes_per_day)
    moved_servers = math.ceil(each_servers * rest / each_churn)
    ps_servers = math.ceil(moved_servers / each)
    ps_tier = PROCESS_SERVER.smallest_for(rest / each, ps_servers)
    if ps_tier is None:
        raise AssertionError("an appliance's share of servers fits on one process server")
    return Fleet(
        Machines(appliances, largest, kept, each_servers - moved_servers),
        Machines(appliances * each, ps_tier, rest / each, ps_servers),
    )


def bandwidth_needed_bits_per_s(busiest_bytes_per_s: float, wire_ratio: float) -> float:
    """So that the busiest hour does not leave a backlog behind, with a quarter to spare. ``wire_ratio``: bytes sent for each dirtied."""
    return busiest_bytes_per_s * wire_ratio * 8 * HEADROOM


def initial_replication_s(
    disk_bytes: float, churn_bytes_per_s: float, bits_per_s: float, wire_ratio: float
) -> float | None:
    """How long all disks take while changes go on; None: it never ends. A ratio below one is compression, of content and changes alike."""
    for_content = bits_per_s / 8 - churn_bytes_per_s * wire_ratio
    if for_content <= 0:
        return None if disk_bytes > 0 else 0.0
    return disk_bytes * wire_ratio / for_content


def reachable_rpo_s(
    churn_bytes_per_s: float, bits_per_s: float, wire_ratio: float, point_interval_s: float
) -> float | None:
    """The worst age of the newest recovery point under this churn; None: it grows without end.

    A point is complete when all changes of its interval are through: until then the one before is the newest.
    """
    share = churn_bytes_per_s * wire_ratio * 8 / bits_per_s
    return None if share >= 1 else point_interval_s * (1 + share)


@dataclass(frozen=True, slots=True)
class Reach:
    """What a line of this width allows."""

    bits_per_s: float
    initial_replication_s: float | None
    rpo_s: float | None


def reach_of(
    lines_bits_per_s: Sequence[float],
    disk_bytes: float,
    mean_bytes_per_s: float,
    busiest_bytes_per_s: float,
    wire_ratio: float,
    point_interval_s: float,
) -> list[Reach]:
    """By width. Initial replication meets the mean churn, the RPO has to hold in the busiest hour."""
    return [
        Reach(
            line,
            initial_replication_s(disk_bytes, mean_bytes_per_s, line, wire_ratio),
            reachable_rpo_s(busiest_bytes_per_s, line, wire_ratio, point_interval_s),
        )
        for line in sorted(set(lines_bits_per_s))
    ]


@dataclass(frozen=True, slots=True)
class HourOfChurn:
    """One disk in one hour. ``observed_s``: how long it was watched in it."""

    server: str
    disk: str
    hour: int
    changed_bytes: int
    observed_s: float
    limit: ChurnLimit

    @property
    def bytes_per_s(self) -> float:
        return self.changed_bytes / max(self.observed_s, SHORTEST_HOUR_S)


@dataclass(frozen=True, slots=True)
class ServerChurn:
    """One server's churn over all hours that were observed. ``warnings``: limits that its busiest hour is beyond.

    The busiest hour is never below the mean.
    """

    server: str
    mean_bytes_per_s: float
    busiest_bytes_per_s: float
    observed_s: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SiteChurn:
    """``by_hour``: (hour since 1970, bytes a second of all servers), in order. The day is the mean hour, 24 times.

    The busiest hour is never below the mean.
    """

    servers: tuple[ServerChurn, ...]
    by_hour: tuple[tuple[int, float], ...]
    mean_bytes_per_s: float
    busiest_bytes_per_s: float

    @property
    def bytes_per_day(self) -> float:
        return self.mean_bytes_per_s * DAY_S


def site_churn(hours: Sequence[HourOfChurn]) -> SiteChurn:
    """A disk's rate in an hour is that of the part in which it was watched; the site's in an hour the sum of its disks'.

    The mean of the site is the sum of its servers' means, so that one that was watched for a shorter time counts as much as the others.
    Where servers were watched in different hours, or for minutes only, that may be more than any hour shows: then it is the busiest hour.
    """
    by_server: dict[str, list[HourOfChurn]] = {}
    by_hour: dict[int, float] = {}
    for each in hours:
        by_server.setdefault(each.server, []).append(each)
        by_hour[each.hour] = by_hour.get(each.hour, 0.0) + each.bytes_per_s
    servers = tuple(_server_churn(name, by_server[name]) for name in sorted(by_server))
    mean = sum(server.mean_bytes_per_s for server in servers)
    return SiteChurn(
        servers=servers,
        by_hour=tuple(sorted(by_hour.items())),
        mean_bytes_per_s=mean,
        busiest_bytes_per_s=max(mean, *by_hour.values()) if by_hour else 0.0,
    )


def _server_churn(name: str, hours: Sequence[HourOfChurn]) -> ServerChurn:
    by_disk: dict[str, list[HourOfChurn]] = {}
    by_hour: dict[int, float] = {}
    for each in hours:
        by_disk.setdefault(each.disk, []).append(each)
        by_hour[each.hour] = by_hour.get(each.hour, 0.0) + each.bytes_per_s
    warnings, mean, observed_s = [], 0.0, 0.0
    for disk, of_disk in sorted(by_disk.items()):
        watched_s = sum(each.observed_s for each in of_disk)
        observed_s = max(observed_s, watched_s)
        of_disk_mean = sum(each.changed_bytes for each in of_disk) / watched_s if watched_s > 0 else 0.0
        mean += of_disk_mean
        busiest = max(of_disk_mean, *(each.bytes_per_s for each in of_disk))
        warnings += _beyond(disk, busiest, of_disk[-1].limit)
    busiest = max(mean, *by_hour.values())
    return ServerChurn(name, mean, busiest, observed_s, (*warnings, *_server_beyond(busiest)))


def _beyond(disk: str, busiest: float, limit: ChurnLimit) -> list[str]:
    return [f"{disk}: {busiest / 1e6:.1f} MB/s, beyond {limit}"] if busiest > limit.bytes_per_s else []


def _server_beyond(busiest: float) -> list[str]:
    limit = MOST_MACHINE_CHURN_BYTES_PER_S
    return [f"{busiest / 1e6:.0f} MB/s, beyond {limit / 1e6:.0f} MB/s a server"] if busiest > limit else []


@dataclass(frozen=True, slots=True)
class ProfiledChurn:
    """One disk as it was measured without replication. ``windows``: (length in s, mean and most distinct bytes), from the shortest."""

    server: str
    disk: str
    windows: tuple[tuple[float, float, float], ...]
    watched_s: float
    limit: ChurnLimit

    @property
    def mean_bytes_per_s(self) -> float:
        length_s, mean, _ = self.windows[0]
        return mean / length_s

    @property
    def busiest_bytes_per_s(self) -> float:
        """In the fullest of the longest windows: shorter ones are bursts."""
        length_s, _, most = self.windows[-1]
        return max(self.mean_bytes_per_s, most / length_s)


@dataclass(frozen=True, slots=True)
class IntervalChurn:
    """All measured disks in windows of one length; ``most_bytes`` as if the fullest windows of all coincided.

    ``amplification``: the rate at this length ÷ that at the longest. So much more goes over the line for a shorter interval.
    """

    interval_s: float
    mean_bytes: float
    most_bytes: float
    amplification: float


def intervals_of(profiled: Sequence[ProfiledChurn]) -> list[IntervalChurn]:
    """Only lengths that every disk was watched for: sums of others could not be compared."""
    by_disk = [{interval_s: (mean, most) for interval_s, mean, most in each.windows} for each in profiled]
    common = sorted(set.intersection(*(set(each) for each in by_disk))) if by_disk else []
    sums = [
        (length, sum(each[length][0] for each in by_disk), sum(each[length][1] for each in by_disk))
        for length in common
    ]
    slowest = sums[-1][1] / sums[-1][0] if sums else 0.0
    return [
        IntervalChurn(length, mean, most, mean / length / slowest if slowest > 0 else 1.0)
        for length, mean, most in sums
    ]


def profiled_rpo_s(
    intervals: Sequence[IntervalChurn], beside_bytes_per_s: float, bits_per_s: float, wire_ratio: float
) -> float | None:
    """The shortest worst age of the newest recovery point that the line allows at any of these intervals; None: at none of them.

    At an interval the changes of its fullest window must be through before the next one ends, on what is left of the line by
    ``beside_bytes_per_s``: the churn of disks that were not measured and replicate over the same line.
    """
    left_bits_per_s = bits_per_s - beside_bytes_per_s * wire_ratio * 8
    if left_bits_per_s <= 0:
        return None
    ages = []
    for each in intervals:
        through_s = each.most_bytes * wire_ratio * 8 / left_bits_per_s
        if through_s <= each.interval_s:
            ages.append(each.interval_s + through_s)
    return min(ages, default=None)


def with_profiles(observed: SiteChurn, profiled: Sequence[ProfiledChurn]) -> SiteChurn:
    """What replicates as it was observed, and beside it what was only measured: its mean at the shortest windows, its fullest longest one.

    ``profiled``: of other disks. A server of which both is known (some of its disks replicate) counts with both. Busiest hours are
    added, as if they coincided.
    """
    by_server: dict[str, list[ProfiledChurn]] = {}
    for each in profiled:
        by_server.setdefault(each.server, []).append(each)
    known = {server.server: server for server in observed.servers}
    for name, disks in by_server.items():
        mean = sum(disk.mean_bytes_per_s for disk in disks)
        most = max(mean, sum(disk.windows[-1][2] / disk.windows[-1][0] for disk in disks))
        before = known.get(name, ServerChurn(name, 0.0, 0.0, 0.0, ()))
        busiest = before.busiest_bytes_per_s + most
        beyond = [text for disk in disks for text in _beyond(disk.disk, disk.busiest_bytes_per_s, disk.limit)]
        kept = [text for text in before.warnings if text not in _server_beyond(before.busiest_bytes_per_s)]
        known[name] = ServerChurn(
            name,
            before.mean_bytes_per_s + mean,
            busiest,
            max(before.observed_s, *(disk.watched_s for disk in disks)),
            (*kept, *beyond, *_server_beyond(busiest)),
        )
    added = [known[name].busiest_bytes_per_s for name in by_server]
    replaced = [server.busiest_bytes_per_s for server in observed.servers if server.server in by_server]
    return SiteChurn(
        servers=tuple(known[name] for name in sorted(known)),
        by_hour=observed.by_hour,
        mean_bytes_per_s=sum(server.mean_bytes_per_s for server in known.values()),
        busiest_bytes_per_s=observed.busiest_bytes_per_s + sum(added) - sum(replaced),
    )
