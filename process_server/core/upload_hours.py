"""Which upload limit holds at an instant, and when another one will. Called by ``upload_limits.py``.

Whether work hours are now is ``replication/work_hours.py``'s answer. If it cannot be told, the lower of the two limits holds.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from replication.upload_limits import UploadLimits
from replication.work_hours import hours_at, lower_limit, sooner


@dataclass(frozen=True, slots=True)
class Regime:
    """What holds, from the instant it was asked for until ``until_unix_s`` (None: for more than a week, or for good)."""

    limit_bits_per_s: int | None
    work_hours: bool
    until_unix_s: float | None


def regime_at(limits: UploadLimits, zone: dt.tzinfo | None, unix_s: float) -> Regime:
    """``zone`` is that of ``limits.work_hours``; None: there are none, or their zone is not known."""
    hours = limits.work_hours
    now = hours_at(hours, zone, unix_s)
    limit = limits.limit_bits_per_s if hours is None else now.of(hours.limit_bits_per_s, limits.limit_bits_per_s)
    return Regime(limit, work_hours=bool(now.working), until_unix_s=now.until_unix_s)


def both(first: Regime, second: Regime) -> Regime:
    """Of two limits the lower one counts; it may change when either does."""
    return Regime(
        lower_limit(first.limit_bits_per_s, second.limit_bits_per_s),
        work_hours=first.work_hours or second.work_hours,
        until_unix_s=sooner(first.until_unix_s, second.until_unix_s),
    )
