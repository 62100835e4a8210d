"""Admission to the spool: the limit is never exceeded, manifests find room where batches do not."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from process_server.core.spool_budget import (
    DEFAULT_INDEX_LIMIT_BYTES,
    DEFAULT_LIMIT_BYTES,
    MAX_FILE_BYTES,
    MIN_LIMIT_BYTES,
    SpoolBudget,
    SpoolUse,
    spool_file_bytes,
    spool_limit_bytes,
)
from replication.errors import InvalidInput, Overloaded

MIB = 2**20
EMPTY = SpoolUse(0, 0)


def test_the_limit_is_the_configured_size_or_four_fifths_of_the_file_system() -> None:
    assert spool_limit_bytes(DEFAULT_LIMIT_BYTES, 10**15) == 300 * 10**9
    assert spool_limit_bytes(DEFAULT_LIMIT_BYTES, 100 * 10**9) == 80 * 10**9


def test_files_are_small_against_the_limit() -> None:
    assert spool_file_bytes(DEFAULT_LIMIT_BYTES) == MAX_FILE_BYTES
    assert spool_file_bytes(MIN_LIMIT_BYTES) == MIN_LIMIT_BYTES // 16


def test_a_limit_that_is_too_small_to_work_with_is_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot keep a spool within"):
        SpoolBudget(MIN_LIMIT_BYTES - 1)


@given(
    limit=st.integers(MIN_LIMIT_BYTES, 2**30),
    used=st.integers(0, 2**30),
    requests=st.lists(st.tuples(st.booleans(), st.integers(1, 9 * MIB)), max_size=200),
)
def test_what_is_used_and_reserved_never_exceeds_the_limit(
    limit: int, used: int, requests: list[tuple[bool, int]]
) -> None:
    budget = SpoolBudget(limit)
    for is_batch, size in requests:
        reserve = budget.reserve_batch if is_batch else budget.reserve_manifest
        before = budget.reserved_bytes
        try:
            reserve(SpoolUse(used, 0), size)
        except Overloaded:
            assert budget.reserved_bytes == before, "nothing was accepted"
        else:
            assert used + budget.reserved_bytes + budget.file_bytes <= limit


def test_when_batches_are_refused_manifests_still_find_room() -> None:
    budget = SpoolBudget(256 * MIB)
    full = SpoolUse(256 * MIB - budget.headroom_bytes - budget.file_bytes, 0)
    with pytest.raises(Overloaded, match="the spool is full") as caught:
        budget.reserve_batch(full, 1)
    assert caught.value.retry_after_s
    budget.reserve_manifest(full, MIB)


def test_a_closed_reservation_is_room_again_and_closing_twice_changes_nothing() -> None:
    budget = SpoolBudget(MIN_LIMIT_BYTES)
    with budget.reserve_batch(EMPTY, 10) as reservation:
        budget.reserve_batch(EMPTY, 5)
        assert budget.reserved_bytes == 15
    reservation.close()
    assert budget.reserved_bytes == 5


def test_an_index_that_is_full_refuses_batches_before_manifests() -> None:
    budget = SpoolBudget(2**30)
    nearly = SpoolUse(0, int(DEFAULT_INDEX_LIMIT_BYTES * 0.96))
    with pytest.raises(Overloaded, match="too many segments"):
        budget.reserve_batch(nearly, 1)
    budget.reserve_manifest(nearly, 1)
    with pytest.raises(Overloaded):
        budget.reserve_manifest(SpoolUse(0, DEFAULT_INDEX_LIMIT_BYTES), 1)


def test_the_free_fraction_is_bounded_by_what_the_file_system_has_left() -> None:
    budget = SpoolBudget(100 * MIB)
    assert budget.free_fraction(EMPTY, 2**40) == 1.0
    assert budget.free_fraction(SpoolUse(25 * MIB, 0), 2**40) == 0.75
    assert budget.free_fraction(SpoolUse(25 * MIB, 0), 10 * MIB) == 0.1
    assert budget.free_fraction(SpoolUse(200 * MIB, 0), 2**40) == 0.0


# -- how fast, before it is full --------------------------------------------------------------------------------

LIMIT = 10 * 2**30


@given(
    used=st.lists(st.integers(0, LIMIT), min_size=2, max_size=20),
    available=st.none() | st.integers(0, 2 * LIMIT),
    drained=st.floats(0, 1e9),
)
def test_less_free_spool_never_means_more_batches(used: list[int], available: int | None, drained: float) -> None:
    budget = SpoolBudget(LIMIT)
    rates = [budget.intake_rate(SpoolUse(bytes_, 0), available, drained) for bytes_ in sorted(used)]
    assert rates == sorted(rates, reverse=True)
    for bytes_, rate in zip(sorted(used), rates, strict=True):
        free = budget.free_fraction(SpoolUse(bytes_, 0), LIMIT if available is None else available)
        assert math.isinf(rate) == (free >= 0.2)


def test_below_a_fifth_of_free_spool_batches_come_more_slowly_without_a_cliff_at_either_end() -> None:
    budget = SpoolBudget(LIMIT)
    kept = budget.headroom_bytes + budget.file_bytes
    slope = LIMIT * 0.2 - kept

    def at(share: float) -> float:
        """With so much of the last fifth left."""
        return budget.intake_rate(SpoolUse(int(LIMIT - kept - slope * share), 0), None, 40e6)

    assert at(1.01) == math.inf
    assert at(0.99) > 99 * 39e6, "hardly felt at first"
    assert at(0.5) == pytest.approx(40e6, rel=0.01), "half-way as much comes as goes: there it settles"
    assert at(0.01) < 0.011 * 40e6
    assert at(0.0) == 0.0
    with pytest.raises(Overloaded, match="the spool is full"):
        budget.reserve_batch(SpoolUse(LIMIT - kept, 0), 1)


def test_store_that_takes_nothing_fills_the_last_fifth_over_hours_and_not_at_once() -> None:
    budget = SpoolBudget(DEFAULT_LIMIT_BYTES)
    used_bytes, took_s = DEFAULT_LIMIT_BYTES * 0.8 + 1, 0.0
    while used_bytes < DEFAULT_LIMIT_BYTES * 0.98:
        rate = min(100e6, budget.intake_rate(SpoolUse(int(used_bytes), 0), None, 0.0))
        used_bytes, took_s = used_bytes + rate * 10, took_s + 10
    assert 3600 < took_s < 4 * 3600
