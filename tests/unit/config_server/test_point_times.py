"""Clocks that are wrong or set: ages are never overestimated, retention lets nothing go for them, and they are noticed."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config_server.core.point_times import TOLERANCE_S, Cut, counted
from config_server.core.retention import Point, newest_good, points_to_prune

SECOND = 10**9
HOUR = 3600 * SECOND
DAY = 24 * HOUR
INTERVAL = 900 * SECOND
LATENCY = 3 * SECOND
BEGUN = 1_700_000_000 * SECOND
TOLERANCE = int(TOLERANCE_S) * SECOND


@dataclass(frozen=True)
class Fault:
    """From ``first`` on for ``length`` points a clock is ahead by ``by``; before the ``measured``-th of them nobody has noticed."""

    first: int
    length: int
    by: int
    measured: int = 10**6


def ahead(faults: list[Fault], number: int) -> int:
    return sum(fault.by for fault in faults if fault.first <= number < fault.first + fault.length)


def measured(faults: list[Fault], number: int) -> int:
    return sum(
        fault.by
        for fault in faults
        if fault.first + fault.measured <= number < fault.first + fault.length + fault.measured
    )


def history(
    number: int, agent: list[Fault] | None = None, server: list[Fault] | None = None, outage: range = range(0)
) -> list[Cut]:
    """``number`` points, one each ``INTERVAL``; those of ``outage`` are found at its end."""
    agent, server = agent or [], server or []
    cuts: list[Cut] = []
    for each in range(number):
        found_at = outage.stop if each in outage else each
        found_ns = true_time(found_at) + LATENCY + ahead(server, found_at)
        offset_ns = measured(agent, found_at) - measured(server, found_at)
        before = cuts[-1] if cuts else None
        cuts.append(counted(true_time(each) + ahead(agent, each), found_ns, offset_ns, before, BEGUN - HOUR))
    return cuts


def true_time(number: int) -> int:
    return BEGUN + number * INTERVAL


def points(times: list[int]) -> list[Point]:
    return [Point(f"p{each}", time_ns, place=(1, each)) for each, time_ns in enumerate(times)]


def kept_day_by_day(times: list[int], retention_s: float) -> list[Point]:
    """What is left when retention is applied after each point."""
    kept: list[Point] = []
    for point in points(times):
        kept.append(point)
        pruned = set(points_to_prune(kept, retention_s))
        newest = newest_good(kept)
        assert newest is point
        assert point.cut not in pruned
        kept = [each for each in kept if each.cut not in pruned]
    return kept


def test_one_point_with_a_wrong_clock_does_not_delete_the_day() -> None:
    cuts = history(97, [Fault(96, 1, 40 * DAY)])
    sound = points_to_prune(points([true_time(each) for each in range(97)]), 86400.0)
    assert points_to_prune(points([cut.counted_ns for cut in cuts]), 86400.0) == sound
    assert [cut.clock_error_ns is not None for cut in cuts] == [False] * 96 + [True]


@pytest.mark.parametrize("by", [40 * DAY, -40 * DAY])
def test_points_made_after_it_stay_and_the_clock_is_believed_again(by: int) -> None:
    cuts = history(100, [Fault(10, 1, by)])
    errors = [cut.clock_error_ns for cut in cuts]
    assert [number for number, error in enumerate(errors) if error is not None] == [10]
    assert abs((errors[10] or 0) - by) <= TOLERANCE
    assert abs(cuts[-1].counted_ns - true_time(99)) <= LATENCY


def test_clock_that_stays_wrong_is_told_as_long_as_it_is() -> None:
    cuts = history(60, [Fault(20, 10**6, -3 * HOUR, measured=2)])
    assert [cut.clock_error_ns is None for cut in cuts] == [True] * 20 + [False] * 40
    assert all(abs(cut.counted_ns - true_time(each)) <= LATENCY for each, cut in enumerate(cuts))


@given(st.integers(1, 50), st.integers(1, 100))
@settings(max_examples=10, deadline=None)
def test_points_that_are_found_late_count_from_their_cut(first: int, length: int) -> None:
    cuts = history(first + length + 10, outage=range(first, first + length))
    assert [cut.counted_ns for cut in cuts] == [true_time(each) for each in range(len(cuts))]


def test_clock_that_drifts_is_followed_without_alarm() -> None:
    """100 parts in a million, never measured: 9 s a day. The bound is when a point was found."""
    cuts: list[Cut] = []
    for each in range(4 * 24 * 30):
        drifted = true_time(each) + each * INTERVAL // 10_000
        cuts.append(counted(drifted, true_time(each) + LATENCY, 0, cuts[-1] if cuts else None, BEGUN - HOUR))
    assert all(abs(cut.counted_ns - true_time(each)) <= TOLERANCE for each, cut in enumerate(cuts))
    assert cuts[-1].clock_error_ns is not None


@functools.cache
def soundly_kept(number: int) -> int:
    return len(kept_day_by_day([true_time(each) for each in range(number)], 86400.0))


jumps = st.one_of(
    st.integers(-60 * DAY, 60 * DAY), st.sampled_from([HOUR, -HOUR, 400 * DAY, -400 * DAY, 20 * 365 * DAY])
)
faults = st.lists(
    st.builds(Fault, st.integers(1, 120), st.integers(1, 60), jumps, st.sampled_from([0, 1, 2, 10**6])),
    min_size=1,
    max_size=3,
)


def assert_as_with_a_sound_clock(cuts: list[Cut], faults: list[Fault]) -> None:
    """Up to what a clock that is set can hide: less than an interval each time."""
    times = [cut.counted_ns for cut in cuts]
    assert times == sorted(times)
    hidden = 2 * len(faults) * (INTERVAL + TOLERANCE) + TOLERANCE
    newest = len(cuts) - 1
    for each, time_ns in enumerate(times):
        assert (times[newest] - time_ns) - (true_time(newest) - true_time(each)) <= hidden
    kept = kept_day_by_day(times, 86400.0)
    assert len(kept) >= soundly_kept(len(cuts)) - 2 * len(faults) - 1


@given(faults)
@settings(max_examples=60, deadline=None)
def test_no_setting_of_the_agent_s_clock_ages_the_points(faults: list[Fault]) -> None:
    cuts = history(130, agent=faults)
    assert_as_with_a_sound_clock(cuts, faults)


@given(faults)
@settings(max_examples=60, deadline=None)
def test_no_setting_of_this_server_s_clock_ages_the_points(faults: list[Fault]) -> None:
    cuts = history(130, server=faults)
    assert_as_with_a_sound_clock(cuts, faults)


@given(jumps.filter(lambda by: abs(by) > INTERVAL + TOLERANCE), st.integers(1, 120), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_every_jump_beyond_an_interval_is_noticed_with_its_first_point(by: int, first: int, length: int) -> None:
    cuts = history(130, agent=[Fault(first, length, by)])
    assert cuts[first - 1].clock_error_ns is None
    assert cuts[first].clock_error_ns is not None


@given(jumps, st.integers(1, 50), st.integers(1, 96), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_a_clock_set_while_points_come_late_overestimates_no_age_beyond_their_lateness(
    by: int, first: int, length: int, jump: int
) -> None:
    cuts = history(170, agent=[Fault(first + jump, 3, by)], outage=range(first, first + length))
    times = [cut.counted_ns for cut in cuts]
    hidden = length * INTERVAL + 2 * INTERVAL + 3 * TOLERANCE
    assert times == sorted(times)
    for each, time_ns in enumerate(times):
        assert (times[-1] - time_ns) - (true_time(169) - true_time(each)) <= hidden
