"""Which limit holds when: by the clock on the wall, over midnight, in the hours that summer time takes away and gives twice."""

from __future__ import annotations

import datetime as dt
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from process_server.core.upload_hours import Regime, both, regime_at
from replication.upload_limits import UploadLimits, WorkHours
from replication.work_hours import WEEKDAYS, lower_limit, minute_of_day

WORK, ELSE = 1_000_000, 50_000_000
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns")


def limits(**changes: Any) -> UploadLimits:
    values = {
        "days": ["mon", "tue", "wed", "thu", "fri"],
        "start": "08:00",
        "end": "18:00",
        "time_zone": "Europe/Berlin",
    }
    hours = WorkHours(**(values | {"limit_bits_per_s": WORK} | changes))
    return UploadLimits(limit_bits_per_s=ELSE, work_hours=hours)


def at(text: str, zone: str = "Europe/Berlin", fold: int = 0) -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def asked(given_limits: UploadLimits, unix_s: float) -> Regime:
    assert given_limits.work_hours is not None
    return regime_at(given_limits, ZoneInfo(given_limits.work_hours.time_zone), unix_s)


@pytest.mark.parametrize(
    ("moment", "limit", "until"),
    [
        ("2026-03-02 07:59:59", ELSE, "2026-03-02 08:00"),  # a Monday
        ("2026-03-02 08:00", WORK, "2026-03-02 18:00"),
        ("2026-03-02 17:59:59", WORK, "2026-03-02 18:00"),
        ("2026-03-02 18:00", ELSE, "2026-03-03 08:00"),
        ("2026-03-06 18:00", ELSE, "2026-03-09 08:00"),  # over the weekend
        ("2026-03-28 12:00", ELSE, "2026-03-30 08:00"),  # over the change to summer time
        ("2026-10-24 12:00", ELSE, "2026-10-26 08:00"),  # and back
    ],
)
def test_the_limit_of_the_hour_holds_until_the_hours_end(moment: str, limit: int, until: str) -> None:
    assert asked(limits(), at(moment)) == Regime(limit, limit == WORK, at(until))


def test_hours_over_midnight_belong_to_the_day_on_which_they_start() -> None:
    night = limits(days=["fri"], start="22:00", end="06:00")
    assert asked(night, at("2026-03-06 21:59")) == Regime(ELSE, False, at("2026-03-06 22:00"))
    assert asked(night, at("2026-03-06 22:00")) == Regime(WORK, True, at("2026-03-07 06:00"))
    assert asked(night, at("2026-03-07 05:59")) == Regime(WORK, True, at("2026-03-07 06:00"))
    assert asked(night, at("2026-03-07 22:00")) == Regime(ELSE, False, at("2026-03-13 22:00"))
    assert asked(night, at("2026-03-06 05:00")).work_hours is False  # of Thursday's night


def test_an_hour_that_summer_time_leaves_out_begins_when_the_clock_jumps_over_it() -> None:
    early = limits(days=["sun"], start="02:30", end="04:00")
    assert asked(early, at("2026-03-29 01:59")) == Regime(ELSE, False, at("2026-03-29 03:00"))
    assert asked(early, at("2026-03-29 03:00")) == Regime(WORK, True, at("2026-03-29 04:00"))


def test_hours_that_lie_wholly_in_the_hour_left_out_do_not_take_place() -> None:
    gone = limits(days=["sun"], start="02:10", end="02:50")
    assert asked(gone, at("2026-03-29 01:00")) == Regime(ELSE, False, at("2026-04-05 02:10"))


def test_an_hour_that_comes_twice_counts_twice() -> None:
    twice = limits(days=["sun"], start="02:00", end="02:30")
    first, second = at("2026-10-25 02:00", fold=0), at("2026-10-25 02:00", fold=1)
    assert second == first + 3600
    assert asked(twice, first - 1) == Regime(ELSE, False, first)
    assert asked(twice, first) == Regime(WORK, True, first + 1800)
    assert asked(twice, first + 1800) == Regime(ELSE, False, second)
    assert asked(twice, second) == Regime(WORK, True, second + 1800)


def test_hours_all_the_time_never_change_and_no_schedule_is_one_limit() -> None:
    always = limits(days=list(WEEKDAYS), start="00:00", end="24:00")
    assert asked(always, at("2026-03-02 00:00")) == Regime(WORK, True, None)
    assert regime_at(UploadLimits(limit_bits_per_s=ELSE), None, 0.0) == Regime(ELSE, False, None)
    assert regime_at(UploadLimits(), None, 0.0) == Regime(None, False, None)


def test_no_limit_in_work_hours_is_none_and_not_the_other_one() -> None:
    assert asked(limits(limit_bits_per_s=None), at("2026-03-02 12:00")).limit_bits_per_s is None


def test_a_zone_that_is_not_known_has_the_lower_limit_at_all_hours() -> None:
    for hour in range(24):
        assert regime_at(limits(), None, hour * 3600.0) == Regime(WORK, False, None)


def test_of_two_limits_the_lower_counts_and_the_earlier_change() -> None:
    assert lower_limit(None, None) is None
    assert lower_limit(None, 5, 3) == 3
    assert both(Regime(5, True, 10.0), Regime(None, False, 7.0)) == Regime(5, True, 7.0)
    assert both(Regime(None, False, None), Regime(7, False, None)) == Regime(7, False, None)


def _by_the_wall_clock(hours: WorkHours, unix_s: float) -> bool:
    """The rule once more, minute by minute of a day and of the day before."""
    local = dt.datetime.fromtimestamp(unix_s, ZoneInfo(hours.time_zone))
    start, end = minute_of_day(hours.start), minute_of_day(hours.end)
    length = (end - start) % 1440 or 1440
    minute = local.hour * 60 + local.minute
    since_start = (minute - start) % 1440
    day = local.weekday() if minute >= start else (local.weekday() - 1) % 7
    return since_start < length and WEEKDAYS[day] in hours.days


_TIMES = st.builds(lambda minute: f"{minute // 60:02}:{minute % 60:02}", st.integers(0, 1439))


@given(
    zone=st.sampled_from(ZONES),
    days=st.lists(st.sampled_from(WEEKDAYS), min_size=1, max_size=7, unique=True),
    start=_TIMES,
    end=_TIMES | st.just("24:00"),
    unix_s=st.integers(1_740_000_000, 1_800_000_000),
)
def test_the_next_change_is_the_next_minute_at_which_the_wall_clock_says_otherwise(
    zone: str, days: list[str], start: str, end: str, unix_s: int
) -> None:
    if start == end:
        return
    given_limits = limits(days=days, start=start, end=end, time_zone=zone)
    assert given_limits.work_hours is not None
    found = asked(given_limits, unix_s)
    assert found.work_hours == _by_the_wall_clock(given_limits.work_hours, unix_s)
    minute = unix_s - unix_s % 60 + 60
    expected = next(
        (
            at_s
            for at_s in range(minute, minute + 8 * 86400, 60)
            if _by_the_wall_clock(given_limits.work_hours, at_s) != found.work_hours
        ),
        None,
    )
    assert found.until_unix_s == expected
