"""What sizing and planning ask and answer, as documents of the API. Built by ``sizing.py``, read by ``migratectl size`` and ``plan``."""

from __future__ import annotations

from pydantic import Field

from replication.churn_profile import MAX_DURATION_S, MIN_DURATION_S, ProfileObservation
from replication.documents import Document


class SizedMachines(Document):
    """So many machines of one size. ``tier``: the row of the capacity table, from 1. Churn null: not known."""

    kind: str
    count: int
    tier: int
    cpu_count: int
    memory_bytes: int
    spool_bytes: int
    each_churn_bytes_per_day: float | None
    each_servers: int


class SizedServer(Document):
    """One server that was observed while it replicated."""

    server: str
    mean_bytes_per_s: float
    busiest_hour_bytes_per_s: float
    observed_s: float
    warnings: list[str]


class SizedLine(Document):
    """What a line of this width allows; null: it never ends, or has no bound. ``rpo_s`` is null also where no churn is known.

    ``profiled_rpo_s``: the shortest worst RPO lag over all measured windows, beside what replicates and was not measured; null also
    where nothing was measured.
    """

    bits_per_s: float
    initial_replication_s: float | None
    rpo_s: float | None
    profiled_rpo_s: float | None
    asked_for: bool
    needed: bool


class HourlyChurn(Document):
    at: str
    bytes_per_s: float


class PlannedInterval(Document):
    """Distinct bytes of all measured disks in windows of one length. ``amplification``: so many times the rate of the longest windows."""

    interval_s: float
    mean_bytes: float
    most_bytes: float
    amplification: float


class SizingReport(Document):
    """``servers`` and ``disk_bytes``: what is to be carried, also where nothing was observed yet. ``notes``: what the figures rest on.

    Churn and bandwidth null: nothing was observed, so that they are not known.
    """

    made_at: str
    servers: int
    disk_bytes: int
    churn_bytes_per_day: float | None
    busiest_hour_bytes_per_s: float | None
    wire_ratio: float
    point_interval_s: float
    bandwidth_needed_bits_per_s: float | None
    machines: list[SizedMachines]
    lines: list[SizedLine]
    intervals: list[PlannedInterval]
    hours: list[HourlyChurn]
    observed: list[SizedServer]
    notes: list[str]


class ProfileRequest(Document):
    """``servers`` empty: every server with disks that are not replicated."""

    servers: list[str] = Field(default_factory=list, max_length=1000)
    duration_s: float = Field(ge=MIN_DURATION_S, le=MAX_DURATION_S)


class ProfileStatus(Document):
    """One server's newest churn profile; ``ended_at`` null: it is under way, or its agent has not heard of it yet."""

    server: str
    begun_at: str
    duration_s: float
    ended_at: str | None
    seen: ProfileObservation | None
