"""Which upload limit holds at an instant, and when another one will: work hours by the clock on the wall of a time zone.

Called by ``upload_limits.py``. The zone is handed in resolved. *What the wall clock shows decides*: an hour that a change to summer time
leaves out does not exist, one that a change back repeats counts both times. So at every instant exactly one limit holds, and anybody with
a watch can say which. A zone that is not known here cannot say the hour: then the lower of the two limits holds.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from replication.upload_limits import MINUTES_A_DAY, WEEKDAYS, UploadLimits, WorkHours, minute_of_day

_HORIZON_DAYS: Final = 9
"""Every day of the week comes within it, whatever day it is and whichever way the clock moves meanwhile."""
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Regime:
    """What holds, from the instant it was asked for until ``until_unix_s`` (None: for more than a week, or for good)."""

    limit_bits_per_s: int | None
    work_hours: bool
    until_unix_s: float | None


def lower_limit(limits: Iterable[int | None]) -> int | None:
    """The lowest; None, which is no limit, only if all are."""
    return min((limit for limit in limits if limit is not None), default=None)


def regime_at(limits: UploadLimits, zone: dt.tzinfo | None, unix_s: float) -> Regime:
    """``zone`` is that of ``limits.work_hours``; None: there are none, or their zone is not known."""
    hours = limits.work_hours
    if hours is None:
        return Regime(limits.limit_bits_per_s, work_hours=False, until_unix_s=None)
    if zone is None:
        return Regime(
            lower_limit((limits.limit_bits_per_s, hours.limit_bits_per_s)), work_hours=False, until_unix_s=None
        )
    working = _is_work(hours, zone, unix_s)
    return Regime(
        hours.limit_bits_per_s if working else limits.limit_bits_per_s,
        work_hours=working,
        until_unix_s=_next_change(hours, zone, unix_s, working=working),
    )


def both(first: Regime, second: Regime) -> Regime:
    """Of two limits the lower one counts; it may change when either does."""
    changes = [at_s for at_s in (first.until_unix_s, second.until_unix_s) if at_s is not None]
    return Regime(
        lower_limit((first.limit_bits_per_s, second.limit_bits_per_s)),
        work_hours=first.work_hours or second.work_hours,
        until_unix_s=min(changes, default=None),
    )


def _local(zone: dt.tzinfo, unix_s: float) -> dt.datetime:
    return (_EPOCH + dt.timedelta(seconds=unix_s)).astimezone(zone)


def _is_work(hours: WorkHours, zone: dt.tzinfo, unix_s: float) -> bool:
    local = _local(zone, unix_s)
    minute, today = local.hour * 60 + local.minute, local.weekday()
    start, end = minute_of_day(hours.start), minute_of_day(hours.end)
    starts_today = WEEKDAYS[today] in hours.days
    if start < end:
        return starts_today and start <= minute < end
    started_yesterday = WEEKDAYS[(today - 1) % 7] in hours.days
    return (starts_today and minute >= start) or (started_yesterday and minute < end)


def _next_change(hours: WorkHours, zone: dt.tzinfo, unix_s: float, *, working: bool) -> float | None:
    candidates = sorted(at_s for at_s in _candidates(hours, zone, unix_s) if at_s > unix_s)
    return next((at_s for at_s in candidates if _is_work(hours, zone, at_s) is not working), None)


def _candidates(hours: WorkHours, zone: dt.tzinfo, unix_s: float) -> Iterator[float]:
    """Every instant within the horizon at which the answer may change: the wall clock passes a boundary, or is moved."""
    first = _local(zone, unix_s).date() - dt.timedelta(days=1)
    boundaries = {minute_of_day(hours.start), minute_of_day(hours.end) % MINUTES_A_DAY}
    before_s: float | None = None
    for number in range(_HORIZON_DAYS + 2):
        midnight = dt.datetime.combine(first + dt.timedelta(days=number), dt.time(), zone)
        for minute in boundaries:
            wall = midnight.replace(hour=minute // 60, minute=minute % 60)
            yield from (_unix_s(wall.replace(fold=fold)) for fold in (0, 1))
        noon_s = _unix_s(midnight.replace(hour=12))
        if before_s is not None:
            yield from _transition(zone, before_s, noon_s)
        before_s = noon_s


def _unix_s(moment: dt.datetime) -> float:
    return (moment.astimezone(dt.UTC) - _EPOCH).total_seconds()


def _transition(zone: dt.tzinfo, low_s: float, high_s: float) -> Iterator[float]:
    """The second between two noons at which the zone's offset changes, if it does."""
    offset = _local(zone, low_s).utcoffset()
    if _local(zone, high_s).utcoffset() == offset:
        return
    low, high = int(low_s), int(high_s)
    while high - low > 1:
        middle = (low + high) // 2
        if _local(zone, middle).utcoffset() == offset:
            low = middle
        else:
            high = middle
    yield float(high)
