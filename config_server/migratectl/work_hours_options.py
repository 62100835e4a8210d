"""Options for work hours: ``--work-hours``, ``--work-days``, ``--time-zone`` and the limits in them, applied to what is set already.

Called by the commands that set limits of process servers and of agents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from replication.errors import SettingsError
from replication.work_hours import EXPECTED, WEEKDAYS, Hours, Weekday

WORKING_DAYS: Final[list[Weekday]] = ["mon", "tue", "wed", "thu", "fri"]
_SPAN: Final = ("--work-hours", "a span such as 08:00-18:00, or off,")
HOURS_OPTIONS: Final = {
    "": _SPAN,
    "start": _SPAN,
    "end": _SPAN,
    "time_zone": ("--time-zone", EXPECTED["time_zone"]),
    "days": ("--work-days", EXPECTED["days"]),
}
"""Field of ``Hours`` → option, and what it takes."""

HoursT = TypeVar("HoursT", bound=Hours)


def changed_hours(
    kind: type[HoursT],
    present: HoursT | None,
    limits: Mapping[str, tuple[str | None, Callable[[str], object]]],
    hours: str | None,
    days: str | None,
    zone: str | None,
    *,
    example: str,
    check: Callable[[type[HoursT], dict[str, object]], HoursT],
) -> HoursT | None:
    """``present`` with what the options say.

    :param limits: field of ``kind`` → its option's text (None: not given) and how it is parsed.
    :param example: how a limit for new hours is given.
    :param check: makes the document, or raises ``SettingsError`` naming the option.
    :raises SettingsError: naming what cannot be used.
    """
    given = {name: parse(text) for name, (text, parse) in limits.items() if text is not None}
    if hours == "off":
        if given or days is not None or zone is not None:
            raise SettingsError(
                "cannot set work hours and take them away at once",
                hint="--work-hours off stands without --work-days, --time-zone and limits of work hours",
            )
        return None
    if not given and hours is days is zone is None:
        return present
    if present is None and not given:
        raise SettingsError("cannot have work hours without a limit for them", hint=example)
    values: dict[str, object] = (
        {"days": WORKING_DAYS, "start": "08:00", "end": "18:00", "time_zone": "UTC"}
        if present is None
        else present.model_dump()
    )
    values |= given
    if hours is not None:
        start, dash, end = hours.replace(" ", "").partition("-")
        if not dash:
            raise SettingsError(f"cannot use {hours[:64]!r} for --work-hours", hint="such as 08:00-18:00")
        values |= {"start": start.zfill(5), "end": end.zfill(5)}
    if days is not None:
        values["days"] = _days(days)
    if zone is not None:
        values["time_zone"] = zone
    return check(kind, values)


def _days(text: str) -> list[Weekday]:
    """``mon-fri``, ``mon,wed``, ``fri-mon``; in the order of the week."""
    chosen: set[int] = set()
    names = [str(day) for day in WEEKDAYS]
    for part in text.lower().replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        if first not in names or (dash and last not in names):
            raise SettingsError(
                f"cannot use {text[:64]!r} for --work-days", hint=f"such as mon-fri or mon,wed; of {', '.join(names)}"
            )
        begin, end = names.index(first), names.index(last if dash else first)
        chosen |= {number % 7 for number in range(begin, end + 1 if end >= begin else end + 8)}
    return [WEEKDAYS[number] for number in sorted(chosen)]
