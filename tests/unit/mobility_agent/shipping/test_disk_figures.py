"""Lags and rates: of what is applied, by this machine's clock, never negative."""

from __future__ import annotations

from mobility_agent.shipping.disk_figures import NANOSECONDS, DiskFigures, Rate

SECOND = NANOSECONDS


def test_nothing_is_said_of_a_lag_before_anything_is_applied() -> None:
    figures = DiskFigures()
    figures.note_applied_cut(0)
    assert figures.replication_lag_s(5) is None
    assert figures.rpo_lag_s(5) is None


def test_the_lag_is_the_age_of_the_newest_cut_whatever_the_order() -> None:
    figures = DiskFigures()
    figures.note_applied_cut(7 * SECOND)
    figures.note_applied_cut(3 * SECOND)
    assert figures.replication_lag_s(10 * SECOND) == 3
    assert figures.replication_lag_s(1 * SECOND) == 0, "a clock that was set back"


def test_a_rate_is_over_its_window() -> None:
    rate = Rate(window_s=10)
    assert rate.sample(0, 0) == 0
    assert rate.sample(5 * SECOND, 500) == 100
    assert rate.sample(10 * SECOND, 500) == 50
    assert rate.sample(20 * SECOND, 500) == 0
    assert rate.sample(21 * SECOND, 100) == 0, "a total that began anew"


def test_samples_are_bounded_by_the_window() -> None:
    rate = Rate(window_s=10)
    for second in range(1000):
        rate.sample(second * SECOND, second)
    assert len(rate._samples) < 20
