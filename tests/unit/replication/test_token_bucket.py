"""The token bucket: never more than the rate allows, whatever the amounts and however the clock moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.token_bucket import BURST_S, TokenBucket


@given(
    rate=st.floats(1, 1e9),
    amounts=st.lists(st.integers(1, 10**7), min_size=1, max_size=30),
    pauses=st.lists(st.floats(0, 100), min_size=30, max_size=30),
)
def test_no_more_is_granted_than_rate_burst_and_one_amount_allow(
    rate: float, amounts: list[int], pauses: list[float]
) -> None:
    bucket, now_s, granted = TokenBucket(rate, 0.0), 0.0, 0
    for amount, pause_s in zip(amounts, pauses, strict=False):
        now_s += pause_s + bucket.delay_s(now_s + pause_s)
        bucket.take(amount, now_s)
        granted += amount
        assert granted <= (now_s + BURST_S) * rate * (1 + 1e-6) + amount + 1


def test_a_debt_is_paid_off_at_the_rate() -> None:
    bucket = TokenBucket(100.0, 0.0)
    bucket.take(1000, 0.0)
    assert bucket.delay_s(0.0) == pytest.approx(10)
    assert bucket.delay_s(4.0) == pytest.approx(6)
    assert bucket.delay_s(10.0) == pytest.approx(0)


def test_an_idle_bucket_saves_up_only_its_burst() -> None:
    bucket = TokenBucket(1000.0, 0.0)
    bucket.take(int(1000 * BURST_S), 1e6)
    assert bucket.delay_s(1e6) == 0
    bucket.take(500, 1e6)
    assert bucket.delay_s(1e6) == pytest.approx(0.5)


def test_a_clock_that_goes_back_adds_nothing() -> None:
    bucket = TokenBucket(100.0, 50.0)
    bucket.take(100, 50.0)
    assert bucket.delay_s(0.0) == pytest.approx(1)
    assert bucket.delay_s(50.5) == pytest.approx(0.5)


def test_a_changed_rate_keeps_the_debt_in_bytes_and_no_limit_forgives_it() -> None:
    bucket = TokenBucket(100.0, 0.0)
    bucket.take(1000, 0.0)
    bucket.set_rate(1000.0, 0.0)
    assert bucket.delay_s(0.0) == pytest.approx(1)
    bucket.set_rate(None, 0.0)
    assert bucket.rate_per_s is None
    bucket.take(10**12, 0.0)
    assert bucket.delay_s(0.0) == 0
    bucket.set_rate(100.0, 0.0)
    assert bucket.delay_s(0.0) == 0
