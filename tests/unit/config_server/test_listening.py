"""For how long this server could hear anybody, and what a disk's churn comes to over the hour."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config_server.core.steady_churn import LONGEST_STEP_S, TIME_CONSTANT_S, steady_churn
from config_server.listening import STOOD_STILL_S, Listening


def test_listening_counts_from_the_start() -> None:
    listening = Listening(100.0, 10.0)
    for second in range(30):
        assert listening.listened_s(100.0 + second, 1.0) == second


def test_listening_begins_anew_after_a_standstill_but_not_after_a_long_decision_with_ticks() -> None:
    listening = Listening(0.0, 10.0)
    for second in range(60):
        listening.tick(float(second))
    assert listening.listened_s(60.0, 1.0) == 60.0, "nobody asked for a minute, but it lived"
    assert listening.listened_s(60.0 + STOOD_STILL_S + 0.1, 1.0) == 0.0
    assert listening.listened_s(68.0, 1.0) == pytest.approx(2.9)


def test_listening_begins_anew_as_long_as_nobody_is_heard() -> None:
    listening = Listening(0.0, 10.0)
    for second in range(1, 20):
        listened_s = listening.listened_s(float(second), float(second))
        assert listened_s == (second if second <= 10 else 0.0)
    assert listening.listened_s(20.0, 0.5) == 1.0
    assert Listening(0.0, 10.0).listened_s(3.0, None) == 0.0, "nobody ever was"


def test_churn_of_a_minute_does_not_make_the_day() -> None:
    rate = steady_churn(None, 1e6, 0.0)
    assert rate == 1e6
    for _ in range(12):  # a minute of a hundred times as much
        rate = steady_churn(rate, 1e8, 5.0)
    assert rate < 3e6
    for _ in range(int(5 * TIME_CONSTANT_S / 5.0)):
        rate = steady_churn(rate, 1e8, 5.0)
    assert rate == pytest.approx(1e8, rel=0.01), "what lasts arrives"


@given(st.floats(0, 1e12), st.floats(0, 1e12), st.floats(-1e9, 1e9))
def test_smoothed_churn_lies_between_what_it_was_and_what_is_reported(
    before: float, now: float, elapsed_s: float
) -> None:
    found = steady_churn(before, now, elapsed_s)
    slack = 1e-9 * max(before, now)
    assert min(before, now) - slack <= found <= max(before, now) + slack
    if elapsed_s <= 0:
        assert found == before
    assert found == pytest.approx(steady_churn(before, now, min(elapsed_s, LONGEST_STEP_S)))
