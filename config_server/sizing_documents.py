"""What sizing answers, as documents of the API. Built by ``sizing.py``, read by ``migratectl size``."""

from __future__ import annotations

from replication.documents import Document


class SizedMachines(Document):
    """So many machines of one size. ``tier``: the row of the capacity table, from 1."""

    kind: str
    count: int
    tier: int
    cpu_count: int
    memory_bytes: int
    spool_bytes: int
    each_churn_bytes_per_day: float
    each_servers: int


class SizedServer(Document):
    """One server that was observed while it replicated."""

    server: str
    mean_bytes_per_s: float
    busiest_hour_bytes_per_s: float
    observed_s: float
    warnings: list[str]


class SizedLine(Document):
    """What a line of this width allows; null: it never ends, or has no bound."""

    bits_per_s: float
    initial_replication_s: float | None
    rpo_s: float | None
    asked_for: bool
    needed: bool


class HourlyChurn(Document):
    at: str
    bytes_per_s: float


class SizingReport(Document):
    """``servers`` and ``disk_bytes``: what is to be carried, also where nothing was observed yet. ``notes``: what the figures rest on."""

    made_at: str
    servers: int
    disk_bytes: int
    churn_bytes_per_day: float
    busiest_hour_bytes_per_s: float
    wire_ratio: float
    point_interval_s: float
    bandwidth_needed_bits_per_s: float
    machines: list[SizedMachines]
    lines: list[SizedLine]
    hours: list[HourlyChurn]
    observed: list[SizedServer]
    notes: list[str]
