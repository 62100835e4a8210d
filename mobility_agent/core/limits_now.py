"""Which of the agent's limits hold at an instant, and when others will. Called by ``limits_in_force.py``.

Of two limits (the file's and the configuration server's) the lower one counts, for each resource by itself, each at its hour.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from replication.agent_limits import AgentLimits
from replication.work_hours import hours_at, lower_limit, sooner


@dataclass(frozen=True, slots=True)
class LimitsNow:
    """What holds, from the instant it was asked for until ``until_unix_s`` (None: for more than a week, or for good)."""

    read_bytes_per_s: int | None
    cpu_cores: float | None
    work_hours: bool
    until_unix_s: float | None


def limits_at(limits: AgentLimits, zone: dt.tzinfo | None, unix_s: float) -> LimitsNow:
    """``zone`` is that of ``limits.work_hours``; None: there are none, or their zone is not known."""
    hours = limits.work_hours
    if hours is None:
        return LimitsNow(limits.read_bytes_per_s, limits.cpu_cores, work_hours=False, until_unix_s=None)
    now = hours_at(hours, zone, unix_s)
    return LimitsNow(
        now.of(hours.read_bytes_per_s, limits.read_bytes_per_s),
        now.of(hours.cpu_cores, limits.cpu_cores),
        work_hours=bool(now.working),
        until_unix_s=now.until_unix_s,
    )


def both(first: LimitsNow, second: LimitsNow) -> LimitsNow:
    """The lower of each limit; it may change when either does."""
    return LimitsNow(
        lower_limit(first.read_bytes_per_s, second.read_bytes_per_s),
        lower_limit(first.cpu_cores, second.cpu_cores),
        work_hours=first.work_hours or second.work_hours,
        until_unix_s=sooner(first.until_unix_s, second.until_unix_s),
    )
