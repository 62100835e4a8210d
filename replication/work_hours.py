"""Hours of the week in which another limit holds: what they are, and whether they are now. Pure; the zone is handed in resolved.

Called by the limits' documents (``upload_limits.py``, ``agent_limits.py``) and by those who obey them: the process server's throttle and
the agent. *What the wall clock shows decides*: an hour that a change to summer time leaves out does not exist, one that a change back
repeats counts both times. So at every instant exactly one limit holds, and anybody with a watch can say which. A zone that is not known
here cannot say the hour: then the lower of the two limits holds.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, Self, TypeVar

from pydantic import Field, model_validator

from replication.documents import Document

MINUTES_A_DAY: Final = 24 * 60
_HORIZON_DAYS: Final = 9
"""Every day of the week comes within it, whatever day it is and whichever way the clock moves meanwhile."""
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: Final[tuple[Weekday, ...]] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
"""In the order of ``datetime.weekday``."""
_TIME = r"^(?:[01][0-9]|2[0-3]):[0-5][0-9]$"
_END_TIME = r"^(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]|24:00)$"

EXPECTED: Final = {
    "days": "each day (mon, tue, ... sun) once at most",
    "start": "a time such as 08:00",
    "end": "a time such as 18:00, or 24:00,",
    "time_zone": "a name such as Europe/Berlin",
}
"""Field of ``Hours`` → what it takes, in words."""

LimitT = TypeVar("LimitT", int, float)


def minute_of_day(text: str) -> int:
    """Minutes since midnight of ``HH:MM``."""
    hours, _, minutes = text.partition(":")
    return int(hours) * 60 + int(minutes)


class Hours(Document):
    """From ``start`` to just before ``end`` on ``days``, by the clock on the wall in ``time_zone``; base of those that carry limits.

    An ``end`` not after ``start`` is on the next day; such hours belong to the day on which they start.
    """

    days: list[Weekday] = Field(min_length=1, max_length=7)
    start: str = Field(pattern=_TIME)
    end: str = Field(pattern=_END_TIME)
    time_zone: str = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _make_sense(self) -> Self:
        if len(set(self.days)) != len(self.days):
            raise ValueError("a day is given twice")
        if self.start == self.end:
            raise ValueError("start and end are the same; the whole day is 00:00 to 24:00")
        return self


@dataclass(frozen=True, slots=True)
class Now:
    """``working`` None: nobody can tell. ``until_unix_s``: when the answer changes; None: not for more than a week, or never."""

    working: bool | None
    until_unix_s: float | None

    def of(self, in_hours: LimitT | None, outside: LimitT | None) -> LimitT | None:
        """The limit that holds: the lower one if it is not known which."""
        if self.working is None:
            return lower_limit(in_hours, outside)
        return in_hours if self.working else outside


def lower_limit(*limits: LimitT | None) -> LimitT | None:
    """The lowest; None, which is no limit, only if all are."""
    return min((limit for limit in limits if limit is not None), default=None)


def sooner(*instants_s: float | None) -> float | None:
    """The earliest; None, which is never, only if all are."""
    return min((instant_s for instant_s in instants_s if instant_s is not None), default=None)


def hours_at(hours: Hours | None, zone: dt.tzinfo | None, unix_s: float) -> Now:
    """``zone`` is that of ``hours``; None: there are none, or their zone is not known."""
    if hours is None:
        return Now(working=False, until_unix_s=None)
    if zone is None:
        return Now(working=None, until_unix_s=None)
    working = _is_work(hours, zone, unix_s)
    return Now(working, _next_change(hours, zone, unix_s, working=working))


def days_text(days: list[Weekday]) -> str:
    """``mon-fri``, ``mon,wed``: runs of three and more days are drawn together."""
    numbers = sorted(WEEKDAYS.index(day) for day in days)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts: list[str] = []
    for run in runs:
        names: list[str] = [WEEKDAYS[number] for number in run]
        parts += [f"{names[0]}-{names[-1]}"] if len(run) > 2 else names
    return ",".join(parts)


def hours_text(hours: Hours) -> str:
    """``mon-fri 08:00-18:00 Europe/Berlin``."""
    return f"{days_text(hours.days)} {hours.start}-{hours.end} {hours.time_zone}"


def _local(zone: dt.tzinfo, unix_s: float) -> dt.datetime:
    return (_EPOCH + dt.timedelta(seconds=unix_s)).astimezone(zone)


def _is_work(hours: Hours, zone: dt.tzinfo, unix_s: float) -> bool:
    local = _local(zone, unix_s)
    minute, today = local.hour * 60 + local.minute, local.weekday()
    start, end = minute_of_day(hours.start), minute_of_day(hours.end)
    starts_today = WEEKDAYS[today] in hours.days
    if start < end:
        return starts_today and start <= minute < end
    started_yesterday = WEEKDAYS[(today - 1) % 7] in hours.days
    return (starts_today and minute >= start) or (started_yesterday and minute < end)


def _next_change(hours: Hours, zone: dt.tzinfo, unix_s: float, *, working: bool) -> float | None:
    candidates = sorted(at_s for at_s in _candidates(hours, zone, unix_s) if at_s > unix_s)
    return next((at_s for at_s in candidates if _is_work(hours, zone, at_s) is not working), None)


def _candidates(hours: Hours, zone: dt.tzinfo, unix_s: float) -> Iterator[float]:
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
