"""Retention: FIELD.md's thinning, and what must never be pruned (P5, R12)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from config_server.core.retention import ALL_POINTS_S, Point, newest_good, points_to_prune

HOUR = 3600
DAY = 86400
NOW_S = 1_700_000_000
RETENTIONS = st.sampled_from([0, HOUR, DAY, 3 * DAY, 7 * DAY, 15 * DAY])


def at(age_s: float, cut: str | None = None, *, app: bool = False, suspect: bool = False) -> Point:
    return Point(cut or f"age-{age_s}", int((NOW_S - age_s) * 10**9), app, suspect)


points_lists = st.lists(
    st.builds(
        at,
        st.integers(0, 20 * DAY),
        st.uuids().map(str),
        app=st.booleans(),
        suspect=st.sampled_from([False] * 3 + [True]),
    ),
    max_size=40,
)


@given(points_lists, RETENTIONS)
def test_newest_good_point_is_never_pruned(points: list[Point], retention_s: int) -> None:
    newest = newest_good(points)
    pruned = points_to_prune(points, retention_s)
    if newest is None:
        assert pruned == []
    else:
        assert newest.cut not in pruned
        assert not newest.suspect


@given(points_lists, RETENTIONS, st.randoms(use_true_random=False))
def test_order_of_the_points_does_not_matter(points: list[Point], retention_s: int, chance: object) -> None:
    shuffled = list(points)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert points_to_prune(shuffled, retention_s) == points_to_prune(points, retention_s)


@given(points_lists, RETENTIONS)
def test_pruning_what_was_pruned_changes_nothing(points: list[Point], retention_s: int) -> None:
    pruned = set(points_to_prune(points, retention_s))
    left = [point for point in points if point.cut not in pruned]
    assert points_to_prune(left, retention_s) == []


@given(points_lists, RETENTIONS)
def test_points_in_use_stay(points: list[Point], retention_s: int) -> None:
    used = {point.cut for point in points[::2]}
    assert not used & set(points_to_prune(points, retention_s, used))


def test_all_points_of_two_hours_are_kept_then_one_an_hour() -> None:
    points = [at(60 * minutes) for minutes in range(0, 24 * 60, 5)]
    pruned = set(points_to_prune(points, DAY))
    kept = [point for point in points if point.cut not in pruned]
    recent = [point for point in kept if (NOW_S * 10**9 - point.time_ns) / 1e9 <= ALL_POINTS_S]
    assert len(recent) == 25
    older = len(kept) - len(recent)
    assert older in (22, 23)


def test_longer_policies_keep_one_per_two_hours_for_a_week_then_one_per_four() -> None:
    points = [at(HOUR * hours) for hours in range(16 * 24)]
    pruned = set(points_to_prune(points, 15 * DAY))
    ages = [(NOW_S * 10**9 - point.time_ns) / 1e9 for point in points if point.cut not in pruned]
    assert max(ages) <= 15 * DAY
    week = [age for age in ages if ALL_POINTS_S < age <= 7 * DAY]
    later = [age for age in ages if age > 7 * DAY]
    assert 82 <= len(week) <= 84
    assert 48 <= len(later) <= 49


def test_what_is_older_than_the_retention_goes() -> None:
    assert points_to_prune([at(0), at(DAY + 1)], DAY) == [f"age-{DAY + 1}"]


def test_retention_zero_keeps_the_latest_only() -> None:
    assert points_to_prune([at(0), at(60), at(120)], 0) == ["age-120", "age-60"]


def test_suspect_point_does_not_age_the_good_ones() -> None:
    """The newest point is suspect: ages count from the good one, which is old and stays."""
    points = [at(0, suspect=True), at(3 * DAY), at(3 * DAY + HOUR)]
    assert points_to_prune(points, DAY) == []


def test_without_a_good_point_nothing_is_pruned() -> None:
    assert points_to_prune([at(0, suspect=True), at(40 * DAY, suspect=True)], DAY) == []


def test_app_consistent_point_stands_for_its_slot() -> None:
    base = (NOW_S // HOUR) * HOUR
    points = [
        Point("newest", NOW_S * 10**9),
        Point("early", (base - 5 * HOUR + 60) * 10**9),
        Point("app", (base - 5 * HOUR + 1200) * 10**9, app_consistent=True),
    ]
    assert points_to_prune(points, DAY) == ["early"]


def test_good_point_stands_for_its_slot_before_a_suspect_one() -> None:
    base = (NOW_S // HOUR) * HOUR
    points = [
        Point("newest", NOW_S * 10**9),
        Point("suspect", (base - 5 * HOUR + 60) * 10**9, app_consistent=True, suspect=True),
        Point("good", (base - 5 * HOUR + 1200) * 10**9),
    ]
    assert points_to_prune(points, DAY) == ["suspect"]
